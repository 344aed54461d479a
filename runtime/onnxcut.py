"""Cut from an ONNX file what an engine need not compute, and leave its weights where they are.

Engines such as ONNX Runtime compute every output that a file declares, wanted or not. So the
outputs that are not asked for go, and the operations and weights that only those needed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import ModelFileError
from .onnxfile import damaged, open_file, top_fields
from .onnxwire import (
    DATA_LOCATION,
    EXTERNAL_DATA,
    GRAPH,
    GRAPH_OUTPUT,
    INITIALIZER,
    IR_VERSION,
    KEY,
    NODE,
    NODE_INPUT,
    NODE_OPERATOR,
    NODE_OUTPUT,
    OPSETS,
    RAW_DATA,
    SPARSE_INITIALIZER,
    TENSOR_NAME,
    VALUE,
    VALUE_NAME,
    WITH_SUBGRAPHS,
    fields,
    fields_of,
    header,
    message,
    number,
)

_EXTERNAL = 1  # TensorProto.DataLocation
_LARGE = 1 << 16  # bytes of a tensor that are worth a reference


def without_outputs(path: str | os.PathLike[str], names: Collection[str]) -> bytes:
    """Remove some outputs of an ONNX file, and what only those needed.

    Metadata is left out. The file is mapped, so that its weights are copied once.

    Args:
        path: the file.
        names: of the outputs to remove.

    Raises:
        ModelFileError: the file is missing, no ONNX, or truncated.
    """
    found = _cut(os.fspath(path), names, None)
    assert found is not None
    return found


def with_weights_in_place(path: str | os.PathLike[str], names: Collection[str]) -> bytes | None:
    """Remove some outputs of an ONNX file, and refer to large weights where they lie in it.

    Those are the kernels that only convolutions read. They become ONNX's external data, whose
    location is the file itself: whoever opens the result must know the file's folder. So a file
    that refers to others already is left alone, for it would find them there.

    Args:
        path: the file.
        names: of the outputs to remove.

    Returns:
        The rest of the file; None where less than half of it would be referred to, for then an
        engine reads the file itself with less memory, and where it might refer to other files.

    Raises:
        ModelFileError: the file is missing, no ONNX, or truncated.
    """
    return _cut(os.fspath(path), names, Path(path).name)


def _cut(name: str, names: Collection[str], location: str | None) -> bytes | None:
    parts: list[bytes | memoryview] = []
    with open_file(name) as file:
        top = list(top_fields(file, name))
        graphs = {at: _graph(file, at, end, name) for field, at, end in top if field == GRAPH}
        if location is not None and (len(graphs) > 1 or any(g.refers for g in graphs.values())):
            return None
        # Closed when the last view of it is gone.
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for field, start, end in top:
            if field == GRAPH:
                graph = graphs[start]
                kept = [
                    content[each.first : each.end]
                    if place is None
                    else _referred(file, content, each, place, graph.broken)
                    for each, place in _kept(graph, names, location)
                ]
                parts += [header(field, sum(map(len, kept))), *kept]
            elif field == OPSETS:
                parts += [header(field, end - start), content[start:end]]
            elif field == IR_VERSION:
                parts += [bytes([IR_VERSION << 3]), content[start:end]]
    if location is not None and 2 * sum(map(len, parts)) > len(content):
        return None
    return b"".join(parts)


def is_mapped(path: Path) -> bool:
    """Tell whether this process has a file mapped into its memory; False where nobody says.

    Args:
        path: of the file, resolved.
    """
    try:
        inode = str(path.stat().st_ino)
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return False
    # By name as well: a file of an overlay has another inode there.
    return any(
        row[4] == inode or row[5:] == [str(path)]
        for row in (line.split(maxsplit=5) for line in maps.splitlines())
    )


@dataclass(frozen=True)
class _Field:
    """A field of the graph: its number, first byte, and payload in the file."""

    number: int
    first: int
    start: int
    end: int


@dataclass(frozen=True)
class _Node:
    operator: bytes
    inputs: list[bytes]
    outputs: list[bytes]


@dataclass(frozen=True)
class _Graph:
    """The fields of a graph in order; what nodes, outputs and weights say, by their first byte.

    Attributes:
        refers: whether it refers to other files, or might.
    """

    fields: list[_Field]
    nodes: dict[int, _Node]
    outputs: dict[int, bytes]
    weights: dict[int, bytes]
    refers: bool
    broken: ModelFileError


def _graph(file: BinaryIO, begin: int, stop: int, name: str) -> _Graph:
    broken = damaged(name, stop)
    found = [_Field(*each) for each in fields(file, begin, stop, broken)]
    nodes, outputs, weights, refers = {}, {}, {}, False
    for each in found:
        if each.number == INITIALIZER:
            for field, _, start, end in fields(file, each.start, each.end, broken):
                if field == TENSOR_NAME:
                    weights[each.first] = _read(file, start, end)
                refers = refers or field in (EXTERNAL_DATA, DATA_LOCATION)
        elif each.number == NODE:
            data = _read(file, each.start, each.end)
            nodes[each.first] = _node(data, broken)
            refers = refers or b"location" in data  # of a tensor in an attribute
        elif each.number == GRAPH_OUTPUT:
            value = _read(file, each.start, each.end)
            named = [value[a:b] for f, _, a, b in fields_of(value, broken) if f == VALUE_NAME]
            outputs[each.first] = named[-1] if named else b""
        elif each.number == SPARSE_INITIALIZER:
            refers = True
    return _Graph(found, nodes, outputs, weights, refers, broken)


def _node(data: bytes, broken: ModelFileError) -> _Node:
    texts: dict[int, list[bytes]] = {NODE_OPERATOR: [b""], NODE_INPUT: [], NODE_OUTPUT: []}
    for field, _, start, end in fields_of(data, broken):
        if field in texts:
            texts[field].append(data[start:end])
    return _Node(texts[NODE_OPERATOR][-1], texts[NODE_INPUT], texts[NODE_OUTPUT])


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _kept(
    graph: _Graph, names: Collection[str], location: str | None
) -> Iterator[tuple[_Field, str | None]]:
    """The fields that stay, each with the location that it shall refer to, if any."""
    dropped = {first for first, value in graph.outputs.items() if value.decode() in names}
    if any(node.operator in WITH_SUBGRAPHS for node in graph.nodes.values()):
        # What a subgraph reads from outside is not written here: keep everything.
        packed: frozenset[bytes] = frozenset()
    else:
        dropped |= _unneeded(graph, dropped)
        packed = _of_convolutions(graph, dropped)
    for each in graph.fields:
        if each.first in dropped:
            continue
        large = each.end - each.start >= _LARGE and graph.weights.get(each.first) in packed
        yield each, location if large else None


def _unneeded(graph: _Graph, outputs: set[int]) -> set[int]:
    """The nodes and weights that no output but the dropped ones needs."""
    found = set()
    needed = {value for first, value in graph.outputs.items() if first not in outputs}
    # Operations stand in an order in which they can run: the last one first.
    for first, node in reversed(graph.nodes.items()):
        if needed.isdisjoint(node.outputs):
            found.add(first)
        else:
            needed.update(node.inputs)
    return found.union(first for first, name in graph.weights.items() if name not in needed)


def _of_convolutions(graph: _Graph, dropped: set[int]) -> frozenset[bytes]:
    """Names of what convolutions read as their kernel, and nobody reads otherwise."""
    kernels, others = set[bytes](), set(graph.outputs.values())
    for first, node in graph.nodes.items():
        if first not in dropped:
            is_convolution = node.operator == b"Conv" and len(node.inputs) > 1
            kernels.update(node.inputs[1:2] if is_convolution else [])
            others.update(node.inputs[:1] + node.inputs[2:] if is_convolution else node.inputs)
    return frozenset(kernels - others)


def _referred(
    file: BinaryIO, content: memoryview, weight: _Field, location: str, broken: ModelFileError
) -> bytes | memoryview:
    """A tensor whose bytes are looked up in a file; as it is if they do not lie in one piece."""
    parts = list(fields(file, weight.start, weight.end, broken))
    data = [(start, end) for field, _, start, end in parts if field == RAW_DATA]
    if len(data) != 1 or any(field in (EXTERNAL_DATA, DATA_LOCATION) for field, *_ in parts):
        return content[weight.first : weight.end]
    start, end = data[0]
    tensor = b"".join(content[first:stop] for field, first, _, stop in parts if field != RAW_DATA)
    for key, value in (("location", location), ("offset", start), ("length", end - start)):
        entry = message(KEY, key.encode()) + message(VALUE, str(value).encode())
        tensor += message(EXTERNAL_DATA, entry)
    return message(INITIALIZER, tensor + number(DATA_LOCATION, _EXTERNAL))
