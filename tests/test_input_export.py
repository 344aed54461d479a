"""Exports of networks with any channels, layout, element type and shape of input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tifffile
import torch
from foreign import CHANNELS, CLASSES, File, saved
from onnx import TensorProto, helper

import whycam
from whycam.calibrate.dataset import open_dataset
from whycam.calibrate.evaluate import evaluate
from whycam.export import Overrides, to_onnx
from whycam.export.input_channels import read_input_channels
from whycam.export.input_geometry import read_geometry
from whycam.export.onnx_reading import read_onnx_file
from whycam.export.plain_model import to_plain
from whycam.runtime.errors import ExportError
from whycam.runtime.manifest import Manifest

ZERO_ONE = {"preprocess": "zero-one"}


def network(
    folder: Path,
    channels: int,
    layout: str = "NCHW",
    size: tuple[int | str, int | str] = (16, 24),
    dtype: int = TensorProto.FLOAT,
    declared: int | str | None = None,
) -> Path:
    """A pooled linear classifier of two convolutions, strides 2 and 1, for any input."""
    sides = declared or channels, *size
    image = ("N", *sides) if layout == "NCHW" else ("N", *size, sides[0])
    file = File(image=image, dtype=dtype)
    x = file.name
    if dtype == TensorProto.UINT8:
        file.nodes.append(helper.make_node("Cast", [x], ["pixels"], to=TensorProto.FLOAT))
        x = file.add("Div", "pixels", file.constant(255.0))
    if layout == "NHWC":
        x = file.add("Transpose", x, perm=[0, 3, 1, 2])
    weight = file.weight(6, channels, 3, 3)
    x = file.add("Relu", file.add("Conv", x, weight, strides=[2, 2], pads=[1, 1, 1, 1]))
    x = file.add("Conv", x, file.weight(CHANNELS, 6, 3, 3), pads=[1, 1, 1, 1])
    x = file.add("Relu", x)
    file.add("Softmax", file.linear(file.pooled(x)), to="y", axis=1)
    return saved(file.model({"y": ["N", CLASSES]}), folder)


def explained(file: Path, outputs: tuple[str, ...] = ("raw",), **overrides: Any) -> Path:
    target = file.with_suffix(".explained.onnx")
    to_onnx(file, target, overrides=Overrides(**(ZERO_ONE | overrides)), outputs=outputs)
    return target


def answers_of(file: Path, image: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": image})[0])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_layout_and_channels_follow_from_the_first_convolution(tmp_path, channels, layout):
    # A size that is itself a plausible number of channels: the shape alone says nothing.
    file = network(tmp_path, channels, layout, size=(4, 3), declared="C")
    plain = to_plain(read_onnx_file(file))
    assert (plain.channels, plain.layout, plain.size) == (channels, layout, (4, 3))


def test_layout_that_the_graph_contradicts_is_refused(tmp_path):
    file = network(tmp_path, 13)
    with pytest.raises(ExportError, match="is NCHW, as its first convolution reads it, not NHWC"):
        to_plain(read_onnx_file(file), layout="NHWC")


def test_channels_that_the_file_contradicts_are_refused(tmp_path):
    with pytest.raises(ExportError, match="takes 13 channels, and the preprocessing is for 4"):
        explained(network(tmp_path, 13), channels=4)


def test_channels_that_nothing_states_are_asked_for():
    file = File(image=("N", "C", 4, 4))
    file.add("Softmax", file.linear(file.add("Flatten", "x"), inner=48), to="y", axis=1)
    model = file.model({"y": ["N", CLASSES]})
    image = read_image_input(model)
    with pytest.raises(ExportError, match="pass --channels"):
        read_geometry(image, None, "NCHW", None)
    assert read_geometry(image, None, "NCHW", 3) == (3, (4, 4), "NCHW", None)


def read_image_input(model: onnx.ModelProto) -> Any:
    import onnx_ir as ir

    return ir.from_proto(model).graph.inputs[0]


@pytest.mark.parametrize(
    ("channels", "layout", "deep"),
    [(1, "NCHW", False), (4, "NHWC", False), (13, "NCHW", True), (5, "NHWC", True)],
)
def test_bands_are_fed_as_the_networks_own_file_takes_them(tmp_path, channels, layout, deep):
    file = network(tmp_path, channels, layout)
    explainer = whycam.load(explained(file, value_range=(100, 1100) if deep else None))
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 256, (16, 24, channels)).astype(np.uint16 if deep else np.uint8)
    own = (image.astype(np.float32) - 100) / 1000 if deep else image.astype(np.float32) / 255
    own = own[None] if layout == "NHWC" else np.moveaxis(own, -1, 0)[None]
    np.testing.assert_allclose(explainer.classify(image), answers_of(file, own), atol=1e-6)
    found = explainer.explain(image, tft=True)
    assert found.map.shape == (16, 24)
    assert found.image.shape == (16, 24, 3)
    assert np.isfinite(found.map).all()


def test_uint8_input_with_channels_last_takes_the_pixels(tmp_path):
    file = network(tmp_path, 4, "NHWC", dtype=TensorProto.UINT8)
    explainer = whycam.load(explained(file, preprocess="raw"))
    image = np.random.default_rng(1).integers(0, 256, (16, 24, 4), np.uint8)
    np.testing.assert_allclose(explainer.classify(image), answers_of(file, image[None]), atol=1e-6)
    assert explainer.explain(image).map.max() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ExportError, match="uint8 input takes 8-bit images"):
        explained(file, preprocess="raw", value_range=(0, 65535))


# --- a bright patch at the right edge lights the right edge ---


def place_finder(folder: Path, channels: int, layout: str, size: tuple[int, int]) -> Path:
    """A network whose first class is the brightness above one half, wherever it is."""
    shape = ("N", channels, *size) if layout == "NCHW" else ("N", *size, channels)
    file = File(image=shape)
    x = file.name
    if layout == "NHWC":
        x = file.add("Transpose", x, perm=[0, 3, 1, 2])
    kernel = np.full((2, channels, 4, 4), 1 / (16 * channels))
    bias = file.constant([-0.5, 0.0])
    x = file.add("Relu", file.add("Conv", x, file.constant(kernel), bias, strides=[4, 4]))
    matrix = file.constant([[400.0, 0.0], [0.0, 0.1]])
    x = file.add("Gemm", file.pooled(x), matrix, file.constant([0.0, 0.0]), transB=1)
    file.add("Softmax", x, to="y", axis=1)
    return saved(file.model({"y": ["N", 2]}), folder)


@pytest.mark.parametrize(
    ("layout", "channels"), [("NCHW", 3), ("NHWC", 3), ("NCHW", 5), ("NHWC", 1)]
)
def test_bright_patch_lights_the_place_where_it_is(tmp_path, layout, channels):
    size = 180, 320
    file = place_finder(tmp_path, channels, layout, size)
    explainer = whycam.load(explained(file, outputs=("raw", "map", "tft")))
    patches = {"right": (80, 290), "left": (80, 4), "top": (4, 150), "bottom": (150, 150)}
    for name, (row, column) in patches.items():
        image = np.full((*size, channels if channels > 1 else 3), 40, np.uint8)
        image[row : row + 26, column : column + 26] = 255
        swept = explainer.explain(image, 0, tft=True)
        for values in (explainer.explain(image, 0).map, swept.map, swept.original_map):
            assert values.shape == size
            weights = values / values.sum()
            centre = [float((weights * place).sum()) for place in np.indices(size)]
            np.testing.assert_allclose(centre, (row + 12.5, column + 12.5), atol=3, err_msg=name)


# --- PyTorch models ---


class Features(torch.nn.Module):
    """A small classifier; the convolution that is declared first may run later."""

    def __init__(self, channels: int, declare_first: bool = True) -> None:
        super().__init__()
        if not declare_first:
            self.late = torch.nn.Conv2d(8, 8, 1)
        self.first = torch.nn.Conv2d(channels, 8, 3, 2, 1)
        self.late = torch.nn.Conv2d(8, 8, 1)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.late(self.first(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_channels_of_a_module_are_those_of_its_first_convolution(channels):
    model = Features(channels).train()
    assert read_input_channels(model, (16, 16)) == channels
    assert model.training
    assert model.head.training


def test_convolution_that_is_declared_first_and_runs_later_is_not_believed():
    with pytest.raises(ExportError, match="Pass --channels"):
        read_input_channels(Features(4, declare_first=False), (16, 16))


def test_model_without_convolution_says_nothing():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    assert read_input_channels(model, (4, 4)) is None


@pytest.mark.slow
def test_module_of_bands_is_exported_and_shows_the_bands_asked_for(tmp_path):
    file = tmp_path / "bands.onnx"
    overrides = Overrides(**ZERO_ONE, image_size=(16, 24), value_range=(0, 10000))
    result = to_onnx(Features(13).eval(), file, overrides=overrides, show_bands=(4, 3, 2))
    assert any("13 channels, as the first convolution has" in note for note in result.notes)
    assert result.manifest.preprocess.color == "bands"
    image = np.random.default_rng(0).integers(0, 10000, (20, 30, 13)).astype(np.uint16)
    shown = whycam.load(file).explain(image).image
    other = whycam.load(file, show_bands=(2, 3, 4)).explain(image).image
    np.testing.assert_array_equal(shown, other[..., ::-1])


def test_graphs_own_preprocessing_refuses_bands(tmp_path):
    file = network(tmp_path, 4)
    with pytest.raises(ExportError, match="8-bit RGB images, and this network takes images of 4"):
        to_onnx(file, tmp_path / "e.onnx", overrides=Overrides(**ZERO_ONE), embed_preprocess=True)
    assert not (tmp_path / "e.onnx").exists()


# --- other verbs ---


def test_folder_of_tiff_files_is_evaluated(tmp_path):
    explainer = whycam.load(explained(network(tmp_path, 13), value_range=(0, 10000)))
    rng = np.random.default_rng(2)
    for index in range(3):
        bands = rng.integers(0, 10000, (13, 18, 26)).astype(np.uint16)
        (tmp_path / "data" / "1").mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / f"data/1/{index}.tif", bands, photometric="minisblack")
    np.save(tmp_path / "data/1/3.npy", np.moveaxis(bands, 0, -1))
    (tmp_path / "data/1/4.tif").write_bytes(b"II*\0damaged")
    evaluation = evaluate(explainer, open_dataset(tmp_path / "data"), methods=["gradcam"])
    assert evaluation.images == 4
    assert evaluation.unreadable_count == 1


def test_manifest_with_bands_is_read_back(manifest_of: Callable[..., Manifest], tmp_path):
    file = explained(network(tmp_path, 5), value_range=(-1, 1))
    spec = whycam.load(file).manifest.preprocess
    assert (spec.color, spec.channels, spec.value_range) == ("bands", 5, (-1, 1))
