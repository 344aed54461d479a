"""Find which heights and widths a network takes: a range, in steps of its total stride.

At multiples of the total stride every length in the graph is a linear form of the number of steps,
so that paddings, windows and reshapes hold for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from ..runtime.errors import ExportError, RequestError
from .dims import Dim, Size
from .propagation import propagate
from .shapes import Probes

# A height and width that every stride in use divides.
_LARGE = 2**7 * 3 * 5 * 7
_LARGEST_STEP = 128


@dataclass(frozen=True)
class InputSizes:
    """The heights and widths that a graph takes, in pixels: multiples of ``step``.

    Attributes:
        least, most: the range of either side.
        step: the network's total stride.
        usual: (H, W), the size that the model states.
    """

    least: int
    most: int
    step: int
    usual: tuple[int, int]

    @property
    def dims(self) -> tuple[Dim, Dim]:
        """Height and width, whose symbols count steps."""
        return Size(self.step, ("H",)), Size(self.step, ("W",))

    @property
    def probes(self) -> Probes:
        """Sizes that tell how every length depends on batch, height and width."""
        low, high = self.least // self.step, self.most // self.step
        middle = (low + high) // 2
        base = {"N": 2, "H": low, "W": high}
        return (
            base,
            base | {"N": 3},
            base | {"H": high},
            base | {"W": low},
            {"N": 3, "H": middle, "W": low + 1},
            {"N": 2, "H": low, "W": low},
            {"N": 2, "H": self.usual[0] // self.step, "W": self.usual[1] // self.step},
        )

    @property
    def largest(self) -> dict[str, int]:
        """Lengths for one image of the largest size."""
        return {"N": 1, "H": self.most // self.step, "W": self.most // self.step}

    @property
    def checked(self) -> tuple[dict[str, int], ...]:
        """Lengths for the sizes at which a graph is verified: not square, smallest, largest."""
        low, high = self.least // self.step, self.most // self.step
        sides = (low, high), (low, low), (high, high)
        return tuple({"N": 1, "H": height, "W": width} for height, width in sides)

    @property
    def one(self) -> dict[str, int]:
        """Lengths for one image of the usual size."""
        return {"N": 1, "H": self.usual[0] // self.step, "W": self.usual[1] // self.step}


def find_input_sizes(
    graph: ir.Graph,
    image: ir.Value,
    channels: int,
    layout: str,
    usual: tuple[int, int],
    limits: tuple[int, int],
) -> InputSizes:
    """Find the step of a network's input size, and check a requested range.

    Args:
        graph: without subgraphs or functions.
        image: its input.
        channels, layout: of the input.
        usual: (H, W) that the model states.
        limits: the least and the largest height or width, in pixels.

    Raises:
        ExportError: the network takes one size only, or the range does not fit its step.
    """
    rows, columns = (1, 2) if layout == "NHWC" else (2, 3)

    def shapes_at(height: int, width: int) -> dict[ir.Value, tuple[int, ...]]:
        shape = [2, channels, channels, channels]
        shape[rows], shape[columns] = height, width
        return propagate(graph, {image: shape}).shapes

    try:
        shapes_at(2 * usual[0], 2 * usual[1])
        base = shapes_at(_LARGE, _LARGE)
        others = shapes_at(2 * _LARGE, _LARGE), shapes_at(_LARGE, 2 * _LARGE)
    except ExportError as error:
        raise ExportError(
            f"the network takes images of {usual[0]} x {usual[1]} alone: at another size {error}. "
            "A flattened linear head, pooling with a fixed window and position embeddings are the "
            "usual reasons: leave out --dynamic-size"
        ) from error
    step = 1
    for shapes in others:
        for value, shape in base.items():
            for before, after in zip(shape, shapes.get(value, shape), strict=True):
                step = math.lcm(step, Fraction(after - before, _LARGE).denominator)
            if step > _LARGEST_STEP:
                node = value.producer()
                what = "" if node is None else f"the node '{node.name}' ({node.op_type}) "
                raise ExportError(
                    f"{what}divides the image's sides by {step}, as pooling to a fixed grid does, "
                    f"so no step up to {_LARGEST_STEP} pixels fits: leave out --dynamic-size"
                )
    least, most = limits
    if least % step or most % step or most < least + step:
        near = max(step, step * round(least / step))
        end = max(near + step, step * round(most / step))
        raise RequestError(
            f"the network's total stride is {step} pixels, so --dynamic-size begins and ends at "
            f"two multiples of it: {near}:{end} instead of {least}:{most}"
        )
    check_usual_size(usual, limits, step)
    return InputSizes(least, most, step, usual)


def check_usual_size(usual: tuple[int, int], limits: tuple[int, int], step: int = 1) -> None:
    """Refuse a range without the size that the model states.

    Args:
        usual: (H, W).
        limits: the least and the largest height or width, in pixels.
        step: of which both sides are multiples; 1 where it is not known yet.

    Raises:
        RequestError: the size is not in the range, or no multiple of the step.
    """
    least, most = limits
    if any(side % step or not least <= side <= most for side in usual):
        multiples = "" if step == 1 else f" multiples of {step}"
        raise RequestError(
            f"the model's own size {usual[0]} x {usual[1]} must be{multiples} from {least} to "
            f"{most}: choose another with --image-size, or another --dynamic-size"
        )
