"""Check an engine's answers against the export's reference answers, with no torch at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import cam
from ..comparison import ENGINE, ENGINE_REDUCED, Comparison, Tolerances, summarise
from ..input_format import Preprocess
from ..manifest import Manifest
from ..manifest_parts import Reference
from ..pixels import Pixels
from ..preprocess import arrange
from ..similarity import largest_difference
from ..targets import most_probable
from .base import Engine, Precision
from .prompted import with_examples

PATTERNS = 2


_SHAKES = 4
_CONSTANT = 1e-5  # range of a map's values as a share of the largest
_CANCELLED = 1e-4  # range of a map's values as a share of its terms; float32 rounds 1e-6 of these
_SMALLEST = 1e-12  # of sums that a quotient may have


def tolerances_of(manifest: Manifest, precision: Precision = "fp32") -> Tolerances:
    """Choose the tolerances for a file in an engine that computes in ``precision``."""
    return ENGINE if (manifest.precision, precision) == ("fp32", "fp32") else ENGINE_REDUCED


def wave_pattern(index: int, size: tuple[int, int], channels: int = 3) -> NDArray[np.float32]:
    """Make a test image, the same on every machine: float32 [C, H, W], as if normalised.

    Smooth waves with edges, different in each channel and for each index; the mean is near 0 and
    the standard deviation near 1.
    """
    height, width = size
    y, x = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    planes = []
    for channel in range(channels):
        turn = 1.3 * index + 0.7 * channel
        waves = np.sin(6.3 * (x * (2 + index) + y) + turn) + np.cos(9.1 * (y - x * x) - turn)
        blob = (x - 0.3 - 0.3 * index) ** 2 + (y - 0.45) ** 2 < 0.04 * (1 + channel)
        planes.append(0.7 * waves + 1.5 * blob - 0.4)
    return np.stack(planes).astype(np.float32)


def make_input(manifest: Manifest, index: int) -> NDArray[Any]:
    """Make a test pattern as the graph takes it, [1, *manifest.image_shape].

    Of the usual size where the graph takes several; see ``Manifest.at`` for others.
    """
    height, width = manifest.preprocess.size
    if not manifest.embedded_preprocess:
        return _input(manifest, index)[None]
    # Larger than the input, and of another shape, so that resize and crop have work to do.
    size = manifest.source_size or (height * 5 // 4 + 1, width * 3 // 2 + 1)
    return make_pattern(index, size, manifest.preprocess)[None]


def _input(manifest: Manifest, index: int) -> NDArray[Any]:
    """Make a test pattern as an input without preprocessing in the graph."""
    spec = manifest.preprocess
    if manifest.image_type == "uint8":
        return arrange(make_pattern(index, spec.size, spec), manifest)
    # In the range that the network was trained in: as an image's pixels are spread.
    mean, spread = (np.reshape(values, (-1, 1, 1)) for values in pixel_statistics(spec))
    pixels = mean + spread * wave_pattern(index, spec.size, spec.channels).astype(np.float64)
    own_mean, own_std = (np.reshape(values, (-1, 1, 1)) for values in (spec.mean, spec.std))
    planes = (pixels - own_mean) / own_std
    if manifest.image_type == "float16":
        planes = planes.astype(np.float16)
    planes = planes if manifest.layout == "NCHW" else np.moveaxis(planes, 0, -1)
    return np.ascontiguousarray(planes, np.float32)


_GREY = (0.449,), (0.226,)
# Mean and standard deviation of ImageNet's pixels in [0, 1], channel by channel.
_NATURAL_IMAGES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "RGB": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "BGR": ((0.406, 0.456, 0.485), (0.225, 0.224, 0.229)),
    "L": _GREY,
}


def pixel_statistics(spec: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of natural images by channel, for values in [0, 1].

    ImageNet's for colours and grey; of other images what normalisation says of them, where it does.
    """
    if spec.accepts_rgb:
        return _NATURAL_IMAGES[spec.color]
    if spec.value_range is not None and set(spec.std) != {1.0}:
        return spec.mean, spec.std
    return _GREY[0] * spec.channels, _GREY[1] * spec.channels


def make_pattern(index: int, size: tuple[int, int], spec: Preprocess) -> Pixels:
    """Make a test pattern as an image of (h, w) pixels, as ``read_pixels`` returns it.

    uint8 [h, w, 3], RGB, wherever the network takes that.
    """
    if spec.accepts_rgb or spec.value_range is None:
        waves = wave_pattern(index, size, 3 if spec.accepts_rgb else spec.channels)
        pixels = np.clip(128 + 50 * waves, 0, 255)
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1).astype(np.uint8))
    low, high = spec.value_range
    mean, spread = (np.asarray(values) for values in pixel_statistics(spec))
    waves = np.moveaxis(wave_pattern(index, size, spec.channels), 0, -1)
    return (low + (high - low) * (mean + spread * waves)).astype(np.float32)


def method_of(manifest: Manifest) -> cam.Method:
    """Name the method of the references' maps."""
    return manifest.map_method or "gradcam"


def reference_map(
    method: cam.Method, activations: Any, gradients: Any, weights: Any | None = None
) -> Any:
    """Make a raw map a reference: all zero where its sums cancel, so engines may differ.

    Args and returns: as `cam.raw_map`, of one image and class.
    """
    raw = cam.raw_map(method, activations, gradients, weights)
    largest = absolute_map(method, activations, gradients, weights).max()
    return raw if raw.max() - raw.min() > _CANCELLED * largest else 0.0 * raw


def absolute_map(
    method: cam.Method, activations: Any, gradients: Any, weights: Any | None = None
) -> Any:
    """Sum the absolute terms of a raw map: float32 rounding is a share of these.

    Args and returns: as `cam.raw_map`.
    """
    sizes, slopes = abs(activations), abs(gradients)
    if method == "xgradcam":  # its weights are divided by sums that may cancel themselves
        sums = np.maximum(abs(activations.sum((-2, -1))), _SMALLEST)
        cancellation = sizes.sum((-2, -1)) / sums
        terms = cam.channel_weights(method, sizes, slopes)
        alpha = abs(cam.channel_weights(method, activations, gradients))
        weights = cancellation[:, None] * (terms + alpha)
    return cam.raw_map(method, sizes, slopes, None if weights is None else abs(weights))


def check(
    engine: Engine, manifest: Manifest, allowed: Tolerances | None = None
) -> list[Comparison]:
    """Run the test patterns and compare with the manifest's references, one after the other.

    Args:
        engine: with the file open.
        manifest: of the file; where it takes class embeddings, the references' examples are fed.
        allowed: by default what ``tolerances_of`` says.

    Returns:
        One comparison a reference. ``lead``: of the most probable class over the reference's;
        ``probabilities``: of the reference's class, as a share of its value where that is above 1;
        ``maps``: the largest absolute difference of a pixel of the finished map.
    """
    limits = tolerances_of(manifest) if allowed is None else allowed
    engine = with_examples(engine, manifest)
    return [
        summarise(
            f"the file's reference answer for test pattern {reference.pattern}",
            [_differences(engine, manifest, reference)],
            limits,
        )
        for reference in manifest.references
    ]


def make_references(engine: Engine, manifest: Manifest) -> tuple[Reference, ...]:
    """Make references of an engine's own answers; none where raw outputs make no maps."""
    if "raw" not in manifest.outputs or manifest.fused_layers:
        return ()
    if method_of(manifest) not in cam.ACTIVATION_METHODS:
        return ()
    engine = with_examples(engine, manifest)
    found = []
    for index in range(PATTERNS):
        feeds = {"image": make_input(manifest, index), "target": np.full((1, 1), -1, np.int64)}
        method = method_of(manifest)
        names = ["probabilities", "targets", "activations", "gradients"]
        own = engine.run(feeds, [*names, *(["ablation_weights"] if method == "ablation" else [])])
        weights = own.get("ablation_weights")
        raw = reference_map(method, own["activations"], own["gradients"], weights)
        target = int(own["targets"][0, 0])
        found.append(
            Reference(
                pattern=index,
                target=target,
                probability=float(own["probabilities"][0, target]),
                raw_map=tuple(float(f"{value:.7g}") for value in raw.ravel()),
            )
        )
    return tuple(found)


def sensitivity(engine: Engine, manifest: Manifest, reference: Reference) -> dict[str, float]:
    """Measure how much an engine's answer changes when a test pattern hardly changes.

    By a millionth, or where the graph takes uint8 images, by one step in one pixel of a thousand;
    the worst of a few such changes. As much as two engines differ by, where single roundings decide
    a network's answers.

    Returns:
        ``probabilities`` and ``maps``, see ``check``.
    """
    manifest = manifest.at(reference.size)
    engine = with_examples(engine, manifest)
    image = make_input(manifest, reference.pattern)
    row, maps = _answer(engine, manifest, image, reference.target)
    rng = np.random.default_rng(0)
    scale = max(1.0, abs(reference.probability))
    worst = {"probabilities": 0.0, "maps": 0.0}
    for _ in range(_SHAKES):
        if image.dtype == np.uint8:
            moved = image ^ (rng.random(image.shape) < 1e-3).astype(np.uint8)
        else:
            step = 1e-6 * max(1.0, float(image.std()))
            moved = image + (step * rng.standard_normal(image.shape)).astype(np.float32)
        other, other_maps = _answer(engine, manifest, moved, reference.target)
        apart = float(abs(other - row)[reference.target]) / scale
        worst["probabilities"] = max(worst["probabilities"], apart)
        worst["maps"] = max(worst["maps"], largest_difference(other_maps, maps))
    return worst


def _answer(
    engine: Engine, manifest: Manifest, image: NDArray[Any], target: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run one image: probabilities [C] and the finished map [1, 1, H, W]."""
    # Of a graph that takes no class, the most probable one, which the reference is of.
    wanted = target if manifest.top is None else -1
    feeds = {"image": image, "target": np.array([[wanted]], np.int64)}
    name = None if manifest.map_method is None else manifest.map_output(manifest.map_method)
    if name is not None:
        found = engine.run(feeds, ["probabilities", name])
        return found["probabilities"][0], found[name]
    found = engine.run(feeds, ["probabilities", "activations", "gradients"])
    raw = cam.raw_map("gradcam", found["activations"], found["gradients"])
    return found["probabilities"][0], cam.finish(raw, manifest.preprocess.size)


def _differences(engine: Engine, manifest: Manifest, reference: Reference) -> dict[str, float]:
    manifest = manifest.at(reference.size)
    row, maps = _answer(engine, manifest, make_input(manifest, reference.pattern), reference.target)
    expected = np.asarray(reference.raw_map, np.float32).reshape(1, 1, *manifest.map_shape)
    # Stretched to [0, 1], a map that is constant up to rounding is rounding alone.
    is_constant = np.ptp(expected) <= _CONSTANT * np.abs(expected).max()
    finished = cam.finish(expected, manifest.preprocess.size)
    scale = max(1.0, abs(reference.probability))
    return {
        "lead": float(row[most_probable(row[None], manifest)[0]] - row[reference.target]) / scale,
        "probabilities": float(abs(row[reference.target] - reference.probability)) / scale,
        "maps": 0.0 if is_constant else largest_difference(maps, finished),
    }
