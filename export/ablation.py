"""Logits without each channel of A, for Ablation-CAM, without running the trunk again.

The head is taken apart: operations that treat channels alone (pooling, activations, flatten)
run once; behind them a channel's absence changes one block of numbers. A first linear layer
turns that into a subtraction, and only what follows it runs once per channel. Where no linear
layer comes next, the rest runs on copies, in chunks of bounded size.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from .adjoint import differentiable
from .layer import is_elementwise, peak_bytes, shape_of, subgraph, tensor_path

aten = torch.ops.aten

# What the copies of one image may occupy at once while the head runs per channel.
CHUNK_BYTES = 64 * 2**20

_CHANNELWISE = {
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_max_pool2d.default,
}
_RESHAPES = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.squeeze.dims,
    aten.squeeze.dim,
}


class Head(torch.nn.Module):
    """The head in parts: logits = rest(weight @ channelwise(A) + bias).

    Attributes:
        channelwise: keeps channels apart; [M, K, h, w] to [M, K * m] or [M, K, ...].
        weight, bias: the linear layer behind it, [D, K * m] and [D], if there is one.
        rest: what follows; None if nothing does.
        absent: what ``channelwise`` makes of a channel of zeros, [K, m]; None if all zero.
        is_pooled_linear: global average pooling and one linear layer, the form that CAM asks
            for (paper equation 1).
        rest_bytes: activations alive at once while ``rest`` runs for one image.
    """

    def __init__(
        self,
        channelwise: fx.GraphModule,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        rest: fx.GraphModule | None,
        rest_bytes: int,
    ) -> None:
        super().__init__()
        self.is_pooled_linear = rest is None and _pools_globally(channelwise)
        self.channelwise = differentiable(channelwise)
        self.weight = weight
        self.bias = bias
        self.rest = differentiable(rest) if rest is not None else None
        self.rest_bytes = rest_bytes
        _, channels, height, width = next(iter(channelwise.graph.nodes)).meta["val"].shape
        with torch.no_grad():
            absent = self.channelwise(torch.zeros(1, channels, height, width))
        self.absent: torch.Tensor | None
        self.register_buffer(
            "absent", absent.reshape(channels, -1) if absent.any() else None, persistent=False
        )


def _pools_globally(channelwise: fx.GraphModule) -> bool:
    """Whether all it does is one mean over all positions."""
    nodes = [node for node in channelwise.graph.nodes if node.op == "call_function"]
    nodes = [node for node in nodes if node.target is not aten.sym_size.int]
    averages = [node for node in nodes if _is_global_average(node)]
    return len(averages) == 1 and all(
        node in averages or node.target in _RESHAPES or node.target in _IDENTITIES for node in nodes
    )


_IDENTITIES = {aten.dropout.default, aten.clone.default, aten.alias.default}


def _is_global_average(node: fx.Node) -> bool:
    if node.target is aten.mean.dim:
        axes = sorted(axis % 4 for axis in node.args[1])  # type: ignore[union-attr,operator]
        return axes == [2, 3] and len(shape_of(node.all_input_nodes[0])) == 4
    return node.target in (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default) and shape_of(
        node
    )[2:] == (1, 1)


def take_apart(head: fx.GraphModule) -> Head:
    """Find the channel-wise beginning of a head and the linear layer behind it."""
    path, source, logits = tensor_path(head.graph)
    channels = shape_of(source)[1]
    end = source
    following = path[1:]
    while following and _keeps_channels_apart(following[0], end, channels):
        end = following.pop(0)
    channelwise = subgraph(head, source, end)
    weight = bias = None
    if following and following[0].target is aten.linear.default and len(shape_of(end)) == 2:
        layer = following[0]
        if layer.args[0] is end and _reads_only(layer, end):
            names = (*layer.args[1:], None)[:2]
            weight, bias = (None if name is None else _tensor(head, name) for name in names)
            end = following.pop(0)
    rest = subgraph(head, end, logits, batch_of=source) if following else None
    return Head(channelwise, weight, bias, rest, peak_bytes([end, *following]))


def _tensor(head: fx.GraphModule, node: object) -> torch.Tensor:
    assert isinstance(node, fx.Node)
    return operator.attrgetter(str(node.target))(head)  # type: ignore[no-any-return]


def _reads_only(node: fx.Node, source: fx.Node) -> bool:
    return all(n is source or n.op == "get_attr" for n in node.all_input_nodes)


def _keeps_channels_apart(node: fx.Node, source: fx.Node, channels: int) -> bool:
    if len(source.users) != 1 and not all(
        u.target is aten.sym_size.int or u is node for u in source.users
    ):
        return False
    if node.target is operator.getitem:  # the result of a normalisation
        return True
    others = [n for n in node.all_input_nodes if n is not source]
    if node.target in _RESHAPES:
        before, after = shape_of(source), shape_of(node)
        flattened = len(after) == 2 and before[1] == channels
        return flattened or (len(after) > 2 and after[1] == channels == before[1])
    if len(shape_of(source)) != 4:
        return False
    if node.target is aten.mean.dim:
        axes = {axis % 4 for axis in node.args[1]}  # type: ignore[union-attr,operator]
        return axes <= {2, 3}
    if node.target in _CHANNELWISE:
        return True
    return is_elementwise(node) and all(n.op == "get_attr" for n in others)


def logit_drops(head: Head, activations: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """How much each logit falls when channel k of A is set to zero: z - z_k.

    Args:
        head: the head in parts.
        activations: A, [N, K, h, w].
        logits: z, [N, C].

    Returns:
        [N, K, C].
    """
    n, channels = activations.shape[:2]
    present = head.channelwise(activations)
    if head.weight is None:
        return logits[:, None] - _on_copies(head, present, channels)
    by_channel: torch.Tensor = head.weight.reshape(head.weight.shape[0], channels, -1)  # [D, K, m]
    present = present.reshape(n, channels, -1)
    drop = _contributions(present, by_channel)
    contributions = drop
    if head.absent is not None:
        drop = drop - _contributions(head.absent[None], by_channel)
    if head.rest is None:
        return drop
    hidden = contributions.sum(dim=1, keepdim=True)
    if head.bias is not None:
        hidden = hidden + head.bias
    without: torch.Tensor = head.rest((hidden - drop).reshape(-1, head.weight.shape[0]))
    return logits[:, None] - without.reshape(n, channels, -1)


def _contributions(x: torch.Tensor, by_channel: torch.Tensor) -> torch.Tensor:
    """What each channel adds to a linear layer: x [N, K, m], weights [D, K, m] to [N, K, D]."""
    if by_channel.shape[-1] == 1:
        return x * by_channel[..., 0].T
    return (x.permute(1, 0, 2) @ by_channel.permute(1, 2, 0)).permute(1, 0, 2)


def _on_copies(head: Head, present: torch.Tensor, channels: int) -> torch.Tensor:
    """The logits without each channel, [N, K, C], by running the rest of the head on copies."""
    assert head.rest is not None
    n, shape = present.shape[0], present.shape[1:]
    blocks = present.reshape(n, 1, channels, -1)
    absent = torch.zeros(1, 1) if head.absent is None else head.absent
    every = torch.arange(channels, device=present.device)
    chunk = max(1, min(channels, CHUNK_BYTES // max(1, head.rest_bytes)))
    pieces = []
    for start in range(0, channels, chunk):
        one = every[start : start + chunk, None, None]
        copies = torch.where(one == every[:, None], absent, blocks)
        pieces.append(head.rest(copies.reshape(-1, *shape)).reshape(n, one.shape[0], -1))
    return torch.cat(pieces, dim=1)
