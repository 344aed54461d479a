"""What it means that a graph's own maps and thresholds are the runtime's."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

import whycam


def without_own_maps(explainer: whycam.Explainer) -> whycam.Explainer:
    """The same file, as if it held raw outputs alone: the runtime does the arithmetic."""
    raw = msgspec.structs.replace(explainer.manifest, outputs=("raw",), map_methods=())
    return whycam.Explainer(explainer.engine, raw)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    union = ((a > 0) | (b > 0)).sum()
    return float(((a > 0) & (b > 0)).sum() / union) if union else 1.0


def assert_same(own: Sequence[Any], computed: Sequence[Any]) -> None:
    """Equal answers for images times classes: maps within 1e-4, the same thresholds."""
    for a_row, b_row in zip(own, computed, strict=True):
        for a, b in zip(a_row, b_row, strict=True):
            assert a.index == b.index
            assert np.abs(a.original_map - b.original_map).max() <= 1e-4
            assert a.threshold == b.threshold
            assert a.improved == b.improved
            # A pixel whose value is that of the cut may fall on either side of it; on a random
            # network one pixel can change a small rpi by some percent.
            np.testing.assert_allclose(a.rpi, b.rpi, rtol=5e-2, atol=1e-3)
            assert overlap(a.map, b.map) > 0.99
