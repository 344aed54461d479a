"""Collect the gradient rules, one for each operator, in the table that ``reverse`` looks up.

A rule takes a ``Step`` and returns the gradient of each input, None where there is none. Each kind
of operator has a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from ..tensors import Tensor
from . import (
    attention,
    elementwise,
    normalisation,
    pooling,
    products,
    reductions,
    selection,
    shaping,
)
from .step import Step

Rule = Callable[[Step], list[Tensor | None]]

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **products.RULES,
    **attention.RULES,
    **pooling.RULES,
    **reductions.RULES,
    **normalisation.RULES,
    **shaping.RULES,
    **selection.RULES,
}
