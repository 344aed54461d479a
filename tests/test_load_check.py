"""An engine must prove itself when it loads a file, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

import whycam
from whycam.runtime.engines import engine as engines
from whycam.runtime.engines import selftest
from whycam.runtime.engines.engine import EngineSettings, open_engine
from whycam.runtime.errors import WhyCamError
from whycam.runtime.onnxfile import read_manifest

WRONG = "answers wrongly for .*map by .*whycam verify .*--engine openvino"


class Turned:
    """An engine whose maps are upside down."""

    name, description, reason = "openvino", "an engine that is wrong", "asked for"

    def __init__(self, engine: engines.Engine) -> None:
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
    assert found.map == 0
    assert found.problem() is None
