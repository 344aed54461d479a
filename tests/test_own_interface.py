"""Files that keep the inputs and outputs they had: every layout, colour, type, name and batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tiny_file import write_tiny

import whycam
from whycam.calibrate import evaluate, open_dataset
from whycam.calibrate.int8_file import write_int8
from whycam.calibrate.quantise import observe, quantise, read_graph
from whycam.calibrate.ranges import magnitude
from whycam.runtime import onnxcut, onnxfile
from whycam.runtime.engines import selftest
from whycam.runtime.engines.base import EngineSettings
from whycam.runtime.engines.interface import (
    first_parts,
    graph_name,
    needed_outputs,
    parts_needed,
    rename_to_contract,
    run_graph,
    surplus_outputs,
)
from whycam.runtime.engines.ort import OnnxRuntimeEngine
from whycam.runtime.engines.ort_binding import BoundSession
from whycam.runtime.engines.ort_options import TENSORRT, providers, run_limit
from whycam.runtime.errors import EngineError, ModelFileError, RequestError
from whycam.runtime.live.capture_thread import Frame
from whycam.runtime.live.controls import Controls, Look
from whycam.runtime.live.frames import FrameExplainer
from whycam.runtime.live.track import Allowance
from whycam.runtime.manifest import Manifest, Preprocess
from whycam.runtime.pipeline import prepare
from whycam.runtime.preprocess import in_color
from whycam.runtime.tft import Tft

METHODS = ("gradcam", "layercam", "gradcam++", "scorecam")
TAKEN = {"image": "input_1", "probabilities": "whycam_probabilities"}
GRAY = Preprocess(size=(8, 8), resize=(8,), color="L", mean=(0.45,), std=(0.22,))
RGB = Preprocess(size=(8, 8), resize=(8,))
BGR = Preprocess(size=(8, 8), resize=(8,), color="BGR", mean=RGB.mean[::-1], std=RGB.std[::-1])
RAW = Preprocess(size=(8, 8), resize=(8,), mean=(0.0,) * 3, std=(1 / 255,) * 3)
BIAS = np.array([RGB.mean, RGB.std])
ENGINES = ("onnxruntime", "openvino")

Files = Callable[..., Path]


def random_image(seed: int = 0, size: tuple[int, int] = (11, 9)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture
def file_of(tmp_path, manifest_of, tiny_engine) -> Files:
    """Writes a file that computes what `TinyEngine` does; keywords are fields of its manifest."""

    def write(mix: np.ndarray | None = None, bias: np.ndarray | None = None, **fields: Any) -> Path:
        tiny = tiny_engine()
        manifest = manifest_of(**({"methods": METHODS} | fields))
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        linear = tiny.linear[: manifest.num_classes]
        write_tiny(path, manifest, tiny.mix if mix is None else mix, linear, bias)
        return path

    return write


@pytest.fixture
def reference(manifest_of, tiny_engine) -> Callable[..., whycam.Explainer]:
    """The same network in NumPy, behind a float input in the layout NCHW."""

    def build(preprocess: Preprocess = RGB) -> whycam.Explainer:
        return whycam.Explainer(tiny_engine(), manifest_of(preprocess=preprocess, methods=METHODS))

    return build


def assert_same(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    assert found.index == expected.index
    assert found.probability == pytest.approx(expected.probability, abs=tolerance)
    np.testing.assert_allclose(found.original_map, expected.original_map, atol=tolerance)
    if expected.rpi is not None:
        assert found.threshold == expected.threshold
        np.testing.assert_allclose(found.rpi, expected.rpi, atol=10 * tolerance)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({"layout": "NHWC"}, RGB),
        ({"layout": "NHWC", "preprocess": GRAY}, GRAY),
        ({"preprocess": GRAY}, GRAY),
        ({"preprocess": RAW}, RAW),
        ({"names": TAKEN, "own_outputs": ("probabilities", "dense")}, RGB),
        ({"batch": 2}, RGB),
        ({"batch": 4, "layout": "NHWC", "names": TAKEN}, RGB),
        ({"outputs": ("raw", "map"), "map_methods": ("layercam", "gradcam")}, RGB),
    ],
    ids=["NHWC", "gray NHWC", "gray", "0..255", "names", "batch", "batch NHWC", "maps"],
)
def test_explanations_are_those_of_the_plain_network(file_of, reference, name, fields, spec):
    explainer = whycam.load(file_of(**fields), name, threads=1)
    expected = reference(spec)
    images = [random_image(seed) for seed in range(3)]
    for method in ("gradcam", "layercam", "scorecam"):
        for found, wanted in zip(
            explainer.explain(images, method=method, tft=Tft()),
            expected.explain(images, method=method, tft=Tft()),
            strict=True,
        ):
            assert_same(found, wanted)
    for found, wanted in zip(
        explainer.explain(images[0], [2, -1, -3], "gradcam"),
        expected.explain(images[0], [2, -1, -3], "gradcam"),
        strict=True,
    ):
        assert_same(found, wanted)
    np.testing.assert_allclose(explainer.classify(images), expected.classify(images), atol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_bgr_network_gets_blue_first(file_of, reference, tiny_engine, name):
    explainer = whycam.load(
        file_of(mix=tiny_engine().mix[:, ::-1], preprocess=BGR), name, threads=1
    )
    assert_same(
        explainer.explain(random_image(), tft=True), reference().explain(random_image(), tft=True)
    )


def test_gray_is_pillows():
    view = random_image(3, (40, 50))
    np.testing.assert_array_equal(
        in_color(view, "L")[..., 0], np.asarray(Image.fromarray(view).convert("L"))
    )


@pytest.mark.parametrize("name", ENGINES)
def test_half_precision_input_is_fed_halves(file_of, reference, name):
    explainer = whycam.load(file_of(image_dtype="float16"), name, threads=1)
    assert_same(explainer.explain(random_image()), reference().explain(random_image()), 1e-2)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_uint8_input_is_fed_pixels_of_the_networks_size(file_of, reference, name, layout):
    path = file_of(bias=BIAS, image_dtype="uint8", preprocess=RAW, layout=layout)
    explainer = whycam.load(path, name, threads=1)
    assert_same(explainer.explain(random_image()), reference().explain(random_image()))
    images = prepare([random_image()], explainer.manifest).inputs
    assert (images.dtype, images.shape[1:]) == (np.uint8, explainer.manifest.image_shape)


@pytest.mark.parametrize(("method", "tft"), [("gradcam", True), ("scorecam", None)])
def test_pixels_cannot_be_masked_after_normalising(file_of, method, tft):
    path = file_of(bias=BIAS, image_dtype="uint8", preprocess=RAW)
    explainer = whycam.load(path, threads=1)
    with pytest.raises(RequestError, match="takes uint8 pixels and normalises them itself"):
        explainer.explain(random_image(), method=method, tft=tft)


@pytest.mark.parametrize("name", ENGINES)
def test_file_without_input_for_the_class_explains_the_most_probable(file_of, reference, name):
    path = file_of(top=2, outputs=("raw", "map"), map_methods=("gradcam",))
    explainer = whycam.load(path, name, threads=1)
    images = [random_image(seed) for seed in range(3)]
    entries = [[-1, -2], [-2], -1]
    for row, wanted in zip(
        explainer.explain(images, entries, tft=True),
        reference().explain(images, entries, tft=True),
        strict=True,
    ):
        pairs = zip(row, wanted, strict=True) if isinstance(row, list) else [(row, wanted)]
        for found, expected in pairs:
            assert_same(found, expected)
    assert_same(
        explainer.explain(images[0], -2, "layercam"),
        reference().explain(images[0], -2, "layercam"),
    )


@pytest.mark.parametrize("target", [0, 2, -3, "bee"])
def test_other_classes_than_the_most_probable_need_an_input_for_the_class(file_of, target):
    explainer = whycam.load(file_of(top=2), threads=1)
    with pytest.raises(RequestError, match=r"ranks -1 to -2 alone.*Export again without --top"):
        explainer.explain(random_image(), target)
    feeds = {
        "image": selftest.make_input(explainer.manifest, 0),
        "target": np.zeros((1, 1), np.int64),
    }
    with pytest.raises(EngineError, match="ranks -1 to -2"):
        explainer.engine.run(feeds, ["targets"])


def test_fixed_batch_is_filled_up_and_cut_back(file_of):
    path = file_of(batch=4)
    manifest = onnxfile.read_manifest(path)
    seen: list[tuple[int, int]] = []

    def run(feeds: Any, outputs: Sequence[str]) -> dict[str, Any]:
        seen.append((len(feeds["image"]), len(feeds["target"])))
        assert (feeds["image"][-1] == feeds["image"][0]).all() or len(seen) < 2
        return {"probabilities": feeds["image"][:, :, 0, 0]}

    images = np.random.default_rng(0).random((5, 3, 8, 8)).astype(np.float32)
    feeds = {"image": images, "target": np.full((5, 1), -1, np.int64)}
    found = run_graph(run, feeds, ["probabilities"], manifest)
    assert seen == [(4, 4), (4, 4)]
    np.testing.assert_array_equal(found["probabilities"], images[:, :, 0, 0])
    assert whycam.load(path, threads=1).batch == 4


class Recorder:
    """An engine that notes what it is asked for."""

    name = description = reason = "recorder"

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.asked: list[set[str]] = []

    def run(self, feeds: Any, outputs: Sequence[str]) -> dict[str, Any]:
        self.asked.append(set(outputs))
        return dict(self.engine.run(feeds, outputs))


def test_finished_maps_are_asked_for_alone_and_together_in_one_run(file_of, reference):
    path = file_of(outputs=("raw", "map"), map_methods=("layercam", "gradcam"))
    loaded = whycam.load(path, threads=1)
    engine = Recorder(loaded.engine)
    explainer = whycam.Explainer(engine, loaded.manifest)
    explainer.explain(random_image())
    explainer.explain(random_image(), method="gradcam")
    found = explainer.explain(random_image(), method=["gradcam", "layercam"])
    always = {"probabilities", "targets"}
    assert engine.asked == [
        always | {"maps"},
        always | {"maps_gradcam"},
        always | {"maps", "maps_gradcam"},
    ]
    assert list(found) == ["gradcam", "layercam"]
    for method, one in found.items():
        assert one.method == method
        expected = reference().explain(random_image(), method=method)
        np.testing.assert_allclose(one.map, expected.map, atol=1e-4)


def test_each_method_is_a_part_and_what_the_file_had_before_goes_with_the_others(manifest_of):
    manifest = manifest_of(
        outputs=("raw", "map"),
        map_methods=("layercam", "gradcam++"),
        names={"probabilities": "dense", "maps": "whycam_maps"},
        own_outputs=("dense", "aux"),
    )
    assert first_parts(manifest) == {"map"}
    assert parts_needed(["maps_gradcam++"], manifest) == {"map_gradcam++"}
    assert parts_needed(["probabilities", "gradients"], manifest) == {"gradient"}
    # The file's own output that is also what the contract calls probabilities stays.
    assert surplus_outputs({"map"}, manifest) == {
        "activations", "gradients", "ablation_weights", "maps_gradcam++", "aux",
    }  # fmt: skip
    assert needed_outputs({"map"}, manifest) == {"dense", "targets", "whycam_maps"}
    everything = parts_needed(manifest.output_shapes, manifest)
    assert surplus_outputs(everything, manifest) == set()


def test_outputs_of_the_file_itself_are_not_computed_where_it_is_cut(file_of):
    path = file_of(names=TAKEN, own_outputs=("probabilities", "dense"))
    manifest = onnxfile.read_manifest(path)
    data = onnxcut.without_outputs(path, surplus_outputs(frozenset(), manifest))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == ["whycam_probabilities", "targets"]


@pytest.mark.parametrize("fields", [{"names": TAKEN, "layout": "NHWC"}, {"top": 2}, {}])
def test_bound_memory_gives_what_arrays_give(file_of, fields):
    path = file_of(outputs=("raw", "map"), map_methods=("gradcam",), **fields)
    manifest = onnxfile.read_manifest(path)
    engine = OnnxRuntimeEngine(str(path), manifest, EngineSettings(threads=1))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = {graph_name(n, manifest): s for n, s in manifest.output_shapes.items()}
    classes = manifest.top or graph_name("target", manifest)
    bound = BoundSession(onnxruntime, session, lambda _feeds: shapes, classes, "cpu")
    feeds = {
        "image": np.concatenate([selftest.make_input(manifest, i) for i in range(2)]),
        "target": np.array([[-1, -2], [-2, -2]]),
    }
    outputs = list(manifest.output_shapes)
    found = run_graph(rename_to_contract(bound.run, manifest), feeds, outputs, manifest)
    for name, values in engine.run(feeds, outputs).items():
        np.testing.assert_array_equal(found[name], values)


def test_tensorrt_builds_for_the_files_own_names_and_batch(manifest_of):
    settings = EngineSettings()
    plain = manifest_of(names={"image": "input_1"}, layout="NHWC")
    (_, options), _ = providers(TENSORRT, plain, settings, frozenset())
    assert options["trt_profile_max_shapes"] == "input_1:32x8x8x3,target:32x5"
    fixed = manifest_of(batch=4, top=2)
    (_, options), _ = providers(TENSORRT, fixed, settings, frozenset())
    assert options["trt_profile_min_shapes"] == options["trt_profile_max_shapes"] == "image:4x3x8x8"
    limit = run_limit(TENSORRT, fixed, frozenset())
    assert limit is not None
    assert (limit.images, limit.classes) == (4, 2)


@pytest.mark.parametrize(
    ("fields", "promised"),
    [
        ({"layout": "NHWC"}, r"'image' float32 \[N, 8, 8, 3\] and 'target'"),
        ({"names": {"image": "input_1"}}, r"'input_1' float32 \[N, 3, 8, 8\]"),
        ({"image_dtype": "float16"}, r"'image' float16"),
        ({"preprocess": GRAY}, r"\[N, 1, 8, 8\]"),
        ({"batch": 1_000_000}, r"\[1000000, 3, 8, 8\]"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_file_that_is_not_what_it_says_is_refused(file_of, manifest_of, engine, fields, promised):
    path = file_of()
    manifest = manifest_of(methods=METHODS, **fields)
    onnxfile.with_manifest(path, path, manifest)
    with pytest.raises(ModelFileError, match=promised):
        whycam.load(path, engine, threads=1)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    "fields",
    [
        {"layout": "NHWC", "preprocess": GRAY, "names": TAKEN},
        {"preprocess": RAW, "batch": 2},
        {"top": 2, "outputs": ("raw", "map"), "map_methods": ("layercam", "gradcam")},
        {"image_dtype": "float16"},
        {"task": "none", "methods": ("gradcam", "layercam")},
    ],
)
def test_engines_give_the_reference_answers_of_such_files(file_of, name, fields):
    path = file_of(**fields)
    manifest = onnxfile.read_manifest(path)
    answers = selftest.make_references(whycam.load(path, threads=1).engine, manifest)
    manifest = Manifest(
        **{each: getattr(manifest, each) for each in manifest.__struct_fields__}
        | {"references": answers}
    )
    onnxfile.with_manifest(path, path, manifest)
    engine = whycam.load(path, name, threads=1).engine
    found = selftest.check(engine, manifest)
    assert len(found) == selftest.PATTERNS
    assert all(each.problems == () for each in found)


@pytest.mark.parametrize(
    ("spec", "low", "high"), [(RGB, -4, 4), (RAW, 60, 160), (GRAY, -4, 4), (BGR, -4, 4)]
)
def test_patterns_lie_where_the_networks_images_do(manifest_of, spec, low, high):
    manifest = manifest_of(preprocess=spec, layout="NHWC")
    fed = selftest.make_input(manifest, 1)
    assert (fed.dtype, fed.shape[1:]) == (np.float32, manifest.image_shape)
    assert low < fed.mean() < high
    if spec is RGB:
        expected = np.moveaxis(selftest.wave_pattern(1, (8, 8)), 0, -1)
        np.testing.assert_allclose(fed[0], expected, atol=1e-6)


def test_masks_of_an_evaluation_follow_the_layout(file_of, manifest_of, tiny_engine, tmp_path):
    for index in range(3):
        place = tmp_path / "data" / "ant" / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_image(index)).save(place)
    data = open_dataset(tmp_path / "data")
    results = []
    for explainer in (
        whycam.load(file_of(layout="NHWC", preprocess=GRAY), threads=1),
        whycam.Explainer(tiny_engine(), manifest_of(preprocess=GRAY, methods=METHODS)),
    ):
        found = evaluate(explainer, data, methods=["gradcam"], curve_steps=4)
        results.append([found.result("gradcam", each) for each in ("original", "naive", "tft")])
    for own, expected in zip(*results, strict=True):
        assert own.average_drop == pytest.approx(expected.average_drop, abs=1e-4)
        assert own.insertion == pytest.approx(expected.insertion, abs=1e-4)
        assert own.deletion == pytest.approx(expected.deletion, abs=1e-4)


def test_tracked_thresholds_of_frames_follow_the_layout(file_of, reference):
    explanations = []
    for explainer in (whycam.load(file_of(layout="NHWC"), threads=1), reference()):
        controls = Controls(explainer.manifest, Look(tft="track"))
        frames = FrameExplainer(explainer, controls, "balanced", Allowance(10), None)
        frame = Frame(0, 0.0, random_image(), 0.0, 0.0)
        explanations.append(frames.prepare_and_explain(frame).explanation)
    assert_same(*explanations)


def test_int8_file_keeps_the_interface_and_checks_itself(file_of, tmp_path):
    names = {"image": "input_1", "activations": "relu", "probabilities": "dense"}
    path = file_of(names=names, layout="NHWC", batch=2, target_tensor="relu")
    before = whycam.load(path, threads=1)
    graph = read_graph(path)
    images = [prepare([random_image(seed)], before.manifest).inputs for seed in range(4)]
    histograms = observe(graph, images, threads=1)
    assert set(histograms) == set(graph.tensors)
    ranges = {name: magnitude(each, "minmax") for name, each in histograms.items()}
    after = tmp_path / "int8.onnx"
    write_int8(quantise(graph, ranges), before.manifest, after)
    manifest = onnxfile.read_manifest(after)
    assert (manifest.precision, manifest.names) == ("int8", names)
    assert len(manifest.references) == selftest.PATTERNS
    found = whycam.load(after, threads=1).explain(random_image())
    assert found.probability == pytest.approx(before.explain(random_image()).probability, abs=0.05)
