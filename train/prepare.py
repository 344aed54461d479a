"""Compute, once for each image, the arrays that stay the same throughout training."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime import pipeline
from ..runtime.cam import Method
from ..runtime.errors import ImageError
from ..runtime.explainer import Explainer
from ..runtime.input_format import BYTE_RANGE, Preprocess
from ..runtime.pipeline import infer, threshold
from ..runtime.pixels import Pixels, pixel_format, read_pixels
from ..runtime.preprocess import Placement, crop_resized, in_color
from ..runtime.request import plan_request
from ..runtime.tft import Tft
from ..runtime.timing import Tick
from .cache import Cache
from .guides import CELLS, Guides
from .network import TunableNetwork
from .task_losses import probabilities_of

_BATCH = 16


def layout(
    tunable: TunableNetwork, spec: Preprocess, names: Iterable[str]
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of the cached arrays of an image, by name.

    Args:
        tunable: the network.
        spec: its preprocessing.
        names: of the arrays: ``target`` (the class explained), ``probabilities``,
            ``features`` (the output of the frozen part), ``image`` (resized and cropped),
            ``mask`` (M*), ``inside`` and ``avoid`` (regions, see ``guides``).
    """
    channels, pixel_type = pixel_format(spec)
    rows: dict[str, tuple[tuple[int, ...], str]] = {
        "target": ((), "int64"),
        "probabilities": ((tunable.num_classes,), "float16"),
        "features": (tunable.feature_shape, "float16"),
        "image": ((*tunable.size, channels), pixel_type),
        "mask": (tunable.map_size, "float16"),
        "inside": (guide_size(tunable), "float16"),
        "avoid": (guide_size(tunable), "float16"),
    }
    return {name: rows[name] for name in rows if name in set(names)}


def guide_size(tunable: TunableNetwork) -> tuple[int, int]:
    """Return (h, w), the number of cells of a guide."""
    height, width = tunable.map_size
    return CELLS * height, CELLS * width


@dataclass(frozen=True)
class RowComputer:
    """Computes the rows of a cache.

    Attributes:
        tunable: the network before training.
        spec: its preprocessing.
        device: that it runs on.
        method: of the masks.
        tft: the reading of TFT that masks are computed in.
        explainer: of the same network, if masks are needed.
        guides: the images' regions, by the name of their array.
        labels: classes of the images, -1 where unknown, if there are guides.
        present: of independent labels those that each image has. The most probable of them is
            explained; the most probable of all, where an image has none.
    """

    tunable: TunableNetwork
    spec: Preprocess
    device: torch.device
    method: Method = "gradcam"
    tft: Tft | None = None
    explainer: Explainer | None = None
    guides: Mapping[str, Guides] = field(default_factory=dict)
    labels: Sequence[int] = ()
    present: Sequence[Sequence[int]] = ()

    def fill(
        self,
        cache: Cache,
        paths: Sequence[Path],
        share: tuple[int, int] = (0, 1),
        tick: Tick | None = None,
    ) -> None:
        """Compute the missing chunks.

        Args:
            cache: with rows from ``layout``.
            paths: one image an item of the cache.
            share: (rank, world): chunks are dealt out to processes.
            tick: called with (text, images done).

        Raises:
            OutputError: the disk is full.
        """
        for index, items in cache.missing(*share):
            errors: dict[int, str] = {}
            parts: list[dict[str, NDArray[Any]]] = []
            for start in range(0, len(items), _BATCH):
                batch = items[start : start + _BATCH]
                read = read_views([paths[item] for item in batch], self.spec)
                errors.update({batch[i]: why for i, why in read.errors.items()})
                present = [self.present[item] for item in batch] if self.present else None
                rows = self.rows(read.views, cache.layout, present)
                parts.append(rows | self._regions(batch, read.placements, rows["target"]))
                if tick is not None:
                    tick("reading images", len(batch))
            arrays = {name: np.concatenate([part[name] for part in parts]) for name in cache.layout}
            cache.write(index, arrays, errors)

    def _regions(
        self,
        items: Sequence[int],
        placements: Sequence[Placement | None],
        predicted: NDArray[Any],
    ) -> dict[str, NDArray[Any]]:
        """Compute the regions of images: of their label's boxes, or of the predicted class."""
        classes = [
            self.labels[item] if self.labels and self.labels[item] >= 0 else int(likely)
            for item, likely in zip(items, predicted, strict=True)
        ]
        size = guide_size(self.tunable)
        return {
            name: np.stack(
                [
                    guides.row(item, placement, target if name == "inside" else None, size)
                    for item, placement, target in zip(items, placements, classes, strict=True)
                ]
            )
            for name, guides in self.guides.items()
        }

    @torch.no_grad()
    def rows(
        self,
        views: Pixels,
        names: Container[str],
        present: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Compute the rows of images from ``read_views``; of ``present`` see the attribute."""
        image = to_input(views, self.spec, self.device)
        features = self.tunable.below(image)
        _, logits = self.tunable(features)
        target = _choose_targets(logits, present)
        rows: dict[str, NDArray[Any]] = {
            "target": target.cpu().numpy(),
            "probabilities": probabilities_of(self.tunable.task, logits).cpu().numpy(),
            "features": features.cpu().numpy(),
            "image": views,
        }
        if "mask" in names:
            assert self.explainer is not None
            assert self.tft is not None
            normalised = image.contiguous().cpu().numpy()
            size = self.tunable.map_size
            rows["mask"] = compute_best_masks(
                self.explainer, self.method, self.tft, normalised, rows["target"], size
            )
        return rows


def _choose_targets(logits: torch.Tensor, present: Sequence[Sequence[int]] | None) -> torch.Tensor:
    """Choose the class to explain in each image, int64 [N]."""
    if present is None:
        return logits.argmax(-1)
    allowed = torch.zeros_like(logits, dtype=torch.bool)
    for row, indices in zip(allowed, present, strict=True):
        row[list(indices)] = True
    allowed |= ~allowed.any(-1, keepdim=True)
    return logits.masked_fill(~allowed, -torch.inf).argmax(-1)


@dataclass(frozen=True)
class Views:
    """What the network sees of some images.

    Attributes:
        views: [N, H, W, C]; all zero where an image cannot be read.
        placements: where they lie in their images; None where one cannot be read.
        errors: why images cannot be read, by index.
    """

    views: Pixels
    placements: tuple[Placement | None, ...]
    errors: dict[int, str]


def read_views(paths: Sequence[Path], spec: Preprocess) -> Views:
    """Read, resize and crop images."""
    channels, pixel_type = pixel_format(spec)
    views = np.zeros((len(paths), *spec.size, channels), pixel_type)
    placements: list[Placement | None] = []
    errors = {}
    for index, path in enumerate(paths):
        try:
            views[index], placement = crop_resized(read_pixels(path, spec), spec)
        except ImageError as error:
            errors[index] = str(error)
            placement = None
        placements.append(placement)
    return Views(views, tuple(placements), errors)


def to_input(views: Pixels, spec: Preprocess, device: torch.device) -> torch.Tensor:
    """Convert views [N, H, W, C] to normalised float32 [N, C, H, W] in the network's order."""
    colored = np.ascontiguousarray(in_color(views, spec.color))
    low, high = spec.value_range or BYTE_RANGE
    pixels = torch.from_numpy(colored).to(device).permute(0, 3, 1, 2).float()
    pixels = (pixels - low) / (high - low)
    mean = torch.tensor(spec.mean, device=device)[:, None, None]
    std = torch.tensor(spec.std, device=device)[:, None, None]
    # On a CPU this layout makes depthwise convolutions half again as fast.
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def compute_best_masks(
    explainer: Explainer,
    method: Method,
    settings: Tft,
    images: NDArray[np.float32],
    target: NDArray[np.int64],
    size: tuple[int, int],
) -> NDArray[np.float32]:
    """Compute M* of each image (paper equation 8), pooled to the activations' size, [N, h, w]."""
    # Not by TFT inside the graph, which may have another reading.
    plan = plan_request(explainer.manifest, method, settings, sweep_outside=True)
    inference = infer(explainer.model, images, target[:, None].tolist(), plan)
    maps = pipeline.map(explainer.model, inference, plan)
    choices = threshold(explainer.model, inference, maps, plan)
    masks = torch.from_numpy(np.stack([choice.mask for choice in choices if choice is not None]))
    pooled = torch.nn.functional.adaptive_avg_pool2d(masks[:, None], size)
    return np.asarray(pooled[:, 0].numpy())
