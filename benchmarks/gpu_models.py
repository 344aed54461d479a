"""A ResNet-50 that every machine makes alike, for benchmarks/gpu.sh: no weights to download."""

from __future__ import annotations

import torch
import torchvision


def resnet50() -> torch.nn.Module:
    """ResNet-50 with random weights of a fixed seed, in bfloat16's steps: files compress to half.

    Batch normalisation has statistics of its own, so that maps differ from image to image.
    """
    generator = torch.Generator().manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    with torch.no_grad():
        for name, values in model.state_dict().items():
            if not values.is_floating_point():
                continue
            if name.endswith("running_var") or (values.ndim == 1 and name.endswith("weight")):
                fresh = 0.8 + 0.4 * torch.rand(values.shape, generator=generator)
            elif values.ndim == 1:
                fresh = 0.1 * torch.randn(values.shape, generator=generator)
            else:
                spread = (2 / values[0].numel()) ** 0.5
                fresh = spread * torch.randn(values.shape, generator=generator)
            # The end of each block, which is added: else values grow from block to block.
            scale = 0.3 if ".bn3." in name and name.endswith("weight") else 1.0
            values.copy_((scale * fresh).bfloat16().float())
    return model
