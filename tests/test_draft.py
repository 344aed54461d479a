"""TFT with its thresholds tried in less precision, and the best two again exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import whycam
from whycam.runtime.errors import RequestError, WhyCamError
from whycam.runtime.sweep import Request, drafted_sweep, sweep
from whycam.runtime.tft import Tft

READINGS = [Tft("binary", "value"), Tft("soft", "rank")]


def requests(count: int) -> list[Request]:
    rng = np.random.default_rng(0)
    return [
        Request(
            rng.normal(size=(3, 8, 8)).astype(np.float32),
            rng.random((8, 8)).astype(np.float32),
            index % 3,
            0.2,
        )
        for index in range(count)
    ]


class Network:
    """Softmax of sums over parts of the image; ``noise`` makes it imprecise."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise
        self.images = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.images += len(images)
        logits = np.stack([images[:, c].mean((1, 2)) * 4 for c in range(3)], 1)
        wrong = np.random.default_rng(1).normal(size=logits.shape) * self.noise
        e = np.exp(logits + wrong)
        return (e / e.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("settings", READINGS, ids=["binary", "soft"])
def test_a_perfect_draft_finds_what_the_whole_sweep_finds_with_two_forwards(settings):
    given, exact, draft = requests(5), Network(), Network()
    found = drafted_sweep(exact, draft, given, settings, 4)
    expected = sweep(Network(), given, settings, 4)
    assert exact.images == 2 * len(given)
    assert draft.images <= 10 * len(given)
    for a, b in zip(found, expected, strict=True):
        assert a.threshold == b.threshold
        assert a.improved == b.improved
        np.testing.assert_array_equal(a.map, b.map)
        assert np.isfinite(a.rpi).sum() == 2
        np.testing.assert_allclose(np.nanmax(a.rpi), b.rpi.max(), rtol=1e-5)


def test_a_bad_draft_costs_the_best_threshold_but_never_the_truth():
    """Whatever the draft says, what is reported is what the exact network answers."""
    given, settings = requests(20), Tft("soft", "rank")
    found = drafted_sweep(Network(), Network(noise=3.0), given, settings, 16)
    expected = sweep(Network(), given, settings, 16)
    assert any(a.threshold != b.threshold for a, b in zip(found, expected, strict=True))
    for a, b in zip(found, expected, strict=True):
        known = np.isfinite(a.rpi)
        np.testing.assert_allclose(a.rpi[known], b.rpi[known], rtol=1e-5)
        assert np.nanmax(a.rpi) <= b.rpi.max() + 1e-6


def test_a_map_that_leaves_one_mask_has_one_candidate():
    flat = Request(np.ones((3, 8, 8), np.float32), np.ones((8, 8), np.float32), 0, 0.3)
    exact = Network()
    (found,) = drafted_sweep(exact, Network(), [flat], Tft("binary", "value"), 4)
    assert exact.images == 1
    assert np.isfinite(found.rpi).sum() == 1


@pytest.mark.parametrize("settings", READINGS, ids=["binary", "soft"])
def test_drafts_in_bf16_choose_nearly_as_well(lite0, lite0_onnx, photographs, settings):
    able = pytest.importorskip("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in able:
        pytest.skip("this processor has no bf16 arithmetic")
    drafted = whycam.load(lite0_onnx, threads=2, sweep_in="bf16")
    exact = lite0.explain(photographs, tft=settings)
    for a, b in zip(drafted.explain(photographs, tft=settings), exact, strict=True):
        assert a.probability == pytest.approx(b.probability, abs=1e-5)
        np.testing.assert_allclose(a.original_map, b.original_map, atol=1e-4)
        assert np.nanmax(a.rpi) == pytest.approx(b.rpi.max(), abs=0.02)
        assert a.to_dict()["rpi"].count(None) == 8


def test_the_graphs_own_sweep_gives_way_to_a_draft(tmp_path, photographs):
    from networks import SMALL, linear

    from whycam.export import to_onnx

    path = tmp_path / "tft.onnx"
    to_onnx(linear(), path, outputs=["tft", "raw"], overrides=SMALL)
    drafted = whycam.load(path, sweep_in=path)
    for a, b in zip(
        drafted.explain(photographs, tft=True),
        whycam.load(path).explain(photographs, tft=True),
        strict=True,
    ):
        assert a.threshold == b.threshold
        np.testing.assert_allclose(a.original_map, b.original_map, atol=1e-5)


def test_what_is_no_draft_of_this_network_is_refused(lite0_onnx, pixels_onnx, tmp_path):
    from networks import SMALL, linear

    from whycam.export import to_onnx

    other = tmp_path / "other.onnx"
    to_onnx(linear(), other, overrides=SMALL)
    with pytest.raises(RequestError, match="is not the network of"):
        whycam.load(lite0_onnx, sweep_in=other)
    with pytest.raises(RequestError, match="whole pictures only"):
        whycam.load(pixels_onnx, sweep_in=pixels_onnx)
    with pytest.raises(WhyCamError, match="nothing"):
        whycam.load(lite0_onnx, sweep_in=tmp_path / "nothing.onnx")


def test_command_line_asks_for_tft(lite0_onnx: Path, chelsea: Path):
    import subprocess
    import sys

    command = [sys.executable, "-m", "whycam", "explain", str(lite0_onnx), str(chelsea)]
    for options, told in (
        (["--sweep-in", "bf16"], "--sweep-in is a setting of --tft"),
        (["--tft", "--again", "3"], "--again is a setting of --sweep-in"),
    ):
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert told in done.stderr


@pytest.mark.parametrize("again", [1, 3, 20])
def test_as_many_as_wanted_are_tried_again(again):
    given = requests(3)
    settings = Tft(again=again)
    found = drafted_sweep(Network(), Network(noise=0.5), given, settings, 16)
    for choice, request in zip(found, given, strict=True):
        different = len(np.unique([(request.map >= tau).sum() for tau in settings.taus]))
        assert np.isfinite(choice.rpi).sum() == min(again, different)
