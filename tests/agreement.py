"""What it means that a graph's own maps and thresholds are the runtime's."""

import json
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

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


def assert_python_answers_so(
    done: CompletedProcess[str], model: Path, sample: Path, target: int, folder: Path
) -> None:
    """An example's answer is Python's: ``a.json`` and ``why.png`` in ``folder``, and its words."""
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "a.json").read_text())
    expected = whycam.load(model, threads=2).explain(sample, target, tft=True)
    assert (found["index"], found["label"]) == (expected.index, expected.label)
    assert expected.label in done.stdout
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-3)
    assert found["threshold"] == pytest.approx(expected.threshold, abs=1e-6)
    np.testing.assert_allclose(found["rpi"], expected.rpi, atol=1e-3)
    shape = found["shape"]
    np.testing.assert_allclose(
        np.reshape(found["original_map"], shape), expected.original_map, atol=1e-3
    )
    assert overlap(np.reshape(found["map"], shape), expected.map) > 0.99
    assert Image.open(folder / "why.png").size == Image.open(sample).size
