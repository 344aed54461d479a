"""Examine which engines run on this machine, and whether their answers are right."""
