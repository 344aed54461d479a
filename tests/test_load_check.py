"""An engine must prove itself when it loads a file, or is refused."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

import whycam
from whycam.runtime import cam
from whycam.runtime.engines import registry as engines
from whycam.runtime.engines import selftest
from whycam.runtime.engines.base import Engine, EngineSettings
from whycam.runtime.engines.interface import check_outputs
from whycam.runtime.engines.opening import open_engine
from whycam.runtime.errors import WhyCamError
from whycam.runtime.onnxfile import digest, read_manifest, with_manifest

WRONG = "answers wrongly for .*maps are off by .*whycam verify .*--engine openvino"


class Turned:
    """An engine whose maps are upside down."""

    name, description, reason = "openvino", "an engine that is wrong", "asked for"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.runs = 0

    def run(self, feeds: Any, outputs: Any) -> dict[str, Any]:
        self.runs += 1
        found = self._engine.run(feeds, outputs)
        if "original_maps" in found:
            found["original_maps"] = 1 - found["original_maps"]
        return found


@pytest.fixture
def wrong(curved_onnx, monkeypatch) -> Callable[[str], list[Turned]]:
    """Puts an engine that is wrong in the place of a known one; returns those opened."""

    def put(name: str) -> list[Turned]:
        opened: list[Turned] = []
        right = engines.ENGINES["onnxruntime"].open

        def open_wrong(*arguments: Any) -> Turned:
            opened.append(Turned(right(*arguments)))
            return opened[-1]

        monkeypatch.setitem(engines.ENGINES, name, replace(engines.ENGINES[name], open=open_wrong))
        return opened

    return put


def test_an_engine_that_answers_wrongly_is_refused(wrong, curved_onnx):
    wrong("openvino")
    with pytest.raises(WhyCamError, match=WRONG):
        whycam.load(curved_onnx, "openvino")


def test_auto_passes_over_an_engine_that_answers_wrongly(wrong, curved_onnx, monkeypatch):
    wrong("openvino")
    order = lambda *_: (("openvino", "onnxruntime"), "first for this test")  # noqa: E731
    monkeypatch.setattr(engines, "_preference", order)
    found = whycam.load(curved_onnx).engine
    assert found.name == "onnxruntime"
    assert "openvino answers wrongly" in found.reason


def test_auto_fails_where_no_other_engine_is_left(wrong, curved_onnx, monkeypatch):
    wrong("openvino")
    monkeypatch.setattr(engines, "_preference", lambda *_: (("openvino",), "the only one"))
    with pytest.raises(WhyCamError, match=WRONG):
        whycam.load(curved_onnx)


def test_the_check_can_be_switched_off(wrong, curved_onnx):
    (opened,) = (wrong("openvino"),)
    assert whycam.load(curved_onnx, "openvino", check=False).engine is opened[0]
    assert opened[0].runs == 0


def test_the_engine_of_the_export_is_not_checked_again(wrong, curved_onnx):
    opened = wrong("onnxruntime")
    whycam.load(curved_onnx, "onnxruntime")
    assert opened[0].runs == 0


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ({"precision": "fp16"}, EngineSettings()),
        ({}, EngineSettings(precision="bf16")),
        ({"references": ()}, EngineSettings()),
    ],
    ids=["fp16 file", "bf16 arithmetic", "no references"],
)
def test_half_precision_or_no_references_are_not_refused(wrong, curved_onnx, file, settings):
    wrong("openvino")
    manifest = msgspec.structs.replace(read_manifest(curved_onnx), **file)
    assert open_engine(curved_onnx, manifest, "openvino", settings).description == (
        "an engine that is wrong"
    )


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_int8_file_is_refused_by_every_engine_that_computes_something_else(
    wrong, curved_onnx, name
):
    wrong(name)
    manifest = msgspec.structs.replace(read_manifest(curved_onnx), precision="int8")
    with pytest.raises(WhyCamError, match=r"other numbers than .* says .*--weight-bits 7"):
        open_engine(curved_onnx, manifest, name)


class Chaotic:
    """Other answers for every image, however near."""

    name = description = reason = "chaotic"

    def run(self, feeds: Any, outputs: Any) -> dict[str, Any]:
        rng = np.random.default_rng(zlib.crc32(feeds["image"].tobytes()))
        found = {"probabilities": rng.random((1, 7)), "original_maps": rng.random((1, 1, 32, 32))}
        return {name: found[name].astype(np.float32) for name in outputs}


def test_int8_file_whose_answers_single_roundings_decide_is_told_apart(
    wrong, curved_onnx, monkeypatch
):
    wrong("onnxruntime")
    monkeypatch.setattr(Turned, "run", lambda _, *arguments: Chaotic().run(*arguments))
    manifest = msgspec.structs.replace(read_manifest(curved_onnx), precision="int8")
    with pytest.raises(WhyCamError, match=r"other numbers .*single roundings decide") as caught:
        open_engine(curved_onnx, manifest, "onnxruntime")
    assert "--weight-bits" not in str(caught.value)


@pytest.mark.parametrize("embedded", [False, True])
def test_what_next_to_nothing_changes_is_measured(curved_onnx, embedded):
    manifest = msgspec.structs.replace(read_manifest(curved_onnx), embedded_preprocess=embedded)
    found = selftest.sensitivity(Chaotic(), manifest, manifest.references[0])
    assert found["probabilities"] > 0.05
    assert found["maps"] > 0.4


def test_next_to_nothing_changes_next_to_nothing_in_a_sound_engine(curved_onnx):
    engine, manifest = whycam.load(curved_onnx).engine, read_manifest(curved_onnx)
    for reference in manifest.references:
        found = selftest.sensitivity(engine, manifest, reference)
        assert found["probabilities"] < 1e-4
        assert 0 < found["maps"] < 1e-2


def test_openvino_proves_itself_on_an_ordinary_network(curved_onnx):
    pytest.importorskip("openvino")
    assert whycam.load(curved_onnx, "openvino").engine.name == "openvino"


def test_a_map_that_is_constant_up_to_rounding_is_not_held_against_an_engine(manifest_of):
    """Stretched to [0, 1] it is rounding alone."""
    rng = np.random.default_rng(0)

    class Flat:
        name = description = reason = "flat"

        def run(self, *_: Any) -> dict[str, Any]:
            rounding = 1 + 1e-7 * rng.standard_normal((1, 5, 4, 4))
            return {
                "probabilities": np.array([[0.5, 0.3, 0.2]], np.float32),
                "activations": rounding.astype(np.float32),
                "gradients": np.full((1, 1, 5, 4, 4), 0.2, np.float32),
            }

    flat = tuple(float(np.float32(1 + 1e-7 * value)) for value in rng.standard_normal(16))
    reference = selftest.Reference(0, 0, 0.5, flat)
    (found,) = selftest.check(Flat(), manifest_of(references=(reference,)))
    assert found.worst["maps"] == 0
    assert found.problems == ()


def flipped(source: Path, target: Path) -> Path:
    """One bit in the middle of the weights."""
    data = bytearray(source.read_bytes())
    largest = max(onnx.load(source).graph.initializer, key=lambda each: len(each.raw_data))
    data[bytes(data).index(largest.raw_data) + len(largest.raw_data) // 2] ^= 1
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("name", ["auto", "onnxruntime", "openvino"])
def test_a_file_with_a_flipped_bit_is_refused_before_an_engine_sees_it(curved_onnx, tmp_path, name):
    with pytest.raises(WhyCamError, match=r"changed\.onnx is not as whycam wrote it: its digest"):
        whycam.load(flipped(curved_onnx, tmp_path / "changed.onnx"), name)


def test_what_a_flipped_bit_does_can_be_looked_at(curved_onnx, tmp_path):
    changed = flipped(curved_onnx, tmp_path / "changed.onnx")
    assert whycam.load(changed, "onnxruntime", check=False).engine.name == "onnxruntime"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("promised", "output"),
    [
        ({"num_classes": 8, "labels": ()}, "probabilities"),
        ({"activations": (8, 12, 13)}, "activations"),
    ],
)
def test_answers_of_another_shape_than_promised_are_refused(curved_onnx, name, promised, output):
    pytest.importorskip(name)
    own = read_manifest(curved_onnx)
    manifest = msgspec.structs.replace(own, references=(), **promised)
    engine = open_engine(curved_onnx, manifest, name, EngineSettings(threads=1))
    feeds = {"image": selftest.make_input(own, 0), "target": np.full((1, 1), -1, np.int64)}
    with pytest.raises(WhyCamError, match=f"'{output}' as .* its manifest says .*Export it again"):
        engine.run(feeds, [output, "targets"])


def test_classes_that_there_are_not_are_refused(manifest_of):
    for chosen in (-1, 3, 2**62):
        with pytest.raises(WhyCamError, match=rf"classes {chosen} to {chosen} of 3"):
            check_outputs({"targets": np.full((1, 1), chosen)}, 1, 1, manifest_of())
    check_outputs({"targets": np.full((1, 1), 2)}, 1, 1, manifest_of())


def test_outputs_beyond_the_promised_ones_are_let_through(manifest_of):
    """The export compares more than it promises."""
    check_outputs(
        {"activations": np.zeros((1, 9, 9))},
        1,
        1,
        manifest_of(outputs=("map",), map_methods=("gradcam",), methods=("gradcam",)),
    )


def _signed(path: Path) -> None:
    """A digest that fits, as whoever means harm would write it."""
    manifest = read_manifest(path)
    with_manifest(path, path, msgspec.structs.replace(manifest, digest=digest(path)))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("place", ["../secret.bin", "/secret.bin", "link.bin", "beside.bin", None])
def test_weights_that_lie_elsewhere_or_are_short_are_refused(
    curved_onnx, tmp_path, place, engine, signed
):
    model = onnx.load(curved_onnx)
    weights = next(each for each in model.graph.initializer if len(each.dims) == 4)
    values = np.full(tuple(weights.dims), 1234.5, np.float32).tobytes()
    folder = tmp_path / "inside"
    folder.mkdir()
    for other in (tmp_path / "secret.bin", folder / "beside.bin"):
        other.write_bytes(values)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    if place is None:
        weights.raw_data = weights.raw_data[:8]
    else:
        place = str(tmp_path / "secret.bin") if place.startswith("/") else place
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=place)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    if signed:
        _signed(path)
    with pytest.raises(WhyCamError, match=None if signed else "its digest differs"):
        whycam.load(path, engine, threads=1)


def test_absolute_map_counts_sums_of_activations_that_cancel():
    """XGrad-CAM divides by them: what float32 rounds there is a larger share of the map."""
    rng = np.random.default_rng(0)
    activations = rng.standard_normal((1, 3, 4, 4)).astype(np.float32)
    activations[:, 1] -= activations[:, 1].mean() - 1e-6
    gradients = rng.standard_normal((1, 1, 3, 4, 4)).astype(np.float32)
    exact = cam.raw_map("xgradcam", activations.astype(np.float64), gradients.astype(np.float64))
    rounded = cam.raw_map("xgradcam", activations, gradients)
    terms = selftest.absolute_map("xgradcam", activations, gradients)
    assert abs(rounded - exact).max() > 1e-6 * abs(exact).max()
    assert abs(rounded - exact).max() < 1e-6 * terms.max()
