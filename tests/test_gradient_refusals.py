"""What has no gradient is refused by name, and what a faulty rule would do is seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from documents import ROOT
from gradient_cases import CASES
from gradients import Case, differences, node, numbers, record, weights

from whycam.export.dims import BATCH, CLASSES
from whycam.export.gradient import operator_table, shaping
from whycam.export.gradient.rules import RULES
from whycam.export.gradient.step import Step
from whycam.runtime.errors import ExportError

PLACES = {"x": (4, 6, 5)}
QKV = {"x": (4, 5, 2), "x1": (4, 5, 2), "x2": (4, 5, 2)}
VECTOR = {"x": (3, 4), "x1": (3, 4)}


def graph(text: str, inputs: dict[str, tuple[int, ...]], opset: int = 20, /, **rest) -> Case:
    """One operator; ``c`` is a constant, ``lead`` what goes before."""
    constants = {name: np.asarray(rest.pop(name)) for name in ("c", "d", "e") if name in rest}
    lead = rest.pop("lead", [])
    kind, _, names = text.partition(" ")
    return Case([*lead, node(kind, names or "x", **rest)], inputs, constants, opset=opset)


def whole(name: str) -> list:
    """An int64 tensor that depends on the image."""
    return [
        node("ReduceMax", "x1", "m", keepdims=0),
        node("Cast", "m", "w", to=7),
        node("Reshape", "w c", name),
    ]


REFUSALS = {
    "Attention": [
        graph("Attention x x1 x2", QKV, 23, is_causal=1),
        graph("Attention x x1 x2", QKV, 23, softcap=3.0),
        graph("Attention x x1 x2 c", QKV, 23, c=np.ones((5, 5), bool)),
        graph("Attention x x1 x2", {**QKV, "x1": (2, 5, 2), "x2": (2, 5, 2)}, 23),
    ],
    "AveragePool": [graph("AveragePool", {"x": (2, 3, 3, 3)}, kernel_shape=[2, 2, 2])],
    "BatchNormalization": [
        dataclasses.replace(
            graph("BatchNormalization x c c c d", {"x": (4, 2)}, c=weights(4), d=np.ones(4)),
            nodes=[node("BatchNormalization", "x c c c d", "y m v", training_mode=1)],
        )
    ],
    "Cast": [graph("Cast", {"x": (3,)}, to=7)],
    "Clip": [graph("Clip x s", VECTOR, lead=[node("ReduceMax", "x1", "s", keepdims=0)])],
    "Conv": [graph("Conv c x", {"x": (4, 1, 1)}, c=weights(1, 4, 3, 3))],
    "ConvTranspose": [graph("ConvTranspose c x", {"x": (4, 1, 1)}, c=weights(1, 1, 3, 3))],
    "Einsum": [
        graph("Einsum x x1 x", VECTOR, equation="nij,nij,nij->nij"),
        graph("Einsum", {"x": (3, 3)}, equation="nii->ni"),
        graph("Einsum", {"x": (3, 3)}, equation="...i->..."),
    ],
    "Gather": [graph("Gather x i", VECTOR, lead=whole("i"), c=numbers(1), axis=1)],
    "GatherND": [graph("GatherND x c", {"x": (3, 2)}, c=numbers([[1]]), batch_dims=1)],
    "GatherElements": [
        graph(
            "GatherElements x i",
            {"x": (3, 4), "x1": (2, 4)},
            axis=2,
            lead=[node("Cast", "x1", "i", to=7)],
        ),
    ],
    "Gemm": [
        graph(
            "Gemm t c", {"x": (4,)}, c=weights(4, 3), transA=1, lead=[node("Transpose", "x", "t")]
        ),
    ],
    "LpPool": [graph("LpPool", {"x": (2, 3, 3, 3)}, kernel_shape=[2, 2, 2])],
    "PRelu": [graph("PRelu x x1", VECTOR)],
    "Pow": [graph("Pow c x", {"x": (4,)}, c=np.float32(2))],
    "ReduceProd": [
        graph("ReduceProd x c", {"x": (3, 4)}, c=numbers(1, 2)),
        graph("ReduceProd x c", {"x": (65,)}, c=numbers(1)),
    ],
    "Resize": [
        graph("Resize x _ c", {"x": (3, 4, 4)}, c=np.float32([1, 2, 1, 1]), mode="nearest"),
        graph("Resize x _ c", PLACES, c=np.float32([1, 1, 0.5, 1]), mode="linear", antialias=1),
    ],
    "ScatterElements": [
        graph(
            "ScatterElements x i x1",
            VECTOR,
            18,
            reduction="max",
            axis=-1,
            lead=[node("Cast", "x1", "i", to=7)],
        ),
    ],
    "Slice": [graph("Slice x c d", {"x": (3,)}, c=numbers(1, 0), d=numbers(2, 3))],
    "Tile": [graph("Tile x c", {"x": (3,)}, c=numbers(2, 1))],
    "TopK": [
        dataclasses.replace(
            graph("TopK x c", {"x": (5000,)}, c=numbers(4000)), nodes=[node("TopK", "x c", "y i")]
        )
    ],
}
NUMBERED = [(name, case) for name, cases in REFUSALS.items() for case in cases]


@pytest.mark.parametrize(("operator", "case"), NUMBERED)
def test_what_has_no_gradient_is_refused_by_node_and_operator(operator, case):
    with pytest.raises(ExportError, match=rf"\({operator}\) stands between") as caught:
        record(case)
    assert case.nodes[-1].name in str(caught.value)


def test_operators_without_a_rule_are_refused_by_name():
    with pytest.raises(ExportError, match=r"\(CumSum\).* no gradient rule for this operator"):
        record(graph("CumSum x c", {"x": (3,)}, c=np.array(1)))


def test_every_documented_refusal_is_tried():
    # The last two are what the user allows or not, before any rule is asked.
    assert set(operator_table.REFUSED) == {*REFUSALS, "QuantizeLinear", "DequantizeLinear"}


def test_the_page_of_operators_is_what_the_table_says():
    page = (ROOT / "docs" / "operators.md").read_text("utf-8")
    assert page == operator_table.format_page(), (
        "run: python -m whycam.export.gradient.operator_table > docs/operators.md"
    )


def without_sum(step):
    return [step.multiply(step.g, step.y())]


def to_all_equal_elements(step):
    return [step.multiply(step.g, (step.x() == step.y()).cast(step.g.dtype))]


def with_flipped_kernel(step):
    kernel = step.x(1)
    step.x = lambda _: kernel[..., ::-1]
    return RULES_BEFORE["Conv"](step)


def without_divisor(step):
    return RULES_BEFORE["ReduceSum"](step)


def with_another_epsilon(step):
    step.attribute = lambda name, default=None: 0.5 if name == "epsilon" else default
    return RULES_BEFORE["LayerNormalization"](step)


def without_sign(step):
    return RULES_BEFORE["Add"](step)


def from_the_first_part(step):
    return [step.g[:, : step.dims(index)[1]] for index in range(len(step.node.inputs))]


def without_the_exponent(step):
    return [step.multiply(step.g, step.x()), None]


def with_zeros_for_repeats(step):
    indices, length = step.constant(1), step.dims()[1]
    once = np.unique(indices)
    first = [int(np.flatnonzero(indices == each)[0]) for each in once]
    rows = step.recorder.op(
        "Gather",
        [step.g, step.recorder.constant(np.array(first))],
        (step.g.shape[0], len(once), *step.g.shape[2:]),
        axis=1,
    )
    return [shaping._scatter(step, rows, 1, once, length), None]


RULES_BEFORE = dict(RULES)
FAULTS = [
    ("Softmax", 0, without_sum),
    ("GlobalMaxPool", 1, to_all_equal_elements),
    ("Conv", 0, with_flipped_kernel),
    ("ReduceMean", 0, without_divisor),
    ("LayerNormalization", 0, with_another_epsilon),
    ("Sub", 0, without_sign),
    ("Concat", 0, from_the_first_part),
    ("Pow", 0, without_the_exponent),
    ("Gather", 3, with_zeros_for_repeats),
]


@pytest.mark.parametrize(("operator", "index", "fault"), FAULTS)
def test_a_faulty_rule_is_seen(operator, index, fault, monkeypatch):
    case = CASES[operator][index]
    assert differences(case) < case.tolerance
    monkeypatch.setitem(RULES, operator, fault)
    assert differences(case) > 50 * case.tolerance


def test_rows_of_another_class_are_seen(monkeypatch):
    case = CASES["Sigmoid"][0]

    def mixed(step, gradient, forward, combine):
        grown = gradient.reshape((CLASSES, BATCH, *gradient.shape[1:]))
        return combine(grown, forward).reshape(gradient.shape)

    monkeypatch.setattr(Step, "_combine", mixed)
    assert differences(case, n=3, k=1) < case.tolerance
    assert differences(case, n=3, k=2) > 50 * case.tolerance
