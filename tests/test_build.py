"""whycam build: what TensorRT-RTX is given, what it gives back, and what is left on disk.

TensorRT-RTX builds without a GPU. Plain TensorRT does not: its path runs here on TensorRT-RTX
behind TensorRT's name, with a GPU and a loaded engine that are stand-ins.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from test_half import changed

import whycam
from whycam.calibrate.int8_file import write_int8
from whycam.calibrate.quantise import observe, quantise, read_graph
from whycam.calibrate.ranges import magnitude
from whycam.cli import main
from whycam.cli.parse import areas, capabilities, span
from whycam.export import build, plan_builder, to_half, to_plan, turing
from whycam.export.build import check_network
from whycam.runtime.engines import cuda, selftest
from whycam.runtime.engines.plan import Range, Tensor, digest_of, read_plan, sidecar_of
from whycam.runtime.errors import (
    EngineError,
    ModelFileError,
    OutputError,
    RequestError,
    VerificationError,
)
from whycam.runtime.onnxfile import digest, read_manifest, with_manifest

trt = pytest.importorskip("tensorrt_rtx")
OTHERS = ("8.6", "8.9", "12.0")
ONE = ("8.6",)  # each more takes the builder as long again


def int8_of(source: Path, path: Path) -> Path:
    """As ``whycam calibrate int8`` makes it, but for the proof."""
    manifest = read_manifest(source)
    graph = read_graph(source)
    seen = observe(graph, (selftest.make_input(manifest, index) for index in range(2)), 1)
    ranges = {name: magnitude(counted, "minmax", 100.0) for name, counted in seen.items()}
    write_int8(quantise(graph, ranges), manifest, path)
    return path


def expected_tensors(path: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs that a file's manifest promises, written down a second time."""
    manifest = read_manifest(path)
    size = manifest.preprocess.size
    k, h, w = manifest.activations
    shapes = {"probabilities": (-1, manifest.num_classes), "targets": (-1, -1)}
    if "raw" in manifest.outputs:
        shapes |= {"activations": (-1, k, h, w), "gradients": (-1, -1, k, h, w)}
        if "ablation" in manifest.methods:
            shapes["ablation_weights"] = (-1, -1, k)
    if "tft" in manifest.outputs:
        shapes |= {"original_maps": (-1, -1, *size), "maps": (-1, -1, *size)}
        shapes |= {
            "thresholds": (-1, -1),
            "rpi": (-1, -1, 10),
            "masked_probabilities": (-1, -1, 10),
        }
    elif "map" in manifest.outputs:
        shapes["maps"] = (-1, -1, *size)
    shapes |= {f"maps_{method}": (-1, -1, *size) for method in manifest.map_methods[1:]}
    shapes |= dict.fromkeys(manifest.own_outputs, (-1, manifest.num_classes))
    inputs = [Tensor("image", "float32", (-1, 3, *size)), Tensor("target", "int64", (-1, -1))]
    outputs = [
        Tensor(name, "int64" if name == "targets" else "float32", shape)
        for name, shape in shapes.items()
    ]
    return inputs, outputs


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("outputs", ["raw", "map", "tft"])
@pytest.mark.parametrize("compute", [("7.5",), ONE], ids=["7.5", "8.6"])
def test_every_graph_builds_for_old_and_new_gpus_and_reads_back_as_promised(
    mixed_files, tmp_path, outputs, precision, compute
):
    path = mixed_files(outputs)
    if precision == "int8":
        path = int8_of(path, tmp_path / "int8.onnx")
    inputs, expected = expected_tensors(path)
    made = to_plan(path, tmp_path / "x.plan", compute=compute, precision=precision)
    plan = read_plan(made.path)
    assert list(plan.inputs) == inputs
    assert sorted(plan.outputs, key=lambda t: t.name) == sorted(expected, key=lambda t: t.name)
    assert (plan.compute, plan.manifest.precision) == (compute, precision)
    assert (made.rewritten > 0) == (compute == ("7.5",))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "bf16"])
def test_pretrained_network_builds(lite0_onnx, tmp_path, precision):
    path = lite0_onnx
    if precision == "int8":
        path = int8_of(path, tmp_path / "int8.onnx")
    for compute in (("7.5",), OTHERS)[precision == "bf16" :]:
        plan = to_plan(path, tmp_path / "x.plan", compute=compute, precision=precision).plan
        assert list(plan.inputs) == expected_tensors(path)[0]
        expected = expected_tensors(path)[1]
        assert sorted(plan.outputs, key=lambda t: t.name) == sorted(expected, key=lambda t: t.name)


@pytest.mark.slow
def test_search_and_bf16_build(mixed_files, tmp_path):
    for name in ("search", "raw"):
        made = to_plan(mixed_files(name), tmp_path / f"{name}.plan", precision="bf16")
        assert made.plan.manifest.precision == "bf16"


def test_sidecar_says_what_the_plan_is(mixed_files, tmp_path):
    path = mixed_files("raw")
    made = to_plan(
        path,
        tmp_path / "made" / "x.plan",
        precision="fp16",
        batch=Range(1, 2, 8),
        classes=Range(1, 1, 3),
        workspace=64,
    )
    plan = read_plan(made.path)
    assert plan == made.plan
    assert made.sidecar == sidecar_of(made.path)
    assert plan.digest == digest_of(made.path)
    # Of the file that was given, though another was made of it on the way.
    assert plan.manifest == msgspec.structs.replace(read_manifest(path), precision="fp16")
    assert plan.manifest.digest == digest(path)
    assert (plan.library, plan.library_version) == ("tensorrt-rtx", trt.__version__)
    assert (plan.batch, plan.classes) == (Range(1, 2, 8), Range(1, 1, 3))
    assert (plan.compute, plan.gpu, plan.height) == (OTHERS, None, None)
    assert made.converted
    assert made.size == made.path.stat().st_size
    assert sorted(each.name for each in made.path.parent.iterdir()) == ["x.plan", "x.plan.json"]
    # No prefix: trtexec and Triton read what the library wrote.
    assert b"trt" in made.path.read_bytes()[:4]


def test_file_in_half_precision_builds_as_it_is(mixed_files, tmp_path):
    half = to_half(mixed_files("raw"), tmp_path / "half.onnx").path
    made = to_plan(half, tmp_path / "x.plan", compute=ONE)
    assert not made.converted
    assert made.plan.manifest == read_manifest(half)
    again = to_plan(half, tmp_path / "y.plan", compute=ONE, precision="fp16")
    assert again.plan.manifest.precision == "fp16"


@pytest.mark.slow
def test_images_of_any_size_have_ranges(tmp_path):
    from networks import SMALL, linear

    from whycam.export import to_onnx

    path = tmp_path / "pixels.onnx"
    to_onnx(linear(), path, outputs=["map"], embed_preprocess=True, overrides=SMALL)
    sides = (Range(16, 48, 100), Range(16, 64, 120))
    for compute in (["7.5"], ["8.6"]):
        plan = to_plan(path, tmp_path / "x.plan", compute=compute, source_size=sides).plan
        assert (plan.height, plan.width) == sides
        assert plan.inputs[0] == Tensor("image", "uint8", (-1, -1, -1, 3))


@pytest.mark.parametrize("name", ["raw", "map", "tft"])
def test_graph_for_turing_has_no_matrix_products_and_the_same_numbers(mixed_files, tmp_path, name):
    path, manifest = mixed_files(name), read_manifest(mixed_files(name))
    count = turing.write_for_turing(path, tmp_path / "turing.onnx", manifest)
    before, after = (onnx.load(each).graph for each in (path, tmp_path / "turing.onnx"))
    products = [n for n in before.node if n.op_type in ("Gemm", "MatMul")]
    assert count == len(products) > 0
    assert not [n for n in after.node if n.op_type in ("Gemm", "MatMul")]
    head = numpy_helper.to_array(
        next(i for n in products for i in before.initializer if i.name == n.input[1])
    )
    copies = [i for i in after.initializer if np.prod(i.dims) == head.size and len(i.dims) == 4]
    assert len(copies) == 1, "the head and its gradient share one copy"


@pytest.mark.slow
def test_products_written_as_einsum_build_for_every_gpu(tmp_path):
    from networks import SMALL, attending

    from whycam.export import to_onnx

    path = tmp_path / "attending.onnx"
    to_onnx(attending(), path, outputs=["raw", "map"], overrides=SMALL)
    assert [n for n in onnx.load(path).graph.node if n.op_type == "Einsum"]
    for compute in (("7.5",), ONE):
        made = to_plan(path, tmp_path / "x.plan", compute=compute)
        assert (made.rewritten > 0) == (compute == ("7.5",))


EQUATIONS = ["ij,jk->ik", "bij,bjk->bik", "bhid,bhjd->bhij", "i,j->ij", "ij,ij->", "ab,c->cab"]


@pytest.mark.parametrize("equation", [*EQUATIONS, "i j , k j -> k i"])
def test_einsum_becomes_a_sum_of_products_of_the_same_numbers(equation):
    sides = {letter: 2 + index for index, letter in enumerate("abcdhijk")}
    terms, _, kept = equation.replace(" ", "").partition("->")
    shapes = [tuple(sides[letter] for letter in term) for term in terms.split(",")]
    model = _product(equation, shapes, tuple(sides[letter] for letter in kept))
    assert turing.replace_matrix_products(model) == 1
    assert "Einsum" not in {node.op_type for node in model.graph.node}
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    made = ReferenceEvaluator(model).run(None, {f"x{i}": each for i, each in enumerate(values)})
    expected = np.einsum(equation.replace(" ", ""), *values)
    np.testing.assert_allclose(made[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("equation", ["...i,...i->...", "ii,i->i", "ij,jk", "ij,jk,kl->il"])
def test_other_einsums_are_left_as_they_are(equation):
    count = equation.count(",") + 1
    model = _product(equation, [(3, 3)] * count, (3, 3))
    before = list(model.graph.node)
    assert turing.replace_matrix_products(model) == 0
    assert list(model.graph.node) == before


@pytest.mark.parametrize("scales", [{"alpha": 0.5}, {"beta": -2.0}, {"alpha": 3.0, "beta": 0.25}])
@pytest.mark.parametrize("transposed", [{}, {"transA": 1}, {"transB": 1}])
def test_a_scaled_gemm_becomes_a_convolution_of_the_same_numbers(scales, transposed):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 2) if "transA" in transposed else (2, 4)).astype(np.float32)
    w = rng.standard_normal((3, 4) if "transB" in transposed else (4, 3)).astype(np.float32)
    b = rng.standard_normal(3).astype(np.float32)
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], "head", **scales, **transposed)],
        "gemm",
        [onnx.helper.make_tensor_value_info("x", kind, x.shape)],
        [onnx.helper.make_tensor_value_info("y", kind, (2, 3))],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
    )
    model = onnx.helper.make_model(graph)
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert turing.replace_matrix_products(model) == 1
    assert "Gemm" not in {node.op_type for node in model.graph.node}
    found = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("flipped", [0, 1])
def test_a_gemm_whose_first_operand_is_stored_becomes_a_convolution(flipped, alpha):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 3) if flipped else (3, 4)).astype(np.float32)
    x = rng.standard_normal((2, 4)).astype(np.float32)
    kind = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("Gemm", ["w", "x"], ["y"], alpha=alpha, transA=flipped, transB=1)
    graph = onnx.helper.make_graph(
        [node],
        "gemm",
        [onnx.helper.make_tensor_value_info("x", kind, x.shape)],
        [onnx.helper.make_tensor_value_info("y", kind, (3, 2))],
        [numpy_helper.from_array(w, "w")],
    )
    model = onnx.helper.make_model(graph)
    assert turing.replace_matrix_products(model) == 1
    assert "Gemm" not in {node.op_type for node in model.graph.node}
    found = ReferenceEvaluator(model).run(None, {"x": x})[0]
    expected = alpha * (w.T if flipped else w) @ x.T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def _product(equation: str, shapes: list[tuple[int, ...]], made: tuple[int, ...]) -> Any:
    kind = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info(f"x{i}", kind, s) for i, s in enumerate(shapes)]
    names = [value.name for value in inputs]
    node = onnx.helper.make_node("Einsum", names, ["y"], "product", equation=equation)
    outputs = [onnx.helper.make_tensor_value_info("y", kind, made)]
    return onnx.helper.make_model(onnx.helper.make_graph([node], "einsum", inputs, outputs))


def test_graph_for_turing_is_checked(mixed_files, tmp_path, monkeypatch):
    def wrong(model: onnx.ModelProto) -> int:
        count = replace(model)
        copies = [i for i in model.graph.initializer if i.name.endswith("_1x1")]
        (head,) = (i for i in copies if i.name.startswith("head"))
        head.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(head), head.name))
        return count

    replace = turing.replace_matrix_products
    monkeypatch.setattr(turing, "replace_matrix_products", wrong)
    with pytest.raises(VerificationError, match="without matrix products"):
        to_plan(mixed_files("raw"), tmp_path / "x.plan", compute=["7.5"])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Runs a build that must fail, and returns its one line; nothing may be left behind."""

    def run(model: object, *options: object, output: object = tmp_path / "out" / "x.plan") -> str:
        with pytest.raises(SystemExit) as stop:
            main(["build", str(model), "-o", str(output), *map(str, options)])
        captured = capsys.readouterr()
        assert stop.value.code == 2, captured
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        left = Path(output).parent
        assert not left.is_dir() or not list(left.iterdir())
        return line

    return run


def test_files_that_are_no_explaining_graphs_are_named(command, mixed_files, tmp_path):
    good = mixed_files("raw")
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(good.read_bytes()[:-5000])
    foreign = tmp_path / "foreign.onnx"
    model = onnx.load(good)
    del model.metadata_props[:]
    onnx.save(model, foreign)

    def spoil(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))

    spoilt = changed(good, tmp_path / "spoilt.onnx", spoil)
    for path, words in (
        (tmp_path / "none.onnx", "cannot read"),
        (text, "not a readable ONNX file"),
        (truncated, "not a readable ONNX file"),
        (foreign, "without a whycam manifest"),
        (spoilt, "was changed after its manifest was written"),
    ):
        line = command(path)
        assert words in line
        assert path.name in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "int8"], "whycam calibrate int8"),
        (["--compute", "87"], "no target for 8.7.*--engine tensorrt"),
        (["--compute", "86,90"], "no target for 9.0"),
        (["--compute", "ampere"], "compute capabilities with commas"),
        (["--compute", "75", "--precision", "bf16"], "have no bf16"),
        (["--engine", "tensorrt", "--compute", "86"], "for the GPU that it runs on"),
        (["--engine", "openvino"], "is not one of 'tensorrt', 'tensorrt-rtx'"),
        (["--batch", "4:2:8"], "do not fall"),
        (["--batch", "0"], "begin at 1"),
        (["--classes-per-image", "many"], "--classes-per-image must be"),
        (["--classes-per-image", "8"], "the model has 7"),
        (["--source-size", "64x64"], "takes 3x32x32 only"),
        (["--workspace", "0"], "1 MB or more"),
        (["--timing-cache", "cache"], "has no timing cache"),
    ],
)
def test_options_that_do_not_fit_are_refused(command, mixed_files, options, words):
    import re

    assert re.search(words, command(mixed_files("raw"), *options))


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="needs a machine without GPU")
def test_tensorrt_without_a_gpu_is_one_sentence(command, mixed_files):
    pytest.importorskip("cuda.bindings.runtime")
    line = command(mixed_files("raw"), "--engine", "tensorrt")
    assert "on the GPU that will run it" in line
    assert "--engine tensorrt-rtx" in line


def test_int8_file_is_not_built_in_another_precision(command, mixed_files, tmp_path):
    path = int8_of(mixed_files("raw"), tmp_path / "int8.onnx")
    assert "is int8, so it cannot be built in fp16" in command(path, "--precision", "fp16")


def test_places_that_cannot_be_written_are_named(command, mixed_files, tmp_path):
    model = mixed_files("raw")
    (tmp_path / "file").write_text("")
    assert "cannot write" in command(model, output=tmp_path / "file" / "x.plan")
    assert "it is a folder" in command(model, output=tmp_path / "new" / "..")
    assert "name it FILE.plan" in command(model, output=tmp_path / "new" / "x.onnx")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
def test_full_disk_leaves_an_older_plan_and_its_sidecar(
    mixed_files, tmp_path, monkeypatch, failing
):
    plan = tmp_path / "x.plan"
    to_plan(mixed_files("map"), plan, compute=ONE)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    original = getattr(Path, failing)

    def fail(self: Path, *arguments: Any) -> Any:
        # The sidecar can still be written; the plan, which is larger, cannot.
        temporary = self.suffix == ".plan" and self != plan
        return (full if temporary else original)(self, *arguments)

    monkeypatch.setattr(Path, failing, fail)
    with pytest.raises(OutputError, match="No space left"):
        to_plan(mixed_files("raw"), plan, compute=ONE)
    monkeypatch.undo()
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


@pytest.fixture
def _hears_interrupts():
    """Whoever starts the tests in the background has the process ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_hears_interrupts")
def test_interrupt_cancels_the_builder_and_leaves_nothing(mixed_files, tmp_path):
    phases = []

    def tick(name: str, steps: int) -> None:
        phases.append(name)
        if len(phases) == 4:  # inside the builder by now
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        to_plan(mixed_files("raw"), tmp_path / "out" / "x.plan", compute=ONE, tick=tick)
    assert not list((tmp_path / "out").iterdir())
    every: list[str] = []
    whole = tmp_path / "x.plan"
    to_plan(mixed_files("raw"), whole, compute=ONE, tick=lambda name, _: every.append(name))
    assert len(phases) < len(every), "it went on to the end"


def test_progress_counts_the_builders_phases(mixed_files, tmp_path):
    totals, done = [], []
    to_plan(
        mixed_files("raw"),
        tmp_path / "x.plan",
        compute=ONE,
        tick=lambda _, steps: done.append(steps),
        total=totals.append,
    )
    assert len(totals) == 1
    assert sum(done) == totals[0] > 1


def test_operator_that_the_library_does_not_know_is_named(mixed_files, tmp_path):
    def spoil(model: onnx.ModelProto) -> None:
        (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
        softmax.op_type, softmax.name, softmax.domain = "Unheard", "of_this", "some.where"
        del softmax.attribute[:]

    path = changed(mixed_files("raw"), tmp_path / "odd.onnx", spoil)
    manifest = msgspec.structs.replace(read_manifest(path), digest=digest(path))
    with_manifest(path, path, manifest)
    with pytest.raises(ModelFileError, match=r"cannot parse.*'of_this' \(Unheard\)"):
        to_plan(path, tmp_path / "x.plan")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("spoilt", ["shape", "dtype", "missing"])
def test_network_that_is_not_the_manifests_is_refused(mixed_files, spoilt):
    path = mixed_files("raw")
    inputs, outputs = expected_tensors(path)
    check_network("x", read_manifest(path), inputs, outputs)
    last = next(each for each in outputs if each.name == "ablation_weights")
    outputs = [each for each in outputs if each is not last] + [last]
    replaced = {
        "shape": [Tensor(last.name, last.dtype, (-1, -1, 5))],
        "dtype": [Tensor(last.name, "float16", last.shape)],
        "missing": [],
    }[spoilt]
    with pytest.raises(ModelFileError, match=last.name):
        check_network("x", read_manifest(path), inputs, [*outputs[:-1], *replaced])


def test_failed_build_says_what_the_library_said(mixed_files, tmp_path, monkeypatch):
    """Turing, without the rewriting that makes it possible; twice: a library has one logger."""
    monkeypatch.setattr(build, "TURING", "none")
    for _ in range(2):
        with pytest.raises(EngineError, match="FP32 GEMM is not supported") as error:
            to_plan(mixed_files("raw"), tmp_path / "x.plan", compute=["7.5"])
    assert "could not build the plan" in str(error.value)
    assert not list(tmp_path.iterdir())


class StandIn(SimpleNamespace):
    """TensorRT-RTX by TensorRT's name: without the flag, and with an engine that it cannot load."""

    def __init__(self, network: tuple[list[Tensor], list[Tensor]]) -> None:
        super().__init__(**{name: getattr(trt, name) for name in dir(trt) if name[0] != "_"})
        self.__version__ = "11.0.0"
        self.loads = 0
        del self.NetworkDefinitionCreationFlag, self.ComputeCapability
        tensors = [*network[0], *network[1]]
        kinds = {"float32": trt.float32, "int64": trt.int64, "uint8": trt.uint8}
        engine = SimpleNamespace(
            num_io_tensors=len(tensors),
            get_tensor_name=lambda i: tensors[i].name,
            get_tensor_dtype=lambda n: next(kinds[t.dtype] for t in tensors if t.name == n),
            get_tensor_shape=lambda n: next(t.shape for t in tensors if t.name == n),
        )

        def load(data: bytes) -> object:
            self.loads += 1
            return engine

        self.Runtime = lambda _: SimpleNamespace(deserialize_cuda_engine=load)


@pytest.mark.slow
def test_plain_tensorrt_builds_on_its_gpu_with_a_timing_cache(mixed_files, tmp_path, monkeypatch):
    path = mixed_files("raw")
    library = StandIn(expected_tensors(path))
    gpu = cuda.Device(index=0, name="NVIDIA A GPU", compute="8.7", memory=1, driver="13.0")
    monkeypatch.setattr(plan_builder, "import_library", lambda *_: library)
    monkeypatch.setattr(cuda, "find_device", lambda _: gpu)
    cache = tmp_path / "cache"
    for _ in range(2):
        made = to_plan(path, tmp_path / "x.plan", library="tensorrt", timing_cache=cache)
        assert cache.stat().st_size > 0
    assert (made.plan.compute, made.plan.gpu) == (("8.7",), "NVIDIA A GPU")
    assert (made.plan.library, made.plan.library_version) == ("tensorrt", "11.0.0")
    assert library.loads == 2
    with monkeypatch.context() as refusing:
        refusing.setattr(trt.IBuilderConfig, "set_timing_cache", lambda *_, **__: False)
        with pytest.raises(RequestError, match="timing cache is damaged"):
            to_plan(path, tmp_path / "y.plan", library="tensorrt", timing_cache=cache)
    library.Runtime = lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: None)
    with pytest.raises(EngineError, match="cannot load the plan that it built"):
        to_plan(path, tmp_path / "y.plan", library="tensorrt")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cache", "x.plan", "x.plan.json"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_plain_tensorrt_builds_what_this_gpu_runs(mixed_files, tmp_path, precision):
    pytest.importorskip("tensorrt")
    path = mixed_files("raw")
    if precision == "int8":
        path = int8_of(path, tmp_path / "int8.onnx")
    for _ in range(2):  # the second time with what the first one timed
        made = to_plan(
            path,
            tmp_path / "x.plan",
            library="tensorrt",
            precision=precision,
            timing_cache=tmp_path / "cache",
        )
    explainer = whycam.load(made.path, "tensorrt")
    for compared in selftest.check(explainer.engine, made.plan.manifest):
        assert compared.problems == ()


def test_builder_that_cannot_be_made_is_an_error(mixed_files, tmp_path, monkeypatch):
    def builder(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, "Builder", builder)
    with pytest.raises(EngineError, match="has no builder here"):
        to_plan(mixed_files("raw"), tmp_path / "x.plan")


def test_build_and_half_need_no_torch(mixed_files, tmp_path, run_python):
    said = run_python(
        f"""
        import sys
        sys.modules["torch"] = None
        from whycam.export import to_plan
        made = to_plan({str(mixed_files("map"))!r}, {str(tmp_path / "x.plan")!r},
                       precision="fp16", compute=["7.5"])
        print(made.plan.manifest.precision, made.rewritten > 0)
        import whycam
        from whycam.export import to_onnx
        try:
            to_onnx("torchvision/resnet18", {str(tmp_path / "x.onnx")!r})
        except whycam.WhyCamError as error:
            print(error)
        """
    )
    assert said.splitlines()[0] == "fp16 True"
    assert 'pip install "whycam[export]"' in said.splitlines()[1]


@pytest.mark.slow
def test_verbs_say_what_they_made_and_what_to_do_next(mixed_files, tmp_path, capsys):
    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(each) for each in arguments])
        captured = capsys.readouterr()
        assert stop.value.code == 0, captured.err
        return captured.out

    model, half, plan = mixed_files("raw"), tmp_path / "half.onnx", tmp_path / "x.plan"
    assert f"next: whycam build {half}" in run("half", model, "-o", half)
    said = run(
        "build", half, "-o", plan, "--compute", "75,8.6", "--batch", "4", "--classes-per-image", "2"
    )
    assert f"saved as {plan}" in said
    assert "in fp16 for compute capability 7.5, 8.6" in said
    assert "batch 1 to 4 (fastest at 1), classes 1 to 2" in said
    assert f"next: whycam explain {plan}" in said
    document = json.loads(run("build", half, "-o", plan, "--compute", "86", "--json"))
    assert document["precision"] == "fp16"
    assert document["digest"] == read_plan(plan).digest
    assert json.loads(run("half", model, "-o", half, "--json"))["check"]["inputs"] == 3


@given(st.lists(st.tuples(st.integers(5, 20), st.integers(0, 9)), min_size=1))
def test_capabilities_are_read_with_and_without_a_point(found):
    expected = [f"{major}.{minor}" for major, minor in found]
    assert capabilities(",".join(expected)) == expected
    assert capabilities(",".join(each.replace(".", "") for each in expected)) == expected


@given(st.lists(st.integers(-3, 40), min_size=1, max_size=4))
def test_ranges_rise_from_one_or_are_refused(numbers):
    text = ":".join(map(str, numbers))
    if len(numbers) == 1 and numbers[0] >= 1:
        assert span("--batch", text) == Range(1, 1, numbers[0])
    elif len(numbers) == 3 and 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        assert span("--batch", text) == Range(*numbers)
    else:
        with pytest.raises(RequestError, match="--batch must be"):
            span("--batch", text)


@pytest.mark.parametrize("text", ["1x2:3x4", "4x4:2x2:8x8", "x", "1:2:3:4", "0x5"])
def test_source_sizes_that_do_not_rise_are_refused(text):
    with pytest.raises(RequestError, match="--source-size must be"):
        areas("--source-size", text)
    assert areas("--source-size", "2x3:4x5:6x7") == (Range(2, 4, 6), Range(3, 5, 7))
