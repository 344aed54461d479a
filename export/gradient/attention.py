"""Differentiate the operator Attention (opset 23)."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from ..dims import Dims
from ..tensors import Tensor
from .step import Step


def _attention(step: Step) -> list[Tensor | None]:
    """Y = P V with P = softmax(s Q K' + mask): P is computed a second time.

    dV = P' G; dS = P (G V' - sum(P G V')); dQ = s dS K; dK = s dS' Q.
    """
    _check(step)
    heads = [int(step.attribute(name, 0)) for name in ("q_num_heads", "kv_num_heads")]
    q, k, v = (_split_heads(step.x(index), heads[index > 0]) for index in range(3))
    if q.shape[1] != k.shape[1]:
        raise step.refusal("several queries share their keys")
    xp, transposed = step.xp, step.xp.matrix_transpose
    scale = float(step.attribute("scale", 0.0)) or 1.0 / math.sqrt(
        step.static_lengths(q.shape[-1:])[0]
    )
    scores = (q @ transposed(k)) * scale
    if step.has_input(3):
        scores = scores + step.x(3)
    p = step.recorder.op("Softmax", [scores], scores.shape, axis=-1)
    g = _split_heads(step.g, heads[0])
    grads: list[Tensor | None] = [None, None, None]
    if step.needs_gradient(2):
        grads[2] = step.matmul(g, transposed(p), gradient_first=False)
    if step.needs_gradient(0) or step.needs_gradient(1):
        weighted = step.multiply(step.matmul(g, transposed(v)), p)
        total = xp.sum(weighted, axis=-1, keepdims=True)
        inner = (weighted - step.multiply(total, p)) * scale
        grads[0] = step.matmul(inner, k) if step.needs_gradient(0) else None
        grads[1] = step.matmul(transposed(inner), q) if step.needs_gradient(1) else None
    return [
        None if gradient is None else _join_heads(gradient, step.gradient_shape(step.dims(index)))
        for index, gradient in enumerate(grads)
    ]


def _check(step: Step) -> None:
    if step.attribute("is_causal", 0) or step.attribute("softcap", 0.0):
        raise step.refusal("it is causal or has a soft cap")
    if any(step.has_input(index) for index in range(4, len(step.node.inputs))):
        raise step.refusal("it has past keys")
    mask = step.node.inputs[3] if step.has_input(3) else None
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        raise step.refusal("its mask is boolean")


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape [M, positions, heads * d] to [M, heads, positions, d]; four axes stay."""
    if x.ndim == 4:
        return x
    return x.reshape((*x.shape[:2], heads, -1)).transpose([0, 2, 1, 3])


def _join_heads(x: Tensor, dims: Dims) -> Tensor:
    """Undo ``_split_heads``."""
    return x if len(dims) == 4 else x.transpose([0, 2, 1, 3]).reshape(dims)


RULES: dict[str, Callable[[Step], list[Tensor | None]]] = {"Attention": _attention}
