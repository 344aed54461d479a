"""The gradient of the class score with respect to the activations, as a plain forward graph.

``autograd`` runs once, under a tracer, over the head; what it computes is recorded as ordinary
ATen operators. Most backward operators have decompositions in PyTorch; pooling and convolution
get rules of their own here, made of operators that every engine takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..runtime.cam import Score
from ..runtime.errors import ExportError

aten = torch.ops.aten

MAX_RANK = 5


def resolve_targets(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Replace ranks by classes: -1 the most probable, -2 the second, ... -5.

    Args:
        logits: [M, C].
        target: int64 [M]; values >= 0 are classes already.

    Returns:
        int64 [M].
    """
    ranks = min(MAX_RANK, logits.shape[-1])
    best = torch.topk(logits, ranks, dim=-1).indices
    rank = torch.clamp(-1 - target, 0, ranks - 1)
    return torch.where(target < 0, torch.gather(best, 1, rank[:, None])[:, 0], target)


class _MaxPool(torch.autograd.Function):
    """Max-pooling whose backward needs no indices (engines reject MaxPool with Indices).

    Each window position in turn claims the gradient of the outputs it equals and that no earlier
    position has claimed: ties go to the first element in row-major order, as in torch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        ceil_mode: bool,
    ) -> torch.Tensor:
        y = F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode)
        if ceil_mode:
            # ONNX counts windows otherwise than torch there: cover them exactly, and need no rule.
            size = y.shape[-2], y.shape[-1]
            y = F.max_pool2d(_covered(x, size, kernel, stride, padding), kernel, stride)
        ctx.save_for_backward(x, y)
        ctx.geometry = kernel, stride, padding
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, y = ctx.saved_tensors
        kernel, stride, padding = ctx.geometry
        (gradient,) = gradients
        size, out = x.shape[-2:], y.shape[-2:]
        padded = _covered(x, (out[0], out[1]), kernel, stride, padding)
        full = list(padded.shape[-2:])
        total = None
        taken = None
        for top in range(kernel[0]):
            for left in range(kernel[1]):
                window = padded[
                    ...,
                    top : top + (out[0] - 1) * stride[0] + 1 : stride[0],
                    left : left + (out[1] - 1) * stride[1] + 1 : stride[1],
                ]
                equal = window == y
                claimed = equal if taken is None else equal & ~taken
                taken = equal if taken is None else taken | equal
                share = _scatter_strided(
                    torch.where(claimed, gradient, 0.0), (top, left), stride, full
                )
                total = share if total is None else total + share
        assert total is not None
        inside = total[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
        missing = [n - have for n, have in zip(size, inside.shape[-2:], strict=True)]
        return F.pad(inside, (0, missing[1], 0, missing[0])), None, None, None, None


def _covered(
    x: torch.Tensor,
    out: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> torch.Tensor:
    """x padded with the lowest number, or cut, to what ``out`` windows cover exactly."""
    full = [(o - 1) * s + k for o, s, k in zip(out, stride, kernel, strict=True)]
    after = [f - p - n for f, p, n in zip(full, padding, x.shape[-2:], strict=True)]
    edges = (padding[1], after[1], padding[0], after[0])
    return F.pad(x, edges, value=torch.finfo(x.dtype).min)[..., : full[0], : full[1]]


def _scatter_strided(
    x: torch.Tensor, start: tuple[int, int], stride: tuple[int, int], full: list[int]
) -> torch.Tensor:
    """Place x [..., a, b] at rows start + i * stride of zeros [..., *full], by padding alone."""
    rows, columns = x.shape[-2:]
    lead = x.shape[:-2]
    if stride != (1, 1):
        x = F.pad(x.unsqueeze(-1).unsqueeze(-3), (0, stride[1] - 1, 0, 0, 0, stride[0] - 1))
        x = x.reshape(*lead, rows * stride[0], columns * stride[1])
    x = x[..., : full[0] - start[0], : full[1] - start[1]]
    below = full[0] - start[0] - x.shape[-2]
    right = full[1] - start[1] - x.shape[-1]
    return F.pad(x, (start[1], right, start[0], below))


def _pair(value: Any, default: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    sides = [int(side) for side in value]
    return default if not sides else (sides[0], sides[-1])


def max_pool(
    x: torch.Tensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> torch.Tensor:
    """``torch.nn.functional.max_pool2d`` with an exportable gradient; no dilation."""
    if _pair(dilation) != (1, 1):
        raise ExportError(
            "max-pooling with dilation after the target layer has no form that engines take; name "
            "a later layer with --target-layer"
        )
    window = _pair(kernel)
    return _MaxPool.apply(x, window, _pair(stride, window), _pair(padding), ceil_mode)  # type: ignore[no-any-return]


def _pool_matrix(pool: Callable[[torch.Tensor], torch.Tensor], size: int) -> torch.Tensor:
    """The matrix [out, in] of a linear pooling along one axis, read off the identity."""
    with unset_fake_temporarily():  # numbers, not a recording of how they came about
        return pool(torch.eye(size)[:, None, :, None])[:, 0, :, 0].T


def _separable(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """rows @ x @ columns^T for each channel."""
    return _along_last(_along_last(x, columns).transpose(-1, -2), rows).transpose(-1, -2)


def _along_last(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    # Flat, for a product of more axes would expand the constant to the batch, which is symbolic.
    flat = x.reshape(-1, x.shape[-1]) @ matrix.T.to(x)
    return flat.reshape(*x.shape[:-1], matrix.shape[0])


def adaptive_average_pool(x: torch.Tensor, output_size: Any) -> torch.Tensor:
    """``torch.nn.functional.adaptive_avg_pool2d`` as a mean or two matrix products."""
    size = tuple(int(side) for side in x.shape[-2:])
    wanted = _pair([n if o is None else o for n, o in zip(size, output_size, strict=True)])
    if wanted == size:
        return x
    if wanted == (1, 1):
        return x.mean((-2, -1), keepdim=True)
    rows, columns = (
        _pool_matrix(lambda t, o=out: F.adaptive_avg_pool2d(t, (o, 1)), n)  # type: ignore[misc]
        for n, out in zip(size, wanted, strict=True)
    )
    return _separable(x, rows, columns)


def average_pool(
    x: torch.Tensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> torch.Tensor:
    """``torch.nn.functional.avg_pool2d`` as two matrix products (it is linear and separable)."""
    window = _pair(kernel)
    steps, pads = _pair(stride, window), _pair(padding)
    rows, columns = (
        _pool_matrix(
            lambda t, k=k, s=s, p=p: F.avg_pool2d(  # type: ignore[misc]
                t, (k, 1), (s, 1), (p, 0), ceil_mode, count_include_pad
            ),
            int(n),
        )
        for n, k, s, p in zip(x.shape[-2:], window, steps, pads, strict=True)
    )
    scale = 1.0 if divisor_override is None else math.prod(window) / divisor_override
    return _separable(x, rows, columns) * scale


def layer_norm(
    x: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    _cudnn_enable: bool = True,
) -> torch.Tensor:
    """``torch.nn.functional.layer_norm`` in plain arithmetic.

    The operator itself would keep mean and deviation for its gradient, as further outputs of
    ONNX's LayerNormalization that TensorRT rejects.
    """
    axes = list(range(-len(normalized_shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    y = centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + eps)
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


_REPLACEMENTS: dict[Any, Callable[..., torch.Tensor]] = {
    # Strides may differ from those recorded (attention is traced in its plain form).
    aten.view.default: aten.reshape.default,
    aten.max_pool2d.default: max_pool,
    aten.adaptive_avg_pool2d.default: adaptive_average_pool,
    aten.avg_pool2d.default: average_pool,
    aten.layer_norm.default: layer_norm,
}


def differentiable(head: fx.GraphModule) -> fx.GraphModule:
    """The head with pooling and layer norms in forms whose gradients every engine can run."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(head.graph, {}))
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _REPLACEMENTS:
            node.target = _REPLACEMENTS[node.target]
    return fx.GraphModule(head, graph)


def _convolution_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    _bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[torch.Tensor | None, None, None]:
    """With respect to the input alone: the transposed convolution."""
    if not output_mask[0]:
        return None, None, None
    if transposed:
        return (
            aten.convolution(
                gradient, weight, None, stride, padding, dilation, False, [0, 0], groups
            ),
            None,
            None,
        )
    # What a stride leaves over at the far edge, so that the result has the input's size.
    extra = [
        int(x.shape[2 + axis])
        - (
            (int(gradient.shape[2 + axis]) - 1) * stride[axis]
            - 2 * padding[axis]
            + dilation[axis] * (int(weight.shape[2 + axis]) - 1)
            + 1
        )
        for axis in range(2)
    ]
    result = aten.convolution(
        gradient, weight, None, stride, padding, dilation, True, extra, groups
    )
    return result, None, None


def _decompositions() -> dict[Any, Any]:
    """Rules for backward operators; forward operators stay whole, engines know them best."""
    backward = {
        op: rule
        for op, rule in dict(core_aten_decompositions()).items()
        if "backward" in str(op) or "slice_scatter" in str(op)
    }
    more = get_decompositions(
        [aten.native_batch_norm_backward, aten._softmax_backward_data, aten.select_backward]
    )
    return {**backward, **more, aten.convolution_backward.default: _convolution_backward}


def trace_gradient(
    head: fx.GraphModule, activations: torch.Tensor, num_classes: int, score: Score
) -> fx.GraphModule:
    """Record (activations [M, K, h, w], target [M]) -> (logits [M, C], targets [M], gradients).

    Where the head returns activations of layers on its way as well, these come after the targets,
    and a gradient for each layer after these.

    Args:
        head: activations to logits, or to (activations of a later layer, ..., logits).
        activations: an example with the right K, h, w and M >= 2; M becomes dynamic.
        num_classes: C.
        score: what is differentiated, the class's ``logit`` or its ``prob``ability.
    """
    pooled = differentiable(head)

    def logits_and_gradients(a: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a = a.detach().requires_grad_(True)
        found = pooled(a)
        *later, z = found if isinstance(found, tuple) else (found,)
        resolved = resolve_targets(z.detach(), target)
        one_hot = (torch.arange(num_classes, device=z.device) == resolved[:, None]).to(z.dtype)
        value = z if score == "logit" else torch.softmax(z, dim=-1)
        gradients = torch.autograd.grad((value * one_hot).sum(), [a, *later])
        return z.detach(), resolved, *(each.detach() for each in later), *gradients

    target = torch.zeros(activations.shape[0], dtype=torch.int64, device=activations.device)
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    inputs = [_with_dynamic_batch(fake, tensor) for tensor in (activations, target)]
    with torch.enable_grad(), enable_python_dispatcher(), sdpa_kernel(SDPBackend.MATH), fake:
        traced = make_fx(
            logits_and_gradients,
            decomposition_table=_decompositions(),
            _allow_non_fake_inputs=True,
        )(*inputs)
    _restore_linear(traced.graph)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _restore_linear(graph: fx.Graph) -> None:
    """Linear layers as such again, where the tracer wrote products with transposed weights.

    The exporter would store the transposed matrix, beside the plain one that another pass through
    the same head uses.
    """
    for node in list(graph.nodes):
        if _is_transpose(node) and _is_transpose(node.args[0]):
            node.replace_all_uses_with(node.args[0].args[0])
    for node in list(graph.nodes):
        if node.kwargs or not node.args or not _is_transpose(node.args[-1]):
            continue
        if node.target is aten.addmm.default:
            bias, x, transposed = node.args
        elif node.target is aten.mm.default:
            (x, transposed), bias = node.args, None
        else:
            continue
        node.target = aten.linear.default
        node.args = (x, transposed.args[0], bias)


def _is_transpose(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.t.default


def _with_dynamic_batch(fake: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    sizes = [DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (tensor.ndim - 1)
    return fake.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
