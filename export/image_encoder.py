"""Find the image encoder of a PyTorch model that was trained with a text encoder."""

from __future__ import annotations

from typing import Any

import torch

from ..runtime.errors import ExportError, reason_of
from .zero_shot import LogitParameters

_CALLS = ("encode_image", "get_image_features")  # of open_clip, and of transformers


def find_image_encoder(model: torch.nn.Module, image: torch.Tensor) -> torch.nn.Module:
    """Return what computes image embeddings [N, D]: a part of a model with two encoders, or itself.

    Args:
        model: in eval mode, on the CPU.
        image: an example batch.

    Raises:
        ExportError: the image encoder does not run.
    """
    call = next((name for name in _CALLS if callable(getattr(model, name, None))), None)
    if call is None:
        return model
    encoder = _Encoder(model, call).eval()
    try:
        with torch.no_grad():
            embeddings = encoder(image)
    except Exception as error:
        raise ExportError(
            f"the model's {call} does not accept an image batch of shape {tuple(image.shape)}: "
            f"{reason_of(error)}"
        ) from error
    # The part alone, where it computes the same, keeps its modules' own names.
    visual = getattr(model, "visual", None)
    if isinstance(visual, torch.nn.Module):
        with torch.no_grad():
            alone = visual(image)
        if isinstance(alone, torch.Tensor) and torch.equal(alone, embeddings):
            return visual
    return encoder


class _Encoder(torch.nn.Module):
    """The image encoder as a module of its own."""

    def __init__(self, model: torch.nn.Module, call: str) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, image: torch.Tensor) -> Any:
        """Compute embeddings [N, D] of images [N, C, H, W]."""
        found = getattr(self.model, self._call)(image)
        # transformers 5 returns all of the encoder's outputs, with the embedding in this one.
        return found if isinstance(found, torch.Tensor) else found.pooler_output


def read_logit_parameters(model: torch.nn.Module) -> LogitParameters | None:
    """Read ``logit_scale`` and ``logit_bias`` of a model; None where it has no ``logit_scale``.

    Raises:
        ExportError: one of them is not a number.
    """
    scale = getattr(model, "logit_scale", None)
    if scale is None:
        return None
    bias = getattr(model, "logit_bias", None)
    return LogitParameters(
        _number("logit_scale", scale), None if bias is None else _number("logit_bias", bias)
    )


def _number(name: str, value: Any) -> float:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value.detach())
    if isinstance(value, float | int) and not isinstance(value, bool):
        return float(value)
    raise ExportError(
        f"the model's {name} is not one number: state it with --{name.replace('_', '-')}"
    )
