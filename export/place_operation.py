"""Describe a node for the rules that label its results with places of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .places import Places

Sides = tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """A node whose results are labelled.

    Attributes:
        node: the node.
        places: of each input; empty for constants.
        before: the shape of each input, for two images.
        after: the shape of each output.
        numbers: the value of each input that is a small constant, else None.
    """

    node: ir.Node
    places: list[Places]
    before: list[Sides]
    after: list[Sides]
    numbers: list[NDArray[Any] | None]

    def integer(self, name: str, default: int) -> int:
        """Read an attribute that is a whole number."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def axis(self, default: int) -> int:
        """Read the attribute ``axis``, counted from the front."""
        return self.integer("axis", default) % max(1, len(self.before[0]))

    def integers(self, name: str) -> list[int] | None:
        """Read an attribute that holds whole numbers; None if left out."""
        attribute = self.node.attributes.get(name)
        return None if attribute is None else [int(number) for number in attribute.as_ints()]

    def constants(self, index: int) -> list[int] | None:
        """Read a constant input that holds whole numbers; None if left out or not constant."""
        numbers = self.numbers[index] if index < len(self.numbers) else None
        return None if numbers is None else [int(number) for number in np.ravel(numbers)]

    def has(self, index: int) -> bool:
        """Tell whether an optional input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None
