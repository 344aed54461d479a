"""The page of networks says which command refuses which kind of network, as the commands do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import whycam
from whycam.calibrate import int8
from whycam.calibrate.dataset import Dataset
from whycam.calibrate.evaluate import check_measurable
from whycam.calibrate.fidelity import compare
from whycam.runtime.errors import DataError, RequestError, SourceError
from whycam.runtime.input_format import DynamicSize, Preprocess
from whycam.runtime.live.stream import Stream
from whycam.runtime.manifest import Manifest
from whycam.runtime.manifest_parts import OutputHead
from whycam.runtime.request import find_refusal

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
KINDS: dict[str, dict[str, Any]] = {
    "one class an image": {},
    "independent labels": {"task": "sigmoid"},
    "regression": {"task": "none", "methods": ("gradcam",)},
    "several heads": {
        "task": "heads",
        "num_classes": 4,
        "labels": ("a:x", "a:y", "b:x", "b:y"),
        "heads": (OutputHead("a", "softmax", 2), OutputHead("b", "softmax", 2)),
    },
    "grey images": {"preprocess": Preprocess((8, 8), (8,), mean=(0.5,), std=(0.5,), color="L")},
    "bands": {
        "preprocess": Preprocess((8, 8), (8,), mean=(0.5,) * 5, std=(0.5,) * 5, color="bands")
    },
    "`--dynamic-size`": {"dynamic_size": DynamicSize(8, 16, 4, (1, 1))},
    "`--classes input`": {"class_embeddings": 6},
    "segmentation networks": {"region": (8, 8), "methods": ("gradcam",)},
}


def read_table() -> dict[str, dict[str, str]]:
    """Read the page's table: by kind of network, then by command."""
    lines = [line for line in PAGE.read_text("utf-8").split("\n## ")[1].splitlines() if "|" in line]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def is_refused(call: Callable[[], object]) -> bool:
    """Whether a call is refused for the kind of file, before it misses data."""
    try:
        call()
    except RequestError:
        return True
    except (DataError, SourceError):
        return False
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_page_says_what_commands_refuse(kind, manifest_of, tiny_engine, monkeypatch, tmp_path):
    manifest: Manifest = manifest_of(**KINDS[kind])
    monkeypatch.setattr(int8, "read_manifest", lambda _: manifest)
    explainer = whycam.Explainer(tiny_engine(), manifest)
    nothing = Dataset(tmp_path, "folder", ())
    tft = manifest.tft if find_refusal(manifest, "gradcam", True) is None else None
    refused = {
        "TFT": tft is None,
        "evaluate, thresholds": is_refused(lambda: check_measurable(manifest)),
        "compare": is_refused(lambda: compare(explainer, explainer, (), None, tft)),
        "INT8": is_refused(lambda: int8.calibrate_int8("file.onnx", nothing, tmp_path / "x.onnx")),
        "stream": is_refused(lambda: Stream(explainer, tmp_path / "absent.mp4")),
    }
    (row,) = [cells for name, cells in read_table().items() if name.startswith(kind)]
    assert {name: row[name] == "no" for name in refused} == refused
    assert row["explain"] == "yes"
    assert (row["compare"] == "maps") == (tft is None)


def test_page_has_every_kind():
    assert len(read_table()) == len(KINDS)
