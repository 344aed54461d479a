"""One file for images of many sizes: the same answers as a file of each size, in every engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from foreign import AS_IS, CLASSES, File, saved
from networks import mixed
from PIL import Image

import whycam
from whycam.calibrate import open_dataset
from whycam.calibrate.int8 import calibrate_int8
from whycam.export import ExportResult, Overrides, to_half, to_onnx, to_plan
from whycam.runtime.engines.plan import Range
from whycam.runtime.errors import EngineError, ExportError, RequestError
from whycam.runtime.input_format import DynamicSize
from whycam.runtime.pipeline import prepare

USUAL, LIMITS = (32, 48), (32, 80)
SIZES = ((32, 32), (48, 80), (80, 64))


def convolution(file: File, x: str, inputs: int, outputs: int, **attributes: object) -> str:
    """A convolution of 3 x 3 and a ReLU; padded unless it says otherwise."""
    attributes = {"pads": [1, 1, 1, 1], **attributes}
    group = attributes.get("group", 1)
    assert isinstance(group, int)
    weight = file.weight(outputs, inputs // group, 3, 3)
    return file.add("Relu", file.add("Conv", x, weight, **attributes))


def residual(file: File, image: str) -> str:
    """As ResNet begins and ends: a stride, a max-pool with padding, a sum of two branches."""
    x = convolution(file, image, 3, 6, strides=[2, 2])
    x = file.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = convolution(file, x, 6, 8, strides=[2, 2])
    shortcut = file.add("Conv", x, file.weight(8, 6, 1, 1), strides=[2, 2])
    x = file.add("Relu", file.add("Add", y, shortcut))
    return convolution(file, convolution(file, x, 8, 8, strides=[2, 2]), 8, 8)


def gated(file: File, image: str) -> str:
    """As MobileNetV3: a depthwise convolution and a squeeze-and-excitation gate."""
    x = convolution(file, image, 3, 8, strides=[4, 4])
    x = convolution(file, x, 8, 8, strides=[2, 2], group=8)
    squeezed = file.add("ReduceMean", x, file.constant([2, 3], np.int64))
    gate = file.add("HardSigmoid", file.add("Conv", squeezed, file.weight(8, 8, 1, 1)))
    return convolution(file, file.add("Mul", x, gate), 8, 8)


def unpadded(file: File, image: str) -> str:
    """As SqueezeNet and Inception: no padding, so that a map has fewer cells than steps."""
    x = convolution(file, image, 3, 6, strides=[2, 2], pads=[0, 0, 0, 0])
    x = file.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    return convolution(file, convolution(file, x, 6, 8), 8, 8, pads=[0, 0, 0, 0])


def average(file: File, features: str) -> str:
    return file.add("Flatten", file.add("GlobalAveragePool", features))


def maximum(file: File, features: str) -> str:
    return file.add("Flatten", file.add("GlobalMaxPool", features))


def generalised_mean(file: File, features: str) -> str:
    """GeM: the cubic mean."""
    raised = file.add("Pow", file.add("Clip", features, file.constant(1e-6)), file.constant(3.0))
    mean = file.add("ReduceMean", raised, file.constant([2, 3], np.int64), keepdims=0)
    return file.add("Pow", mean, file.constant(1 / 3))


def pooled_twice(file: File, features: str) -> str:
    """A max-pool of 2 x 2 between the target layer and the scores, and overlapping ones."""
    x = file.add("MaxPool", features, kernel_shape=[2, 2], strides=[1, 1])
    return maximum(file, x)


Part = Callable[[File, str], str]
NETWORKS: dict[str, tuple[Part, Part]] = {
    "residual": (residual, average),
    "gated": (gated, average),
    "unpadded": (unpadded, average),
    "maximum": (gated, maximum),
    "pooled": (gated, pooled_twice),
    "generalised mean": (residual, generalised_mean),
}


def network(
    features: Part, pool: Part, size: tuple[int | str, int | str], layout: str = "NCHW"
) -> onnx.ModelProto:
    """A classifier of images of one size, or of any; weights are the same for each."""
    shape = (3, *size) if layout == "NCHW" else (*size, 3)
    file = File(image=("N", *shape))
    x = file.name if layout == "NCHW" else file.add("Transpose", file.name, perm=[0, 3, 1, 2])
    logits = file.linear(pool(file, features(file, x)))
    file.add("Softmax", logits, to="y", axis=1)
    return file.model({"y": ("N", CLASSES)})


def overrides(size: tuple[int, int], layout: str = "NCHW") -> Overrides:
    return Overrides(preprocess="zero-one", image_size=size, layout=layout)


def of_any_size(folder: Path, features: Part, pool: Part, **options: object) -> ExportResult:
    layout = str(options.pop("layout", "NCHW"))
    source = saved(network(features, pool, ("h", "w"), layout), folder)
    options = {"outputs": ("raw", "map"), "dynamic_size": LIMITS, **options}
    return to_onnx(source, folder / "any.onnx", overrides=overrides(USUAL, layout), **options)  # type: ignore[arg-type]


def images(size: tuple[int, int], layout: str = "NCHW") -> np.ndarray:
    shape = (2, 3, *size) if layout == "NCHW" else (2, *size, 3)
    return np.random.default_rng(5).uniform(size=shape).astype(np.float32)


TARGET = np.array([[-1, 2], [0, 1]])


def assert_equals_fixed(
    made: ExportResult, fixed: ExportResult, size: tuple[int, int], layout: str = "NCHW"
) -> None:
    feeds = {"image": images(size, layout), "target": TARGET}
    names = [name for name in made.manifest.output_shapes if name != "ablation_weights"]
    own = whycam.load(made.path, threads=1).engine.run(feeds, names)
    expected = whycam.load(fixed.path, threads=1).engine.run(feeds, names)
    for name in names:
        scale = max(1.0, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(own[name], expected[name], atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_of_any_size_answers_as_a_file_of_each_size(name, tmp_path):
    features, pool = NETWORKS[name]
    made = of_any_size(tmp_path, features, pool)
    for size in SIZES:
        source = saved(network(features, pool, size), tmp_path, "fixed.onnx")
        fixed = to_onnx(source, tmp_path / "one.onnx", overrides=overrides(size))
        assert made.manifest.at(size).activations == fixed.manifest.activations
        assert_equals_fixed(made, fixed, size)


def test_channels_last_files_keep_their_layout_at_any_size(tmp_path):
    made = of_any_size(tmp_path, residual, average, layout="NHWC")
    assert made.manifest.image_shape == (None, None, 3)
    source = saved(network(residual, average, (48, 80), "NHWC"), tmp_path, "fixed.onnx")
    fixed = to_onnx(source, tmp_path / "one.onnx", overrides=overrides((48, 80), "NHWC"))
    assert_equals_fixed(made, fixed, (48, 80), "NHWC")


def test_thresholds_inside_the_graph_are_those_of_a_fixed_size(tmp_path):
    made = of_any_size(tmp_path, gated, average, outputs=("raw", "tft"))
    source = saved(network(gated, average, (48, 80)), tmp_path, "fixed.onnx")
    fixed = to_onnx(
        source, tmp_path / "one.onnx", overrides=overrides((48, 80)), outputs=("raw", "tft")
    )
    assert_equals_fixed(made, fixed, (48, 80))


def test_earlier_layers_and_ablation_are_explained_at_any_size(tmp_path):
    options = {"methods": ("gradcam", "layercam", "ablation"), "target_layer": "relu_3"}
    made = of_any_size(tmp_path, gated, average, **options)
    source = saved(network(gated, average, (80, 64)), tmp_path, "fixed.onnx")
    fixed = to_onnx(source, tmp_path / "one.onnx", overrides=overrides((80, 64)), **options)
    assert made.manifest.activations == (8, 4, 6)
    assert_equals_fixed(made, fixed, (80, 64))


def test_the_step_is_the_total_stride_and_the_rule_is_in_the_manifest(tmp_path):
    free = of_any_size(tmp_path, residual, average).manifest.dynamic_size
    assert free == DynamicSize(32, 80, 16, (1, 1))
    free = of_any_size(tmp_path, unpadded, average).manifest.dynamic_size
    assert free == DynamicSize(32, 80, 4, (1, 1))


@pytest.mark.parametrize(
    ("image", "size"),
    [
        ((48, 64), (48, 64)),  # its own resolution
        ((50, 71), (48, 64)),  # the nearest multiples of 16
        ((56, 72), (64, 80)),  # halves upwards
        ((160, 120), (80, 64)),  # the longer side is 80, the other in proportion
        ((16, 24), (32, 48)),  # the shorter side is 32
        ((400, 40), (80, 32)),  # a strip: no side leaves the range
    ],
)
def test_images_keep_their_resolution_within_the_range(image, size):
    assert DynamicSize(32, 80, 16, (1, 1)).choose(image) == size


def test_explanations_have_each_image_s_own_resolution(tmp_path):
    made = of_any_size(tmp_path, residual, average)
    rng = np.random.default_rng(2)
    photos = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((48, 64), (48, 64), (70, 33))]
    explainer = whycam.load(made.path, threads=1)
    together = explainer.explain(photos)
    assert [each.map.shape for each in together] == [(48, 64), (48, 64), (64, 32)]
    for photo, one in zip(photos, together, strict=True):
        alone = explainer.explain(photo)
        np.testing.assert_allclose(one.map, alone.map, atol=1e-5)
        assert one.over_image().map.shape == photo.shape[:2]
    assert explainer.classify(photos).shape == (3, CLASSES)
    with_thresholds = explainer.explain(photos, tft=True)
    assert [each.map.shape for each in with_thresholds] == [(48, 64), (48, 64), (64, 32)]
    scored = explainer.explain(photos[2], method="scorecam")
    assert scored.map.shape == (64, 32)


def test_an_object_at_the_right_edge_lights_the_right_edge(tmp_path):
    made = of_any_size(tmp_path, residual, average)
    explainer = whycam.load(made.path, threads=1)
    photo = np.zeros((48, 80, 3), np.uint8)
    photo[16:32, 64:] = 255
    activations = explainer.engine.run(
        {"image": prepare([photo], made.manifest).inputs, "target": np.array([[-1]])},
        ["activations"],
    )["activations"]
    plain = explainer.engine.run(
        {"image": prepare([0 * photo], made.manifest).inputs, "target": np.array([[-1]])},
        ["activations"],
    )["activations"]
    change = np.abs(activations - plain).sum((0, 1))
    assert change.shape == (3, 5)
    assert (change[:, :3] == 0).all()
    assert (change[:, 4] > 0).any()


def test_a_batch_is_of_one_size(tmp_path):
    manifest = of_any_size(tmp_path, residual, average).manifest
    photos = [np.zeros((size, 64, 3), np.uint8) for size in (48, 64)]
    with pytest.raises(RequestError, match="one by one"):
        prepare(photos, manifest)


@pytest.mark.parametrize("size", [(40, 48), (96, 48), (16, 48)])
def test_engines_refuse_other_sizes_by_their_rule(size, tmp_path):
    engine = whycam.load(of_any_size(tmp_path, residual, average).path, threads=1).engine
    with pytest.raises(EngineError, match="from 32 to 80 pixels that are multiples of 16"):
        engine.run({"image": images(size), "target": TARGET}, ["probabilities"])


def test_reference_answers_are_kept_for_two_sizes_and_checked(tmp_path):
    made = of_any_size(tmp_path, residual, average)
    assert [each.size for each in made.manifest.references] == [USUAL, LIMITS]
    assert [len(each.raw_map) for each in made.manifest.references] == [2 * 3, 2 * 5]
    wrong = msgspec.structs.replace(made.manifest.references[1], probability=0.999)
    from whycam.runtime.engines import selftest

    engine = whycam.load(made.path, threads=1).engine
    manifest = msgspec.structs.replace(made.manifest, references=(wrong,))
    (comparison,) = selftest.check(engine, manifest)
    assert comparison.complaint
    with pytest.raises(ValueError, match="does not fit"):
        msgspec.structs.replace(
            made.manifest, references=(msgspec.structs.replace(wrong, raw_map=(1.0,)),)
        )


def test_openvino_runs_every_size(tmp_path):
    pytest.importorskip("openvino")
    made = of_any_size(tmp_path, gated, average, outputs=("raw", "map", "tft"))
    names = ["probabilities", "original_maps", "maps_layercam", "thresholds"]
    engines = [
        whycam.load(made.path, engine, threads=1).engine for engine in ("openvino", "onnxruntime")
    ]
    for size in SIZES:
        feeds = {"image": images(size), "target": TARGET}
        own, expected = (engine.run(feeds, names) for engine in engines)
        for name in names:
            np.testing.assert_allclose(own[name], expected[name], atol=1e-4, err_msg=name)


def flattened(file: File, features: str) -> str:
    return file.add("MatMul", file.add("Flatten", features), file.weight(8 * 4 * 6, 8))


def with_position_embedding(file: File, features: str) -> str:
    return average(file, file.add("Add", features, file.weight(1, 8, 4, 6)))


@pytest.mark.parametrize(
    ("pool", "operator"),
    [
        (flattened, "MatMul"),
        (with_position_embedding, "Add"),
    ],
)
def test_networks_of_one_size_are_refused_by_the_node_that_fixes_it(pool, operator, tmp_path):
    with pytest.raises(ExportError, match=rf"takes images of 32 x 48 alone.*\(({operator})\)"):
        of_any_size(tmp_path, gated, pool)
    assert not (tmp_path / "any.onnx").exists()


def test_a_window_that_small_images_do_not_fill_is_named(tmp_path):
    def with_fixed_window(file: File, features: str) -> str:
        return average(file, file.add("AveragePool", features, kernel_shape=[4, 6]))

    with pytest.raises(ExportError, match=r"\(AveragePool\) has no output for the smallest"):
        of_any_size(tmp_path, residual, with_fixed_window)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dynamic_size": (30, 80)}, RequestError, "32:80 instead of 30:80"),
        ({"dynamic_size": (48, 80)}, RequestError, "own size 32 x 48"),
        ({"dynamic_size": (80, 32)}, RequestError, "that rise"),
        ({"embed_preprocess": True}, RequestError, "choose one of the two"),
        ({"fused_layers": ("relu_1",)}, RequestError, "leave out"),
        (
            {"outputs": ("tft",), "tft": whycam.Tft(thresholds="rank")},
            RequestError,
            "by value",
        ),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        of_any_size(tmp_path, residual, average, **options)


def test_a_file_of_one_size_cannot_take_others(tmp_path):
    source = saved(network(residual, average, (32, 48)), tmp_path)
    with pytest.raises(ExportError, match="fixes its size"):
        to_onnx(source, tmp_path / "x.onnx", overrides=AS_IS, dynamic_size=LIMITS)


@pytest.mark.slow
def test_a_pytorch_model_is_exported_for_any_size(tmp_path):
    free = Overrides(preprocess="imagenet", image_size=(32, 48))
    made = to_onnx(mixed(), tmp_path / "any.onnx", overrides=free, dynamic_size=LIMITS)
    assert made.verification.reference == "PyTorch in float64"
    for size in SIZES[1:]:
        one = Overrides(preprocess="imagenet", image_size=size)
        assert_equals_fixed(made, to_onnx(mixed(), tmp_path / "one.onnx", overrides=one), size)


@pytest.mark.slow
def test_pytorch_models_of_one_size_are_refused_with_the_reason(tmp_path):
    class Grid(torch.nn.Module):
        """As VGG: pooling to a fixed grid, which a linear layer reads."""

        def __init__(self) -> None:
            super().__init__()
            self.features = torch.nn.Conv2d(3, 4, 3, 2, 1)
            self.pool = torch.nn.AdaptiveAvgPool2d(4)
            self.head = torch.nn.Linear(4 * 16, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.pool(self.features(x).relu()).flatten(1))

    sides = Overrides(preprocess="imagenet", image_size=(32, 48))
    with pytest.raises(ExportError, match=r"leave out --dynamic-size|later layer|without --dyn"):
        to_onnx(Grid(), tmp_path / "any.onnx", overrides=sides, dynamic_size=LIMITS)
    small = Overrides(preprocess="imagenet", image_size=16)
    with pytest.raises(RequestError, match="own size 16 x 16 must be from 32 to 80"):
        to_onnx(mixed(), tmp_path / "any.onnx", overrides=small, dynamic_size=LIMITS)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_plan_covers_the_range(layout, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    made = of_any_size(tmp_path, residual, average, layout=layout)
    plan = to_plan(made.path, tmp_path / "any.plan", compute=["8.9"]).plan
    assert (plan.height, plan.width) == (Range(32, 32, 80), Range(32, 48, 80))
    image = (-1, 3, -1, -1) if layout == "NCHW" else (-1, -1, -1, 3)
    assert plan.inputs[0].shape == image
    narrow = Range(32, 48, 64), Range(48, 48, 80)
    narrow_plan = to_plan(
        made.path, tmp_path / "narrow.plan", compute=["8.9"], source_size=narrow
    ).plan
    assert (narrow_plan.height, narrow_plan.width) == narrow
    with pytest.raises(RequestError, match="in multiples of 16, not 32 to 96"):
        to_plan(made.path, tmp_path / "x.plan", source_size=(Range(32, 48, 96), narrow[1]))


def test_int8_is_refused_before_images_are_read(tmp_path):
    made = of_any_size(tmp_path, residual, average)
    Image.new("RGB", (48, 48)).save(tmp_path / "one.png")
    with pytest.raises(RequestError, match="calibrated and verified at one"):
        calibrate_int8(made.path, open_dataset(tmp_path), tmp_path / "int8.onnx")


def test_half_precision_keeps_sizes_free(tmp_path):
    made = of_any_size(tmp_path, gated, average)
    half = to_half(made.path, tmp_path / "half.onnx")
    assert half.manifest.dynamic_size == made.manifest.dynamic_size
    for size in SIZES:
        feeds = {"image": images(size), "target": TARGET}
        own, expected = (
            whycam.load(path, threads=1).engine.run(feeds, ["probabilities", "activations"])
            for path in (half.path, made.path)
        )
        assert own["activations"].shape == expected["activations"].shape
        np.testing.assert_allclose(own["probabilities"], expected["probabilities"], atol=1e-3)


@pytest.mark.slow
def test_pooling_that_rounds_up_is_free_in_multiples_of_the_stride(tmp_path):
    """As GoogLeNet pools; a file of one size is the reference."""
    torch.manual_seed(0)
    pool = torch.nn.MaxPool2d(3, 2, ceil_mode=True)
    layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, 8, 5, 2, 2), torch.nn.ReLU()]
    for _ in range(4):
        layers += [pool, torch.nn.Conv2d(8, 8, 3, 1, 1), torch.nn.ReLU()]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, CLASSES)]
    model = torch.nn.Sequential(*layers, *head).eval()
    made = to_onnx(
        model, tmp_path / "any.onnx", overrides=overrides((64, 96)), dynamic_size=(64, 128)
    )
    assert made.manifest.dynamic_size == DynamicSize(64, 128, 32, (1, 1))
    for size in ((64, 96), (128, 64)):
        fixed = to_onnx(model, tmp_path / "one.onnx", overrides=overrides(size))
        assert_equals_fixed(made, fixed, size)
