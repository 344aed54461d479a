"""Hard inputs of every kind: made from real ones by chance, and the rules that each case must keep.

A case is a kind and a number; with the seed these two say everything about it. ``run`` of each
kind's file takes a ``rules.Case`` and returns what became of it: ``answered`` or ``refused``.
Anything else, a ``rules.Fault`` above all, is a failure.
"""
