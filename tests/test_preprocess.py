"""The network's view of an image against torchvision and timm, and a map's way back."""

from __future__ import annotations

import sys
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from whycam.runtime.input_format import Letterbox
from whycam.runtime.manifest import Preprocess
from whycam.runtime.preprocess import Placement, crop_resized, normalise, place, to_image


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8)


def torchvision_view(image: np.ndarray, resize: int | tuple[int, int], size: tuple[int, int],
                     interpolation: str) -> np.ndarray:  # fmt: skip
    chain = transforms.Compose(
        [
            transforms.Resize(resize, InterpolationMode(interpolation)),
            transforms.CenterCrop(size),
        ]
    )
    return np.asarray(chain(Image.fromarray(image)))


SHAPES = [(301, 457), (457, 301), (225, 225), (64, 50), (33, 901), (901, 33), (3, 2), (1, 1),
          (720, 1280), (320, 180), (96, 640)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("resize", "size"),
    [
        ((256,), (224, 224)),
        ((232,), (224, 224)),
        ((61,), (37, 52)),  # odd margins
        ((50,), (64, 64)),  # the crop is larger: a border
        ((50,), (77, 31)),  # a border above and below, a cut left and right
        ((48, 80), (48, 80)),  # squash
        ((47, 81), (32, 64)),
    ],
)
def test_view_equals_torchvision(shape, interpolation, resize, size):
    image = noise(*shape)
    spec = Preprocess(size=size, resize=resize, interpolation=interpolation)
    view, _ = crop_resized(image, spec)
    wanted = resize[0] if len(resize) == 1 else resize
    np.testing.assert_array_equal(view, torchvision_view(image, wanted, size, interpolation))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_view_of_images_equals_torchvision(sample_images, interpolation):
    spec = Preprocess(size=(224, 224), resize=(256,), interpolation=interpolation)
    for path in sample_images:
        image = np.asarray(Image.open(path).convert("RGB"))
        view, _ = crop_resized(image, spec)
        expected = torchvision_view(image, 256, (224, 224), interpolation)
        np.testing.assert_array_equal(view, expected)


@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    short=st.integers(1, 40),
    size=st.tuples(st.integers(1, 48), st.integers(1, 48)),
)
def test_view_equals_torchvision_for_any_size(shape, short, size):
    image = noise(*shape)
    spec = Preprocess(size=size, resize=(short,))
    _, resized = place(shape, spec)
    view, placement = crop_resized(image, spec)
    assert view.shape == (*size, 3)
    assert placement.bottom > placement.top
    if resized[0] * resized[1] > 64 * size[0] * size[1]:
        return  # there only the window is resized, exact to a few of 255
    np.testing.assert_array_equal(view, torchvision_view(image, short, size, "bilinear"))


def test_view_without_resize_is_a_plain_crop():
    image = noise(40, 51)
    view, placement = crop_resized(image, Preprocess(size=(20, 21), resize=()))
    np.testing.assert_array_equal(view, image[10:30, 15:36])
    assert placement == Placement((40, 51), 10, 15, 30, 36)


@pytest.mark.parametrize(
    ("interpolation", "crop_pct", "size"), [("bicubic", 0.875, 224), ("bilinear", 0.95, 160)]
)
def test_view_equals_timm(sample_images, interpolation, crop_pct, size):
    from timm.data import create_transform

    chain = create_transform(
        (3, size, size), is_training=False, interpolation=interpolation, crop_pct=crop_pct
    )
    on_pillow = transforms.Compose(chain.transforms[:2])
    assert [type(step).__name__ for step in on_pillow.transforms] == ["Resize", "CenterCrop"]
    spec = Preprocess((size, size), (int(size / crop_pct),), interpolation)
    for path in sample_images:
        image = Image.open(path).convert("RGB")
        view, _ = crop_resized(np.asarray(image), spec)
        np.testing.assert_array_equal(view, np.asarray(on_pillow(image)))


def test_normalise_equals_torchvision():
    view = noise(31, 47)
    spec = Preprocess((31, 47), (), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)])
    found = normalise(view, spec)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, chain(view), atol=1e-6)


def test_normalise_takes_batches():
    views = np.stack([noise(5, 6), 255 - noise(5, 6)])
    spec = Preprocess((5, 6), ())
    found = normalise(views, spec)
    assert found.shape == (2, 3, 5, 6)
    np.testing.assert_array_equal(found[1], normalise(views[1], spec))


def test_normalise_leaves_the_image_alone():
    view = noise(4, 4)
    before = view.copy()
    normalise(view, Preprocess((4, 4), ()))
    np.testing.assert_array_equal(view, before)


def test_map_returns_to_where_the_network_looked():
    # Twice as large in the image, from row 4 and column 6.
    values = np.array([[1.0, 0.0], [0.25, 0.5]], np.float32)
    found = to_image(values, Placement((10, 12), top=4, left=6, bottom=8, right=10))
    assert found.shape == (10, 12)
    assert found.dtype == np.float32
    outside = found.copy()
    outside[4:8, 6:10] = 0
    np.testing.assert_array_equal(outside, np.zeros((10, 12)))
    np.testing.assert_allclose(found[4, 6:10], [1, 0.75, 0.25, 0])
    np.testing.assert_allclose(found[7, 6:10], [0.25, 0.3125, 0.4375, 0.5])
    np.testing.assert_allclose(found[4:8, 6], [1, 0.8125, 0.4375, 0.25])


def test_map_over_the_whole_image_is_a_bilinear_resize():
    values = np.random.default_rng(0).random((7, 5)).astype(np.float32)
    found = to_image(values, Placement((40, 33), 0, 0, 40, 33))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], (40, 33), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(found, expected[0, 0], atol=1e-5)


def test_part_of_the_map_over_the_border_is_dropped():
    # The network saw two rows of border above and below an image of four rows.
    values = np.repeat(np.arange(8, dtype=np.float32)[:, None] / 8, 4, axis=1)
    found = to_image(values, Placement((4, 4), top=-2, left=0, bottom=6, right=4))
    np.testing.assert_allclose(found, values[2:6])


@pytest.mark.parametrize("shape", [(300, 451), (451, 300), (97, 640)])
def test_a_spot_in_the_image_is_found_again_through_the_map(shape):
    # A bright block goes through the network's view and comes back at its own place.
    image = np.zeros((*shape, 3), np.uint8)
    row, column = shape[0] // 3, shape[1] // 2 + 9
    image[row : row + 12, column : column + 12] = 255
    view, placement = crop_resized(image, Preprocess((224, 224), (256,)))
    found = to_image(view[..., 0].astype(np.float32) / 255, placement)
    y, x = np.nonzero(found > 0.5)
    assert (y.min(), x.min()) == pytest.approx((row, column), abs=1)
    assert (y.max() + 1, x.max() + 1) == pytest.approx((row + 12, column + 12), abs=1)


EXTREME = [(1, 1), (1, 20000), (20000, 1)]


@pytest.mark.parametrize("shape", EXTREME)
@pytest.mark.parametrize("resize", [(256,), (256, 256), ()])
def test_extreme_proportions_work(shape, resize):
    spec = Preprocess((224, 224), resize)
    view, placement = crop_resized(np.full((*shape, 3), 77, np.uint8), spec)
    assert view.shape == (224, 224, 3)
    if resize:  # else there is a border
        assert (view == 77).all()
    assert to_image(np.ones((224, 224), np.float32), placement).shape == shape


def test_window_of_a_very_long_image_shows_its_middle():
    # Only the window is resized; what it shows must be what a whole resize would show.
    image = np.zeros((2, 4000, 3), np.uint8)
    image[:, 1999:2001] = 255
    spec = Preprocess((32, 64), (32,))
    view, placement = crop_resized(image, spec)
    assert place((2, 4000), spec)[1] == (32, 64000)
    assert (placement.left, placement.right) == (1998, 2002)
    expected = torchvision_view(image, 32, (32, 64), "bilinear").astype(int)
    assert np.abs(view - expected).max() <= 3


@pytest.mark.skipif(sys.platform == "win32", reason="the resource module is POSIX only")
@pytest.mark.parametrize("shape", EXTREME[1:])
def test_very_long_images_take_little_memory(shape, run_python: Callable):
    # Resized as a whole, such an image has 256 x 5,120,000 pixels: 4 GB.
    grown = run_python(f"""
        import resource
        import numpy as np
        from whycam.runtime.manifest import Preprocess
        from whycam.runtime.preprocess import crop_resized, to_image

        spec = Preprocess((224, 224), (256,), "bicubic")
        crop_resized(np.zeros((9, 9, 3), np.uint8), spec)  # imports done
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        view, placement = crop_resized(np.zeros({(*shape, 3)}, np.uint8), spec)
        to_image(np.ones((224, 224), np.float32), placement)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """)
    assert int(grown) < 200


def letterbox_by_hand(image: np.ndarray, size: tuple[int, int], center: bool) -> np.ndarray:
    """As YOLO's networks are fed: OpenCV's resize, then its border."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    width, height = round(image.shape[1] * scale), round(image.shape[0] * scale)
    fitted = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    across, down = size[1] - width, size[0] - height
    # Half a pixel goes below and to the right.
    left, top = (round(across / 2 - 0.1), round(down / 2 - 0.1)) if center else (0, 0)
    return cv2.copyMakeBorder(
        fitted, top, down - top, left, across - left, cv2.BORDER_CONSTANT, value=(114,) * 3
    )


@pytest.mark.parametrize("shape", [(301, 457), (457, 301), (64, 64), (33, 901), (720, 1280)])
@pytest.mark.parametrize("anchor", ["center", "top-left"])
def test_letterbox_equals_opencv(shape, anchor):
    image = noise(*shape)
    spec = Preprocess((96, 128), (), antialias=False, letterbox=Letterbox(anchor))
    view, placement = crop_resized(image, spec)
    expected = letterbox_by_hand(image, (96, 128), anchor == "center")
    np.testing.assert_array_equal(view, expected)
    # The image's corners in the input are where its pixels begin and end.
    inside = np.argwhere((view != 114).any(-1))
    height, width = shape
    scale = (placement.bottom - placement.top) / 96, (placement.right - placement.left) / 128
    corners = [(-placement.top / scale[0], -placement.left / scale[1])]
    corners.append(((height - placement.top) / scale[0], (width - placement.left) / scale[1]))
    np.testing.assert_allclose(corners[0], inside.min(0), atol=1e-9)
    np.testing.assert_allclose(corners[1], inside.max(0) + 1, atol=1e-9)


def test_a_map_over_a_letterbox_comes_back_to_the_image():
    spec = Preprocess((8, 8), (), letterbox=Letterbox())
    placement, resized = place((4, 8), spec)
    assert resized == (4, 8)
    rows = np.repeat(np.arange(8, dtype=np.float32)[:, None], 8, 1)
    # Two rows of padding above.
    np.testing.assert_array_equal(to_image(rows, placement)[:, 0], [2, 3, 4, 5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": (8,)}, "takes the place of resize"),
        ({"value_range": (0.0, 1.0)}, "8-bit"),
        ({"letterbox": None, "antialias": False, "resize": (8,)}, "whole images"),
        ({"antialias": False, "interpolation": "bicubic"}, "bilinear"),
    ],
)
def test_letterboxes_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**{"size": (8, 8), "resize": (), "letterbox": Letterbox(), **changes})
