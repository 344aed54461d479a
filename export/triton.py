"""Write a Triton model repository: config.pbtxt, labels.txt, 1/model.onnx."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..runtime.engines.interface import graph_name
from ..runtime.errors import MissingExtraError, RequestError
from ..runtime.files import replacing, write_whole
from ..runtime.manifest import Manifest
from ..runtime.onnxfile import read_manifest
from ..runtime.place_weights import REGION
from .zero_shot import INPUT

# A threshold sweep already runs a batch; other requests are worth batching.
_MAX_BATCH = 8
_LABELS = "labels.txt"


def repository_name(model: str) -> str:
    """Derive a Triton model name from a model's name.

    ``torchvision/resnet50`` gives ``resnet50``, ``nets/mine.py:small`` gives ``mine_small``.
    """
    place, _, factory = model.partition(":")
    last = place.split("/")[-1].removesuffix(".py")
    name = f"{last}_{factory}" if factory else last
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._-") or "model"


def model_path(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the path at which Triton expects the graph."""
    return Path(folder) / name / "1" / "model.onnx"


def write_repository(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], name: str | None = None
) -> Path:
    """Put an explaining graph into a Triton model repository.

    Clients send ``image`` and ``target`` and read the outputs of the graph contract; Triton joins
    requests of equal shapes into batches. ``labels.txt`` serves Triton's classification extension
    on ``probabilities``.

    Args:
        path: a file made by whycam export; may lie in the repository already.
        folder: the repository; created if missing.
        name: the model's name in Triton; by default the model's own.

    Returns:
        The model's folder.

    Raises:
        ModelFileError: the file was not made by whycam.
        RequestError: Triton does not take the name.
        OutputError: the folder cannot be written.
    """
    manifest = read_manifest(path)
    refuse_class_input(None if manifest.class_embeddings is None else INPUT)
    name = name or repository_name(manifest.model)
    if repository_name(name) != name:
        raise RequestError(
            f"'{name}' cannot be a model's name in Triton: use letters, digits, '_', '-' and '.'"
        )
    graph = model_path(folder, name)
    if not (graph.exists() and graph.samefile(path)):
        with replacing(graph) as temporary:
            shutil.copyfile(path, temporary)
    home = graph.parent.parent
    if manifest.labels:
        write_whole(home / _LABELS, _lines(manifest.labels).encode())
    write_whole(
        home / "config.pbtxt", config(manifest, name, _own_outputs(graph, manifest)).encode()
    )
    return home


def refuse_class_input(classes: object) -> None:
    """Refuse graphs with the input ``class_embeddings``.

    Raises:
        RequestError: ``classes`` is the word ``input``.
    """
    if classes == INPUT:
        raise RequestError(
            "Triton batches every input along its first axis, and class embeddings have no batch: "
            "export with --classes FILE, which puts the classes into the file"
        )


def _own_outputs(path: Path, manifest: Manifest) -> list[str]:
    """Write entries for the outputs that the file had before, from the graph."""
    if not manifest.own_outputs:
        return []
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx", "a Triton repository") from error
    entries = []
    for value in onnx.load(str(path), load_external_data=False).graph.output:
        tensor = value.type.tensor_type
        kind = _ELEMENTS.get(tensor.elem_type)
        if value.name in manifest.own_outputs and kind is not None:
            sides = [side.dim_value or None for side in tensor.shape.dim[1:]]
            entries.append(_tensor(value.name, kind, sides))
    return entries


# Triton's names of ONNX's element types.
_ELEMENTS = {1: "TYPE_FP32", 2: "TYPE_UINT8", 7: "TYPE_INT64", 10: "TYPE_FP16", 11: "TYPE_FP64"}
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}


def config(manifest: Manifest, name: str, own_outputs: Sequence[str] = ()) -> str:
    """Write the text of config.pbtxt.

    Args:
        manifest: of the graph.
        name: of the model.
        own_outputs: entries for the outputs that the file had before it was explained.
    """
    inputs = [
        _tensor(graph_name("image", manifest), _TYPES[manifest.image_type], manifest.image_shape)
    ]
    if manifest.top is None:
        inputs.append(_tensor(graph_name("target", manifest), "TYPE_INT64", (None,)))
    if manifest.region is not None:
        inputs.append(_tensor(graph_name(REGION, manifest), "TYPE_FP32", manifest.region))
    outputs = [
        *own_outputs,
        *(
            _tensor(
                graph_name(output, manifest),
                "TYPE_INT64" if output == "targets" else "TYPE_FP32",
                shape,
                _LABELS if output == "probabilities" and manifest.labels else None,
            )
            for output, shape in manifest.output_shapes.items()
        ),
    ]
    batch = 1 if "tft" in manifest.outputs else _MAX_BATCH
    return (
        f'name: "{name}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {batch}\n"
        f"input [\n{_joined(inputs)}]\n"
        f"output [\n{_joined(outputs)}]\n" + ("dynamic_batching {}\n" if batch > 1 else "")
    )


def _lines(labels: Sequence[str]) -> str:
    return "".join(f"{' '.join(label.splitlines())}\n" for label in labels)


def _joined(tensors: Sequence[str]) -> str:
    return ",\n".join(tensors) + "\n"


def _tensor(name: str, kind: str, shape: Sequence[int | None], labels: str | None = None) -> str:
    sides = ", ".join("-1" if side is None else str(side) for side in shape)
    names = f', label_filename: "{labels}"' if labels else ""
    return f'  {{ name: "{name}", data_type: {kind}, dims: [ {sides} ]{names} }}'
