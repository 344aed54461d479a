"""Every gradient rule by itself against float64 autograd."""

from __future__ import annotations

import pytest
from gradient_cases import CASES
from gradients import check

from whycam.export.gradient.rules import RULES

NUMBERED = [(name, index) for name in sorted(RULES) for index in range(len(CASES.get(name, [0])))]


@pytest.mark.parametrize(("operator", "index"), NUMBERED)
def test_gradient_of_one_operator_is_that_of_float64_autograd(operator, index):
    assert operator in CASES, "a rule without a case in gradient_cases.py"
    case = CASES[operator][index]
    assert operator in {node.op_type for node in case.nodes}
    check(case)
