"""Segmentation networks: the mean score of a region is explained, as PyTorch's autograd says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from export_cache import exported
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from segmentation_networks import (
    CLASSES,
    argmax_unet,
    binary_unet,
    pyramid,
    sigmoid_unet,
    softmax_unet,
    unet,
    with_activation,
)
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

import whycam
from whycam.calibrate.evaluate import check_one_head
from whycam.cli.entry import app
from whycam.export import Overrides, to_onnx
from whycam.export.layer_list import list_layers
from whycam.export.references import open_in_float64
from whycam.runtime.errors import EngineError, ExportError, RequestError
from whycam.runtime.explained_region import weigh_places
from whycam.runtime.live.controls import Controls
from whycam.runtime.preprocess import Placement

SIDE = 32
LABELS = ("background", "cat", "dog", "cup")
SMALL = Overrides(image_size=SIDE, resize=0, mean=(0.5,) * 3, std=(0.25,) * 3)
PIXELS = np.random.default_rng(3).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
IMAGE = np.random.default_rng(4).integers(0, 256, (48, 64, 3), np.uint8)


def export(source: Callable[[], nn.Module] = unet, **options: object) -> Path:
    return exported(source, overrides=SMALL, labels=list(LABELS), **options)


@pytest.fixture(scope="module")
def path() -> Path:
    return export()


@pytest.fixture(scope="module")
def explainer(path: Path) -> whycam.Explainer:
    return whycam.load(path, engine="onnxruntime")


def regions() -> NDArray[np.float32]:
    weights = np.zeros((2, SIDE, SIDE), np.float32)
    weights[0, 3:12, 20:30] = 1
    weights[1] = np.random.default_rng(5).random((SIDE, SIDE))
    return weights


def true_scores(
    model: nn.Module, pixels: NDArray[np.float32], weights: NDArray[np.float32]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean logits of regions and the bottom's activations, by PyTorch alone, in float64."""
    net, image = model.double(), torch.from_numpy(pixels).double()
    first = functional.relu(net.first(image))
    bottom = functional.relu(net.bottom(functional.relu(net.second(first))))
    bottom = bottom.detach().requires_grad_()
    region = torch.from_numpy(weights).double()[:, None]
    scores = (net.head(bottom, first.detach()) * region).sum((2, 3)) / region.sum((2, 3))
    return scores, bottom


def test_gradients_of_each_images_own_region_are_autograds(explainer: whycam.Explainer) -> None:
    weights, target = regions(), np.array([[1, 3], [0, 2]])
    feeds = {"image": PIXELS, "target": target, "region": weights}
    found = explainer.engine.run(feeds, ["probabilities", "gradients", "activations"])
    scores, bottom = true_scores(unet(), PIXELS, weights)
    assert np.abs(found["probabilities"] - scores.softmax(1).detach().numpy()).max() < 1e-6
    assert np.abs(found["activations"] - bottom.detach().numpy()).max() < 1e-5
    for column in range(2):
        chosen = scores[torch.arange(2), torch.from_numpy(target[:, column])].sum()
        (true,) = torch.autograd.grad(chosen, bottom, retain_graph=True)
        error = np.abs(found["gradients"][:, column] - true.numpy()).max()
        assert error < 1e-4 * true.abs().max()


def test_maps_are_those_of_another_library(explainer: whycam.Explainer) -> None:
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    target = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, region = unet(), regions()[0]
    names = {"gradcam": "GradCAM", "hirescam": "HiResCAM", "layercam": "LayerCAM"}
    for method, name in names.items():
        # Its target layer is a module, before the ReLU that follows it here.
        wrapped = nn.Sequential()
        wrapped.add_module("below", _Below(model))
        wrapped.add_module("above", _Above(model))
        with getattr(grad_cam, name)(wrapped, [wrapped.below]) as cam:
            chosen = target.SemanticSegmentationTarget(2, region)
            expected = cam(torch.from_numpy(PIXELS[:1]), [chosen])[0]
        plan = explainer.plan(method)
        found = whycam.runtime.pipeline.infer(
            explainer.model, PIXELS[:1], [[2]], plan, region[None]
        )
        (one,) = whycam.runtime.pipeline.map(explainer.model, found, plan)
        assert np.abs(one.map - expected).max() < 1e-4, method


class _Below(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.net.kept = functional.relu(self.net.first(x))
        return functional.relu(self.net.bottom(functional.relu(self.net.second(self.net.kept))))


class _Above(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, bottom: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.net.head(bottom, self.net.kept)
        return scores


@pytest.mark.parametrize("source", [softmax_unet, argmax_unet])
def test_activations_at_the_end_change_neither_scores_nor_maps(
    source: Callable[[], nn.Module], explainer: whycam.Explainer
) -> None:
    other = whycam.load(export(source), engine="onnxruntime")
    feeds = {"image": PIXELS, "target": np.full((2, 1), 2), "region": regions()}
    ours, theirs = (
        one.engine.run(feeds, ["probabilities", "maps", "place_scores"])
        for one in (explainer, other)
    )
    for name, values in ours.items():
        assert np.abs(values - theirs[name]).max() < 1e-5, name


def test_independent_labels_have_probabilities_of_their_own() -> None:
    found = whycam.load(export(sigmoid_unet), engine="onnxruntime")
    assert found.manifest.task == "sigmoid"
    weights = regions()
    feeds = {"image": PIXELS, "target": np.full((2, 1), -1), "region": weights}
    scores, _ = true_scores(unet(), PIXELS, weights)
    probabilities = found.engine.run(feeds, ["probabilities"])["probabilities"]
    assert np.abs(probabilities - scores.sigmoid().detach().numpy()).max() < 1e-6


def test_one_logit_at_every_place_is_foreground_and_background() -> None:
    path = exported(binary_unet, overrides=SMALL, labels=["background", "cup"])
    found = whycam.load(path, engine="onnxruntime")
    one = found.explain(IMAGE)
    assert found.manifest.task == "binary"
    assert one.label == "cup"
    assert one.probability > 0.5
    assert 0 < (one.explained_area or 0) < 1
    other = found.explain(IMAGE, "background")
    assert (one.explained_area or 0) + (other.explained_area or 0) == pytest.approx(1)


def test_a_class_is_explained_where_it_is_predicted(explainer: whycam.Explainer) -> None:
    every = explainer.explain(IMAGE, [0, 1, 2, 3])
    inputs = whycam.runtime.pipeline.prepare([IMAGE], explainer.manifest).inputs
    with torch.no_grad():
        best = unet()(torch.from_numpy(inputs))[0].argmax(0).numpy()
    areas = np.array([(best == index).mean() for index in range(CLASSES)])
    assert len(set(best.ravel().tolist())) > 1  # else nothing is tested
    for index, one in enumerate(every):
        weights = (best == index).astype(np.float32)
        assert one.explained_area == pytest.approx(areas[index] or 1.0)
        scores, _ = true_scores(unet(), inputs, (weights if areas[index] else weights + 1)[None])
        assert one.probability == pytest.approx(float(scores.softmax(1)[0, index]), abs=1e-5)
    first = explainer.explain(IMAGE)
    assert first.index == 1 + int(areas[1:].argmax())  # the background is left out


def test_without_names_of_a_background_the_largest_class_comes_first() -> None:
    found = whycam.load(exported(unet, overrides=SMALL, task="softmax"), engine="onnxruntime")
    every = found.explain(IMAGE, [0, 1, 2, 3])
    areas = [one.explained_area if (one.explained_area or 0) < 1 else 0 for one in every]
    assert found.explain(IMAGE).index == int(np.argmax(areas))


def test_a_point_a_mask_a_file_and_the_whole_image_are_regions(
    explainer: whycam.Explainer, tmp_path: Path
) -> None:
    mask = np.zeros(IMAGE.shape[:2], bool)
    mask[10:30, 24:40] = True
    file = tmp_path / "mask.png"
    Image.fromarray(mask.astype(np.uint8) * 7).save(file)
    by_mask, by_file = (explainer.explain(IMAGE, 1, region=each) for each in (mask, file))
    assert np.array_equal(by_mask.map, by_file.map)
    assert by_mask.explained_area == pytest.approx(20 * 16 / (48 * 64))
    inputs = whycam.runtime.pipeline.prepare([IMAGE], explainer.manifest).inputs
    weights = weigh_places(mask, Placement((48, 64), 0, 0, 48, 64), (SIDE, SIDE))
    scores, _ = true_scores(unet(), inputs, weights[None])
    assert by_mask.probability == pytest.approx(float(scores.softmax(1)[0, 1]), abs=1e-5)
    whole = explainer.explain(IMAGE, 1, region="image")
    assert whole.explained_area == pytest.approx(1)
    everywhere = explainer.explain(IMAGE, 1, region=np.ones((48, 64)))
    assert np.array_equal(whole.map, everywhere.map)
    point = explainer.explain(IMAGE, region=(41, 13))
    with torch.no_grad():
        scores_there = unet()(torch.from_numpy(inputs))[0, :, 13 * 32 // 48, 41 * 32 // 64]
    assert point.index == int(scores_there.argmax())
    assert point.probability == pytest.approx(float(scores_there.softmax(0).max()), abs=1e-5)


def test_the_region_is_outlined_and_its_share_is_said(explainer: whycam.Explainer) -> None:
    mask = np.zeros(IMAGE.shape[:2], bool)
    mask[12:30, 20:44] = True
    one = explainer.explain(IMAGE, 1, region=mask)
    drawn = one.overlay(scale=8)
    cyan = (drawn == (0, 220, 255)).all(-1)
    rows, columns = np.flatnonzero(cyan.any(1)), np.flatnonzero(cyan.any(0))
    for found, expected in zip(
        (rows[0], rows[-1], columns[0], columns[-1]), (96, 240, 160, 352), strict=True
    ):
        assert abs(found - expected) <= 12  # a place is 12 by 16 pixels here
    assert not cyan[120:200, 200:300].any()
    assert one.caption_lines()[0].endswith("over 14% of the image")
    assert not (one.overlay(whycam.Style(contour=False), scale=8) == (0, 220, 255)).all(-1).any()
    whole = explainer.explain(IMAGE, 1, region="image")
    assert not (whole.overlay(scale=8) == (0, 220, 255)).all(-1).any()
    point = explainer.explain(IMAGE, 1, region=(3, 3))
    assert point.caption_lines()[0].endswith("over less than 1% of the image")


def test_places_outside_the_image_count_for_nothing() -> None:
    # The input reaches over the image by half its height above and below.
    placement = Placement((10, 20), -5.0, 0.0, 15.0, 20.0)
    weights = weigh_places("image", placement, (4, 2))
    assert weights.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    half = np.zeros((10, 20))
    half[:, 5:10] = 3.0
    assert weigh_places(half, placement, (4, 2))[1].tolist() == [0.5, 0]
    assert weigh_places((19.5, 0.5), placement, (4, 2)).tolist()[1] == [0, 1]


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (np.zeros((48, 64)), "is empty"),
        (np.ones((64, 48)), "48 x 64 pixels"),
        (np.full((48, 64), np.nan), "finite"),
        (np.full((48, 64), -1.0), "finite numbers from 0"),
        ((64.0, 3.0), "lies outside what the network sees"),
        ((1.0, 2.0, 3.0), "a point is"),
        (("a", 2.0), "a point is"),
    ],
)
def test_regions_without_meaning_are_refused(
    region: object, message: str, explainer: whycam.Explainer
) -> None:
    with pytest.raises(RequestError, match=message):
        explainer.explain(IMAGE, region=region)  # type: ignore[arg-type]


def test_masks_of_any_depth_count_where_they_are_not_zero(tmp_path: Path) -> None:
    numbers = np.zeros((8, 8), np.int64)
    numbers[:2], numbers[6:] = 1, 300  # objects of a 16-bit mask, the first below its 8-bit scale
    placement = Placement((8, 8), 0, 0, 8, 8)
    expected = (numbers > 0).astype(np.float32)
    Image.fromarray(numbers.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(numbers.astype(np.int32)).save(tmp_path / "deep.tif")
    for source in (tmp_path / "deep.png", tmp_path / "deep.tif", numbers, numbers % 256):
        assert np.array_equal(weigh_places(source, placement, (8, 8)), expected), source
    weights = weigh_places(numbers / 300, placement, (8, 8))
    assert weights[0, 0] == pytest.approx(1 / 300)


def test_many_images_have_one_region_or_one_each(explainer: whycam.Explainer) -> None:
    other = IMAGE[::-1].copy()
    both = explainer.explain([IMAGE, other], 1, region=[(5, 5), "image"])
    alone = [
        explainer.explain(IMAGE, 1, region=(5, 5)),
        explainer.explain(other, 1, region="image"),
    ]
    for one, again in zip(both, alone, strict=True):
        assert np.abs(one.map - again.map).max() < 1e-5
    with pytest.raises(RequestError, match="1 regions for 2 images"):
        explainer.explain([IMAGE, other], 1, region=[(5, 5)])


def test_thresholds_are_judged_by_the_same_region(explainer: whycam.Explainer) -> None:
    mask = np.zeros((48, 64), bool)
    mask[5:25, 5:40] = True
    one = explainer.explain(IMAGE, 2, region=mask, tft=True)
    inputs = whycam.runtime.pipeline.prepare([IMAGE], explainer.manifest).inputs
    weights = weigh_places(mask, one.placement, (SIDE, SIDE))[None]
    assert one.rpi is not None
    assert one.tft is not None
    for tau, rpi in zip(one.tft.taus, one.rpi, strict=True):
        shown = inputs * ((one.original_map >= tau) & (one.original_map > 0))
        masked, _ = true_scores(unet(), shown.astype(np.float32), weights)
        probability = float(masked.softmax(1)[0, 2])
        assert rpi == pytest.approx(max(0.0, probability / one.probability - 1), abs=1e-5)


def test_the_bottom_of_a_u_is_the_target_layer() -> None:
    _, (layer,) = list_layers(unet(), overrides=SMALL, task="softmax")
    assert layer.shape == (16, 8, 8)
    assert "coarsest" in layer.reason
    _, (layer,) = list_layers(pyramid(), overrides=SMALL, task="softmax")
    assert layer.shape == (8, 8, 8)  # the features, and nothing that was pooled


def test_openvino_gives_the_same_map(path: Path, explainer: whycam.Explainer) -> None:
    pytest.importorskip("openvino")
    other = whycam.load(path, engine="openvino")
    for region in (None, (30, 20)):
        ours, theirs = (one.explain(IMAGE, 2, region=region) for one in (explainer, other))
        assert np.abs(ours.map - theirs.map).max() < 1e-3


def test_channels_last_scores_are_read(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)
    head = np.random.default_rng(1).standard_normal((3, 6, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"], pads=[1] * 4),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 3, 1]),
        helper.make_node("Softmax", ["d"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16, 16, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 8, 3])],
        [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(head, "v")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    place = tmp_path / "nhwc.onnx"
    onnx.save(model, place)
    made = to_onnx(place, place.with_name("out.onnx"), overrides=Overrides(preprocess="imagenet"))
    assert made.manifest.region == (8, 8)
    assert made.manifest.layout == "NHWC"
    assert made.verification.differences["differences"].worst < 1e-4


END_SHAPES = {
    "turned": ([("Transpose", {"perm": [0, 2, 3, 1]}), ("Softmax", {"axis": 3})], [0, 3, 1, 2]),
    "logarithm": ([("Softmax", {"axis": 1}), ("Log", {})], None),
    "numbers": (
        [("ArgMax", {"axis": 1, "keepdims": 0}), ("Cast", {"to": TensorProto.INT32})],
        None,
    ),
    "turned numbers": (
        [("Softmax", {"axis": 1}), ("Transpose", {"perm": [0, 2, 3, 1]}), ("ArgMax", {"axis": 3})],
        [0, 3, 1, 2],
    ),
}


def save_with_end(path: Path, end: list[tuple[str, dict[str, object]]], dtype: int) -> Path:
    """Save a network of two convolutions, whose logits 'z' are [N, 4, 8, 8], and an end."""
    generator = np.random.default_rng(0)
    shapes = {"w": (6, 3, 3, 3), "v": (4, 6, 3, 3)}
    weights = [
        onnx.numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["z"], pads=[1] * 4),
    ]
    names = ["z", *(f"end_{index}" for index in range(len(end) - 1)), "y"]
    for (kind, options), before, after in zip(end, names, names[1:], strict=False):
        inputs = [before, "", "scales"] if kind == "Resize" else [before]
        nodes.append(helper.make_node(kind, inputs, [after], **options))
    weights.append(onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])
    output = helper.make_tensor_value_info("y", dtype, None)
    graph = helper.make_graph(nodes, "g", [image], [output], weights)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.mark.parametrize("name", list(END_SHAPES))
def test_logits_are_found_before_turned_activations_and_class_numbers(
    name: str, tmp_path: Path
) -> None:
    end, back = END_SHAPES[name]
    end = [*end, ("Transpose", {"perm": back})] if back is not None else end
    dtype = {"numbers": TensorProto.INT32, "turned numbers": TensorProto.INT64}.get(name, 1)
    source = save_with_end(tmp_path / "x.onnx", end, dtype)
    small = Overrides(resize=0, mean=(0.5,) * 3, std=(0.25,) * 3)
    made = to_onnx(source, tmp_path / "out.onnx", overrides=small)
    assert made.manifest.task == "softmax"
    found = whycam.load(tmp_path / "out.onnx", engine="onnxruntime")
    weights = [
        torch.from_numpy(onnx.numpy_helper.to_array(each).copy())
        for each in onnx.load(source).graph.initializer
    ]
    pixels = PIXELS[:, :, :16, :16].copy()
    hidden = functional.conv2d(torch.from_numpy(pixels), weights[0], stride=2, padding=1).relu()
    logits = functional.conv2d(hidden, weights[1], padding=1)
    feeds = {"image": pixels, "target": np.full((2, 1), 2), "region": regions()[:, ::4, ::4].copy()}
    scores = found.engine.run(feeds, ["place_scores"])["place_scores"]
    assert np.abs(scores - logits.numpy()).max() < 1e-4


@pytest.mark.parametrize("task", [None, "softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["Softmax", "Sigmoid"])
def test_probabilities_that_are_resized_have_no_logits(
    kind: str, task: str | None, tmp_path: Path
) -> None:
    options: dict[str, object] = {"axis": 1} if kind == "Softmax" else {}
    end = [(kind, options), ("Resize", {"mode": "linear"})]
    source = save_with_end(tmp_path / "x.onnx", end, TensorProto.FLOAT)
    small = Overrides(resize=0, mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(ExportError, match=rf"\({kind}\) gives, resized or rearranged"):
        to_onnx(source, tmp_path / "out.onnx", overrides=small, task=task)  # type: ignore[arg-type]
    made = to_onnx(source, tmp_path / "out.onnx", overrides=small, task="none")
    assert made.manifest.region == (16, 16)


@pytest.mark.parametrize(
    ("padding", "is_resized", "is_said"), [(0, False, True), (2, False, False), (0, True, False)]
)
def test_places_that_leave_out_the_borders_are_said(
    padding: int, is_resized: bool, is_said: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 5, padding=padding), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=padding)]
    if is_resized:
        layers.append(nn.Upsample(size=(SIDE, SIDE), mode="bilinear"))
    source = nn.Sequential(*layers).eval()
    made = to_onnx(source, tmp_path / "x.onnx", overrides=SMALL, labels=list(LABELS))
    notes = " ".join(made.notes)
    assert ("8 rows and 8 columns of places" in notes) == is_said
    assert ("leave out the borders" in notes) == is_said


def test_scores_that_may_be_no_classes_need_a_word(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing says that they are scores of classes"):
        to_onnx(unet(), tmp_path / "x.onnx", overrides=SMALL)
    with pytest.raises(ExportError, match="binary is of one number"):
        to_onnx(unet(), tmp_path / "x.onnx", overrides=SMALL, task="binary")
    assert not list(tmp_path.iterdir())


def test_what_may_be_an_image_needs_a_word(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has 3 numbers at every place, and nothing says"):
        to_onnx(with_activation("sigmoid", 3), tmp_path / "x.onnx", overrides=SMALL)
    made = to_onnx(
        with_activation("sigmoid", 3), tmp_path / "x.onnx", overrides=SMALL, labels=["a", "b", "c"]
    )
    assert made.manifest.task == "sigmoid"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ["tft"]}, "output tft"),
        ({"top": 1}, "top is not there"),
        ({"methods": ["scorecam"]}, "scorecam is not there"),
        ({"score": "prob"}, "score prob is not there"),
    ],
)
def test_what_a_segmentation_file_cannot_have_is_refused(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        to_onnx(unet(), tmp_path / "x.onnx", overrides=SMALL, task="softmax", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_what_is_for_whole_images_is_refused(path: Path, explainer: whycam.Explainer) -> None:
    for use in (
        lambda: check_one_head(explainer.manifest),
        lambda: Controls(explainer.manifest),
    ):
        with pytest.raises(RequestError, match="is a segmentation network"):
            use()
    with pytest.raises(EngineError, match="'region' must be float32"):
        explainer.engine.run(
            {"image": PIXELS, "target": np.zeros((2, 1), np.int64), "region": PIXELS[:, 0, :5]},
            ["probabilities"],
        )
    assert path.exists()


def test_a_classifier_takes_no_region(tmp_path: Path) -> None:
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    to_onnx(plain.eval(), tmp_path / "x.onnx", overrides=SMALL)
    found = whycam.load(tmp_path / "x.onnx", engine="onnxruntime")
    with pytest.raises(RequestError, match="one answer for the whole image"):
        found.explain(IMAGE, region=(3, 3))


def test_the_command_explains_regions(path: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(IMAGE).save(tmp_path / f"{name}.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.zeros(IMAGE.shape[:2], np.uint8)
    mask[:20] = 255
    Image.fromarray(mask).save(masks / "a.png")
    files = [str(tmp_path / f"{name}.png") for name in ("a", "b")]
    run = CliRunner().invoke
    found = run(app, ["explain", str(path), files[0], "--region", str(masks), "--json"])
    assert found.exit_code == 0, found.output
    (row,) = json.loads(found.stdout)["explanations"]
    assert row["explained_area"] == pytest.approx(20 / 48, abs=1e-6)
    found = run(
        app, ["explain", str(path), files[0], "--region", "30,10", "-o", str(tmp_path / "o")]
    )
    assert found.exit_code == 0, found.output
    assert len(list((tmp_path / "o").iterdir())) == 1
    found = run(app, ["explain", str(path), *files, "--region", str(masks)])
    assert "no mask for" in str(found.exception)
    found = run(app, ["explain", str(path), files[0], "--region", "nowhere.png"])
    assert "no point X,Y, no mask and no folder" in str(found.exception)


def test_float64_transposed_convolutions_are_those_of_pytorch() -> None:
    rng = np.random.default_rng(0)
    for options in (
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [1, 3], "dilations": [2, 1], "group": 2},
    ):
        groups = int(options.get("group", 1))  # type: ignore[call-overload]
        x, weight = rng.standard_normal((2, 4, 5, 6)), rng.standard_normal((4, 3, 3, 3))
        bias = rng.standard_normal(3 * groups)
        node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], **options)
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "w", "b")],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        (found,) = open_in_float64(model).run(None, {"x": x, "w": weight, "b": bias})
        expected = functional.conv_transpose2d(
            *map(torch.from_numpy, (x, weight, bias)),
            stride=options.get("strides", 1),  # type: ignore[arg-type]
            padding=1 if "pads" in options else 0,
            output_padding=options.get("output_padding", 0),  # type: ignore[arg-type]
            groups=groups,
            dilation=options.get("dilations", 1),  # type: ignore[arg-type]
        )
        assert np.abs(found - expected.numpy()).max() < 1e-12


def test_a_manifest_of_regions_is_consistent(explainer: whycam.Explainer) -> None:
    assert explainer.manifest.region == (SIDE, SIDE)
    with pytest.raises(ValueError, match="a segmentation network has one head"):
        msgspec.structs.replace(explainer.manifest, outputs=("tft",), map_methods=("gradcam",))


@pytest.mark.slow
def test_a_plan_has_the_input_of_regions(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from whycam.export import to_plan

    plan = to_plan(path, tmp_path / "x.plan", compute=["8.6"]).plan
    assert ("region", (-1, SIDE, SIDE)) in [(one.name, tuple(one.shape)) for one in plan.inputs]


@pytest.mark.slow
def test_torchvisions_networks_are_explained_by_name(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    made = to_onnx(
        "torchvision/lraspp_mobilenet_v3_large",
        tmp_path / "x.onnx",
        weights="none",
        num_classes=5,
        task="softmax",
        overrides=Overrides(image_size=96),
    )
    assert made.manifest.region == (96, 96)
    assert made.manifest.activations[1:] == (6, 6)
    assert made.verification.differences["gradients"].worst < 1e-5


class TwoHeads(nn.Module):
    """A class of the whole image beside classes of places."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.whole = unet(), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        first = functional.relu(self.net.first(x))
        bottom = functional.relu(self.net.bottom(functional.relu(self.net.second(first))))
        places = self.net.head(bottom, first).softmax(1)
        return {"whole": self.whole(bottom.mean((2, 3))), "places": places}


def test_of_a_classifier_and_a_segmenter_in_one_the_choice_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoHeads().eval()
    made = to_onnx(model, tmp_path / "x.onnx", overrides=SMALL)
    assert made.manifest.region is None
    assert any("--head places explains that one" in note for note in made.notes)
    made = to_onnx(model, tmp_path / "y.onnx", overrides=SMALL, head="places")
    assert made.manifest.region == (SIDE, SIDE)
    with pytest.raises(ExportError, match="a file of that output alone"):
        to_onnx(model, tmp_path / "z.onnx", overrides=SMALL, head=["whole", "places"])
