"""Half precision: the trunk and nothing else, rounded once, and proved before it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
from networks import mixed
from onnx import numpy_helper

import whycam
from whycam.calibrate.dataset import open_dataset, shuffle_samples
from whycam.calibrate.fidelity import compare
from whycam.export import half, to_half
from whycam.export.half import convert_backbone
from whycam.export.onnx_graph import read_onnx
from whycam.export.precision_emulation import emulate_half
from whycam.runtime.backbone import backbone_runs
from whycam.runtime.engines import selftest
from whycam.runtime.engines.base import EngineSettings
from whycam.runtime.engines.registry import candidates
from whycam.runtime.errors import ExportError, ModelFileError, RequestError, VerificationError
from whycam.runtime.onnxfile import append_manifest, digest, read_manifest

FILES = ("raw", "tft", pytest.param("search", marks=pytest.mark.slow))
NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def files(mixed_files: Callable[[str], Path]) -> Callable[[str], Path]:
    return mixed_files


def changed(source: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A file with another graph and the same manifest."""
    model = onnx.load(source)
    change(model)
    onnx.save(model, target)
    return target


def with_own_digest(path: Path) -> Path:
    """The same file, as whycam would have written it."""
    manifest = read_manifest(path)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    append_manifest(path, msgspec.structs.replace(manifest, digest=digest(path)))
    return path


def weights(path: Path) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_run_of_the_trunk_is_in_half_and_the_rest_is_not(files, tmp_path, name, precision):
    made = to_half(files(name), tmp_path / "half.onnx", precision)
    graph = onnx.load(made.path).graph
    stored = weights(made.path)
    kinds = {"Conv": set(), "Gemm": set(), "MatMul": set()}
    for node in graph.node:
        for value in node.input:
            if node.op_type in kinds and value in stored and stored[value].ndim > 1:
                kinds[node.op_type].add(stored[value].dtype)
    assert kinds["Conv"] == {np.dtype(NUMPY[precision])}
    assert kinds["Gemm"] == {np.dtype(np.float32)}
    assert kinds["MatMul"] <= {np.dtype(np.float32)}
    before = onnx.load(files(name)).graph
    for side in ("input", "output"):
        assert [v.SerializeToString() for v in getattr(graph, side)] == [
            v.SerializeToString() for v in getattr(before, side)
        ]
    layers = [n.input[1] for n in graph.node if n.op_type == "Conv"]
    runs = {"raw": 1, "tft": 2, "search": 3}[name]
    assert len(layers) == runs * 5
    assert len(set(layers)) == 5, "each weight is stored once"


def test_runs_of_the_trunk_are_twins(files):
    graph = onnx.load(files("tft")).graph
    runs = backbone_runs(graph)
    assert len(runs) == 2
    kinds = [[graph.node[index].op_type for index in run] for run in runs]
    assert kinds[0] == kinds[1]
    assert not set(runs[0]) & set(runs[1])
    made = {name for index in runs[0] for name in graph.node[index].output}
    assert "activations" in made


def test_normalisation_is_folded_in_float64_before_it_is_rounded(files, tmp_path):
    made = to_half(files("tft"), tmp_path / "half.onnx")
    kinds = [node.op_type for node in onnx.load(made.path).graph.node]
    # The one before a convolution stays, in float32; those after one are gone, in both runs.
    assert kinds.count("BatchNormalization") == 2
    model = mixed()
    convolution, norm = model.stem
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double()
    expected = (convolution.weight.detach().double() * factor[:, None, None, None]).numpy()
    halves = [each for each in weights(made.path).values() if each.shape == expected.shape]
    (stem,) = (each for each in halves if each.dtype == np.float16)
    np.testing.assert_array_equal(stem, expected.astype(np.float32).astype(np.float16))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_check_rounds_every_result(files, precision):
    model = read_onnx(files("raw"))
    convert_backbone(model, precision)
    manifest = read_manifest(files("raw"))
    engine = emulate_half(model, manifest)
    feeds = {"image": selftest.make_input(manifest, 0), "target": np.full((1, 1), -1, np.int64)}
    found = engine.run(feeds, ["activations", "probabilities"])
    activations = found["activations"]
    np.testing.assert_array_equal(activations, activations.astype(NUMPY[precision]))
    assert (activations != 0).any()
    p = found["probabilities"]
    assert (p != p.astype(NUMPY[precision])).any(), "the head is not rounded"


def test_manifest_keeps_what_pytorch_answered(files, tmp_path):
    made = to_half(files("raw"), tmp_path / "half.onnx")
    manifest, before = read_manifest(made.path), read_manifest(files("raw"))
    assert manifest == made.manifest
    assert (manifest.precision, manifest.references) == ("fp16", before.references)
    assert manifest.digest == digest(made.path) != before.digest
    assert selftest.tolerances_of(manifest) != selftest.tolerances_of(before)
    assert made.size < made.size_before
    assert 0 < made.check.worst["activations"] < 1e-2


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_run_fp16_files_and_answer_as_pytorch_did(files, tmp_path, engine):
    made = to_half(files("raw"), tmp_path / "half.onnx")
    explainer = whycam.load(made.path, engine, threads=1)
    for compared in selftest.check(explainer.engine, made.manifest):
        assert compared.problems == ()


def test_bf16_files_go_to_an_engine_that_reads_them(files, tmp_path):
    made = to_half(files("raw"), tmp_path / "half.onnx", "bf16")
    assert made.manifest.opset == 22
    first = next(e for e in candidates(made.manifest, EngineSettings()) if e.usable)
    assert first.name == "openvino"
    explainer = whycam.load(made.path, threads=1)
    for compared in selftest.check(explainer.engine, made.manifest):
        assert compared.problems == ()


def enlarge(model: onnx.ModelProto, factor: float, name: str) -> None:
    (weight,) = (each for each in model.graph.initializer if each.name.endswith(name))
    values = numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def test_weight_that_fp16_cannot_hold_is_named(files, tmp_path):
    path = changed(
        files("raw"), tmp_path / "large.onnx", lambda m: enlarge(m, 1e7, "deep.0.weight")
    )
    with pytest.raises(ExportError, match=r"deep\.0\.weight.*more than fp16 can.*bf16"):
        to_half(with_own_digest(path), tmp_path / "half.onnx")
    assert list(tmp_path.iterdir()) == [path]


def test_activations_that_fp16_cannot_hold_stop_it(files, tmp_path):
    path = changed(files("raw"), tmp_path / "large.onnx", lambda m: enlarge(m, 1e6, "norm.weight"))
    with pytest.raises(VerificationError, match="bf16 has a wider"):
        to_half(with_own_digest(path), tmp_path / "half.onnx")
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_file_is_refused(files, tmp_path):
    path = tmp_path / "damaged.onnx"
    data = bytearray(files("raw").read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError):
        to_half(path, tmp_path / "half.onnx")
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_conversion_is_never_written(files, tmp_path, monkeypatch):
    """A convolution of the second run loses its bias: only the sweep shows it."""
    for name in ("raw", "tft"):

        def wrong(model: onnx.ModelProto, *arguments: str) -> int:
            count = convert_backbone(model, *arguments)
            layer = [node for node in model.graph.node if node.op_type == "Conv"][-1]
            del layer.input[2]
            return count

        monkeypatch.setattr(half, "convert_backbone", wrong)
        with pytest.raises(VerificationError):
            to_half(files(name), tmp_path / "half.onnx")
        assert not list(tmp_path.iterdir())


def test_what_cannot_be_converted_is_said(files, tmp_path):
    made = to_half(files("raw"), tmp_path / "half.onnx")
    with pytest.raises(RequestError, match="fp16 already"):
        to_half(made.path, tmp_path / "again.onnx")
    with pytest.raises(RequestError, match="the float file itself"):
        to_half(files("raw"), files("raw"))
    with pytest.raises(RequestError, match="fp16 or bf16"):
        to_half(files("raw"), tmp_path / "x.onnx", "fp8")


@pytest.mark.slow
@pytest.mark.shared
def test_labels_and_maps_survive_fp16_on_images(lite0_onnx, shared_data, tmp_path):
    """As ``whycam compare`` does it; docs/tensorrt.md has all 200 images."""
    made = to_half(lite0_onnx, tmp_path / "half.onnx")
    samples = shuffle_samples(open_dataset(shared_data / "imagenet-samples").samples)[:40]
    first, second = whycam.load(lite0_onnx), whycam.load(made.path)
    # ONNX Runtime leaves most roundings of an fp16 file out; the rounded engine leaves none out.
    rounded = whycam.Explainer(emulate_half(read_onnx(made.path), made.manifest), made.manifest)
    for other in (second, rounded):
        found = compare(first, other, samples, ["gradcam", "layercam"], None)
        assert found.top1 >= 0.97  # all but one of 40
        for maps in found.maps.values():
            assert maps.pearson_low >= 0.999
