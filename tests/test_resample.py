"""Preprocessing inside the graph against Pillow, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from recorded import run_recorded

from whycam.export.dims import BATCH, Size
from whycam.export.resample import check_embeddable, record_preprocess
from whycam.runtime.errors import ExportError
from whycam.runtime.input_format import Letterbox
from whycam.runtime.manifest import Preprocess
from whycam.runtime.preprocess import crop_resized, normalise, place

fewer = settings(max_examples=settings.default.max_examples // 4)  # each takes a tenth of a second


def make_image(height: int, width: int) -> np.ndarray:
    """Waves, hard edges and noise: filters overshoot at the edges."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    waves = 128 + 90 * np.sin(x / 7 + y / 11) + 60 * ((x // 13 + y // 17) % 2)
    return np.clip(waves[..., None] + rng.normal(0, 30, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


def pixels(spec: Preprocess, images: np.ndarray) -> np.ndarray:
    """The graph's view of images, back in 0 .. 255."""
    return to_pixels(viewed(spec, images), spec)


def viewed(spec: Preprocess, images: np.ndarray, size: tuple[int, int] | None = None):
    """What the network sees, by the graph made for images of any size or of one."""
    sides = size or (Size(1, ("h",)), Size(1, ("w",)))
    return run_recorded(
        lambda image: record_preprocess(image.recorder, image, spec, "NCHW", size),
        images,
        shapes=[(BATCH, *sides, 3)],
    )


def to_pixels(view: np.ndarray, spec: Preprocess) -> np.ndarray:
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (spec.mean, spec.std))
    return (view * std + mean) * 255


def expected(spec: Preprocess, images: np.ndarray) -> np.ndarray:
    views = np.stack([crop_resized(each, spec)[0] for each in images])
    return to_pixels(normalise(views, spec), spec)


def rows_first(spec: Preprocess, shown: np.ndarray) -> np.ndarray:
    """Pillow's two passes, made to happen in the order that the graph has."""
    height, width = shown.shape[:2]
    new = place((height, width), spec)[1]
    filtering = Image.Resampling[spec.interpolation.upper()]
    across = Image.fromarray(shown).resize((new[1], height), filtering)
    whole = np.asarray(across.resize((new[1], new[0]), filtering))
    unresized = Preprocess(size=spec.size, resize=())
    return to_pixels(normalise(crop_resized(whole, unresized)[0][None], spec), spec)


@fewer
@given(
    st.integers(1, 700), st.integers(1, 700), st.sampled_from(["bilinear", "bicubic", "lanczos"])
)
def test_any_size_is_within_one_of_255_of_pillow_when_shrunk_and_two_when_enlarged(
    height, width, interpolation
):
    # Enlarged by simple ratios, many pixels lie exactly half way between two values.
    spec = Preprocess(size=(37, 52), resize=(61,), interpolation=interpolation)
    shown = make_image(height, width)
    bound = 1.01 if min(height, width) >= 61 else 2.01
    assert np.abs(pixels(spec, shown[None]) - rows_first(spec, shown)).max() < bound


@fewer
@given(
    st.integers(300, 700), st.integers(300, 700), st.sampled_from(["bilinear", "bicubic"]),
    st.sampled_from([((256,), (224, 224)), ((224,), (224, 200)), ((48, 80), (48, 80))]),
)  # fmt: skip
def test_images_of_usual_sizes_look_as_the_runtime_makes_them(height, width, interpolation, sizes):
    spec = Preprocess(size=sizes[1], resize=sizes[0], interpolation=interpolation)
    shown = make_image(height, width)[None]
    difference = np.abs(pixels(spec, shown) - expected(spec, shown))
    if interpolation == "bilinear":
        assert difference.max() < 1.01
    # Pillow 13 resizes along columns first if the height shrinks by far more; where a filter
    # overshoots, clipping in between then falls elsewhere: on noise, the worst of images, for
    # some percent of the pixels.
    assert (difference > 1.01).mean() < 5e-2
    assert difference.mean() < 0.5


@pytest.mark.parametrize(
    ("resize", "size"),
    [
        ((50,), (64, 64)),  # the crop is larger: a border
        ((50,), (77, 31)),  # a border above and below, a cut left and right
        ((51,), (50, 44)),  # odd margins
        ((), (40, 40)),  # no resize, crop alone
        ((), (401, 402)),  # no resize, border alone
        ((48, 80), (48, 80)),  # squash
    ],
)
@pytest.mark.parametrize("shape", [(301, 402), (402, 301), (97, 99), (1, 1), (1, 300), (300, 1)])
def test_crops_borders_and_squashes_lie_as_the_runtime_places_them(resize, size, shape):
    spec = Preprocess(size=size, resize=resize)
    shown = make_image(*shape)[None]
    assert np.abs(pixels(spec, shown) - expected(spec, shown)).max() < 1.01


def test_every_image_of_a_batch_is_seen_by_itself():
    spec = Preprocess(size=(32, 32), resize=(40,))
    several = np.stack([make_image(90, 70), 255 - make_image(90, 70)])
    each = np.concatenate([pixels(spec, several[:1]), pixels(spec, several[1:])])
    np.testing.assert_array_equal(pixels(spec, several), each)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("shape", [(301, 402), (402, 301), (20, 30), (1, 1), (2, 700)])
@pytest.mark.parametrize("size", [(32, 32), (64, 20)])
def test_known_size_gives_what_any_size_gives(interpolation, shape, size):
    spec = Preprocess(size=size, resize=(40,), interpolation=interpolation)
    shown = make_image(*shape)[None]
    np.testing.assert_allclose(viewed(spec, shown, shape), viewed(spec, shown), atol=2e-2)


def test_nearest_cannot_be_embedded():
    with pytest.raises(ExportError, match="nearest"):
        check_embeddable(Preprocess(size=(32, 32), resize=(40,), interpolation="nearest"))


@pytest.mark.parametrize("options", [{"letterbox": Letterbox()}, {"antialias": False}])
def test_letterboxes_and_resizes_as_opencvs_cannot_be_embedded(options):
    resize = () if "letterbox" in options else (32, 32)
    with pytest.raises(ExportError, match="without --embed-preprocess"):
        check_embeddable(Preprocess(size=(32, 32), resize=resize, **options))
