"""Explain images past one machine.

``explain`` is the callable that a worker of any data engine builds once; ``storage`` lists, reads
and writes files on disks and in object stores; ``run`` keeps a run in parts of which finished ones
stay; ``cluster`` hands the parts to Ray, and ``coordinator`` is what runs there.
"""
