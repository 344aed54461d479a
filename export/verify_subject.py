"""Describe an explaining graph that is verified, at each size, and draw images for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..runtime import cam
from ..runtime.comparison import (
    EXPORT,
    EXPORT_OF_HALF,
    Tolerances,
)
from ..runtime.engines import selftest
from ..runtime.manifest import Manifest
from ..runtime.pixels import read_pixels
from ..runtime.preprocess import arrange, crop_resized
from .attention import AttentionMaps
from .dims import CLASSES, lengths_at
from .original_model import OriginalModel
from .plain_model import PlainModel
from .references import Floats, Reference
from .tensors import Tensor

OUTPUTS_OF_ATTENTION = ("attention_maps", "attention_gradients")


class Runner(Protocol):
    """Runs an explaining graph with all outputs that were added."""

    def run(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Compute outputs by contract name, for ``image`` and ``target``."""
        ...

    def run_original_outputs(self, image: NDArray[Any]) -> list[NDArray[Any]]:
        """Compute the outputs that the file had before."""
        ...


@dataclass(frozen=True)
class AttentionReference:
    """The attention whose maps are explained, and the original network from these maps on."""

    attention: AttentionMaps
    reference: Reference


@dataclass(frozen=True)
class Subject:
    """An explaining graph and the references to compare it with.

    Attributes:
        engine: runs the graph.
        manifest: of the file.
        outputs: contract names and shapes of all outputs, without batch; None is k.
        reference: the original network.
        size: (H, W) of the network's input.
        original: the model before anything was added.
        earlier: references for each fused layer.
        attention: reference for the method ``legrad``; None without it.
    """

    engine: Runner
    manifest: Manifest
    outputs: Mapping[str, tuple[int | None, ...]]
    reference: Reference
    size: tuple[int, int]
    original: OriginalModel | None = None
    earlier: tuple[Reference, ...] = ()
    attention: AttentionReference | None = None

    @property
    def tolerance(self) -> Tolerances:
        """The allowed differences; larger where the network computes in half precision."""
        return EXPORT if self.manifest.precision == "fp32" else EXPORT_OF_HALF


def draw_random_fields(
    rng: np.random.Generator, batch: int, size: tuple[int, int], channels: int = 3
) -> NDArray[np.float32]:
    """Draw coarse structure with fine noise, like normalised images: float32 [batch, C, H, W]."""
    coarse = np.asarray(cam.resize(rng.standard_normal((batch, channels, 8, 8)), size))
    noise = rng.standard_normal((batch, channels, *size))
    return (1.2 * coarse + 0.3 * noise).astype(np.float32)


def draw_natural_images(rng: np.random.Generator, batch: int, manifest: Manifest) -> NDArray[Any]:
    """Draw random images as the graph takes them, with the mean and spread of natural ones."""
    spec = manifest.preprocess
    if manifest.embedded_preprocess:
        size = selftest.make_input(manifest, 0).shape[1:3]
        pixels = np.clip(128 + 50 * draw_random_fields(rng, batch, size), 0, 255)
        return np.moveaxis(pixels, 1, -1).astype(np.uint8)
    fields = draw_random_fields(rng, batch, spec.size, spec.channels)
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    if spec.accepts_rgb or spec.value_range is None or set(spec.std) == {1.0}:
        image = (np.clip(0.45 + 0.22 * fields, 0, 1) - mean) / std
    else:  # of other images only the normalisation says how they are spread
        image = fields
    if manifest.image_dtype == "uint8":
        image = np.round(image)
    if manifest.layout == "NHWC":
        image = np.moveaxis(image, 1, -1)
    return np.ascontiguousarray(image.astype(manifest.image_dtype))


def rows_of_classes(
    outputs: Mapping[str, NDArray[Any]], view: NDArray[Any], name: str = "activations"
) -> tuple[Floats, NDArray[np.int64], NDArray[Any]]:
    """Repeat activations (float64) and images for each explained class; with the classes."""
    targets = np.asarray(outputs["targets"])
    activations = np.asarray(outputs[name], np.float64)
    count = targets.shape[1]
    return np.repeat(activations, count, axis=0), targets.ravel(), np.repeat(view, count, axis=0)


def prepare_image(path: str | os.PathLike[str], manifest: Manifest) -> NDArray[Any]:
    """Read an image as the graph takes it, [1, ...]."""
    image = read_pixels(path, manifest.preprocess)
    if manifest.embedded_preprocess:
        return image[None]
    return np.ascontiguousarray(
        arrange(crop_resized(image, manifest.preprocess)[0][None], manifest)
    ).astype(manifest.image_dtype)


def subjects_of_all_sizes(
    subject: Subject, plain: PlainModel, tensors: dict[str, Tensor]
) -> list[Subject]:
    """List a graph for each size at which it is compared: its own, or three where it takes many.

    Args:
        subject: the graph; ``manifest`` describes it for all sizes.
        plain: the network.
        tensors: the graph's outputs by contract name.
    """
    subjects = []
    for lengths in [plain.shapes.one] if plain.sizes is None else plain.sizes.checked:
        height, width = lengths_at(plain.input_dims, lengths)
        known = {**lengths, "C": subject.manifest.num_classes}
        outputs = {
            name: tuple(
                None if side == CLASSES else lengths_at([side], known)[0]
                for side in tensor.shape[1:]
            )
            for name, tensor in tensors.items()
        }
        manifest = subject.manifest.at((height, width))
        subjects.append(replace(subject, manifest=manifest, outputs=outputs, size=(height, width)))
    return subjects
