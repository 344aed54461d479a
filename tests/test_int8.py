"""INT8 files: quantised where they should be, alike in every engine, proved before written."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from networks import SMALL, linear
from PIL import Image
from tensorrt_build import build_errors
from torch import nn

import whycam
from whycam.calibrate.dataset import open_dataset
from whycam.calibrate.fidelity import compare
from whycam.calibrate.int8 import Int8Result, calibrate_int8, split_samples
from whycam.calibrate.int8_search import Search, Trial
from whycam.calibrate.int8_settings import FLOOR, Settings
from whycam.calibrate.quantise import observe, read_graph
from whycam.export import to_onnx
from whycam.runtime.engines import selftest
from whycam.runtime.engines.selftest import check
from whycam.runtime.errors import (
    DataError,
    MissingExtraError,
    OutputError,
    RequestError,
    VerificationError,
    WhyCamError,
)
from whycam.runtime.onnxfile import digest, read_manifest, with_manifest
from whycam.runtime.pipeline import prepare
from whycam.runtime.similarity import pearson, top_overlap
from whycam.runtime.tft import Tft

EASY = Settings(weight_bits=7, floor={"pearson": 0.5, "top1": 0.5}, threads=1)


class Residual(nn.Module):
    """Depthwise and plain convolutions, a linear bottleneck with a sum, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6())
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1)
        )
        self.narrow = nn.Conv2d(16, 16, 1)
        self.last = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))

    def forward(self, x):
        x = self.stem(x)
        y = self.deep(x)
        y = self.narrow(y * self.squeeze(y).sigmoid())
        return self.head(self.last(x + y))


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of colour in noise, 40 of them; one is broken."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(40):
        pixels = rng.integers(0, 80, (40, 40, 3), np.uint8)
        x, y = rng.integers(0, 24, 2)
        pixels[y : y + 14, x : x + 14] = rng.integers(60, 256, 3)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"not an image")
    return folder


def seeded_residual() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def residual(exports) -> Path:
    return exports(seeded_residual, methods=["gradcam", "layercam", "ablation"], overrides=SMALL)


@pytest.fixture(scope="module")
def made(residual: Path, image_folder: Path) -> tuple[Path, Int8Result]:
    path = residual.with_name("residual.int8.onnx")
    return path, calibrate_int8(residual, open_dataset(image_folder), path, EASY)


def quantised_layers(path: Path) -> tuple[set[str], set[str]]:
    """Names of weights whose layer reads quantised activations, and of those that do not."""
    graph = onnx.load(path).graph
    source = {output: node for node in graph.node for output in node.output}
    inside, outside = set(), set()
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            before = source.get(node.input[0])
            weight = source.get(node.input[1])
            name = weight.input[0] if weight is not None else node.input[1]
            (
                inside if before is not None and before.op_type == "DequantizeLinear" else outside
            ).add(name.removesuffix("_quantized"))
    return inside, outside


def test_trunk_is_quantised_and_the_rest_is_not(made):
    inside, outside = quantised_layers(made[0])
    assert len(inside) == 4  # stem, deep, narrow, last
    # Squeeze and excitation works on a single pixel; the head is the classifier.
    assert len(outside) == 3


def test_file_holds_only_what_every_engine_takes(made):
    model = onnx.load(made[0])
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["QuantizeLinear"] >= 5
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = weights[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
            assert weights[node.input[1]].dtype == np.float32
    # No bias is quantised, and no convolution's own output before its activation.
    assert not [name for name, value in weights.items() if value.dtype == np.int32]
    source = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in ("Relu", "Clip"):
            before = source.get(node.input[0])
            assert before is None or before.op_type != "DequantizeLinear"


def test_every_engine_answers_alike(made, image_folder):
    files = [image_folder / f"{i}.png" for i in range(6)]
    a, b = (whycam.load(made[0], name, threads=1) for name in ("openvino", "onnxruntime"))
    for method in a.manifest.methods:
        for x, y in zip(
            a.explain(files, method=method), b.explain(files, method=method), strict=True
        ):
            assert abs(x.probability - y.probability) < 0.02
            assert pearson(x.map, y.map) > 0.98


@pytest.mark.slow
def test_tensorrt_builds_it(made):
    assert build_errors(str(made[0]), read_manifest(made[0])) == []


def test_manifest_says_int8_and_the_file_verifies(made, residual):
    path, _ = made
    manifest, before = read_manifest(path), read_manifest(residual)
    assert manifest.precision == "int8"
    assert manifest.digest == digest(path) != before.digest
    assert manifest.references != before.references
    assert manifest.methods == before.methods
    engine = whycam.load(path).engine
    assert "int8" in engine.description
    for compared in check(engine, manifest):
        assert compared.problems == ()


def test_int8_numbers_differ_from_float_but_little(made, residual, image_folder):
    float32, other = (whycam.load(path, threads=1) for path in (residual, made[0]))
    files = [image_folder / f"{i}.png" for i in range(10)]
    apart = [
        abs(a.probability - b.probability)
        for a, b in zip(float32.explain(files), other.explain(files), strict=True)
    ]
    assert 0 < max(apart) < 0.05


def test_report_says_what_was_tried_and_proved(made):
    _, found = made
    assert {(t.calibrator, t.percentile) for t in found.tried} == {
        ("minmax", None),
        ("percentile", 99.99),
        ("percentile", 99.9),
        ("entropy", None),
    }
    assert found.calibrated_on in (19, 20)  # the broken image may be among these
    assert found.proof.images + found.calibrated_on == 40
    assert found.layers == 4
    assert found.floating == ()
    assert set(found.proof.maps) == {"gradcam", "layercam", "ablation"}
    for maps in found.proof.maps.values():
        assert maps.same_threshold is not None


@pytest.mark.slow
def test_references_are_computed_for_the_file_that_is_written_alone(
    residual, image_folder, tmp_path, monkeypatch
):
    computed = []
    answers = selftest.make_references
    monkeypatch.setattr(selftest, "make_references", lambda *a: computed.append(1) or answers(*a))
    strict = Settings(weight_bits=8, floor={"pearson": 0.5, "top1": 0.5}, threads=1)
    calibrate_int8(residual, open_dataset(image_folder), tmp_path / "a.onnx", strict)
    assert len(computed) == 1


def test_a_floor_out_of_reach_is_refused_at_once_with_what_was_tried(
    residual, image_folder, tmp_path, monkeypatch
):
    tried = []
    evaluate = Search.evaluate

    def counted(self, *given):
        tried.append(given)
        return evaluate(self, *given)

    monkeypatch.setattr(Search, "evaluate", counted)
    notes = []
    settings = Settings(calibrator="minmax", weight_bits=8, floor={"pearson": 1.0}, threads=1)
    with pytest.raises(VerificationError) as caught:
        calibrate_int8(
            residual, open_dataset(image_folder), tmp_path / "a.onnx", settings, note=notes.append
        )
    said = str(caught.value)
    assert "every layer in float" not in said  # which holds any floor, and was never tried
    assert "in INT8 and every other layer in float" in said
    assert "pearson 1" in said
    assert any(layer.name in said for layer in read_graph(residual).layers)
    assert len(tried) == 2  # all in INT8, and all but one in float
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.slow
def test_the_smallest_step_of_few_images_is_said(residual, image_folder, tmp_path):
    notes = []
    settings = Settings(
        calibrator="minmax", held_out=8, floor={"top1": 0.9, "pearson": 0.1}, threads=1
    )
    with contextlib.suppress(VerificationError):
        calibrate_int8(
            residual, open_dataset(image_folder), tmp_path / "a.onnx", settings, note=notes.append
        )
    assert (
        "only 8 images are held out, so one is a step of 0.125 in top1: a floor of 0.9 means that "
        "all of them keep their class" in notes
    )


def test_layers_are_named_by_their_modules(residual):
    names = [layer.name for layer in read_graph(residual).layers]
    assert names == ["stem.0", "deep.0", "narrow", "last.0"]


@pytest.mark.slow
def test_layers_that_hurt_most_stay_in_float_until_the_floor_holds(
    residual, image_folder, tmp_path
):
    """One layer's range is spoilt on purpose: it is the one to stay in float."""
    data = open_dataset(image_folder)
    graph = read_graph(residual)
    spoilt = graph.layers[-1]
    measured = Search._magnitudes

    def spoil(self, recipe):
        found = measured(self, recipe)
        return {**found, spoilt.reads: 500 * found[spoilt.reads]}

    notes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "_magnitudes", spoil)
        strict = Settings(calibrator="minmax", floor={"pearson": 0.97, "top1": 0.8}, threads=1)
        found = calibrate_int8(residual, data, tmp_path / "a.onnx", strict, note=notes.append)
    assert any("which of 4 layers to leave in float takes about" in note for note in notes)
    assert found.floating[0].name == spoilt.name
    assert len(found.floating) < found.layers
    assert found.milliseconds_all_int8 is not None
    assert found.proof.top1 >= 0.8
    inside, _ = quantised_layers(tmp_path / "a.onnx")
    assert len(inside) == found.layers - len(found.floating)


@pytest.mark.slow
def test_floor_missed_on_images_held_out_leaves_no_file(
    residual, image_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(Trial, "shortfall", lambda *_: 0.0)
    out_of_reach = Settings(floor={"pearson": 1.0}, threads=1)
    with pytest.raises(VerificationError, match="images held out"):
        calibrate_int8(residual, open_dataset(image_folder), tmp_path / "a.onnx", out_of_reach)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_sweep_inside_a_graph_is_quantised_with_the_network(image_folder, tmp_path):
    path, out = tmp_path / "tft.onnx", tmp_path / "int8.onnx"
    to_onnx(linear(), path, outputs=["raw", "tft"], overrides=SMALL)
    settings = Settings(calibrator="percentile", percentile=99.99, threads=1, floor={})
    calibrate_int8(path, open_dataset(image_folder), out, settings)
    layers = [node for node in onnx.load(out).graph.node if node.op_type == "Conv"]
    in_sweep = [node for node in layers if node.name.startswith("whycam/sweep/")]
    assert 0 < len(in_sweep) < len(layers)
    for node in layers:
        assert any("Dequantize" in name for name in node.input), node.name
    found = whycam.load(out, "onnxruntime", threads=1).explain(image_folder / "0.png", tft=True)
    assert np.isfinite(found.rpi).all()


def test_ranges_hold_what_the_float_graph_computes(residual, image_folder):
    explainer = whycam.load(residual, "onnxruntime", threads=1)
    files = [image_folder / f"{i}.png" for i in range(5)]
    images = [prepare([np.asarray(Image.open(file))], explainer.manifest).inputs for file in files]
    found = observe(read_graph(residual), images, threads=1)
    assert found["image"].largest == max(np.abs(image).max() for image in images)
    assert all(each.counts.sum() > 0 for each in found.values())


def test_calibration_and_proof_never_share_a_image(image_folder):
    seen, held_out = split_samples(open_dataset(image_folder), Settings(images=30, held_out=30))
    assert not {s.name for s in seen} & {s.name for s in held_out}
    assert seen == split_samples(open_dataset(image_folder), Settings(images=30, held_out=30))[0]


# Comparing.


def test_a_network_compared_with_itself_agrees_wholly(residual, image_folder):
    explainer = whycam.load(residual, threads=1)
    samples = open_dataset(image_folder).samples
    found = compare(explainer, explainer, samples, tft=Tft(mask="soft", thresholds="rank"))
    assert found.images == 40
    assert len(found.unreadable) == 1
    assert found.top1 == 1
    assert found.probability == 0
    for maps in found.maps.values():
        assert maps.pearson == pytest.approx(1)
        assert maps.iou == 1
        assert maps.same_threshold == 1
        assert maps.increase_before == maps.increase_after


def test_correlation_and_overlap_by_hand():
    a = np.arange(100, dtype=np.float32).reshape(10, 10)
    assert pearson(a, 2 * a + 1) == pytest.approx(1)
    assert pearson(a, -a) == pytest.approx(-1)
    assert top_overlap(a, a) == 1
    assert top_overlap(a, a[::-1, ::-1]) == 0
    b = a.copy()
    b[9] = 0  # half of the twenty most important pixels are others now
    assert top_overlap(a, b) == pytest.approx(10 / 30)
    zero = np.zeros((4, 4), np.float32)
    assert pearson(zero, zero) == 1
    assert pearson(zero, a[:4, :4]) == 0
    assert top_overlap(zero, zero) == 1


def test_other_networks_are_not_compared(residual, lite0, image_folder):
    with pytest.raises(RequestError, match="cannot be compared"):
        compare(whycam.load(residual), lite0, open_dataset(image_folder).samples)


# What cannot be done.


@pytest.mark.parametrize(
    "wish",
    [
        {"calibrator": "best"},
        {"percentile": 10.0},
        {"floor": {"iou": 0.9}},
        {"floor": {"top1": 1.5}},
        {"images": 2},
    ],
    ids=str,
)
def test_settings_that_do_not_exist_are_refused(wish):
    with pytest.raises(RequestError):
        Settings(**wish)


def test_requests_that_cannot_be_met(residual, made, image_folder, tmp_path):
    data = open_dataset(image_folder)
    with pytest.raises(RequestError, match="int8 already"):
        calibrate_int8(made[0], data, tmp_path / "a.onnx")
    with pytest.raises(RequestError, match="the float file itself"):
        calibrate_int8(residual, data, residual)
    with pytest.raises(RequestError, match="cannot compare hirescam"):
        calibrate_int8(residual, data, tmp_path / "a.onnx", Settings(methods=["hirescam"]))
    with pytest.raises(OutputError):
        calibrate_int8(residual, data, "/proc/a.onnx")
    (tmp_path / "few").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "few" / "0.png")
    with pytest.raises(DataError, match="16 images or more"):
        calibrate_int8(residual, open_dataset(tmp_path / "few"), tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_unreadable_images_alone_are_an_error(residual, tmp_path):
    for index in range(20):
        (tmp_path / f"{index}.png").write_bytes(b"no")
    with pytest.raises(WhyCamError, match="can be read"):
        calibrate_int8(residual, open_dataset(tmp_path), tmp_path / "a.onnx")


def test_weights_that_are_not_numbers_are_an_error(residual, image_folder, tmp_path):
    """NaN weights give NaN activations: no range can be taken from them."""
    model = onnx.load(residual)
    for weight in model.graph.initializer:
        if len(weight.dims) == 4:
            values = onnx.numpy_helper.to_array(weight) * np.float32(np.nan)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    broken = tmp_path / "broken.onnx"
    onnx.save(model, broken)
    own = msgspec.structs.replace(read_manifest(broken), digest=digest(broken))
    with_manifest(broken, broken, own)  # as an export of such a network would be
    with pytest.raises(WhyCamError, match="NaN"):
        calibrate_int8(broken, open_dataset(image_folder), tmp_path / "a.onnx", EASY)
    assert not (tmp_path / "a.onnx").exists()


def test_without_the_package_onnx_the_extra_is_named(residual, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime.quantization.quant_utils", None)
    with pytest.raises(MissingExtraError, match=r'pip install "whycam\[calibrate\]"'):
        read_graph(residual)


@pytest.mark.slow
@pytest.mark.shared
def test_efficientnet_lite0_keeps_labels_and_maps(lite0_onnx, shared_data, tmp_path):
    """What the plain recipe loses: 74 % of the labels, maps that correlate by 0.94."""
    data = open_dataset(shared_data / "imagenet-samples")
    settings = Settings(images=64, held_out=100, threads=2)
    found = calibrate_int8(lite0_onnx, data, tmp_path / "a.onnx", settings)
    # With weights of 8 bits none; of 7, where the processor needs them, a few.
    assert len(found.floating) <= (0 if found.weight_bits == 8 else 8)
    assert found.proof.top1 >= 0.94  # 0.975 on 200; one image of 100 is 0.01
    assert all(maps.pearson >= 0.99 for maps in found.proof.maps.values())
    assert found.bytes_after < found.bytes_before / 2
    assert json.loads(json.dumps(found.floor)) == FLOOR


@pytest.mark.slow
def test_quantised_files_are_never_compiled_for_any_shape(residual, image_folder, tmp_path):
    """OpenVINO gets those wrong on processors without VNNI: every batch has its own network."""
    out = tmp_path / "a.onnx"
    calibrate_int8(
        residual, open_dataset(image_folder), out, Settings(calibrator="minmax", threads=1)
    )
    files = [image_folder / f"{i}.png" for i in range(8)]
    explainer = whycam.load(out, "openvino", threads=1)
    alone = [explainer.explain(file) for file in files]
    for count in (2, 3, 5, 8, 1, 7, 2):
        for one, each in zip(alone, explainer.explain(files[:count]), strict=False):
            assert one.index == each.index
            np.testing.assert_allclose(one.map, each.map, atol=1e-4)
    for part in explainer.engine._parts.values():
        assert None not in part._compiled
        assert len(part._compiled) <= 4


@pytest.mark.slow
def test_weights_of_seven_bits_use_no_more(residual, image_folder, tmp_path):
    out = tmp_path / "a.onnx"
    settings = Settings(calibrator="minmax", weight_bits=7, threads=1)
    found = calibrate_int8(residual, open_dataset(image_folder), out, settings)
    assert found.weight_bits == 7
    weights = [
        onnx.numpy_helper.to_array(each)
        for each in onnx.load(out).graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and each.dims and each.name.endswith("quantized")
    ]
    assert weights
    assert max(np.abs(each.astype(int)).max() for each in weights) == 64
    # Every processor computes what the file says.
    for engine in ("onnxruntime", "openvino"):
        loaded = whycam.load(out, engine, threads=1)
        for compared in check(loaded.engine, loaded.manifest):
            assert compared.problems == ()


def test_weight_bits_are_eight_or_seven():
    with pytest.raises(RequestError, match="weight_bits must be 8 or 7, not 6"):
        Settings(weight_bits=6)
