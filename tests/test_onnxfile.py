"""Manifest and digest of an ONNX file; damaged and foreign files are named errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from whycam.runtime.errors import ModelFileError
from whycam.runtime.manifest import Manifest, parse
from whycam.runtime.onnxfile import digest, read_manifest, with_manifest


def graph(weights: np.ndarray) -> onnx.ModelProto:
    """A little ONNX model that whycam knows nothing of."""
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(weights)])
        for name in ("x", "y")
    )
    w = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)
    body = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "little", [x], [y], [w])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)])


WEIGHTS = np.arange(5, dtype=np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes the model with metadata and returns its path."""

    def to_file(metadata: dict[str, str], weights: np.ndarray = WEIGHTS) -> Path:
        model = graph(weights)
        helper.set_model_props(model, metadata)
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return to_file


@pytest.fixture
def good(write, manifest_of) -> Path:
    return write({"author": "somebody", "whycam": manifest_of().to_json()})


def test_manifest_is_read_back(good, manifest_of):
    assert read_manifest(good) == manifest_of()
    assert read_manifest(str(good)) == manifest_of()


def test_manifest_appended_to_the_file_is_read_back(write, manifest_of):
    # As export does it: protobuf messages merge when concatenated.
    path = write({})
    manifest = manifest_of()
    entry = onnx.StringStringEntryProto(key="whycam", value=manifest.to_json())
    with path.open("ab") as file:
        file.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString())
    assert read_manifest(path) == manifest
    onnx.checker.check_model(str(path))


def test_manifest_is_replaced_and_the_rest_stays(good, manifest_of, tmp_path):
    before, model = digest(good), onnx.load(good)
    manifest = manifest_of(model="another")
    for target in (tmp_path / "copy.onnx", good):
        with_manifest(good, target, manifest)
        assert read_manifest(target) == manifest
        assert digest(target) == before
        found = onnx.load(target)
        assert found.graph == model.graph
        said = {entry.key: entry.value for entry in found.metadata_props}
        assert said == {"author": "somebody", "whycam": manifest.to_json()}
        assert len(found.metadata_props) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.onnx", "model.onnx"]


def test_damaged_file_keeps_its_manifest(good, manifest_of, tmp_path):
    data = good.read_bytes()[:-3]
    good.write_bytes(data)
    with pytest.raises(ModelFileError):
        with_manifest(good, good, manifest_of(model="another"))
    assert good.read_bytes() == data
    assert list(tmp_path.iterdir()) == [good]


def test_labels_with_accents_are_read_back(write, manifest_of):
    manifest = manifest_of(labels=("crème brûlée", "数", 'a "quoted" name'))
    assert read_manifest(write({"whycam": manifest.to_json()})) == manifest


def test_file_cut_anywhere_is_a_model_file_error(good):
    data = good.read_bytes()
    for length in range(len(data)):
        good.write_bytes(data[:length])
        with pytest.raises(ModelFileError, match=r"model\.onnx"):
            read_manifest(good)


def test_file_with_a_changed_byte_is_read_or_a_model_file_error(good):
    data = good.read_bytes()
    for at in range(len(data)):
        for value in (0xFF, data[at] ^ 1):
            good.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            with suppress(ModelFileError):  # and no other error
                assert isinstance(read_manifest(good), Manifest)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_random_bytes_are_a_model_file_error(tmp_path, data):
    path = tmp_path / "noise.onnx"
    path.write_bytes(data)
    for read in (read_manifest, digest):
        with pytest.raises(ModelFileError, match=r"noise\.onnx"):
            read(path)


@pytest.mark.parametrize("read", [read_manifest, digest])
class TestWhatIsNoFile:
    def test_empty_file(self, read, tmp_path):
        (tmp_path / "empty.onnx").touch()
        with pytest.raises(ModelFileError, match=r"empty\.onnx.*0 bytes"):
            read(tmp_path / "empty.onnx")

    def test_folder(self, read, tmp_path):
        with pytest.raises(ModelFileError, match="is a folder"):
            read(tmp_path)

    @pytest.mark.parametrize("name", ["missing.onnx", "no/such.onnx", "nul\0", "x" * 300],
                             ids=["missing", "folder", "nul", "long"])  # fmt: skip
    def test_missing_file(self, read, name, tmp_path):
        with pytest.raises(ModelFileError):
            read(tmp_path / name)


def test_foreign_onnx_file_is_told_how_to_become_one_of_ours(write):
    with pytest.raises(ModelFileError, match=r"without a whycam manifest.*whycam export"):
        read_manifest(write({"author": "somebody"}))


@pytest.mark.parametrize("content", [b"GIF89a" + bytes(50), b"PK\x03\x04" + bytes(50), b"\x08\x08"])
def test_file_of_another_format_is_refused(tmp_path, content):
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match="not a readable ONNX file"):
        read_manifest(tmp_path / "other.onnx")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"version": 2}',
        '{"version": "1"}',
        '{"version": 1.5}',
        pytest.param('{"version": 2, "deep": ' + "[" * 100_000, id="deep"),
    ],
)
def test_damaged_manifest_is_a_model_file_error(write, text):
    with pytest.raises(ModelFileError, match=r"model\.onnx: its manifest"):
        read_manifest(write({"whycam": text}))


@pytest.mark.parametrize("version", [0, 1, -1, 10**30])
def test_other_version_names_both(manifest_of, version):
    text = json.dumps(json.loads(manifest_of().to_json()) | {"version": version})
    with pytest.raises(ModelFileError, match=f"version {version}, this whycam reads 2"):
        parse(text, "model.onnx")


def test_newer_version_is_named_although_its_fields_are_unknown():
    with pytest.raises(ModelFileError, match="version 3"):
        parse('{"version": 3, "everything": "is different"}', "model.onnx")


REQUIRED = [
    "model", "weights", "target_layer", "activations", "pooled_linear", "num_classes", "labels",
    "preprocess", "methods", "gradient_score", "ablation_score", "opset", "image_bytes", "tools",
]  # fmt: skip


@pytest.mark.parametrize("field", REQUIRED)
def test_missing_field_is_named(manifest_of, field):
    fields = json.loads(manifest_of().to_json())
    del fields[field]
    with pytest.raises(ModelFileError, match=f"model.onnx: .*`{field}`"):
        parse(json.dumps(fields), "model.onnx")


@pytest.mark.parametrize(
    "changed",
    [
        {"unknown": 1},
        {"num_classes": "3"},
        {"num_classes": 0, "labels": []},
        {"labels": ["one", "two"]},
        {"methods": ["smoothgrad"]},
        {"activations": [5, 4]},
        {"gradient_score": "loss"},
        {"precision": "fp8"},
        {"preprocess": {"size": [8, 8]}},
        {"preprocess": {"size": [0, 8], "resize": []}},
        {"preprocess": {"size": [8, 8], "resize": [8, 8, 8]}},
        {"preprocess": {"size": [8, 8], "resize": [10**400]}},
        {"preprocess": {"size": [8, 8], "resize": [], "std": [1, 0, 1]}},
        {"preprocess": {"size": [8, 8], "resize": [], "std": [1, 1e-320, 1]}},
        {"preprocess": {"size": [8, 8], "resize": [], "mean": [0, 1e308, 0]}},
        {"preprocess": {"size": [8, 8], "resize": [], "interpolation": "area"}},
        {"tft": {"mask": "hard"}},
        {"tft": {"taus": [0.5, 0.1]}},
        {"tft": {"taus": []}},
    ],
    ids=json.dumps,
)
def test_unusable_field_is_a_model_file_error(manifest_of, changed: dict[str, Any]):
    text = json.dumps(json.loads(manifest_of().to_json()) | changed)
    with pytest.raises(ModelFileError, match=r"model\.onnx: its manifest is damaged"):
        parse(text, "model.onnx")


def test_digest_does_not_see_the_metadata(write):
    plain = digest(write({}))
    assert plain.startswith("sha256:")
    assert len(plain) == len("sha256:") + 64
    assert digest(write({"whycam": "{}", "author": "somebody"})) == plain


def test_digest_sees_every_bit_of_the_weights(write):
    found = {digest(write({}))}
    for bit in range(32 * len(WEIGHTS)):
        weights = WEIGHTS.copy()
        weights.view(np.uint32)[bit // 32] ^= np.uint32(1 << bit % 32)
        found.add(digest(write({}, weights)))
    assert len(found) == 1 + 32 * len(WEIGHTS)


def test_exported_file_carries_its_own_digest(lite0_onnx):
    assert read_manifest(lite0_onnx).digest == digest(lite0_onnx)


REFERENCE = {"pattern": 0, "target": 0, "probability": 0.5, "raw_map": [0.5] * 16}


@pytest.mark.parametrize("wrong", [
    {"pattern": -1}, {"pattern": 10**400}, {"target": 3}, {"target": -1}, {"target": 2**64},
    {"raw_map": [0.5] * 15}, {"raw_map": []}, {"raw_map": [1e39] * 16},
], ids=str)  # fmt: skip
def test_reference_that_does_not_fit_the_graph_is_a_model_file_error(manifest_of, wrong):
    fields = json.loads(manifest_of().to_json())
    parse(json.dumps(fields | {"references": [REFERENCE]}), "model.onnx")
    with pytest.raises(ModelFileError, match=r"model\.onnx: its manifest is damaged"):
        parse(json.dumps(fields | {"references": [REFERENCE | wrong]}), "model.onnx")


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from([*REQUIRED, "outputs", "tft", "references", "priors", "source_size"]),
       value=TREES)  # fmt: skip
def test_field_with_any_value_is_a_manifest_or_a_model_file_error(manifest_of, field, value):
    text = json.dumps(json.loads(manifest_of().to_json()) | {field: value})
    with suppress(ModelFileError):  # and no other error
        assert isinstance(parse(text, "model.onnx"), Manifest)
