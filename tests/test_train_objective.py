"""The loss terms against their formulas."""

from __future__ import annotations

import copy

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from whycam.runtime.errors import RequestError
from whycam.train.loop import Plan
from whycam.train.network import TunableNetwork
from whycam.train.objective import AftLosses, Objective, check_batch, swap_regions

SIZE = (networks.SIZE, networks.SIZE)


@pytest.fixture(scope="module")
def untouched():
    return TunableNetwork(networks.linear(), SIZE)


@pytest.fixture
def tunable(untouched):
    return copy.deepcopy(untouched)


@pytest.fixture
def batch(tunable):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(5, 3, *SIZE, generator=generator)
    features = tunable.below(image)
    logits = tunable(features)[1]
    return {
        "image": image,
        "features": features,
        "label": torch.tensor([0, 3, -1, 2, -1]),
        "target": logits.argmax(1),
        "probabilities": logits.softmax(1).detach(),
        "mask": torch.rand(5, *tunable.target.shape[1:], generator=generator),
        "inside": regions(tunable, generator),
        "avoid": regions(tunable, generator),
    }


def regions(tunable, generator):
    """Of the second image none are known."""
    _, height, width = tunable.target.shape
    found = torch.rand(5, 4 * height, 4 * width, generator=generator)
    found[1] = -1
    return found


def test_tuner_term_is_equation_8(tunable, batch):
    losses = AftLosses(tunable, Objective(terms={"tuner": 7.0}, distillation=0))
    values = losses(batch)
    (activations,), logits = tunable(batch["features"])
    labelled = batch["label"] >= 0
    entropy = F.cross_entropy(logits[labelled], batch["label"][labelled], reduction="sum") / 5
    squares = (losses.tuner(activations) - batch["mask"]).square().sum() / 5
    torch.testing.assert_close(values[1], entropy)
    torch.testing.assert_close(values[3], squares)
    torch.testing.assert_close(values[0], entropy + 7 * squares)


def test_aligned_term_compares_the_shown_map_with_the_mask(tunable, batch):
    values = AftLosses(tunable, Objective(terms={"aligned": 1.0}))(batch)
    (activations,), logits = tunable(batch["features"])
    raw = tunable.raw_maps("gradcam", [activations], logits, batch["target"])
    own = tunable.maps(raw, tunable.target.shape[1:])
    torch.testing.assert_close(values[3], F.mse_loss(own, batch["mask"]))


def test_faithful_term_classifies_the_masked_image(tunable, batch):
    values = AftLosses(tunable, Objective(terms={"faithful": 1.0}))(batch)
    (activations,), logits = tunable(batch["features"])
    maps = tunable.maps(tunable.raw_maps("gradcam", [activations], logits, batch["target"]))
    masked = tunable.classify(batch["image"] * maps[:, None])
    torch.testing.assert_close(values[3], F.cross_entropy(masked, batch["target"]))


def test_cross_asked_term_asks_the_network_before_tuning(tunable, untouched, batch):
    losses = AftLosses(tunable, Objective(terms={"cross-asked": 1.0}))
    with torch.no_grad():
        for weight in tunable.tuned().values():
            weight.mul_(1.3)
    (activations,), logits = tunable(batch["features"])
    maps = tunable.maps(tunable.raw_maps("gradcam", [activations], logits, batch["target"]))
    answered = untouched.classify(batch["image"] * maps[:, None])
    values = losses(batch)
    torch.testing.assert_close(values[3], F.cross_entropy(answered, batch["target"]))
    values[3].backward()
    assert tunable.tuned()["2.weight"].grad.abs().max() > 0
    assert all(weight.grad is None for weight in losses.before.parameters())
    assert not {name for name in losses.trained() if "before" in name}


def test_swapped_regions_show_other_images():
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 4, 4)
    regions = torch.zeros(4, 2, 2)
    regions[0, 0, 0] = 1  # a quarter of the first image
    regions[1, 1, 1] = 0.1  # cells count whole
    regions[3] = -1  # not known
    swapped = swap_regions(images, regions)[:, 0]
    expected = np.repeat(np.arange(4.0), 16).reshape(4, 4, 4)
    expected[0, :2, :2] = 3
    expected[1, 2:, 2:] = 0
    expected[2, :2, :2] = 0  # the region of the first image
    expected[3, 2:, 2:] = 1  # of the second
    np.testing.assert_array_equal(swapped, expected)


def test_an_image_that_is_marked_all_over_stays_itself():
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 4, 4)
    regions = torch.zeros(4, 2, 2)
    regions[0] = 1
    regions[1, 0] = 1  # half of it
    swapped = swap_regions(images, regions)[:, 0]
    assert (swapped[0] == 0).all()
    assert (swapped[1, :2] == 0).all()
    assert (swapped[1, 2:] == 1).all()
    assert (swapped[2] == 2).all()  # nothing of the first lies on it


def test_of_two_images_each_loses_its_region():
    images = torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 1, 4, 4)
    regions = torch.zeros(2, 2, 2)
    regions[0, 0, 0] = regions[1, 1, 1] = 1
    swapped = swap_regions(images, regions)[:, 0]
    expected = np.repeat([1.0, 2.0], 16).reshape(2, 4, 4)
    expected[0, :2, :2] = 2
    expected[1, 2:, 2:] = 1
    expected[1, :2, :2] = 1  # and the region of the first lies on the second
    np.testing.assert_array_equal(swapped, expected)


def test_one_image_a_process_has_nothing_to_swap_with():
    swapping = Objective(terms={"swapping": 1.0})
    check_batch(swapping, Plan(batch=4), 9, 2)
    check_batch(Objective(), Plan(batch=2), 9, 2)
    with pytest.raises(RequestError, match="2 processes has 1 of a batch of 2: set --batch to 4"):
        check_batch(swapping, Plan(batch=3), 9, 2)
    with pytest.raises(RequestError, match="set --batch to 2"):
        check_batch(swapping, Plan(batch=16), 1, 1)


def test_swapping_term_classifies_images_with_swapped_regions(tunable, batch):
    values = AftLosses(tunable, Objective(terms={"swapping": 1.0}))(batch)
    logits = tunable.classify(swap_regions(batch["image"], batch["avoid"]))
    known = [0, 1, 3]  # the others have no label
    expected = F.cross_entropy(logits[known], batch["label"][known], reduction="sum") / 5
    torch.testing.assert_close(values[3], expected)


@pytest.mark.parametrize(("variant", "array"), [("guided", "inside"), ("avoiding", "avoid")])
def test_guided_terms_are_the_share_of_the_labels_map_on_the_wrong_side(
    tunable, batch, variant, array
):
    values = AftLosses(tunable, Objective(terms={variant: 1.0}))(batch)
    (activations,), logits = tunable(batch["features"])
    explained = torch.where(batch["label"] >= 0, batch["label"], batch["target"])
    (gradient,) = torch.autograd.grad(logits.gather(1, explained[:, None]).sum(), activations)
    signed = (gradient.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True).detach()
    size = batch[array].shape[1:]
    resized = F.interpolate(signed.double(), size, mode="bilinear", align_corners=False)[:, 0]
    maps = np.log1p(np.exp(8 * (resized / resized.abs().amax((1, 2), keepdim=True)).numpy()))
    region = batch[array].double().numpy()
    shares = [(maps[i] * region[i]).sum() / maps[i].sum() for i in (0, 2, 3, 4)]
    wrong = [1 - share if variant == "guided" else share for share in shares]
    assert values[3].item() == pytest.approx(sum(wrong) / 4, rel=1e-5)


def test_images_without_regions_leave_the_weights_alone(tunable, batch):
    batch["inside"] = torch.full_like(batch["inside"], -1)
    terms = AftLosses(tunable, Objective(terms={"guided": 3.0}, classification=0, distillation=0))
    loss = terms(batch)[0]
    loss.backward()
    assert loss.item() == 0
    assert all(
        not weight.grad.any() for weight in tunable.tuned().values() if weight.grad is not None
    )


def test_distillation_is_nothing_before_training_and_grows(tunable, batch):
    losses = AftLosses(tunable, Objective())
    assert losses(batch)[2].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        tunable.tuned()["6.weight"].mul_(1.5)
    assert losses(batch)[2].item() > 1e-3


def test_features_are_computed_where_they_are_not_cached(tunable, batch):
    losses = AftLosses(tunable, Objective())
    without = {name: value for name, value in batch.items() if name != "features"}
    torch.testing.assert_close(losses(without), losses(batch))


@pytest.mark.parametrize(
    "variant", ["tuner", "aligned", "faithful", "cross-asked", "guided", "avoiding", "swapping"]
)
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "ablation"])
def test_a_few_steps_lower_each_loss(tunable, batch, variant, method):
    losses = AftLosses(tunable, Objective(method=method, terms={variant: 10.0}))
    optimizer = torch.optim.Adam(losses.trained().values(), lr=1e-2)
    before = losses(batch)[0].item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = losses(batch)[0]
        loss.backward()
        optimizer.step()
    after = losses(batch)
    assert torch.isfinite(after).all()
    assert after[0].item() < before


def test_frozen_part_gets_no_gradient(tunable, batch):
    AftLosses(tunable, Objective())(batch)[0].backward()
    assert all(p.grad is None for p in tunable.below.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "scorecam"},
        {"method": "nonsense"},
        {"terms": {}},
        {"terms": {"best": 1.0}},
        {"terms": {"tuner": -1.0}},
        {"distillation": float("nan")},
    ],
    ids=str,
)
def test_impossible_objectives_are_refused(wrong):
    with pytest.raises(RequestError):
        Objective(**wrong)


@pytest.fixture(scope="module")
def independent():
    return TunableNetwork(nn.Sequential(networks.linear(), nn.Sigmoid()).eval(), SIZE)


def test_losses_of_independent_labels_are_sums_over_the_labels(independent):
    """By hand, in float64, from probabilities; what is not known counts as nothing."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(4, 3, *SIZE, generator=generator)
    before = torch.rand(4, networks.CLASSES, generator=generator)
    before[0, 0], before[1, 1] = 0.0, 1.0  # what float16 makes of small and large ones
    present = (torch.rand(4, networks.CLASSES, generator=generator) < 0.4).float()
    present[2], present[:, 3] = -1, -1
    target = torch.tensor([0, 1, 2, 6])
    batch = {
        "image": image,
        "features": independent.below(image),
        "present": present,
        "label": torch.full((4,), -1),
        "target": target,
        "probabilities": before,
    }
    losses = AftLosses(copy.deepcopy(independent), Objective(terms={"faithful": 2.0}))
    values = losses(batch).detach().double().numpy()
    (activations,), logits = losses.tunable(batch["features"])
    q = logits.detach().double().sigmoid().numpy()
    p, truth = before.double().numpy(), present.double().numpy()
    entropy = np.where(truth >= 0, -(truth * np.log(q) + (1 - truth) * np.log(1 - q)), 0)
    both = [(p, q), (1 - p, 1 - q)]
    kl = sum(np.where(a > 0, a * np.log(np.where(a > 0, a, 1) / b), 0) for a, b in both)
    maps = losses.tunable.maps(
        losses.tunable.raw_maps("gradcam", [activations], logits, batch["target"])
    )
    masked = losses.tunable.classify(maps[:, None] * image).detach().double().sigmoid().numpy()
    faithful = -np.log(masked[range(4), target]).mean()
    np.testing.assert_allclose(values[1], entropy.sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(values[2], kl.sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(values[3], faithful, rtol=1e-5)
    np.testing.assert_allclose(values[0], values[1] + 4 * values[2] + 2 * values[3], rtol=1e-5)


def test_probability_scored_maps_of_independent_labels_follow_the_sigmoid(independent):
    """d sigmoid(z_c) / dA is s (1 - s) times d z_c / dA, whatever the other labels are."""
    (activations,), logits = independent(independent.below(torch.ones(1, 3, *SIZE)))
    target = torch.tensor([2])
    s = logits[0, 2].sigmoid()
    of_score, of_logit = (
        independent.raw_maps("gradcam", [activations], logits, target, score, True)
        for score in ("prob", "logit")
    )
    torch.testing.assert_close(of_score, of_logit * s * (1 - s))
