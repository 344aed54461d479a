"""Find how many channels a PyTorch model's images have, from its first convolution."""

from __future__ import annotations

import torch

from ..runtime.errors import ExportError, reason_of


def read_input_channels(model: torch.nn.Module, size: tuple[int, int]) -> int | None:
    """Run a model once to see that the convolution declared first is the one that reads images.

    Args:
        model: on the CPU, float32; unchanged afterwards.
        size: (H, W) of the images.

    Returns:
        The channels of that convolution; None for a model without a convolution.

    Raises:
        ExportError: the model does not run on images of so many channels.
    """
    first = next((m for m in model.modules() if isinstance(m, torch.nn.Conv2d)), None)
    if first is None:
        return None
    channels = first.in_channels
    if channels == 3:  # what is assumed anyway; the export itself will show it
        return channels
    entered: list[torch.nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda called, _: entered.append(called))
        for module in model.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, *size))
    except Exception as error:  # whatever a user's code raises
        raise ExportError(
            f"cannot tell how many channels the images have: the model does not run on {channels}, "
            f"as many as its first convolution has ({reason_of(error)}). Pass --channels"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    if not entered or entered[0] is not first:
        raise ExportError(
            f"cannot tell how many channels the images have: the first convolution ({channels}) is "
            "not the first to run. Pass --channels"
        )
    return channels
