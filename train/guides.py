"""Read where in its image an object lies, or what must not matter: boxes or masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..calibrate.coco import find_coco, read_coco
from ..calibrate.dataset import Box, Classes, Dataset, Sample, boxes_of
from ..runtime.errors import DataError
from ..runtime.preprocess import Placement

# Cells of a guide for each place of the target layer, along each axis: maps are finer than places.
CELLS = 4
_PAINTED = 4  # pixels of a cell, along each axis, in which boxes and masks are painted
_NOTHING = -1.0

# Paints the object of a class (None: of any) over a network's view.
Paint = Callable[[Placement, int | None, tuple[int, int]], NDArray[np.float32] | None]


@dataclass(frozen=True)
class Guides:
    """Regions of images.

    Attributes:
        source: where they come from, for people.
        paints: for each image what paints its regions; None where it has none.
    """

    source: str
    paints: tuple[Paint | None, ...]

    def row(
        self, item: int, placement: Placement | None, target: int | None, size: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Return which part of each cell lies in an image's regions.

        Args:
            item: index of the image.
            placement: of the network's view; None where the image cannot be read.
            target: the class whose boxes count; boxes of unknown names count for every class.
            size: (h, w), number of cells.

        Returns:
            float32 [h, w] in [0, 1]; all -1 where the image has no region in the view.
        """
        paint = self.paints[item]
        found = None if paint is None or placement is None else paint(placement, target, size)
        if found is None or not found.any():
            return np.full(size, _NOTHING, np.float32)
        return found


def open_guides(source: str | Path, data: Dataset, classes: Classes) -> Guides:
    """Find the regions of a data set's images.

    Args:
        source: ``auto``: the boxes that the data themselves have; ``voc``: the same; a COCO JSON
            file; or a folder of masks, named as the images are, whose pixels above 0 count.
        data: the images.
        classes: which class the name of a box means.

    Raises:
        DataError: there is no such source, it cannot be read, or no image has any region.
    """
    place = Path(source)
    if str(source) in ("auto", "voc"):
        paints = [_of_annotation(sample, classes) for sample in data.samples]
        if not any(paints):
            raise DataError(
                f"{data.path} has no boxes (of a Pascal VOC folder): name a COCO JSON file, or a "
                "folder of masks named as the images are"
            )
        return Guides("the data's own boxes", tuple(paints))
    if place.is_dir():
        masks = [_find_mask(sample, place) for sample in data.samples]
        named = [mask for mask in masks if mask is not None]
        if named and not any(_read_mask(mask).getbbox() for mask in named):
            raise DataError(
                f"none of the {len(named)} masks of {place} marks anything: pixels above 0 count"
            )
        paints = [None if mask is None else partial(_paint_mask, mask) for mask in masks]
    elif place.is_file():
        boxes = read_coco(place)
        paints = [_of_coco(sample, boxes, classes) for sample in data.samples]
    else:
        raise DataError(f"there is no {place}: give auto, a COCO JSON file, or a folder of masks")
    if not any(paints):
        raise DataError(
            f"{place} has nothing for the {len(data.samples)} images of {data.path}: masks and "
            f"entries are named as the images are, as {data.samples[0].name}"
        )
    return Guides(str(place), tuple(paints))


def _of_annotation(sample: Sample, classes: Classes) -> Paint | None:
    boxes = boxes_of(sample)
    return partial(_paint_boxes, boxes, classes) if boxes else None


def _of_coco(
    sample: Sample, boxes: Mapping[str, tuple[Box, ...]], classes: Classes
) -> Paint | None:
    own = find_coco(sample, boxes)
    return partial(_paint_boxes, own, classes) if own else None


def _find_mask(sample: Sample, folder: Path) -> Path | None:
    for name in (Path(sample.name), Path(sample.path.name)):
        for suffix in (".png", ".bmp", name.suffix):
            if (folder / name.with_suffix(suffix)).is_file():
                return folder / name.with_suffix(suffix)
    return None


def _paint_boxes(
    boxes: Sequence[Box],
    classes: Classes,
    placement: Placement,
    target: int | None,
    size: tuple[int, int],
) -> NDArray[np.float32] | None:
    known = {box.name: classes.index(box.name) for box in boxes}
    if target is not None and any(value is not None for value in known.values()):
        boxes = [box for box in boxes if known[box.name] == target]
    painted = np.zeros((_PAINTED * size[0], _PAINTED * size[1]), np.float32)
    height = placement.bottom - placement.top
    width = placement.right - placement.left
    for box in boxes:
        top, bottom = (
            round((side - placement.top) / height * painted.shape[0])
            for side in (box.top, box.bottom)
        )
        left, right = (
            round((side - placement.left) / width * painted.shape[1])
            for side in (box.left, box.right)
        )
        painted[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = 1
    return _pool(painted, size)


def _read_mask(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return Image.fromarray(np.asarray(image.convert("L")) > 0)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the mask {path}: {error}") from error


def _paint_mask(
    path: Path, placement: Placement, target: int | None, size: tuple[int, int]
) -> NDArray[np.float32] | None:
    del target
    mask = _read_mask(path)
    height, width = placement.image
    # A mask may have another resolution than its image.
    across, down = mask.width / width, mask.height / height
    window = (
        placement.left * across, placement.top * down, placement.right * across,
        placement.bottom * down,
    )  # fmt: skip
    painted = mask.convert("L").transform(
        (_PAINTED * size[1], _PAINTED * size[0]),
        Image.Transform.EXTENT,
        window,
        Image.Resampling.NEAREST,
    )
    return _pool((np.asarray(painted) > 0).astype(np.float32), size)


def _pool(painted: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    cells = painted.reshape(size[0], _PAINTED, size[1], _PAINTED)
    return np.asarray(cells.mean((1, 3)), np.float32)
