"""Differentiate matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import ascii_letters

from ..dims import Dim
from ..tensors import Tensor, unsqueeze
from .step import Step
from .windows import resolve_padding


def _matmul(step: Step) -> list[Tensor | None]:
    """Compute G B' and A' G; with a vector an outer product."""
    g, a, b = step.g, step.x(0), step.x(1)
    if b.ndim == 1:
        return [step.multiply(unsqueeze(g, [g.ndim]), b) if step.needs_gradient(0) else None, None]
    if a.ndim == 1:
        column = a.reshape((a.shape[0], 1))
        return [
            None,
            step.multiply(unsqueeze(g, [g.ndim - 1]), column) if step.needs_gradient(1) else None,
        ]
    return [
        step.sum_to_input(_left_gradient(step, g, b), 0) if step.needs_gradient(0) else None,
        step.sum_to_input(_right_gradient(step, a, g), 1) if step.needs_gradient(1) else None,
    ]


def _left_gradient(step: Step, g: Tensor, b: Tensor) -> Tensor:
    """Compute G B'; with a stored matrix B as one Gemm, which needs no transposed copy of B."""
    if b.ndim == 2 and step.is_initializer(1):
        rows = g.reshape((-1, g.shape[-1]))
        product = _times_weight(step, rows, b, is_transposed=True)
        return product.reshape((*g.shape[:-1], b.shape[0]))
    return step.matmul(g, step.xp.matrix_transpose(b))


def _times_weight(
    step: Step, rows: Tensor, weight: Tensor, is_transposed: bool, alpha: float = 1.0
) -> Tensor:
    """Compute alpha G B' or alpha G B, for rows G [M, .] and a matrix B that the network uses.

    OpenVINO (2026.4, CPU) keeps the weights of fully connected layers by their sizes, and would
    take a square B of the network for its transpose. So B, if square, is the first operand:
    G B' = (B G')'.
    """
    inner = weight.shape[0] if is_transposed else weight.shape[1]
    if weight.shape[0] != weight.shape[1]:
        return step.recorder.op(
            "Gemm", [rows, weight], (rows.shape[0], inner), alpha=alpha, transB=int(is_transposed)
        )
    columns = step.recorder.op(
        "Gemm",
        [weight, rows],
        (inner, rows.shape[0]),
        alpha=alpha,
        transA=int(not is_transposed),
        transB=1,
    )
    return columns.transpose((1, 0))


def _right_gradient(step: Step, a: Tensor, g: Tensor) -> Tensor:
    return step.matmul(g, step.xp.matrix_transpose(a), gradient_first=False)


def _gemm(step: Step) -> list[Tensor | None]:
    """Differentiate alpha A B + beta C, where A is not transposed and B a weight."""
    flip_a, flip_b = (int(step.attribute(name, 0)) for name in ("transA", "transB"))
    alpha, beta = float(step.attribute("alpha", 1.0)), float(step.attribute("beta", 1.0))
    if flip_a:
        raise step.refusal("the batch is its matrix's last axis")
    g, left = step.g, None
    if step.needs_gradient(0):
        left = _times_weight(step, g, step.x(1), is_transposed=not flip_b, alpha=alpha)
    shift = step.sum_to_input(step.multiply(g, beta), 2) if step.needs_gradient(2) else None
    return [left, None, shift]


def _apart_from_network(step: Step, g: Tensor) -> tuple[Tensor, Tensor]:
    """Give a convolution back through the network a kernel of its own, where it is square.

    OpenVINO (2026.4, CPU) keeps the kernels of convolutions by their sizes, and would take one with
    as many outputs as inputs, which the network uses as well, for its transpose. The negative of
    both operands has the same product, and engines compute that of a constant once.
    """
    kernel = step.x(1)
    if kernel.shape[0] != kernel.shape[1]:
        return g, kernel
    return -g, -kernel


def _conv(step: Step) -> list[Tensor | None]:
    """Apply the transposed convolution, padded to the input's size, with the same kernel."""
    g, dims = step.g, step.dims()
    kernel = step.static_lengths(step.dims(1)[2:])
    rank = len(kernel)
    strides = list(step.attribute("strides", [1] * rank))
    dilations = list(step.attribute("dilations", [1] * rank))
    pads = resolve_padding(step, kernel, strides, dilations)
    # Positions at the far edge that the stride leaves out.
    remainders = [
        whole - ((part - 1) * s - a - b + d * (k - 1) + 1)
        for whole, part, s, a, b, d, k in zip(
            step.lengths(dims[2:]), step.lengths(g.shape[2:]), strides, pads[:rank], pads[rank:],
            dilations, kernel, strict=True,
        )
    ]  # fmt: skip
    extra = step.static_lengths(remainders)
    gradient = step.recorder.op(
        "ConvTranspose",
        [*_apart_from_network(step, g)],
        (g.shape[0], *dims[1:]),
        strides=strides,
        dilations=dilations,
        pads=pads,
        group=int(step.attribute("group", 1)),
        output_padding=extra,
        kernel_shape=kernel,
    )
    return [gradient, None, None]


def _conv_transpose(step: Step) -> list[Tensor | None]:
    """Apply the convolution with the same kernel to the output's positions and its padding."""
    dims, kernel = step.dims(), step.static_lengths(step.dims(1)[2:])
    rank = len(kernel)
    strides = list(step.attribute("strides", [1] * rank))
    dilations = list(step.attribute("dilations", [1] * rank))
    extra = list(step.attribute("output_padding", [0] * rank))
    if step.attribute("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not step.attribute(
        "output_shape"
    ):
        before = list(step.attribute("pads", [0] * 2 * rank))[:rank]
    else:
        upper = step.attribute("auto_pad", "NOTSET") == "SAME_UPPER"
        full = [
            s * (n - 1) + e + d * (k - 1) + 1
            for s, n, e, d, k in zip(
                strides, step.lengths(dims[2:]), extra, dilations, kernel, strict=True
            )
        ]
        total = step.static_lengths(
            [f - o for f, o in zip(full, step.lengths(step.g.shape[2:]), strict=True)]
        )
        before = [padding // 2 if upper else (padding + 1) // 2 for padding in total]
    # As many windows as the input has positions: some beyond the last window are read by none.
    overhang = [
        s * (n - 1) + d * (k - 1) + 1 - b - o
        for s, n, d, k, b, o in zip(
            strides, step.lengths(dims[2:]), dilations, kernel, before,
            step.lengths(step.g.shape[2:]), strict=True,
        )
    ]  # fmt: skip
    behind = step.static_lengths(overhang)
    gradient = step.recorder.op(
        "Conv",
        [*_apart_from_network(step, _crop(step.g, before, behind))],
        (step.g.shape[0], *dims[1:]),
        strides=strides,
        dilations=dilations,
        pads=[max(0, side) for side in (*before, *behind)],
        group=int(step.attribute("group", 1)),
        kernel_shape=kernel,
    )
    return [gradient, None, None]


def _crop(g: Tensor, before: Sequence[int], behind: Sequence[int]) -> Tensor:
    """Leave out the positions that a negative padding removes."""
    cuts = [slice(-min(0, a), None if b >= 0 else b) for a, b in zip(before, behind, strict=True)]
    if all(cut == slice(0, None) for cut in cuts):
        return g
    return g[tuple([slice(None)] * 2 + cuts)]


def _einsum(step: Step) -> list[Tensor | None]:
    """Differentiate an Einsum of one or two operands, without ellipsis or repeated indices."""
    equation = str(step.attribute("equation")).replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    plain = all(len(set(term)) == len(term) and (term + "a").isalpha() for term in (*terms, out))
    if not arrow or len(terms) > 2 or not plain:
        raise step.refusal(f"there is no rule for the equation '{equation}'")
    return [
        _einsum_operand(step, terms, out, index) if step.needs_gradient(index) else None
        for index in range(len(terms))
    ]


def _einsum_operand(step: Step, terms: Sequence[str], out: str, index: int) -> Tensor:
    letters, others = terms[index], [term for i, term in enumerate(terms) if i != index]
    reached = "".join(letter for letter in letters if letter in "".join([out, *others]))
    names = dict(zip(dict.fromkeys("".join([out, *others])), ascii_letters, strict=False))
    back = ["".join(names[letter] for letter in term) for term in (*others, reached)]
    start = "".join(names[letter] for letter in out)
    dims = dict(zip(letters, step.gradient_shape(step.dims(index)), strict=True))
    gradient = step.recorder.op(
        "Einsum",
        [step.g, *(step.repeat_rows(step.x(i)) for i in range(len(terms)) if i != index)],
        [dims[letter] for letter in reached],
        equation=f"{','.join([start, *back[:-1]])}->{back[-1]}",
    )
    if reached == letters:
        return gradient
    # Where an index was summed in this operand alone, the gradient is the same all along it.
    missing = [axis for axis, letter in enumerate(letters) if letter not in reached]
    whole: list[Dim] = [dims[letter] for letter in letters]
    step.static_lengths([whole[axis] for axis in missing])
    return step.repeat(unsqueeze(gradient, missing), tuple(whole))


RULES: dict[str, Callable[[Step], list[Tensor | None]]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
}
