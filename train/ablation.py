"""Compute the logits without each channel of A, for Ablation-CAM, differentiably in PyTorch.

The head is split. Its first operations, if they act on each channel separately (pooling, activation
functions, flatten), run once: setting a channel to zero changes one block of their output. In a
linear layer behind them that is a subtraction, and only the operations after it run once for each
channel. If no linear layer follows, the remaining head runs on copies with one block replaced.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from .graph import extract_subgraph, find_tensor_path, frozen_batch_norm, recorded_shape

aten = torch.ops.aten

_POOLING = {
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_max_pool2d.default,
}
_RESHAPES = {
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.squeeze.dims,
    aten.squeeze.dim,
}
# Element-wise operations that ATen does not tag as such. Normalisation with frozen statistics is a
# multiply-add for each element.
_ELEMENTWISE = {
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.mish.default,
    frozen_batch_norm,
    aten.dropout.default,
    aten.clone.default,
    aten.alias.default,
}


class Head(torch.nn.Module):
    """The head in parts: logits = rest(weight @ channelwise(A) + bias).

    Attributes:
        channelwise: keeps channels apart; [M, K, h, w] to [M, K * m] or [M, K, ...].
        weight, bias: the linear layer behind it, [D, K * m] and [D], if there is one.
        rest: what follows; None if nothing does.
    """

    def __init__(
        self,
        channelwise: fx.GraphModule,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        rest: fx.GraphModule | None,
    ) -> None:
        super().__init__()
        self.channelwise = channelwise
        self.weight = weight
        self.bias = bias
        self.rest = rest


def split_head(head: fx.GraphModule) -> Head:
    """Find the channel-wise beginning of a head and the linear layer behind it.

    Args:
        head: [N, K, h, w] to logits [N, C], from ``subgraph``.
    """
    path, source, logits = find_tensor_path(head.graph)
    channels = recorded_shape(source)[1]
    end = source
    following = path[1:]
    while following and _keeps_channels_apart(following[0], end, channels):
        end = following.pop(0)
    channelwise = extract_subgraph(head, source, end)
    weight = bias = None
    if following and following[0].target is aten.linear.default and len(recorded_shape(end)) == 2:
        layer = following[0]
        if layer.args[0] is end and _reads_only(layer, end):
            names = (*layer.args[1:], None)[:2]
            weight, bias = (None if name is None else _tensor(head, name) for name in names)
            end = following.pop(0)
    rest = extract_subgraph(head, end, logits, batch_of=source) if following else None
    return Head(channelwise, weight, bias, rest)


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
        before, after = recorded_shape(source), recorded_shape(node)
        flattened = len(after) == 2 and before[1] == channels
        return flattened or (len(after) > 2 and after[1] == channels == before[1])
    if len(recorded_shape(source)) != 4:
        return False
    if node.target is aten.mean.dim:
        axes = {axis % 4 for axis in node.args[1]}  # type: ignore[union-attr,operator]
        return axes <= {2, 3}
    if node.target in _POOLING:
        return True
    return _is_elementwise(node) and all(n.op == "get_attr" for n in others)


def _is_elementwise(node: fx.Node) -> bool:
    """Tell whether every output element depends on the elements at its own position alone."""
    tags = getattr(node.target, "tags", ())
    return node.target in _ELEMENTWISE or torch.Tag.pointwise in tags


def compute_logit_drops(
    head: Head, activations: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """Compute how much each logit falls when channel k of A is set to zero: z - z_k.

    Args:
        head: the head in parts.
        activations: A, [N, K, h, w].
        logits: z, [N, C].

    Returns:
        [N, K, C].
    """
    n, channels = activations.shape[:2]
    present = head.channelwise(activations)
    # The output for channels of zeros; computed in each step, for it may depend on trained weights.
    absent = head.channelwise(torch.zeros_like(activations[:1]))
    if head.weight is None:
        return logits[:, None] - _on_copies(head, present, absent, channels)
    by_channel: torch.Tensor = head.weight.reshape(head.weight.shape[0], channels, -1)  # [D, K, m]
    contributions = _contributions(present.reshape(n, channels, -1), by_channel)
    drop = contributions - _contributions(absent.reshape(1, channels, -1), by_channel)
    if head.rest is None:
        return drop
    hidden = contributions.sum(dim=1, keepdim=True)
    if head.bias is not None:
        hidden = hidden + head.bias
    without: torch.Tensor = head.rest((hidden - drop).reshape(-1, head.weight.shape[0]))
    return logits[:, None] - without.reshape(n, channels, -1)


def _contributions(x: torch.Tensor, by_channel: torch.Tensor) -> torch.Tensor:
    """Split a linear layer's sum by channel: x [N, K, m], weights [D, K, m] to [N, K, D]."""
    if by_channel.shape[-1] == 1:
        return x * by_channel[..., 0].T
    return (x.permute(1, 0, 2) @ by_channel.permute(1, 2, 0)).permute(1, 0, 2)


def _on_copies(
    head: Head, present: torch.Tensor, absent: torch.Tensor, channels: int
) -> torch.Tensor:
    """Compute the logits without each channel, [N, K, C], by running the head on copies."""
    assert head.rest is not None
    n, shape = present.shape[0], present.shape[1:]
    missing = torch.eye(channels, dtype=torch.bool, device=present.device)[:, :, None]
    copies = torch.where(
        missing, absent.reshape(1, 1, channels, -1), present.reshape(n, 1, channels, -1)
    )
    return head.rest(copies.reshape(-1, *shape)).reshape(n, channels, -1)  # type: ignore[no-any-return]
