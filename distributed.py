"""Explain images in data pipelines: one callable for Ray Data, Spark and Dask; needs none of them.

See docs/cluster.md.
"""

from .runtime.distributed.explain import Explain

__all__ = ["Explain"]
