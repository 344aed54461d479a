"""Collect the gradient rules, one for each operator, in the table that ``reverse`` looks up.

A rule takes a ``Step`` and returns the gradient of each input, None where there is none. Each kind
of operator has a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

# Of each kind of operator: its name on the page of operators, and its rules.
KINDS: dict[str, Mapping[str, Rule]] = {
    "element by element": elementwise.RULES,
    "product, convolution": products.RULES,
    "attention": attention.RULES,
    "pooling": pooling.RULES,
    "reduction": reductions.RULES,
    "normalisation": normalisation.RULES,
    "shape": shaping.RULES,
    "selection": selection.RULES,
}
RULES: dict[str, Rule] = {
    operator: rule for rules in KINDS.values() for operator, rule in rules.items()
}
