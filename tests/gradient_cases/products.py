"""Matrix products and convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from gradients import Case, in_double, node, weights

PLACES = (4, 6, 5)


def matrix_products() -> list[Case]:
    each = node("MatMul", "x x1")
    cases = [
        Case([each], {"x": a, "x1": b}, {}, torch.matmul)
        for a, b in (((3, 4), (4, 2)), ((2, 3, 4), (1, 4, 2)), ((2, 3, 4), (2, 4, 5)))
    ]
    for a, b in (
        ((4,), (4, 3)),
        ((3, 4), (4, 2)),
        ((2, 3, 4), (2, 4, 3)),
        ((3, 4), (2, 1, 4, 3)),
        ((3, 4), (4,)),
        ((3, 4), (4, 4)),  # square weights are the first operand of the gradient's product
    ):
        right = weights(*b)
        if len(b) == 4:  # a batch of 2 cannot be told from N
            right = right[:1]
        cases.append(Case([each], {"x": a}, {"x1": right}, lambda x, r=right: x @ in_double(r)))
    for a, b in (((2, 3), (3, 4)), ((1, 2, 3), (2, 3, 4)), ((3,), (2, 3, 4)), ((3,), (3, 2))):
        left = weights(*a)
        cases.append(
            Case(
                [node("MatMul", "x1 x")], {"x": b}, {"x1": left}, lambda x, m=left: in_double(m) @ x
            )
        )
    return cases


def computed_weights() -> list[Case]:
    """As in a head with weight normalisation."""
    held = weights(4, 3)
    return [
        Case(
            [node("Exp", "w", "e"), node("MatMul", "x e")],
            {"x": shape},
            {"w": held},
            lambda x: x @ in_double(held).exp(),
        )
        for shape in ((4,), (2, 4))
    ]


def gemms() -> list[Case]:
    plain, flipped, bias = weights(4, 3), weights(3, 4), weights(3)
    square = weights(4, 4)
    squares = [
        Case(
            [node("Gemm", "x b", transB=flip, alpha=0.5)],
            {"x": (4,)},
            {"b": square},
            lambda x, b=b: 0.5 * x @ in_double(b),
        )
        for flip, b in ((0, square), (1, square.T))
    ]
    return [
        *squares,
        Case([node("Gemm", "x b")], {"x": (4,)}, {"b": plain}, lambda x: x @ in_double(plain)),
        Case(
            [node("Gemm", "x b c", transB=1, alpha=0.5, beta=2.0)],
            {"x": (4,)},
            {"b": flipped, "c": bias},
            lambda x: 0.5 * x @ in_double(flipped).T + 2 * in_double(bias),
        ),
        Case(
            [node("Gemm", "x b x1", beta=3.0)],
            {"x": (4,), "x1": (3,)},
            {"b": plain},
            lambda x, x1: x @ in_double(plain) + 3 * x1,
        ),
    ]


def einsums() -> list[Case]:
    def of(equation: str, *shapes: tuple[int, ...], constant=()) -> Case:
        names = ["x", "x1"][: len(shapes)]
        inputs = dict(zip(names, shapes, strict=True))
        held = {"c": weights(*constant)} if constant else {}
        operands = " ".join([*names, *held])

        def function(*given: torch.Tensor) -> torch.Tensor:
            return torch.einsum(equation, *given, *(in_double(c) for c in held.values()))

        return Case([node("Einsum", operands, equation=equation)], inputs, held, function)

    return [
        of("nchw,ck->nkhw", (4, 3, 2), constant=(4, 5)),
        of("nij,njk->nik", (3, 4), (4, 2)),
        of("nhqd,nhkd->nhqk", (2, 3, 4), (2, 5, 4)),
        of("nc h w -> n h w c".replace(" ", ""), (4, 3, 2)),
        of("nchw->nc", (4, 3, 2)),
        of("nc,nd->n", (4,), (3,)),
        of("nc,nc->n", (4,), (4,)),
    ]


def convolutions() -> list[Case]:
    plain, grouped, line = weights(3, 4, 3, 3), weights(6, 2, 3, 2), weights(3, 4, 3)
    return [
        Case(
            [node("Conv", "x w b", pads=[1, 1, 1, 1], strides=[2, 2])],
            {"x": PLACES},
            {"w": plain, "b": weights(3) * 0},
            lambda x: F.conv2d(x, in_double(plain), stride=2, padding=1),
        ),
        Case(
            [node("Conv", "x w", group=2, dilations=[2, 1])],
            {"x": PLACES},
            {"w": grouped},
            lambda x: F.conv2d(x, in_double(grouped), groups=2, dilation=(2, 1)),
        ),
        Case(
            [node("Conv", "x w", pads=[2, 0])],
            {"x": (4, 6)},
            {"w": line},
            lambda x: F.conv1d(F.pad(x, (2, 0)), in_double(line)),
        ),
    ]


def transposed_convolutions() -> list[Case]:
    plain, grouped = weights(4, 3, 3, 3), weights(4, 3, 2, 3)
    return [
        Case(
            [
                node(
                    "ConvTranspose",
                    "x w",
                    strides=[2, 2],
                    pads=[1, 1, 1, 1],
                    output_padding=[1, 1],
                )
            ],
            {"x": PLACES},
            {"w": plain},
            lambda x: F.conv_transpose2d(x, in_double(plain), None, 2, 1, 1),
        ),
        Case(
            [node("ConvTranspose", "x w", group=2, strides=[2, 1], dilations=[1, 2])],
            {"x": PLACES},
            {"w": grouped},
            lambda x: F.conv_transpose2d(
                x, in_double(grouped), None, (2, 1), groups=2, dilation=(1, 2)
            ),
        ),
        Case(
            [node("ConvTranspose", "x w", strides=[2, 2], auto_pad="SAME_UPPER")],
            {"x": PLACES},
            {"w": plain},
            lambda x: F.conv_transpose2d(x, in_double(plain), None, 2)[..., :-1, :-1],
        ),
        Case(
            [node("ConvTranspose", "x w", strides=[2, 2], output_shape=[11, 10])],
            {"x": PLACES},
            {"w": plain},
            lambda x: F.conv_transpose2d(x, in_double(plain), None, 2)[..., 1:-1, 1:],
        ),
    ]


def products() -> dict[str, list[Case]]:
    return {
        "MatMul": [*matrix_products(), *computed_weights()],
        "Gemm": gemms(),
        "Einsum": einsums(),
        "Conv": convolutions(),
        "ConvTranspose": transposed_convolutions(),
    }
