"""A Triton model repository, read back with Triton's own protobuf."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from networks import CLASSES, SMALL, linear

from whycam.cli import main
from whycam.export.triton import repository_name, write_repository
from whycam.runtime.errors import ModelFileError, OutputError, RequestError

LABELS = [f"class {i}" for i in range(CLASSES - 1)] + ['"quoted", näme']

KINDS = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
}


def parse(path: Path):
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())


def interface(values) -> dict[str, tuple[str, list[int]]]:
    """Name to type and shape without the batch, as the ONNX file declares them."""
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        sides = [-1 if side.dim_param else side.dim_value for side in tensor.shape.dim]
        assert sides[0] == -1  # Triton batches along the first axis
        found[value.name] = KINDS[tensor.elem_type], sides[1:]
    return found


@pytest.fixture(scope="module", params=["raw", "map", "raw,tft", "pixels"])
def graph(request, exports) -> Path:
    outputs = ["map"] if request.param == "pixels" else request.param.split(",")
    embed = request.param == "pixels"
    return exports(linear, overrides=SMALL, labels=LABELS, outputs=outputs, embed_preprocess=embed)


def test_config_declares_what_the_graph_has(graph, tmp_path):
    from tritonclient.grpc import model_config_pb2

    home = write_repository(graph, tmp_path / "repository", "net")
    config = parse(home / "config.pbtxt")
    declared = {
        side: {
            tensor.name: (model_config_pb2.DataType.Name(tensor.data_type), list(tensor.dims))
            for tensor in tensors
        }
        for side, tensors in [("input", config.input), ("output", config.output)]
    }
    model = onnx.load(home / "1" / "model.onnx").graph
    assert declared == {"input": interface(model.input), "output": interface(model.output)}
    assert config.name == home.name == "net"
    assert config.backend == "onnxruntime"
    assert config.max_batch_size >= 1


def test_repository_holds_the_graph_itself_and_the_class_names(graph, tmp_path):
    home = write_repository(graph, tmp_path, "net")
    assert (home / "1" / "model.onnx").read_bytes() == graph.read_bytes()
    assert (home / "labels.txt").read_text("utf-8").splitlines() == LABELS
    outputs = {tensor.name: tensor for tensor in parse(home / "config.pbtxt").output}
    assert outputs["probabilities"].label_filename == "labels.txt"
    assert sorted(path.name for path in home.iterdir()) == ["1", "config.pbtxt", "labels.txt"]


def test_a_second_export_replaces_the_first(graph, tmp_path):
    for _ in range(2):
        home = write_repository(graph, tmp_path, "net")
    assert write_repository(home / "1" / "model.onnx", tmp_path, "net") == home
    assert (home / "1" / "model.onnx").read_bytes() == graph.read_bytes()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("torchvision/resnet50", "resnet50"),
        ("timm/tf_efficientnet_lite0.in1k", "tf_efficientnet_lite0.in1k"),
        ("nets/mine.py:small net", "mine_small_net"),
        ("package.module:factory", "package.module_factory"),
        ("../..", "model"),
    ],
)
def test_name_follows_from_the_models(model, name):
    assert repository_name(model) == name


@pytest.mark.parametrize("name", ["../outside", "a/b", ".", "white space"])
def test_name_that_is_none_for_triton_is_refused(graph, tmp_path, name):
    with pytest.raises(RequestError, match="name"):
        write_repository(graph, tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_foreign_file_is_refused_and_nothing_written(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"not onnx")
    with pytest.raises(ModelFileError):
        write_repository(tmp_path / "x.onnx", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_place_that_cannot_be_written_is_an_error(graph, tmp_path):
    (tmp_path / "repository").write_text("a file, no folder")
    with pytest.raises(OutputError):
        write_repository(graph, tmp_path / "repository")


def test_command_writes_a_repository_without_another_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef small():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "        nn.Flatten(), nn.Linear(8, 7))\n"
    )
    command = ["export", "mine.py:small", "--image-size", "32", "--triton", "repository"]
    command += ["--preprocess", "imagenet"]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 0
    home = tmp_path / "repository" / "mine_small"
    assert parse(home / "config.pbtxt").name == "mine_small"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == [
        "mine.py", "repository",
    ]  # fmt: skip
