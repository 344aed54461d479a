"""Write attention as products where PyTorch's exporter does not translate it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class AttentionProducts(TorchFunctionMode):
    """Replace ``scaled_dot_product_attention`` by products while a model is traced.

    The exporter translates it for queries of four axes only (attention in blocks or windows has
    five), and with a bias it records a layout of the result that the translation does not have.
    Both give the same sums in another order.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of PyTorch, attention as products."""
        options = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and _is_untranslatable(args, options):
            return _attend(*args, **options)
        return func(*args, **options)


def _is_untranslatable(args: Sequence[Any], options: Mapping[str, Any]) -> bool:
    query = args[0] if args else options["query"]
    mask = args[3] if len(args) > 3 else options.get("attn_mask")
    if options.get("is_causal") or options.get("enable_gqa") or len(args) > 5:
        return False
    return query.ndim != 4 or (mask is not None and mask.dtype.is_floating_point)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    _dropout_p: float = 0.0,
    *,
    scale: float | None = None,
    **_disabled: Any,
) -> torch.Tensor:
    """Compute softmax(q k^T / sqrt(d) + mask) v; dropout does nothing in eval mode."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value
