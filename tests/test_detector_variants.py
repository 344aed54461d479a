"""Odd detectors: heads, labels and outputs that must be right, or refused with the reason."""

from pathlib import Path
from types import SimpleNamespace

import detector_networks as networks
import numpy as np
import onnx
import pytest
import torch
import torchvision
from detector_networks import SIZE
from numpy.testing import assert_allclose
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from test_detector_export import IMAGE, PLAIN, run, write
from torch import nn

import whycam
from whycam.export import to_onnx
from whycam.export.detectors.verify import _compare_gradients
from whycam.runtime.engines.opening import open_engine
from whycam.runtime.errors import EngineError, ExportError, RequestError

CELLS = 64 + 16 + 4


def trace(
    model: nn.Module, image: torch.Tensor, path: Path, *names: str, is_batch_free: bool = False
) -> Path:
    """Write a file by the older exporter, which keeps the example's batch unless it is free."""
    names = names or ("output0",)
    torch.onnx.export(
        model,
        (image,),
        str(path),
        input_names=["images"],
        output_names=list(names),
        dynamo=False,
        opset_version=17,
        dynamic_axes={name: {0: "N"} for name in ("images", *names)} if is_batch_free else None,
    )
    return path


class Classes(nn.Module):
    """Two convolutions with something between and something after them."""

    def __init__(self, width: int, before, between, after) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, 8, 3, 1, 1)
        self.second = nn.Conv2d(8, networks.CLASSES, 3, 1, 1)
        self.steps = before, between, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, between, after = self.steps
        return after(self.second(between(self.first(before(x)))))


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def keep_peaks(x: torch.Tensor) -> torch.Tensor:
    return torch.where(nn.functional.max_pool2d(x, 3, 1, 1) == x, x, x - 3)


HEADS = {
    "undefined at zero": (lambda x: 0.1 * x.abs().log(), nn.functional.silu, same),
    "in double precision": (same, lambda x: x.double().sigmoid().float(), same),
    "peaks by a max-pool": (same, nn.functional.silu, keep_peaks),
}


def expected_maps(model: nn.Module) -> np.ndarray:
    """HiResCAM of each candidate's first class, from torch in float64."""
    model = model.double()
    levels = [
        level.detach().requires_grad_()
        for level in model.pyramid(torch.from_numpy(IMAGE[:1]).double())
    ]
    scores = torch.cat([c(level).flatten(2) for level, c in zip(levels, model.cls, strict=True)], 2)
    maps = []
    for candidate in range(CELLS):
        gradients = torch.autograd.grad(
            scores[0, 0, candidate], levels, retain_graph=True, allow_unused=True
        )
        total = sum(
            nn.functional.interpolate(
                (gradient * level).sum(1, keepdim=True).relu().detach(), (8, 8), mode="bilinear"
            )
            for gradient, level in zip(gradients, levels, strict=True)
            if gradient is not None
        )[0, 0].numpy()
        spread = np.ptp(total)
        maps.append((total - total.min()) / spread if spread > 0 else 0 * total)
    return np.array(maps)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_every_candidate_of_an_odd_head_has_the_gradient_of_autograd(tmp_path, name):
    """At the borders of its level as well: patches there reach outside."""
    model = networks.Yolo8()
    model.cls = nn.ModuleList(Classes(width, *HEADS[name]) for width in networks.WIDTHS)
    file = write(networks.fill(model), tmp_path / "a.onnx")
    result = to_onnx(file, tmp_path / "b.onnx", methods=["hirescam"])
    every = np.stack([np.arange(CELLS), np.zeros(CELLS, np.int64)], 1)
    maps = run(result.path, ["maps"], np.stack([every, every]))["maps"][0]
    if name == "in double precision":  # what torch's own float64 would make of .float()
        model.cls = nn.ModuleList(
            _with_steps(part, (same, torch.sigmoid, same)) for part in model.cls
        )
    assert_allclose(maps, expected_maps(model), atol=1e-4)


def _with_steps(part: Classes, steps) -> Classes:
    part.steps = steps
    return part


class Rows(networks.Yolo8):
    """The same numbers, one row a candidate: [N, A, 4 + C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).transpose(1, 2)


def test_labels_of_another_number_tell_that_the_format_is_wrong(tmp_path):
    """Rows of 4 + C numbers would be read as 5 + C, the first class as objectness."""
    file = write(networks.fill(Rows()), tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=r"3 labels.*format yolov5.*2 classes.*--format"):
        to_onnx(file, tmp_path / "b.onnx", format="yolov5", labels=("one", "two", "three"))
    said = {
        "task": "detect",
        "names": "{0: 'one', 1: 'two', 2: 'three'}",
        "imgsz": f"[{SIZE}, {SIZE}]",
    }
    model = onnx.load(file)
    onnx.helper.set_model_props(model, said)
    onnx.save(model, file)
    with pytest.raises(ExportError, match=r"3 labels in the file.*format yolov5"):
        to_onnx(file, tmp_path / "b.onnx", format="yolov5")


def test_rows_without_objectness_are_told_by_the_convolutions_of_the_classes(tmp_path):
    """By its shape it is YOLOX, and the first class would be read as objectness."""
    model = networks.fill(Rows())
    file = write(model, tmp_path / "a.onnx")
    result = to_onnx(file, tmp_path / "b.onnx")
    assert result.manifest.detector.format == "yolov8"
    found = run(result.path, ["candidate_scores"], np.zeros((2, 1, 2), np.int64))
    with torch.no_grad():
        expected = model(torch.from_numpy(IMAGE))[..., 4:].numpy()
    assert_allclose(found["candidate_scores"], expected, atol=1e-5)
    with pytest.raises(ExportError, match=r"depends on it is the first class.*--labels"):
        to_onnx(file, tmp_path / "c.onnx", format="yolox")


class Exponential(networks.YoloX):
    """Offsets in cells, of a backbone that contains an exponential."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x / (1 + torch.exp(-x / 100)))


def test_an_exponential_elsewhere_does_not_decode_boxes(tmp_path):
    model = networks.fill(Exponential())
    result = to_onnx(write(model, tmp_path / "a.onnx"), tmp_path / "b.onnx", format="yolox")
    target = np.zeros((2, 1, 2), np.int64)
    boxes = run(result.path, ["candidate_boxes"], target)["candidate_boxes"]
    with torch.no_grad():
        row = model(torch.from_numpy(IMAGE))[0, 3].numpy()  # the fourth cell of stride 8
    centre, half = (row[:2] + np.array([3, 0])) * 8, np.exp(row[2:4]) * 4
    assert_allclose(boxes[0, 3], [*(centre - half), *(centre + half)], rtol=1e-4, atol=1e-3)


class Cut(networks.Yolo8):
    """Boxes and one class, cut out of the rows and joined again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x)
        return torch.cat([rows[:, :4] * 1.0, rows[:, 5:6]], 1)


def test_outputs_that_are_cut_and_joined_again_are_read(tmp_path):
    model = networks.fill(Cut())
    result = to_onnx(write(model, tmp_path / "a.onnx"), tmp_path / "b.onnx", format="yolov8")
    assert result.manifest.gradient_score == "logit"
    found = run(result.path, ["candidate_scores"], np.zeros((2, 1, 2), np.int64))
    with torch.no_grad():
        expected = model(torch.from_numpy(IMAGE))[:, 4:].transpose(1, 2).numpy()
    assert_allclose(found["candidate_scores"], expected, atol=1e-5)


class Masks(networks.Yolo8):
    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in networks.WIDTHS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = self.pyramid(x)
        masks = [part(level).flatten(2) for part, level in zip(self.mask, levels, strict=True)]
        return torch.cat([super().forward(x), torch.cat(masks, 2)], 1)


def test_rows_with_masks_are_refused(tmp_path):
    file = write(networks.fill(Masks()), tmp_path / "a.onnx")
    with pytest.raises(ExportError, match="masks, keypoints or angles"):
        to_onnx(file, tmp_path / "b.onnx")


class Corners(networks.Yolo8):
    """Class logits, four with one for the background, and boxes as corners in pixels."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        levels = self.pyramid(x)
        logits = [c(level).flatten(2) for level, c in zip(levels, self.cls, strict=True)]
        sides = torch.cat(
            [b(level).flatten(2) for level, b in zip(levels, self.box, strict=True)], 2
        )
        points, _ = networks.centres(levels)
        low, high = points.T - sides[:, :2].exp(), points.T + sides[:, 2:4].exp()
        return torch.cat(logits, 2).transpose(1, 2), torch.cat([low, high], 1).transpose(1, 2)


@pytest.mark.parametrize("background", ["background", "__background__"])
def test_a_named_background_does_not_tell_sigmoid_from_softmax(tmp_path, background):
    """torchvision's names have one both for SSD, of a softmax, and for RetinaNet, of sigmoids."""
    file = write(networks.fill(Corners()), tmp_path / "a.onnx", "scores", "boxes")
    options = {"format": "ssd", "labels": (background, "one", "two"), "overrides": PLAIN}
    with pytest.raises(ExportError, match="--activation sigmoid or softmax"):
        to_onnx(file, tmp_path / "b.onnx", **options)
    result = to_onnx(file, tmp_path / "b.onnx", activation="softmax", **options)
    assert result.manifest.labels == ("one", "two")


class Broken(networks.Yolo8):
    """Scores of a black image are NaN, and right for others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x)
        nothing = 0 * torch.log(x.mean((1, 2, 3)))[:, None, None]
        return torch.cat([rows[:, :4], rows[:, 4:] + nothing], 1)


@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)]
)
def test_a_network_that_returns_nan_does_not_look_as_if_it_found_nothing(tmp_path, engine):
    file = write(networks.fill(Broken()), tmp_path / "a.onnx")
    result = to_onnx(file, tmp_path / "b.onnx", format="yolov8")
    explainer = whycam.load(result.path, engine, threads=1)
    assert explainer.detect(np.full((SIZE, SIZE, 3), 99, np.uint8), min_score=0.3)
    with pytest.raises(EngineError, match="NaN"):
        explainer.detect(np.zeros((SIZE, SIZE, 3), np.uint8))


def test_more_targets_than_candidates_are_refused_before_the_network_runs(tmp_path):
    file = write(networks.fill(networks.Detr()), tmp_path / "a.onnx", "logits", "pred_boxes")
    options = {"labels": ("one", "two", "three"), "overrides": PLAIN}
    explainer = whycam.load(to_onnx(file, tmp_path / "b.onnx", **options).path, threads=1)
    image = np.full((SIZE, SIZE, 3), 99, np.uint8)
    every = [(query, index) for query in range(networks.Detr.queries) for index in range(3)]
    assert len(explainer.detect(image, every[:9])) == 9
    with pytest.raises(RequestError, match="27 targets: 9"):
        explainer.detect(image, every)


def test_a_gradient_that_is_nan_agrees_with_nothing():
    subject = SimpleNamespace(
        detector=SimpleNamespace(levels=(None,), score="class"),
        reference=SimpleNamespace(
            draw_direction=lambda *_: [np.ones((1, 2, 2, 2))],
            differentiate=lambda *_: np.ones((1, 5, 3)),
        ),
    )
    gradient = np.full((1, 1, 2, 2, 2), 0.125)
    target, rng = np.zeros((1, 1, 2), np.int64), np.random.default_rng(0)
    assert _compare_gradients(subject, {}, target, {"gradients_0": gradient}, rng) == 0
    gradient[0, 0, 1, 1, 1] = np.nan
    assert np.isnan(_compare_gradients(subject, {}, target, {"gradients_0": gradient}, rng))


class Pooled(networks.PicoDet):
    """A level that ends in as many channels as a pooled feature, of one place, has elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        levels = self.dense.pyramid(x)
        mean = levels[0].mean((2, 3), keepdim=True)
        levels[0] = levels[0] * self.gate(mean).sigmoid()
        scores = [c(f).flatten(2).sigmoid() for f, c in zip(levels, self.dense.cls, strict=True)]
        boxes = [b(f).flatten(2) for f, b in zip(levels, self.dense.box, strict=True)]
        return tuple(each.transpose(1, 2) for each in (*scores, *boxes))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_file_of_a_fixed_batch_takes_any_number_of_images(tmp_path, batch):
    """Shapes that the file states of its own batch would be built upon by the engine."""
    model = networks.fill(Pooled())
    names = ("s8", "s16", "s32", "d8", "d16", "d32")
    trace(model, torch.zeros(batch, 3, SIZE, SIZE), tmp_path / "a.onnx", *names)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "a.onnx"))
    onnx.save(inferred, tmp_path / "a.onnx")
    result = to_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", overrides=PLAIN)
    graph = onnx.load(result.path).graph
    outputs = {name for node in graph.node for name in node.output}
    for value in graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if value.name in outputs and len(dims) == 4 and "whycam/" not in value.name:
            assert not dims[0].dim_value  # no shape of one batch is left
    found = run(result.path, ["candidate_scores"], np.full((2, 3, 2), -1))["candidate_scores"]
    with torch.no_grad():
        expected = torch.cat(model(torch.from_numpy(IMAGE))[:3], 1).numpy()
    assert_allclose(found, expected, atol=1e-5)


def test_patches_do_not_share_the_name_of_the_batch(tmp_path):
    """An engine reuses memory between tensors whose sizes have one name, and patches are N k."""
    file = write(networks.fill(networks.Yolo8()), tmp_path / "a.onnx")
    graph = onnx.load(to_onnx(file, tmp_path / "b.onnx").path).graph
    named = {
        value.name: value.type.tensor_type.shape.dim[0].dim_param
        for value in graph.value_info
        if "gradient/level_" in value.name and value.type.tensor_type.shape.dim
    }
    convolutions = [name for name in named if "ConvTranspose" in name]
    assert convolutions
    assert all(named[name] != "N" for name in convolutions)


class Pixels(networks.Yolo8):
    """Pixels as they come, channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2).float() / 255)


def test_all_levels_are_found_behind_pixels_with_channels_last(tmp_path):
    """Pixels have no gradient, and are moved before they become floats."""
    model = networks.fill(Pixels())
    pixels = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    file = trace(model, pixels, tmp_path / "a.onnx", is_batch_free=True)
    result = to_onnx(file, tmp_path / "b.onnx")  # whose preprocessing the format states
    manifest = result.manifest
    assert [level.activations[0] for level in manifest.detector.levels] == [8, 12, 16]
    assert (manifest.image_dtype, manifest.layout) == ("uint8", "NHWC")
    engine = open_engine(result.path, manifest, "onnxruntime")
    feeds = {"image": pixels.numpy(), "target": np.full((2, 1, 2), -1, np.int64)}
    found = engine.run(feeds, ["candidate_scores"])["candidate_scores"]
    with torch.no_grad():
        expected = model(pixels)[:, 4:].transpose(1, 2).numpy()
    assert_allclose(found, expected, atol=1e-5)


class Suppressed(networks.Yolo8):
    """Candidates, and the numbers of those of the first image that suppression keeps."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = super().forward(x)
        first = rows[0].T
        return rows, torchvision.ops.nms(first[:, :4], first[:, 4], 0.5)


def test_what_suppression_keeps_is_no_output_of_a_freed_batch(tmp_path):
    model = networks.fill(Suppressed())
    file = trace(model, torch.zeros(1, 3, SIZE, SIZE), tmp_path / "a.onnx", "output0", "kept")
    with pytest.raises(ExportError, match="'kept' has not one row for each"):
        to_onnx(file, tmp_path / "b.onnx")


def test_outputs_after_suppression_are_refused(tmp_path):
    class Kept(Suppressed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, kept = super().forward(x)
            return rows[0].T[kept]

    image = torch.zeros(1, 3, SIZE, SIZE)
    file = trace(networks.fill(Kept()), image, tmp_path / "a.onnx")
    for options in ({}, {"task": "detect"}):
        with pytest.raises(ExportError, match=r"after suppression.*up to the scores and boxes"):
            to_onnx(file, tmp_path / "b.onnx", overrides=PLAIN, **options)


@pytest.mark.slow
def test_a_backbone_and_pyramid_may_be_quantised(tmp_path):
    """At each level the others are held fixed, so that no gradient passes between them."""

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter([{"images": image[None]} for image in IMAGE])

        def get_next(self):
            return next(self.images, None)

    model = networks.fill(networks.Yolo8())
    file = trace(model, torch.from_numpy(IMAGE), tmp_path / "a.onnx", is_batch_free=True)
    nodes = [node.name for node in onnx.load(file).graph.node if "/pyramid/" in node.name]
    quantize_static(
        file,
        tmp_path / "q.onnx",
        Images(),
        activation_type=QuantType.QInt8,
        nodes_to_quantize=nodes,
        extra_options={"ActivationSymmetric": True},
    )
    result = to_onnx(tmp_path / "q.onnx", tmp_path / "b.onnx")
    assert len(result.manifest.detector.levels) == 3


@pytest.mark.slow
def test_a_half_precision_detector_is_explained(tmp_path):
    model = networks.fill(networks.Yolo8())
    file = trace(model, torch.from_numpy(IMAGE), tmp_path / "a.onnx", is_batch_free=True)
    onnx.save(convert_float_to_float16(onnx.load(file)), tmp_path / "h.onnx")
    result = to_onnx(tmp_path / "h.onnx", tmp_path / "b.onnx")
    manifest = result.manifest
    assert (manifest.precision, manifest.image_dtype) == ("fp16", "float16")
    engine = open_engine(result.path, manifest, "onnxruntime")
    feeds = {"image": IMAGE, "target": np.full((2, 1, 2), -1, np.int64)}
    found = engine.run(feeds, ["candidate_scores", "candidate_boxes"])
    with torch.no_grad():
        rows = model(torch.from_numpy(IMAGE)).transpose(1, 2).numpy()
    assert_allclose(found["candidate_scores"], rows[..., 4:], atol=5e-3)
    centre = (found["candidate_boxes"][..., :2] + found["candidate_boxes"][..., 2:]) / 2
    assert_allclose(centre, rows[..., :2], atol=0.1)
