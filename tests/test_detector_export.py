"""Detectors become explaining files: each format's scores, boxes, layers and gradients."""

from pathlib import Path

import detector_networks as networks
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detector_networks import CLASSES, SIZE
from networks import SMALL, linear
from numpy.testing import assert_allclose
from tensorrt_build import build_errors

from whycam.export import Overrides, to_onnx
from whycam.runtime.boxes import overlaps
from whycam.runtime.engines.opening import open_engine
from whycam.runtime.errors import ExportError, RequestError
from whycam.runtime.onnxfile import read_manifest

LABELS = ("one", "two", "three")
PLAIN = Overrides(preprocess="zero-one")
IMAGE = np.random.default_rng(0).random((2, 3, SIZE, SIZE), np.float32)


def write(model: torch.nn.Module, path: Path, *names: str) -> Path:
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, SIZE, SIZE),),
        str(path),
        input_names=["images"],
        output_names=list(names or ["output0"]),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        opset_version=18,
        verbose=False,
    )
    return path


FORMATS = {
    "yolov8": (networks.Yolo8, {}),
    "yolov5": (networks.Yolo5, {"labels": LABELS}),
    "yolox": (networks.YoloX, {"format": "yolox"}),
    "yolov10": (networks.Yolo10, {"format": "yolov10", "labels": LABELS}),
    "picodet": (networks.PicoDet, {"overrides": PLAIN}),
    "detr": (networks.Detr, {"labels": LABELS, "overrides": PLAIN}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each format's network, its file, and the explaining file, made where it is asked for."""
    folder, made = tmp_path_factory.mktemp("detectors"), {}

    def make(name: str):
        if name not in made:
            network, options = FORMATS[name]
            model = networks.fill(network())
            outputs = {
                "detr": ("logits", "pred_boxes"),
                "picodet": ("s8", "s16", "s32", "d8", "d16", "d32"),
            }.get(name, ())
            file = write(model, folder / f"{name}.onnx", *outputs)
            result = to_onnx(file, folder / f"{name}.explained.onnx", **options)
            made[name] = model, file, result
        return made[name]

    return make


def run(path: Path, outputs: list[str], target: np.ndarray) -> dict[str, np.ndarray]:
    engine = open_engine(path, read_manifest(path), "onnxruntime")
    return engine.run({"image": IMAGE, "target": target}, outputs)


def expected_candidates(name: str, model: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, A, C] and corners [N, A, 4], computed from the network's outputs by hand."""
    with torch.no_grad():
        images = torch.from_numpy(IMAGE)
        out = model.dense(images) if name == "picodet" else model(images)
    if name == "detr":
        scores, boxes = out[0].softmax(-1)[..., :CLASSES], out[1] * SIZE
    elif name in ("yolov8", "picodet"):
        boxes, scores = out.permute(0, 2, 1).split((4, CLASSES), 2)
    elif name == "yolov10":
        boxes = out[..., :4]
        scores = out[..., 4:5] * torch.eye(CLASSES)[out[..., 5].long()]
        return scores.numpy(), boxes.numpy()
    else:
        boxes, scores = out[..., :4], out[..., 4:5] * out[..., 5:]
    if name == "yolox":
        rows = []
        for stride in networks.STRIDES:
            side = SIZE // stride
            rows += [(x, y, stride) for y in range(side) for x in range(side)]
        grid = torch.tensor(rows, dtype=torch.float32)
        boxes = torch.cat(
            [(boxes[..., :2] + grid[:, :2]) * grid[:, 2:], boxes[..., 2:].exp() * grid[:, 2:]], -1
        )
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    return scores.numpy(), torch.cat([low, high], -1).numpy()


@pytest.mark.parametrize("name", FORMATS)
def test_scores_and_boxes_are_those_of_the_format(exported, name):
    model, _, result = exported(name)
    target = np.full((2, 1, 2), -1, np.int64)
    found = run(result.path, ["candidate_scores", "candidate_boxes"], target)
    scores, boxes = expected_candidates(name, model)
    assert_allclose(found["candidate_scores"], scores, atol=1e-5)
    assert_allclose(found["candidate_boxes"], boxes, rtol=1e-4, atol=1e-3)
    assert result.manifest.detector.format == name
    assert result.manifest.detector.candidates == scores.shape[1]
    assert result.verification.worst["own_outputs"] < 1e-6


@pytest.mark.parametrize("name", ["yolov8", "yolov5", "yolox", "yolov10", "picodet"])
def test_layers_are_the_last_of_each_level_before_the_branches(exported, name):
    levels = exported(name)[2].manifest.detector.levels
    width = {"yolox": (8, 8, 8)}.get(name, (8, 12, 16))
    assert [level.activations for level in levels] == [
        (channels, SIZE // stride, SIZE // stride)
        for channels, stride in zip(width, networks.STRIDES, strict=True)
    ]
    assert exported(name)[2].manifest.detector.map_size == (8, 8)


def test_a_candidate_reads_more_than_its_own_cell_of_its_layers(tmp_path):
    """After the tower's 3 x 3 convolution a map would be a dot; Layer-CAM before it is torch's."""
    model = networks.fill(networks.SharedTower())
    result = to_onnx(write(model, tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert "more than one cell" in result.manifest.target_layer_reason
    assert "level_" in str([node.name for node in onnx.load(result.path).graph.node])
    # A corner, the middle, and the corner of the next level.
    target = np.array([[[0, 0], [27, 1], [64, 2]]] * 2)
    found = run(result.path, ["maps"], target)["maps"]
    model = model.double()
    for row in range(2):
        for place, (candidate, index) in enumerate(target[row]):
            image = torch.from_numpy(IMAGE[row : row + 1]).double()
            levels = [level.detach().requires_grad_() for level in model.pyramid(image)]
            heads = [
                cls(tower(level)).flatten(2)
                for level, tower, cls in zip(levels, model.tower, model.cls, strict=True)
            ]
            torch.cat(heads, 2)[0, index, candidate].backward()
            raws = [(f.grad.relu() * f).sum(1, keepdim=True).relu().detach() for f in levels]
            total = sum(torch.nn.functional.interpolate(r, (8, 8), mode="bilinear") for r in raws)
            expected = (total[0, 0] / total.max()).numpy()
            assert (expected > 0).sum() > 1
            assert_allclose(found[row, place], expected, atol=1e-4)


def test_levels_of_single_cells_without_earlier_ones_are_named(tmp_path):
    """Their maps are dots, and whoever exports them must know it."""
    file = write(networks.fill(networks.Untowered()), tmp_path / "a.onnx")
    result = to_onnx(file, tmp_path / "b.onnx")
    levels = result.manifest.detector.levels
    reason = result.manifest.target_layer_reason
    assert f"Of {levels[1].name}, {levels[2].name} a candidate reads its own cell alone" in reason
    assert levels[0].name not in reason  # its coarser level is computed from it by 3 x 3
    assert levels[0].activations == (8, 8, 8)


def test_the_layer_of_queries_is_the_encoders_output(exported):
    model, _, result = exported("detr")
    (level,) = result.manifest.detector.levels
    assert level.activations == (16, 4, 4)
    assert "queries" in result.manifest.target_layer_reason
    del model


@pytest.mark.parametrize("name", FORMATS)
def test_ranks_are_the_best_after_suppression(exported, name):
    _, _, result = exported(name)
    detector, target = result.manifest.detector, np.full((2, 4, 2), -1, np.int64)
    names = ["candidate_scores", "candidate_boxes", "detections", "scores", "boxes"]
    found = run(result.path, names, target)
    for row in range(2):
        scores, boxes = found["candidate_scores"][row], found["candidate_boxes"][row]
        best, chosen = scores.max(1), []
        for index in np.argsort(-best, kind="stable"):
            same = [other for other in chosen if scores[other].argmax() == scores[index].argmax()]
            if best[index] > detector.min_score and (
                detector.iou is None
                or not (overlaps(boxes[index][None], boxes[same]) > detector.iou).any()
            ):
                chosen.append(int(index))
        for place in range(4):
            if place >= len(chosen):
                assert found["detections"][row, place].tolist() == [-1, -1]
                assert found["scores"][row, place] == 0
                continue
            candidate = chosen[place]
            assert found["scores"][row, place] == pytest.approx(best[candidate], abs=1e-6)
            if name != "yolov10":  # whose file may give one box twice
                expected = [candidate, scores[candidate].argmax()]
                assert found["detections"][row, place].tolist() == expected
                assert_allclose(found["boxes"][row, place], boxes[candidate], rtol=1e-5)


def test_a_gradient_through_a_pyramid_is_that_of_autograd(tmp_path):
    """Layer-CAM of the levels, from torch in float64, added at the finest one."""
    model = networks.fill(networks.Yolo8())
    result = to_onnx(write(model, tmp_path / "a.onnx"), tmp_path / "b.onnx")
    target = np.array([[[3, 1], [70, 0]], [[81, 2], [20, 1]]])
    found = run(result.path, ["maps", "maps_gradcam"], target)
    model = model.double()
    for row in range(2):
        for place, (candidate, index) in enumerate(target[row]):
            levels = [
                level.detach().requires_grad_()
                for level in model.pyramid(torch.from_numpy(IMAGE[row : row + 1]).double())
            ]
            heads = [cls(level).flatten(2) for level, cls in zip(levels, model.cls, strict=True)]
            torch.cat(heads, 2)[0, index, candidate].backward()
            for name in ("maps", "maps_gradcam"):
                total = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
                for level in levels:
                    if name == "maps":
                        raw = (level.grad.relu() * level).sum(1, keepdim=True).relu()
                    else:
                        alpha = level.grad.mean((2, 3), keepdim=True)
                        raw = (alpha * level).sum(1, keepdim=True).relu()
                    total += torch.nn.functional.interpolate(raw.detach(), (8, 8), mode="bilinear")
                total = total[0, 0].numpy()
                spread = total.max() - total.min()
                expected = (total - total.min()) / spread if spread > 0 else 0 * total
                assert_allclose(found[name][row, place], expected, atol=1e-4)


def test_a_dense_head_is_differentiated_on_patches_alone(exported):
    """Which is what makes ten detections affordable; queries have no cells."""
    for name, is_dense in (
        ("yolov8", True), ("yolov5", True), ("yolox", True), ("picodet", True), ("detr", False)
    ):  # fmt: skip
        graph = onnx.load(exported(name)[2].path).graph
        assert is_dense == any("whycam/gradient/level_" in node.name for node in graph.node)


@pytest.mark.parametrize("edge", ["left", "bottom"])
def test_an_edge_is_explained_by_how_far_out_it_lies(tmp_path, edge):
    model = networks.fill(networks.Yolo5())
    file = write(model, tmp_path / "a.onnx")
    options = {"score": edge, "methods": ["hirescam"], "labels": LABELS}
    result = to_onnx(file, tmp_path / "b.onnx", **options)
    assert result.manifest.detector.score == edge
    found = run(result.path, ["maps"], np.array([[[5, 0]], [[200, 0]]]))
    model = model.double()
    predict, anchor = model.predict[0], 0
    level = model.pyramid(torch.from_numpy(IMAGE[:1]).double())[0].detach().requires_grad_()
    # Candidate 5 is the first anchor's, in row 0 and column 5 of the finest level.
    raw = predict(model.block[0](level)).view(3, 5 + CLASSES, 8, 8)[anchor, :, 0, 5].sigmoid()
    centre = (raw[:2] * 2 - 0.5 + torch.tensor([5.0, 0.0])) * 8
    size = (raw[2:4] * 2) ** 2 * 8
    (-(centre - size / 2)[0] if edge == "left" else (centre + size / 2)[1]).backward()
    total = (level.grad * level).sum(1).relu()[0].detach().numpy()
    assert_allclose(found["maps"][0, 0], total / total.max(), atol=1e-4)


def test_maps_of_what_is_not_there_are_empty(exported):
    _, _, result = exported("yolov5")
    found = run(result.path, ["maps", "detections"], np.full((2, 252, 2), -1))
    absent = found["detections"][..., 0] < 0
    assert absent.any()
    assert not found["maps"][absent].any()
    assert found["maps"][~absent].any()


def test_named_layers_are_explained_instead(tmp_path):
    model = networks.fill(networks.Yolo8())
    file = write(model, tmp_path / "a.onnx")
    names = ("pyramid.coarse", "pyramid.middle")
    levels = [
        node.output[0]
        for node in onnx.load(file).graph.node
        if any(f"'{name}'" in p.value for name in names for p in node.metadata_props)
    ]
    assert levels  # the exporter names the modules
    result = to_onnx(file, tmp_path / "b.onnx", target_layer=names)
    shapes = [level.activations for level in result.manifest.detector.levels]
    assert shapes == [(12, 4, 4), (16, 2, 2)]


def test_candidates_are_named_for_engines_without_suppression(tmp_path):
    file = write(networks.fill(networks.Yolo8()), tmp_path / "a.onnx")
    result = to_onnx(file, tmp_path / "b.onnx", ranks=False)
    assert not result.manifest.detector.ranks
    kinds = {node.op_type for node in onnx.load(result.path).graph.node}
    assert not kinds & {"NonMaxSuppression", "ScatterND", "TopK"}


@pytest.mark.slow
def test_tensorrt_rtx_builds_a_graph_with_named_candidates(tmp_path):
    file = write(networks.fill(networks.Yolo8()), tmp_path / "a.onnx")
    result = to_onnx(file, tmp_path / "b.onnx", ranks=False)
    assert build_errors(str(result.path), result.manifest) == []


def test_outputs_of_another_type_are_read_as_floats(tmp_path):
    class Double(networks.Yolo8):
        def forward(self, x):
            return super().forward(x).double()

    result = to_onnx(write(networks.fill(Double()), tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert result.manifest.gradient_score == "logit"
    engine = open_engine(result.path, result.manifest, "onnxruntime")
    feeds = {"image": IMAGE, "target": np.full((2, 1, 2), -1, np.int64)}
    assert engine.run(feeds, ["candidate_scores"])["candidate_scores"].dtype == np.float32


def test_a_torch_model_is_a_detector_too(tmp_path):
    result = to_onnx(
        networks.fill(networks.Yolo5()),
        tmp_path / "a.onnx",
        labels=LABELS,
        overrides=Overrides(image_size=SIZE, preprocess="zero-one"),
    )
    assert result.manifest.detector.format == "yolov5"


def test_own_outputs_keep_their_names_and_values(exported):
    _, file, result = exported("detr")
    session = onnxruntime.InferenceSession(str(result.path))
    before = onnxruntime.InferenceSession(str(file)).run(None, {"images": IMAGE})
    target = np.full((2, 1, 2), -1, np.int64)
    after = session.run(["logits", "pred_boxes"], {"images": IMAGE, "target": target})
    for one, other in zip(before, after, strict=True):
        assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"outputs": ["raw", "map"]}, "choose the output map"),
        ({"outputs": ["map", "tft"]}, "explain --tft"),
        ({"methods": ["ablation"]}, "ablation compares probabilities"),
        ({"methods": ["legrad"]}, "class token"),
        ({"score": "logit"}, "class, left"),
        ({"embed_preprocess": True}, "fitted in outside"),
        ({"dynamic_size": (32, 64)}, "one input size"),
        ({"top": 2}, "rank -1"),
        ({"fused_layers": ["x"]}, "levels are added"),
        ({"head": "output0"}, "its format says"),
        ({"task": "softmax"}, "task softmax of classifiers"),
    ],
)
def test_options_of_classifiers_are_refused_before_the_file_is_read(tmp_path, options, words):
    with pytest.raises(RequestError, match=words):
        to_onnx(tmp_path / "missing.onnx", tmp_path / "b.onnx", **{"format": "yolov8", **options})


def test_options_of_detectors_are_refused_for_classifiers(tmp_path):
    with pytest.raises(RequestError, match=r"score left.*for detectors"):
        to_onnx(linear(), tmp_path / "b.onnx", score="left", overrides=SMALL)


@pytest.mark.parametrize(
    ("name", "format", "words"),
    [
        ("yolov8", "yolov5", "hold no boxes|come from"),
        ("yolov8", "yolov10", r"not \[N, A, 6\]"),
        ("yolov8", "detr", "not one output of boxes"),
        ("detr", "ssd", "no corners of boxes"),
    ],
)
def test_another_format_is_refused_with_the_reason(exported, tmp_path, name, format, words):
    _, file, _ = exported(name)
    options = {"labels": LABELS, "overrides": PLAIN} if name == "detr" else {}
    with pytest.raises(ExportError, match=words):
        to_onnx(file, tmp_path / "b.onnx", format=format, **options)


def test_logits_that_nothing_explains_are_refused(tmp_path):
    file = write(networks.fill(networks.Detr()), tmp_path / "a.onnx", "logits", "pred_boxes")
    with pytest.raises(ExportError, match="--activation sigmoid or softmax"):
        to_onnx(file, tmp_path / "b.onnx", overrides=PLAIN)


def test_boxes_that_begin_with_their_top_edge_are_read_as_such(tmp_path):
    """TensorFlow's detectors write them so; what tells is the order of the candidates."""
    model = networks.fill(networks.TopFirst())
    file = write(model, tmp_path / "a.onnx", "scores", "boxes")
    result = to_onnx(file, tmp_path / "b.onnx", format="ssd", overrides=PLAIN)
    found = run(result.path, ["candidate_scores", "candidate_boxes"], np.full((2, 1, 2), -1))
    scores, boxes = expected_candidates("yolov8", model.dense)
    assert_allclose(found["candidate_boxes"], boxes, rtol=1e-4, atol=1e-3)
    assert_allclose(found["candidate_scores"], scores[..., 1:], atol=1e-5)
    assert any("top, left, bottom, right" in note for note in result.notes)
    assert result.manifest.gradient_score == "logit"  # though a part of the classes is taken


def test_presets_keep_the_whole_image_of_a_detector(exported, tmp_path):
    """A centre crop, as classifiers have it, would hide the objects at the image's edges."""
    file = exported("picodet")[1]
    result = to_onnx(file, tmp_path / "a.onnx", overrides=Overrides(preprocess="imagenet"))
    assert result.manifest.preprocess.resize == (SIZE, SIZE)
    stated = Overrides(preprocess="imagenet", resize=80)
    result = to_onnx(file, tmp_path / "b.onnx", overrides=stated)
    assert result.manifest.preprocess.resize == (80,)


def test_levels_without_both_outputs_are_refused(exported, tmp_path):
    proto = onnx.load(exported("picodet")[1])
    del proto.graph.output[5]
    onnx.save(proto, tmp_path / "a.onnx")
    with pytest.raises(ExportError, match="not two outputs for each of several levels"):
        to_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", format="picodet", overrides=PLAIN)
