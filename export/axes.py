"""Track which axis of a tensor is batch, channel, row or column, from the image on.

An axis consists of atoms (what, stride, length): a row axis of 56 split into 8 windows of 7 is two
atoms of ``Y``, and is a row axis again when they are joined in order. Transposes and reshapes move
atoms; convolutions and linear layers create new channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from .recorder import BATCH, Dim, Dims, divide
from .shapes import Shapes

_KEEPING = {
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "LRN",
    "LpNormalization",
    "Softmax",
    "LogSoftmax",
    "Dropout",
    "CumSum",
}


@dataclass(frozen=True)
class Atom:
    """A part of an axis: ``length`` steps of ``stride`` along ``what`` (B, C, Y, X)."""

    what: str
    stride: int
    length: Dim


Axis = tuple[Atom, ...]
Axes = tuple[Axis | None, ...]


def find_axes(
    nodes: Iterable[ir.Node], image: ir.Value, layout: str, shapes: Shapes
) -> dict[ir.Value, Axes]:
    """Find the axes of every tensor that depends on the image, as far as they can be tracked.

    Args:
        nodes: in an order in which they can run.
        image: the graph's input.
        layout: of the image.
        shapes: of all tensors.
    """
    found: dict[ir.Value, Axes] = {
        image: _whole_axes("BCYX" if layout == "NCHW" else "BYXC", shapes.dims[image])
    }
    for node in nodes:
        # A convolution defines its axes, even where its input's are unknown.
        if node.op_type != "Conv" and not any(value in found for value in node.inputs):
            continue
        for value in node.outputs:
            dims = shapes.dims.get(value)
            if dims is None:
                continue
            axes = _propagate(node, dims, found, shapes)
            if axes is not None:
                found[value] = axes
    return found


def find_channel_order(axes: Axes | None, dims: Dims) -> tuple[int, int, int, int] | None:
    """Find the permutation of a tensor to [N, K, h, w]; None if its axes are others."""
    if axes is None or len(axes) != 4:
        return None
    places = {}
    for place, axis in enumerate(axes):
        if (
            axis is not None
            and len(axis) == 1
            and axis[0].stride == 1
            and axis[0].length == dims[place]
        ):
            places[axis[0].what] = place
    if set(places) != set("BCYX"):
        return None
    return places["B"], places["C"], places["Y"], places["X"]


def _whole_axes(letters: str, dims: Dims) -> Axes:
    return tuple((Atom(letter, 1, side),) for letter, side in zip(letters, dims, strict=True))


def _propagate(
    node: ir.Node, dims: Dims, found: dict[ir.Value, Axes], shapes: Shapes
) -> Axes | None:
    kind = node.op_type
    if kind == "Conv":
        return _whole_axes("BCYX", dims) if len(dims) == 4 and dims[0] == BATCH else None
    source = next((each for each in node.inputs if each in found), None)
    if source is None:
        return None
    axes, before = found[source], shapes.dims[source]
    if kind == "ConvTranspose":
        return _whole_axes("BCYX", dims) if len(dims) == 4 else None
    if kind == "Transpose":
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        return tuple(axes[i] for i in order or range(len(axes) - 1, -1, -1))
    if kind in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return _regroup(axes, dims)
    if kind in ("MatMul", "Gemm"):
        return (*axes[:-1], (Atom("C", 1, dims[-1]),)) if len(axes) == len(dims) else None
    if kind.startswith(("Reduce", "Global")) and len(dims) != len(axes):
        gone = {int(axis) % len(axes) for axis in _reduced(node, shapes)}
        return tuple(axis for i, axis in enumerate(axes) if i not in gone)
    if kind in ("Concat", "Slice", "Split", "Pad", "Gather") and len(dims) == len(axes):
        return tuple(
            _resize(axis, old, new) for axis, old, new in zip(axes, before, dims, strict=True)
        )
    if kind in _KEEPING or len(dims) == len(axes):
        return _merge([found.get(each) for each in node.inputs if each is not None], dims)
    return None


def _reduced(node: ir.Node, shapes: Shapes) -> list[int]:
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return [int(axis) for axis in shapes.constants[node.inputs[1]].ravel()]
    attribute = node.attributes.get("axes")
    return list(attribute.as_ints()) if attribute is not None else []


def _resize(axis: Axis | None, old: Dim, new: Dim) -> Axis | None:
    """Give an axis another length: channels stay channels; positions become unknown."""
    if old == new:
        return axis
    if axis is not None and len(axis) == 1 and axis[0].what == "C":
        return (Atom("C", 1, new),)
    return None


def _merge(candidates: list[Axes | None], dims: Dims) -> Axes | None:
    """Merge the axes of operands that broadcast: those of an operand of full length."""
    known = [axes for axes in candidates if axes is not None and len(axes) <= len(dims)]
    if not known:
        return None
    merged: list[Axis | None] = []
    for place, side in enumerate(dims):
        choice: Axis | None = None
        for axes in known:
            index = place - (len(dims) - len(axes))
            axis = axes[index] if index >= 0 else None
            if axis is not None and _length(axis) == side:
                choice = axis
                break
            if axis is not None and len(axis) == 1 and choice is None and axis[0].stride == 1:
                # Pooling and resizing keep an axis what it is, at another length.
                choice = (Atom(axis[0].what, 1, side),)
        merged.append(choice)
    return tuple(merged)


def _length(axis: Axis) -> Dim:
    total: Dim = 1
    for atom in axis:
        total = total * atom.length
    return total


def _regroup(axes: Axes, dims: Dims) -> Axes | None:
    """Follow a reshape: split and join atoms, in order, to the new lengths."""
    pending: list[Atom] = []
    for axis in axes:
        if axis is None:
            return None
        pending.extend(atom for atom in axis if atom.length != 1)
    result: list[Axis | None] = []
    for side in dims:
        taken: list[Atom] = []
        left: Dim = side
        while left != 1:
            if not pending:
                return None
            atom = pending.pop(0)
            rest = _divide(left, atom.length)
            if rest is not None:
                taken.append(atom)
                left = rest
                continue
            if not isinstance(left, int) or not isinstance(atom.length, int) or atom.length % left:
                return None
            inner = atom.length // left
            taken.append(Atom(atom.what, atom.stride * inner, left))
            pending.insert(0, Atom(atom.what, atom.stride, inner))
            left = 1
        result.append(_join(taken))
    if pending:
        return None
    missing = [
        what for what in "BCYX" if not any(a.what == what for axis in result if axis for a in axis)
    ]
    # Axes of length 1 are identified by their order.
    return tuple(
        axis if axis else ((Atom(missing.pop(0), 1, 1),) if missing else None) for axis in result
    )


def _divide(whole: Dim, part: Dim) -> Dim | None:
    if isinstance(part, int) and isinstance(whole, int):
        return whole // part if whole % part == 0 else None
    try:
        return divide(whole, part)
    except Exception:
        return None


def _join(atoms: list[Atom]) -> Axis:
    """Join neighbouring atoms that continue each other; channels in any order."""
    if atoms and all(atom.what == "C" for atom in atoms):
        return (Atom("C", 1, _length(tuple(atoms))),)
    joined: list[Atom] = []
    for atom in atoms:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.what == atom.what
            and isinstance(atom.length, int)
            and last.stride == atom.stride * atom.length
            and isinstance(last.length, int)
        ):
            joined[-1] = Atom(atom.what, atom.stride, last.length * atom.length)
        else:
            joined.append(atom)
    return tuple(joined)
