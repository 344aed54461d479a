"""A network taken apart for tuning: the same answers, the right part frozen, true gradients."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache

import networks
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import whycam
from whycam.export import to_onnx
from whycam.runtime import cam
from whycam.runtime.errors import ExportError, TargetLayerError
from whycam.runtime.preprocess import crop_resized
from whycam.train.graph import capture, find_target_node, find_tensor_path
from whycam.train.network import TunableNetwork, Tuner
from whycam.train.prepare import to_input
from whycam.train.target import find_target

SIZE = (networks.SIZE, networks.SIZE)
IMAGE = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
METHODS = ["gradcam", "gradcam++", "layercam", "ablation", "hirescam", "xgradcam"]


class Residual(nn.Module):
    """The last convolution lies on a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.norm(self.second(torch.relu(self.first(x)))))
        return self.classifier(x.mean((2, 3)))


def residual() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


class ChannelsLast(nn.Module):
    """A last block that works on [N, h, w, K], and a functional ReLU that no module owns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 6, 5, 4), nn.Conv2d(6, 6, 3, 1, 1, groups=6)
        self.mix, self.classifier = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x)).permute(0, 2, 3, 1)
        mixed = self.mix(self.last(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return self.classifier(torch.relu(x + mixed).mean((1, 2)))


def channels_last() -> nn.Module:
    torch.manual_seed(0)
    return ChannelsLast().eval()


def normalised() -> nn.Module:
    """A head in which a channel of zeros becomes something else, by weights that are trained."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 6, 5, stride=4), nn.Sigmoid()]
    head = [nn.AvgPool2d(2), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*stem, *head, nn.Linear(6, 5)).eval()
    nn.init.uniform_(model[3].bias, 0.5, 1.0)
    return model


MAKERS = [networks.linear, networks.curved, residual, channels_last, normalised]


@cache
def _tunable(make) -> TunableNetwork:
    return TunableNetwork(make(), SIZE)


def tunable_of(make) -> TunableNetwork:
    return copy.deepcopy(_tunable(make))


@pytest.fixture(scope="module", autouse=True)
def _networks_are_taken_apart() -> None:
    for make in MAKERS:
        _tunable(make)


@pytest.mark.parametrize("make", MAKERS)
def test_parts_in_a_row_are_the_network(make):
    tunable = tunable_of(make)
    torch.testing.assert_close(tunable.classify(IMAGE), make()(IMAGE))
    features = tunable.below(IMAGE)
    assert features.shape[1:] == tunable.feature_shape


def test_only_the_last_convolution_and_the_head_are_trained():
    model = networks.linear()
    tuned = TunableNetwork(model, SIZE).tuned()
    assert set(tuned) == {"2.weight", "2.bias", "6.weight", "6.bias"}
    own = dict(model.named_parameters())
    # The very tensors of the model: what is trained is there without copying back.
    assert all(own[name] is weight for name, weight in tuned.items())


def test_a_branch_is_trained_as_a_whole():
    names = set(TunableNetwork(residual(), SIZE).tuned())
    assert not any(name.startswith("stem") for name in names)
    assert {"first.weight", "second.weight", "norm.weight", "classifier.bias"} <= names


@pytest.mark.parametrize(
    ("make", "name", "shape"),
    [
        (networks.linear, "3", (8, 12, 12)),
        (residual, "relu_2", (8, 8, 8)),  # functional: no module's output
        (channels_last, "relu_1", (6, 7, 7)),
        (normalised, "1", (6, 7, 7)),
    ],
)
def test_tuned_layer_is_the_one_that_export_explains(make, name, shape):
    target = _tunable(make).target
    assert (target.name, target.shape) == (name, shape)


def test_named_layer_is_tuned():
    tunable = TunableNetwork(networks.linear(), SIZE, "1")
    assert tunable.target.shape == (6, 14, 14)
    assert {"0.weight", "2.weight", "6.bias"} <= set(tunable.tuned())
    with pytest.raises(TargetLayerError, match="no layer 'nonsense'"):
        find_target(networks.linear(), SIZE, "nonsense")


def test_layer_that_pytorch_records_in_another_shape_is_refused():
    """Rather than tuning whatever node happens to bear its name."""
    model = residual()
    path, _, _ = find_tensor_path(capture(model, SIZE).graph)
    (target,) = find_target(model, SIZE).layers
    assert find_target_node(path, target).name == "relu_2"
    with pytest.raises(TargetLayerError, match="--target-layer"):
        find_target_node(path, dataclasses.replace(target, name="relu_1"))  # part of a branch
    with pytest.raises(TargetLayerError, match="--target-layer"):
        find_target_node(path, dataclasses.replace(target, shape=(8, 4, 4)))


@pytest.mark.parametrize(
    ("end", "task", "count"),
    [
        ([nn.Softmax(1)], "softmax", networks.CLASSES),
        ([nn.LogSoftmax(1)], "softmax", networks.CLASSES),
        ([nn.Sigmoid()], "sigmoid", networks.CLASSES),
        ([nn.Linear(networks.CLASSES, 1)], "binary", 2),
        ([nn.Linear(networks.CLASSES, 1), nn.Flatten(0), nn.Sigmoid()], "binary", 2),
    ],
    ids=str,
)
def test_logits_are_what_goes_into_the_last_activation(end, task, count):
    model = nn.Sequential(networks.linear(), *end).eval()
    tunable = TunableNetwork(model, SIZE)
    assert (tunable.task, tunable.num_classes) == (task, count)
    logits = tunable.classify(IMAGE)
    returned = model(IMAGE)
    if task == "binary":
        logit = returned.reshape(-1)
        logit = logit.logit() if len(end) == 3 else logit
        expected = torch.stack([-logit / 2, logit / 2], 1)
    else:
        expected = networks.linear()(IMAGE)
        torch.testing.assert_close(end[0](logits), returned)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("method", ["gradcam", "ablation"])
def test_maps_of_one_logit_are_those_of_its_file(tmp_path, method):
    torch.manual_seed(0)
    model = nn.Sequential(networks.linear(), nn.Linear(networks.CLASSES, 1), nn.Sigmoid()).eval()
    to_onnx(model, tmp_path / "m.onnx", overrides=networks.SMALL, methods=[method])
    explainer = whycam.load(tmp_path / "m.onnx", "onnxruntime")
    tunable = TunableNetwork(model, SIZE)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    spec = explainer.manifest.preprocess
    shown = to_input(crop_resized(image, spec)[0][None], spec, torch.device("cpu"))
    contrasts = []
    for target in (0, 1):
        (activations,), logits = tunable(tunable.below(shown))
        raw = tunable.raw_maps(method, [activations], logits, torch.tensor([target]))
        expected = explainer.explain(image, target, method)
        ours = tunable.maps(raw)[0].detach().numpy()
        np.testing.assert_allclose(ours, expected.original_map, atol=1e-4)
        contrasts.append(np.ptp(ours))
        probability = logits.softmax(1)[0, target].item()
        assert probability == pytest.approx(expected.probability, abs=1e-6)
    assert max(contrasts) > 0.9


@pytest.mark.parametrize(
    ("end", "task", "message"),
    [
        (nn.Softmax(1), "sigmoid", "ends in Softmax"),
        (nn.Sigmoid(), "softmax", "ends in Sigmoid"),
        (nn.Identity(), "none", "needs probabilities of classes"),
    ],
    ids=str,
)
def test_tasks_that_the_output_cannot_have_are_refused(end, task, message):
    with pytest.raises(ExportError, match=message):
        TunableNetwork(nn.Sequential(networks.linear(), end).eval(), SIZE, task=task)


@pytest.mark.slow
@pytest.mark.parametrize("end", [nn.Identity(), nn.Softmax(-1), nn.Sigmoid()], ids=str)
@pytest.mark.parametrize("pool", ["token", "avg", "avgmax", "map"])
def test_transformers_are_taken_apart_whatever_their_head(pool, end):
    """Logits of the whole model; its maps' gradients reach weights that are trained."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    model = timm.models.VisionTransformer(
        **settings, num_classes=5, global_pool=pool, class_token=pool == "token"
    )
    tunable = TunableNetwork(nn.Sequential(model, end).eval(), (16, 16))
    image = torch.randn(2, 3, 16, 16)
    activations, logits = tunable(tunable.below(image))
    torch.testing.assert_close(logits, model(image))
    raw = tunable.raw_maps("gradcam", activations, logits, logits.argmax(1), signed=True)
    weights = list(tunable.tuned().values())
    gradients = torch.autograd.grad(raw.square().sum(), weights, allow_unused=True)
    assert any(gradient is not None and gradient.any() for gradient in gradients)


class TwoHeads(nn.Module):
    """Logits of two heads, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.net = networks.linear()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"age": self.net(x), "sex": -self.net(x)}


def test_network_of_several_heads_is_refused():
    with pytest.raises(ExportError, match=r"returns a dict \('age', 'sex'\).*one head alone"):
        TunableNetwork(TwoHeads().eval(), SIZE)


def test_ablation_follows_weights_that_decide_what_becomes_of_zeros():
    tunable = tunable_of(normalised)
    with torch.no_grad():
        tunable.tuned()["3.bias"].add_(2.0)
    (activations,), logits = tunable(tunable.below(IMAGE))
    target = logits.argmax(1)
    raw = tunable.raw_maps("ablation", [activations], logits, target, "logit")
    y, alphas = logits.gather(1, target[:, None]), []
    for channel in range(activations.shape[1]):
        without = activations.clone()
        without[:, channel] = 0
        alphas.append((y - tunable.head(without).gather(1, target[:, None])) / y)
    expected = (torch.stack(alphas, 1)[..., None] * activations).sum(1).relu()
    torch.testing.assert_close(raw, expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_statistics_stay():
    model = residual()
    before = model.norm.running_mean.clone()
    tunable = TunableNetwork(model, SIZE).train()
    tunable.classify(IMAGE).sum().backward()
    torch.testing.assert_close(model.norm.running_mean, before, rtol=0, atol=0)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("method", METHODS)
def test_maps_are_those_of_the_runtime(make, method):
    tunable = tunable_of(make).double()
    (activations,), logits = tunable(tunable.below(IMAGE.double()))
    target = logits.argmax(1)
    maps = tunable.maps(tunable.raw_maps(method, [activations], logits, target))
    a = activations.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(tunable.head(a).gather(1, target[:, None]).sum(), a)
    weights = None
    if method == "ablation":
        p = logits.softmax(1).gather(1, target[:, None])
        rows = []
        for channel in range(a.shape[1]):
            without = a.detach().clone()
            without[:, channel] = 0
            less = tunable.head(without).softmax(1).gather(1, target[:, None])
            rows.append((p - less) / p)
        weights = torch.cat(rows, 1)[:, None].detach().numpy()
    raw = cam.raw_map(method, a.detach().numpy(), gradient.numpy()[:, None], weights)
    expected = cam.finish(raw, SIZE)[:, 0]
    np.testing.assert_allclose(maps.detach().numpy(), expected, atol=1e-6)


def class_token() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero: no gradients
    return model


def windows() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.SwinTransformer([2, 2], 8, [2], [2, 2], [2, 2], num_classes=5).eval()


@pytest.mark.parametrize(
    ("make", "name", "is_ablated"),
    [
        (class_token, "encoder.layers.encoder_layer_1.ln_1", False),
        (windows, "features.1.1.norm1", False),
        (windows, None, True),
    ],
)
def test_tokens_are_tuned_as_activations_with_the_gradient_of_autograd(make, name, is_ablated):
    model, image = make(), torch.randn(3, 3, 16, 16)
    tunable = TunableNetwork(model, (16, 16), name)
    assert tunable.has_ablation is is_ablated
    name = tunable.target.name
    (activations,), logits = tunable(tunable.below(image))
    taken = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, _i, out: taken.append(out))
    expected = model(image)
    handle.remove()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(expected[:, 1].sum(), taken[0])
    height, width = tunable.target.shape[1:]

    def by_hand(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 4:  # [N, h, w, K]
            return tensor.permute(0, 3, 1, 2)
        return tensor[:, 1:].mT.reshape(3, -1, height, width)  # behind the class token

    torch.testing.assert_close(activations, by_hand(taken[0]))
    (own,) = torch.autograd.grad(logits[:, 1].sum(), activations, create_graph=True)
    torch.testing.assert_close(own, by_hand(gradient))
    own.square().sum().backward()  # the second derivative that training needs
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in tunable.tuned().values())


def test_network_in_which_everything_is_tokens_starts_at_the_last_linear_layer_before():
    tuned = TunableNetwork(class_token(), (16, 16)).tuned()
    assert {"encoder.layers.encoder_layer_0.mlp.0.weight", "heads.head.bias"} <= set(tuned)
    assert not any("layer_0.self_attention" in name or "conv_proj" in name for name in tuned)


@pytest.mark.parametrize("make", [networks.linear, networks.curved])
@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_a_map_goes_through_the_heads_own_gradient(make, method):
    """Double backward against finite differences, in float64."""
    tunable = tunable_of(make).double()
    features = tunable.below(IMAGE[:1].double()).detach()
    weight = tunable.tuned()["2.weight"]
    direction = torch.randn(weight.shape, dtype=torch.float64)
    pattern = torch.randn(tunable.target.shape[1:], dtype=torch.float64)

    target = tunable(features)[1].argmax(1)

    def value() -> torch.Tensor:
        (activations,), logits = tunable(features)
        raw = tunable.raw_maps(method, [activations], logits, target)
        return (raw[0] * pattern).sum()

    (gradient,) = torch.autograd.grad(value(), weight)
    step = 1e-6
    with torch.no_grad():
        weight += step * direction
    high = value().item()
    with torch.no_grad():
        weight -= 2 * step * direction
    low = value().item()
    expected = (high - low) / (2 * step)
    assert expected != 0
    assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_tuner_is_two_pointwise_convolutions():
    torch.manual_seed(0)
    tuner = Tuner(6)
    a = torch.randn(2, 6, 3, 4)
    mixed = torch.einsum("kc,nchw->nkhw", tuner.mix.weight[..., 0, 0], a)
    mixed = mixed + tuner.mix.bias[:, None, None]
    expected = (mixed * tuner.merge.weight[0]).sum(1) + tuner.merge.bias
    torch.testing.assert_close(tuner(a), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11", "densenet121", "mobilenet_v3_small", "convnext_tiny"])
def test_real_networks_come_apart(name):
    model = torchvision.models.get_model(name, weights=None).eval()
    tunable = TunableNetwork(model, (224, 224))
    image = torch.randn(2, 3, 224, 224)
    (activations,), logits = tunable(tunable.below(image))
    torch.testing.assert_close(logits, model(image), rtol=1e-4, atol=1e-4)
    raw = tunable.raw_maps("gradcam", [activations], logits, logits.argmax(1))
    raw.square().sum().backward()
    with_gradient = [n for n, p in tunable.tuned().items() if p.grad is not None and p.grad.any()]
    assert with_gradient


def test_more_layers_are_tuned_as_asked():
    model = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(3 if i == 0 else 4, 4, 3), nn.ReLU()) for i in range(4)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    ).eval()  # fmt: skip
    for count, first in ((1, "3.0"), (2, "2.0"), (4, "0.0"), (9, "0.0")):
        tuned = TunableNetwork(model, SIZE, tuned_layers=count).tuned()
        assert min(tuned) == f"{first}.bias"
        assert len(tuned) == 2 * (5 - int(first[0]))


@pytest.mark.parametrize("make", [residual, channels_last])
def test_maps_of_several_layers_are_fused_as_the_runtime_fuses_them(make):
    tunable = TunableNetwork(make(), SIZE, fused_layers=["relu"]).double()
    activations, logits = tunable(tunable.below(IMAGE.double()))
    assert [tuple(a.shape[1:]) for a in activations] == [one.shape for one in tunable.layers]
    target = logits.argmax(1)
    chosen = logits.gather(1, target[:, None]).sum()
    raws = [
        cam.raw_map("layercam", a.detach().numpy(), g.numpy()[:, None])
        for a, g in zip(
            activations,
            torch.autograd.grad(chosen, activations, retain_graph=True),
            strict=True,
        )
    ]
    fused = tunable.raw_maps("layercam", activations, logits, target)
    np.testing.assert_allclose(fused.detach().numpy(), cam.fuse(raws)[:, 0], atol=1e-9)
    fused.square().sum().backward()
    names = {name for name, p in tunable.tuned().items() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("stem") for name in names)
