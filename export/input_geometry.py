"""Find the channels, size, layout and batch of an image input from its graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from ..runtime.errors import ExportError

# Operators that keep the axes of their first operand, if the others have no more axes.
_KEEPING = {"Add", "Sub", "Mul", "Div", "Cast", "Identity", "Clip", "Relu", "Pad", "Sqrt", "Pow"}
_KEEPING |= {"QuantizeLinear", "DequantizeLinear", "BatchNormalization", "Neg", "Max", "Min"}
_FEW = (1, 3, 4)
_LAYOUTS = {1: "NCHW", 3: "NHWC"}


def read_geometry(
    image: ir.Value,
    requested: tuple[int, int] | None,
    layout: str | None,
    stated: int | None,
) -> tuple[int, tuple[int, int], str, int | None]:
    """Read an image input's channels, (H, W), layout, and the batch where it is fixed.

    The first convolution says which axis holds the channels, and how many there are.

    Args:
        image: of four axes.
        requested: (H, W), where the input leaves them free.
        layout: as the user states it.
        stated: channels, as the user states them.

    Raises:
        ExportError: something is neither stated nor to be found, or what is stated is wrong.
    """
    assert image.shape is not None
    sides = [side if isinstance(side, int) and side > 0 else None for side in image.shape]
    proofs = {proof for proof in _convolutions(image) if proof[0] in _LAYOUTS}
    axis, read = proofs.pop() if len(proofs) == 1 else (None, None)
    if layout is None:
        layout = _infer_layout(image, sides) if axis is None else _LAYOUTS[axis]
    elif axis is not None and layout != _LAYOUTS[axis]:
        raise ExportError(
            f"the input '{image.name}' {image.shape} is {_LAYOUTS[axis]}, as its first convolution "
            f"reads it, not {layout}"
        )
    places = (1, 2, 3) if layout == "NCHW" else (3, 1, 2)
    channels, height, width = (sides[place] for place in places)
    channels = _count_channels(image, channels or read, stated)
    if (height is None or width is None) and requested is None:
        raise ExportError(
            f"the input '{image.name}' {image.shape} takes images of any size: choose one with "
            "--image-size HEIGHTxWIDTH"
        )
    size = requested or (height or 0, width or 0)
    if (height not in (None, size[0])) or (width not in (None, size[1])):
        raise ExportError(
            f"the input '{image.name}' takes images of {height} x {width} pixels only, not "
            f"{size[0]} x {size[1]}"
        )
    return channels, size, layout, sides[0]


def _count_channels(image: ir.Value, found: int | None, stated: int | None) -> int:
    if found is None and stated is None:
        raise ExportError(
            f"the input '{image.name}' {image.shape} leaves its number of channels free, and no "
            "convolution reads it: pass --channels"
        )
    if found is not None and stated not in (None, found):
        raise ExportError(
            f"the input '{image.name}' takes {found} channels, and the preprocessing is for "
            f"{stated}: --mean and --std take a number for each channel"
        )
    return found or stated or 0


def _convolutions(image: ir.Value) -> Iterator[tuple[int, int]]:
    """Yield the input's axis of channels and their number, for each convolution it goes into."""
    waiting: list[tuple[ir.Value, tuple[int, ...]]] = [(image, (0, 1, 2, 3))]
    seen = {image}
    while waiting:
        value, axes = waiting.pop()
        for node, place in value.uses():
            following = axes
            if node.op_type in ("Conv", "QLinearConv"):
                weight = node.inputs[1 if node.op_type == "Conv" else 3]
                if place == 0 and weight is not None and _is_known(weight):
                    groups = node.attributes.get_int("group", 1)
                    yield axes[1], int(weight.shape[1]) * groups  # type: ignore[index, arg-type]
                continue
            if node.op_type == "Transpose" and "perm" in node.attributes:
                following = tuple(axes[a] for a in node.attributes["perm"].as_ints())
            elif node.op_type not in _KEEPING or not _keeps_axes(node, place):
                continue
            if node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                waiting.append((node.outputs[0], following))


def _is_known(weight: ir.Value) -> bool:
    return weight.shape is not None and all(isinstance(side, int) for side in weight.shape)


def _keeps_axes(node: ir.Node, place: int) -> bool:
    """Tell whether an image's axes stay: no other operand has more, or another meaning of them."""
    others = [value for i, value in enumerate(node.inputs) if i != place and value is not None]
    return all(value.shape is not None and len(value.shape) <= 4 for value in others)


def _infer_layout(image: ir.Value, sides: Sequence[int | None]) -> str:
    """Infer the layout: the axis of length 1, 3 or 4 holds the channels."""
    first, last = sides[1], sides[3]
    if first in _FEW and last not in _FEW:
        return "NCHW"
    if last in _FEW and first not in _FEW:
        return "NHWC"
    raise ExportError(
        f"cannot tell which axis of the input '{image.name}' {image.shape} holds the channels: "
        "pass --layout NCHW or --layout NHWC"
    )
