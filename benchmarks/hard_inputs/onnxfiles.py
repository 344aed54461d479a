"""ONNX files: damaged, foreign, of other versions, and with a graph that is not what they say."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import whycam
from whycam.runtime import onnxcut, onnxfile
from whycam.runtime.manifest import METADATA_KEY, parse

from . import damage
from .command import command
from .manifests import explained
from .rules import ANSWERED, ENGINES, Case, Fault, quiet, refusal

SECRET = 1234.5  # the weights that lie outside the folder


def run(case: Case) -> str:
    """Make a file, then explain with it, or read, change and check it."""
    chance = case.chance
    path = case.folder / "inside" / "model.onnx"
    path.parent.mkdir()
    outside, signed = case.odds(0.15), case.odds(0.5)
    if outside:
        _outside(case, path)
    else:
        data = chance.choice([_damaged, _damaged, _damaged, _changed, _changed, _foreign])(case)
        path.write_bytes(data)
    if signed:
        path.write_bytes(_signed(path))
    way = chance.random()
    if way < 0.2:
        verb = chance.choice([["info"], ["verify", "--threads", "1"], ["half", "-o", "OUT"]])
        given = [str(case.out / "half.onnx") if each == "OUT" else each for each in verb]
        return command(case, [*given, str(path), *(["--json"] if case.odds(0.4) else [])])
    if way < 0.4 and not outside:
        return _read(case, path)
    # OpenVINO's reader itself ends the process over some graphs (2026.4: Shape with a start out of
    # range). Accidents do not get that far, for the digest tells them.
    became = explained(case, path, ("onnxruntime",) if signed and not outside else ENGINES)
    if outside and became == ANSWERED:
        raise Fault("weights outside the file were used")
    return became


def _read(case: Case, path: Path) -> str:
    """What is done to a file without an engine."""
    try:
        with quiet():
            manifest = onnxfile.read_manifest(path)
            onnxfile.digest(path)
            onnxcut.without_outputs(path, {"gradients", "activations"})
            place = case.chance.choice([case.out / "copy.onnx", path])
            before = path.read_bytes()
            try:
                onnxfile.with_manifest(path, place, msgspec.structs.replace(manifest, model="b"))
            except whycam.WhyCamError:
                if path.read_bytes() != before:
                    raise Fault("a refused file was changed") from None
                raise
            if onnxfile.read_manifest(place).model != "b":
                raise Fault("the manifest was not replaced")
    except whycam.WhyCamError as error:
        return refusal(str(error))
    finally:
        for left in (case.out, path.parent):
            if any(each.name.startswith(".") for each in left.glob("*")):
                raise Fault("a temporary file is left")
    return ANSWERED


def _signed(path: Path) -> bytes:
    """With a digest that fits, as whoever means harm would give it."""
    data = path.read_bytes()
    try:
        manifest = parse(_metadata(data), "")
        fitting = msgspec.structs.replace(manifest, digest=onnxfile.digest(path))
        onnxfile.with_manifest(path, path, fitting)
        return path.read_bytes()
    except Exception:  # whatever it says of such a file is said again where it is looked at
        return data


def _metadata(data: bytes) -> str:
    model = onnx.load_from_string(data)
    return next(each.value for each in model.metadata_props if each.key == METADATA_KEY)


def _damaged(case: Case) -> bytes:
    return damage.bytes_of(case.chance, case.material.data)


def _changed(case: Case) -> bytes:
    """A file that is whole, with a graph that is wrong."""
    model = onnx.load_from_string(case.material.data)
    for _ in range(case.chance.choice([1, 1, 2, 3])):
        with suppress(IndexError):  # nothing left to change
            case.chance.choice(_CHANGES)(case.chance, model)
    return bytes(model.SerializeToString())


def _foreign(case: Case) -> bytes:
    chance = case.chance
    bare = [_little(), case.material.bare, b"", b"PK\x03\x04" + bytes(99), b"\x80\x02}q\x00.",
            b"GIF89a" + bytes(99), b"\x08\x08", b"\0" * 5000, b"<html></html>",
            case.material.data * 2, case.material.bare + case.material.data]  # fmt: skip
    if chance.random() < 0.5:
        return chance.choice(bare)
    # Metadata without the graph that it speaks of.
    entry = onnx.StringStringEntryProto(key=METADATA_KEY, value=case.material.manifest)
    return chance.choice(bare) + onnx.ModelProto(metadata_props=[entry]).SerializeToString()


def _little() -> bytes:
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"]) for n in "xy"]
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", sides[:1], sides[1:])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)])
    return bytes(model.SerializeToString())


def _version(chance: random.Random, model: onnx.ModelProto) -> None:
    number = chance.choice([0, 1, 3, 99, 2**31, 2**63 - 1])
    if chance.random() < 0.5:
        model.ir_version = number
    else:
        chance.choice(model.opset_import).version = number


def _opsets(chance: random.Random, model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid(chance.choice(["", "ai.onnx.ml", "mine"]), 99))


def _node(chance: random.Random, model: onnx.ModelProto) -> None:
    nodes = model.graph.node
    at = chance.randrange(len(nodes))
    what = chance.choice(["gone", "operator", "domain", "input", "output", "twice", "order"])
    if what == "gone":
        del nodes[at]
    elif what == "operator":
        nodes[at].op_type = chance.choice(["Relu", "MatMul", "Conv", "If", "Loop", "NoSuch", ""])
    elif what == "domain":
        nodes[at].domain = chance.choice(["com.microsoft", "mine", "\u00e9"])
    elif what == "input" and nodes[at].input:
        names = [name for node in nodes for name in node.output]
        place = chance.randrange(len(nodes[at].input))
        nodes[at].input[place] = chance.choice([*names, "", "nothing"])
    elif what == "output":
        nodes[at].output[0] = chance.choice(["", "maps", "image", "probabilities"])
    elif what == "twice":
        nodes.append(nodes[at])
    else:
        moved = onnx.NodeProto()
        moved.CopyFrom(nodes[at])
        del nodes[at]
        nodes.insert(0, moved)


_INTEGERS = (0, -1, 1, 7, 2**31 - 1, 2**31, -(2**31), 2**62, -(2**63))


def _attribute(chance: random.Random, model: onnx.ModelProto) -> None:
    having = [node for node in model.graph.node if node.attribute]
    attribute = chance.choice(chance.choice(having).attribute)
    if attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(_INTEGERS)
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = chance.choice(_INTEGERS)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = chance.choice([0.0, -1.0, 3e38, float("nan"), float("inf")])
    else:
        attribute.s = chance.choice([b"", b"\xff\xfe", b"SAME_UPPER", b"x" * 10_000])


def _weights(chance: random.Random, model: onnx.ModelProto) -> None:
    tensor = chance.choice(model.graph.initializer)
    what = chance.choice(["values", "dims", "type", "short", "name", "gone"])
    if what == "values" and tensor.data_type == TensorProto.FLOAT:
        values = np.array(numpy_helper.to_array(tensor))
        values.flat[: chance.choice([1, values.size])] = chance.choice(
            [np.nan, np.inf, -np.inf, 3e38, 0, 1e-45]
        )
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    elif what == "values" and tensor.data_type == TensorProto.INT64:
        values = np.array(numpy_helper.to_array(tensor))
        values.flat[0 if values.ndim else ...] = chance.choice(_INTEGERS)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    elif what == "dims" and tensor.dims:
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(_INTEGERS)
    elif what == "type":
        tensor.data_type = chance.choice([0, 2, 7, 8, 10, 11, 99])
    elif what == "short":
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    elif what == "name":
        tensor.name = chance.choice(["", "image", chance.choice(model.graph.initializer).name])
    else:
        model.graph.initializer.remove(tensor)


def _interface(chance: random.Random, model: onnx.ModelProto) -> None:
    graph = model.graph
    values = chance.choice([graph.input, graph.output])
    value = chance.choice(values)
    what = chance.choice(["gone", "name", "type", "side", "rank", "twice", "other"])
    sides = value.type.tensor_type.shape.dim
    if what == "gone":
        values.remove(value)
    elif what == "name":
        value.name = chance.choice(["", "image", "target", "activations", "maps", "x"])
    elif what == "type":
        value.type.tensor_type.elem_type = chance.choice([0, 1, 2, 6, 7, 8, 10, 11, 99])
    elif what == "side" and sides:
        chance.choice(sides).dim_value = chance.choice(_INTEGERS)
    elif what == "rank":
        sides.add().dim_value = 1
    elif what == "twice":
        values.append(value)
    else:  # an output that is something else: the same name, another shape
        producers = [node for node in graph.node if value.name in node.output]
        for node in producers:
            node.output[list(node.output).index(value.name)] = f"{value.name}_before"
        source = chance.choice([name for node in graph.node for name in node.output])
        graph.node.append(helper.make_node("Identity", [source], [value.name]))


def _subgraph(chance: random.Random, model: onnx.ModelProto) -> None:
    """A branch that holds the whole graph again, or nothing."""
    inner = onnx.GraphProto()
    if chance.random() < 0.5:
        inner.CopyFrom(model.graph)
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["branch"], then_branch=inner, else_branch=inner)
    )


_CHANGES: tuple[Callable[[random.Random, onnx.ModelProto], None], ...] = (
    _version, _opsets, _node, _node, _node, _attribute, _attribute, _weights, _weights, _weights,
    _interface, _interface, _subgraph,
)  # fmt: skip


def _outside(case: Case, path: Path) -> None:
    """Weights that the file says lie elsewhere, and that are there."""
    chance = case.chance
    model = onnx.load_from_string(case.material.data)
    tensor = chance.choice(
        [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.dims]
    )
    values = np.full(tuple(tensor.dims), SECRET, np.float32).tobytes()
    (case.folder / "secret.bin").write_bytes(values)
    (path.parent / "beside.bin").write_bytes(values)
    os.symlink(case.folder / "secret.bin", path.parent / "link.bin")
    os.symlink(case.folder, path.parent / "folder")
    place = chance.choice(
        ["../secret.bin", str(case.folder / "secret.bin"), "link.bin", "folder/secret.bin",
         "./../inside/../secret.bin", "nowhere.bin", "", ".", "/dev/zero", "/proc/self/mem",
         "beside.bin", "file:///etc/passwd", "*/_ORT_MEM_ADDR_/*", "\0", "x" * 5000]
    )  # fmt: skip
    held = onnx.TensorProto()
    held.CopyFrom(tensor)
    held.ClearField("raw_data")
    held.data_location = TensorProto.EXTERNAL
    more = [("offset", "0"), ("length", str(len(values)))]
    for key, value in [("location", place), *(more if chance.random() < 0.7 else [])]:
        entry = held.external_data.add()
        entry.key, entry.value = key, value
    if chance.random() < 0.7:
        tensor.CopyFrom(held)
    else:  # as a constant among the operations
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, helper.make_node("Constant", [], [held.name], value=held))
    path.write_bytes(bytes(model.SerializeToString()))
