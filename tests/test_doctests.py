"""The examples of docstrings: each is run, in a folder with a small model and images."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from types import ModuleType

import cv2
import msgspec
import numpy as np
import pytest
from PIL import Image
from tiny_detector import DETECTOR, write_tiny_detector
from tiny_file import write_tiny

import whycam
from whycam.runtime import (
    box_drawing,
    class_comparison,
    detection,
    explainer,
    explanation,
    load,
    overlay,
    region,
    suggest,
    tft,
)
from whycam.runtime.distributed import explain as distributed_explain
from whycam.runtime.live import annotate, stream

MODULES = (
    box_drawing,
    class_comparison,
    detection,
    distributed_explain,
    explainer,
    explanation,
    load,
    overlay,
    region,
    suggest,
    tft,
    annotate,
    stream,
)


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, manifest_of) -> Path:
    """Models, images and a video, as the examples name them; images/ with three folders."""
    folder = tmp_path_factory.mktemp("examples")
    labels = ("tabby", "espresso", "missile")
    # Orange speaks for a cat and somewhat for coffee, blue for the sky around a missile.
    mix = np.array([[1.0, 0.2, -1], [-1, 0, 1], [0, 1, 0], [0.2, 0.2, 0.2], [0, -1, 0]])
    linear = np.array([[6.0, -1, 0, 0, 0], [1, 0, 0, 0.5, 1], [-1, 2, 0, 0, 0]])
    manifest = manifest_of(labels=labels, methods=("gradcam", "layercam"))
    write_tiny(folder / "model.onnx", manifest, mix, linear)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:75, :113]
    spot = np.exp(-(np.hypot(rows - 30, columns - 60) ** 2) / 700)[..., None]
    orange, blue = np.array([250.0, 150, 40]), np.array([90.0, 110, 150])
    scene = np.rint(spot * orange + (1 - spot) * blue).astype(np.uint8)
    Image.fromarray(scene).save(folder / "cat.jpg", quality=95)
    for label in labels:
        (folder / "images" / label).mkdir(parents=True)
        for number in range(2):
            noisy = scene + rng.integers(0, 16, scene.shape, np.uint8)
            Image.fromarray(noisy).save(folder / "images" / label / f"{number}.jpg")
    video = cv2.VideoWriter(str(folder / "walk.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(3):
        video.write(cv2.resize(scene[..., ::-1], (64, 48)))
    video.release()
    detector = msgspec.structs.replace(DETECTOR, labels=("dog", "car", "bicycle"))
    write_tiny_detector(folder / "detector.onnx", detector)
    street = np.full((128, 128, 3), 20, np.uint8)  # the detector sees it at half its size
    street[32:48, 48:64, 0], street[96:112, 64:80, 1] = 190, 150
    Image.fromarray(street).save(folder / "street.jpg", quality=100, subsampling=0)
    return folder


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_print_what_they_say(module, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if module is detection:
        pytest.importorskip("supervision")
    found = examples(module)
    assert found
    for test in found:
        test.globs |= {"whycam": whycam, "np": np, "cv2": cv2}
        said: list[str] = []
        failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
            test, out=said.append
        )
        assert not failed, "".join(said)


@pytest.mark.parametrize(
    "name", [name for name in whycam.__all__ if name not in ("WhyCamError", "__version__")]
)
def test_what_a_product_imports_has_an_example(name):
    public = getattr(whycam, name)
    documented = [public]
    if inspect.isclass(public):
        documented += [one for key, one in vars(public).items() if not key.startswith("_")]
    assert any(">>>" in (getattr(one, "__doc__", None) or "") for one in documented), name
