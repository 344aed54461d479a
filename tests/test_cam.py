"""The map formulas against hand-computed cases, float64 autograd, OpenCV and brute force."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from whycam.runtime import cam

FROM_GRADIENTS = ("cam", "gradcam", "gradcam++", "layercam", "hirescam", "xgradcam")

# Two channels of 2 x 2, one image, one class. Every number below is worked out from these.
A = np.array([[[[1.0, 2.0], [3.0, 4.0]], [[4.0, 0.0], [0.0, 0.0]]]])
G = np.array([[[[[1.0, 0.0], [-2.0, 2.0]], [[-1.0, -1.0], [0.0, 0.0]]]]])


def test_cam_by_hand():
    # alpha = sums of G = (1, -2); cam keeps negative values.
    np.testing.assert_allclose(cam.raw_map("cam", A, G), [[[[1 - 8, 2], [3, 4]]]])


def test_gradcam_by_hand():
    # alpha = means of G = (0.25, -0.5): 0.25 A1 - 0.5 A2, negative values cut.
    np.testing.assert_allclose(cam.raw_map("gradcam", A, G), [[[[0, 0.5], [0.75, 1]]]])


def test_gradcam_plus_plus_by_hand():
    # Channel 1, sum of A = 10: a = 1/(2 + 10) where G = 1 and 4/(8 + 80) where G = 2; the
    # negative gradient is cut. Channel 2 has no positive gradient.
    alpha = 1 * 1 / 12 + 2 * 4 / 88
    expected = [[[[alpha, 2 * alpha], [3 * alpha, 4 * alpha]]]]
    np.testing.assert_allclose(cam.raw_map("gradcam++", A, G), expected, rtol=1e-6)


def test_gradcam_plus_plus_weighs_a_zero_gradient_with_zero():
    weights = cam.channel_weights("gradcam++", A, np.zeros_like(G))
    np.testing.assert_array_equal(weights, np.zeros((1, 1, 2)))


def test_layercam_sums_over_channels_before_it_drops_what_is_negative():
    # Activations can be negative (Hardswish, SiLU, GELU): channels cancel before the ReLU.
    activations = np.array([[[[3.0]], [[-2.0]], [[-4.0]]]])
    gradients = np.array([[[[[1.0]], [[1.0]], [[-1.0]]]]])
    np.testing.assert_array_equal(cam.raw_map("layercam", activations, gradients), [[[[1.0]]]])


def test_layercam_by_hand():
    # Negative gradients are cut before the product.
    np.testing.assert_allclose(cam.raw_map("layercam", A, G), [[[[1, 0], [0, 8]]]])


def test_hirescam_by_hand():
    # G A = [[1, 0], [-6, 8]] + [[-4, 0], [0, 0]], then negative values are cut.
    np.testing.assert_allclose(cam.raw_map("hirescam", A, G), [[[[0, 0], [0, 8]]]])


def test_xgradcam_by_hand():
    # alpha = sum(A G) / sum(A) = ((1 - 6 + 8) / 10, -4 / 4) = (0.3, -1).
    np.testing.assert_allclose(cam.raw_map("xgradcam", A, G), [[[[0, 0.6], [0.9, 1.2]]]], atol=1e-6)


@pytest.mark.parametrize("method", ["ablation", "scorecam"])
def test_methods_with_given_weights_by_hand(method):
    weights = np.array([[[0.5, -0.25]]])
    raw = cam.raw_map(method, A, None, weights)
    np.testing.assert_allclose(raw, [[[[0, 1], [1.5, 2]]]])  # 0.5 - 1 is cut


@pytest.mark.parametrize("method", ["ablation", "scorecam"])
def test_methods_without_gradient_weights_refuse_to_invent_them(method):
    with pytest.raises(ValueError, match=method):
        cam.raw_map(method, A, G)


class _Head(torch.nn.Module):
    """A head whose gradients vary over space, unlike those of a pooled linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = torch.nn.Linear(6 * 4 * 5, 16), torch.nn.Linear(16, 7)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(activations.flatten(1))))


@pytest.fixture
def activations_and_gradients() -> tuple[torch.Tensor, torch.Tensor]:
    """A [3, 6, 4, 5] and d z_c / d A [3, 2, 6, 4, 5] in float64, from autograd."""
    torch.manual_seed(3)
    head = _Head().double()
    activations = torch.rand(3, 6, 4, 5, dtype=torch.float64).requires_grad_()
    logits = head(activations)
    gradients = [torch.autograd.grad(logits[:, c].sum(), activations, retain_graph=True)[0]
                 for c in (1, 4)]  # fmt: skip
    return activations.detach(), 10 * torch.stack(gradients, dim=1)


def _independent(method: str, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """One image's raw map for one class as the papers write it, channel by channel."""
    total = torch.zeros(a.shape[1:], dtype=a.dtype)
    for channel, gradient in zip(a, g, strict=True):
        if method == "gradcam":
            total += gradient.mean() * channel
        elif method == "gradcam++":
            # As in pytorch-grad-cam; its eps is 1e-6 too.
            denominator = 2 * gradient**2 + channel.sum() * gradient**3 + 1e-6
            a_ij = torch.where(gradient != 0, gradient**2 / denominator, torch.zeros(()).double())
            total += (a_ij * gradient.clamp(min=0)).sum() * channel
        elif method == "layercam":
            total += gradient.clamp(min=0) * channel
        elif method == "hirescam":
            total += gradient * channel
        elif method == "xgradcam":
            total += (channel * gradient / (channel.sum() + 1e-7)).sum() * channel
        else:
            total += gradient.sum() * channel
    return total if method == "cam" else total.clamp(min=0)


@pytest.mark.parametrize("method", FROM_GRADIENTS)
def test_maps_equal_an_independent_implementation_in_float64(method, activations_and_gradients):
    a, g = activations_and_gradients
    expected = torch.stack(
        [torch.stack([_independent(method, a[i], one) for one in g[i]]) for i in range(len(a))]
    )
    assert expected.abs().max() > 1e-3, "the case shows nothing"
    raw = cam.raw_map(method, a.numpy(), g.numpy())
    np.testing.assert_allclose(raw, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", FROM_GRADIENTS)
def test_numpy_and_torch_give_the_same_numbers(method, activations_and_gradients):
    a, g = (tensor.float() for tensor in activations_and_gradients)
    in_torch = cam.finish(cam.raw_map(method, a, g), (17, 19))
    in_numpy = cam.finish(cam.raw_map(method, a.numpy(), g.numpy()), (17, 19))
    assert isinstance(in_torch, torch.Tensor)
    assert isinstance(in_numpy, np.ndarray)
    assert in_numpy.max() > 0.99
    np.testing.assert_allclose(in_torch.numpy(), in_numpy, atol=2e-5)


@pytest.mark.parametrize("score", ["logit", "prob"])
def test_numpy_and_torch_give_the_same_ablation_weights(score):
    logits, drops, selected = _ablation_case(np.float32)
    in_numpy = cam.ablation_weights(logits, drops, selected, score)
    in_torch = cam.ablation_weights(*map(torch.from_numpy, (logits, drops, selected)), score)
    np.testing.assert_allclose(in_torch.numpy(), in_numpy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("small", "size"),
    [
        ((7, 7), (224, 224)),
        ((7, 10), (240, 331)),
        ((1, 1), (5, 6)),
        ((1, 4), (3, 9)),
        ((14, 14), (14, 14)),
        ((30, 41), (7, 5)),
        ((9, 4), (3, 8)),
    ],
)
def test_resize_equals_opencv_and_torch(small, size):
    maps = np.random.default_rng(1).normal(size=(2, *small))
    found = cam.resize(maps, size)
    in_torch = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False
    )[0]
    np.testing.assert_allclose(found, in_torch, atol=1e-12)
    for one, expected in zip(found, maps, strict=True):
        # OpenCV takes its interpolation weights in float32.
        opencv = cv2.resize(expected, size[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(one, opencv, atol=2e-5)


def test_resize_keeps_the_precision_of_its_input():
    assert cam.resize(np.ones((2, 2), np.float32), (4, 4)).dtype == np.float32
    assert cam.resize(np.ones((2, 2)), (4, 4)).dtype == np.float64


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 0.1, 1e-30, 1e30])
def test_constant_map_comes_out_all_zero(value):
    raw = np.full((2, 7, 7), value, np.float32)
    np.testing.assert_array_equal(cam.finish(raw, (224, 224)), np.zeros((2, 224, 224)))


def test_map_that_is_constant_but_for_rounding_comes_out_all_zero():
    raw = np.full((1, 7, 7), 1000.0, np.float32)
    raw[0, 3, 3] = np.nextafter(np.float32(1000), np.float32(2000))
    np.testing.assert_array_equal(cam.finish(raw, (28, 28)), np.zeros((1, 28, 28)))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_map_does_not_depend_on_the_scale_of_the_gradients(scale):
    raw = np.random.default_rng(2).random((3, 7, 7)).astype(np.float32)
    expected = cam.finish(raw, (56, 56))
    assert expected.max() > 0.99
    np.testing.assert_allclose(cam.finish(raw * np.float32(scale), (56, 56)), expected, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_count_as_zero(bad):
    raw = np.array([[[0.0, 1.0], [2.0, 4.0]]], np.float32)
    broken = raw.copy()
    broken[0, 0, 0] = bad
    np.testing.assert_array_equal(cam.finish(broken, (6, 6)), cam.finish(raw, (6, 6)))


def test_each_map_is_normalised_by_itself():
    raw = np.stack([np.eye(3), 100 * np.eye(3)]).astype(np.float32)
    first, second = cam.finish(raw, (9, 9))
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert first.max() == pytest.approx(1)


@given(
    raw=arrays(np.float32, (2, 3, 4), elements=st.floats(width=32)),
    size=st.tuples(st.integers(3, 12), st.integers(4, 12)),
)
def test_maps_lie_between_0_and_1_whatever_comes_in(raw, size):
    with np.errstate(all="ignore"):
        maps = cam.finish(raw, size)
    assert maps.shape == (2, *size)
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_map_that_spans_more_than_float32_holds_has_no_nan():
    # `cam` keeps negative values, so high - low may overflow.
    raw = np.array([[[-3e38, 3e38]]], np.float32)
    with np.errstate(all="ignore"):
        maps = cam.finish(raw, (2, 4))
    assert np.isfinite(maps).all()


def _ablation_case(dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [2, 5], drops [2, 6, 5], one-hot [2, 3, 5]."""
    rng = np.random.default_rng(7)
    logits, drops = rng.normal(0, 3, (2, 5)), rng.normal(0, 1, (2, 6, 5))
    selected = np.eye(5)[[[0, 3, 4], [2, 2, 1]]]
    return logits.astype(dtype), drops.astype(dtype), selected.astype(dtype)


def _brute_force(logits: np.ndarray, drops: np.ndarray, target: int, score: str) -> list[float]:
    """(y - y_k) / y of one image, each score computed anew in extended precision."""

    def of(z: np.ndarray) -> np.longdouble:
        z = z.astype(np.longdouble)
        if score == "logit":
            return z[target]
        return 1 / np.exp(z - z[target]).sum()

    y = of(logits)
    return [float((y - of(logits - drop)) / y) for drop in drops]


@pytest.mark.parametrize("score", ["logit", "prob"])
def test_ablation_weights_equal_brute_force(score):
    logits, drops, selected = _ablation_case(np.float64)
    found = cam.ablation_weights(logits, drops, selected, score)
    for i in range(len(logits)):
        for j, target in enumerate(selected[i].argmax(-1)):
            expected = _brute_force(logits[i], drops[i], target, score)
            np.testing.assert_allclose(found[i, j], expected, rtol=1e-9)


def test_ablation_weights_keep_their_digits_where_the_class_is_all_but_certain():
    # p = 0.9999999: in float32, y - y_k of two such probabilities has one digit left, or none.
    logits = np.array([[np.log(0.9999999 / 1e-7), 0.0]])
    drops = np.array([[[0.5, 0.0], [-0.25, 0.0], [0.0, 0.125]]])
    found = cam.ablation_weights(
        logits.astype(np.float32), drops.astype(np.float32), np.eye(2, dtype=np.float32)[[[0]]],
        "prob",
    )  # fmt: skip
    expected = _brute_force(logits[0], drops[0], 0, "prob")
    assert max(map(abs, expected)) < 1e-7
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)


def test_ablation_weights_of_an_all_but_impossible_class_are_finite():
    logits = np.array([[np.log(1e-20), 0.0, -1.0]], np.float32)
    drops = np.array([[[3.0, -2.0, 0.0], [50.0, -60.0, 0.0]]], np.float32)
    found = cam.ablation_weights(logits, drops, np.eye(3, dtype=np.float32)[[[0]]], "prob")
    assert np.isfinite(found).all()
    # Both channels speak for the class, and no more than all of it can be lost.
    assert found.min() > 0.9
    assert found.max() <= 1


@pytest.mark.parametrize(
    ("logit", "gain"), [(-14.0, 16.0), (-20.0, 25.0), (-46.0, 110.0)], ids=["1e-6", "2e-9", "1e-20"]
)
def test_ablation_weights_hold_where_a_channel_all_but_suppresses_the_class(logit, gain):
    # Without the channel the class wins: y_k is near 1, y near 0.
    logits = np.array([[logit, 0.0]], np.float32)
    drops = np.array([[[-gain, 0.0]]], np.float32)
    found = cam.ablation_weights(logits, drops, np.eye(2, dtype=np.float32)[[[0]]], "prob")
    assert np.isfinite(found).all()
    if logit > -40:  # beyond, clipping bounds the weight
        expected = _brute_force(logits[0], drops[0], 0, "prob")
        np.testing.assert_allclose(found[0, 0], expected, rtol=1e-3)


def test_ablation_weights_of_a_zero_logit_are_zero():
    logits, drops = np.array([[0.0, 1.0]]), np.ones((1, 2, 2))
    found = cam.ablation_weights(logits, drops, np.eye(2)[[[0]]], "logit")
    np.testing.assert_array_equal(found, np.zeros((1, 1, 2)))
