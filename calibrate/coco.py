"""Give the images of a data set the boxes of a COCO JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..runtime.errors import DataError
from .dataset import Box, Dataset, Sample


def read_coco(path: Path) -> dict[str, tuple[Box, ...]]:
    """Read the boxes of each image of a COCO JSON file of instances, by the image's file name.

    Images without annotations have no box, and those that the file does not list are not there.
    Crowds (``iscrowd``) are left out, for their boxes hold many objects.

    Raises:
        DataError: it cannot be read as one.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        names = {int(one["id"]): str(one["name"]) for one in document["categories"]}
        files = {one["id"]: str(one["file_name"]) for one in document["images"]}
        found: dict[str, list[Box]] = {name: [] for name in files.values()}
        for one in document["annotations"]:
            if one.get("iscrowd"):
                continue
            left, top, width, height = map(float, one["bbox"])
            box = Box(names[int(one["category_id"])], left, top, left + width, top + height)
            found[files[one["image_id"]]].append(box)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read {path} as COCO's JSON: {error!r}") from error
    return {name: tuple(boxes) for name, boxes in found.items()}


def find_coco(sample: Sample, boxes: Mapping[str, tuple[Box, ...]]) -> tuple[Box, ...] | None:
    """Return an image's boxes by its name in the data set, or its file's; None if unknown."""
    return boxes.get(sample.name, boxes.get(sample.path.name))


def with_coco(data: Dataset, path: Path) -> Dataset:
    """Return a data set whose images have the boxes of a COCO JSON file.

    An image without a label of its own has those of its boxes, as in Pascal VOC.

    Raises:
        DataError: it cannot be read, or names none of the images.
    """
    boxes = read_coco(path)
    samples = []
    for sample in data.samples:
        own = find_coco(sample, boxes)
        labels = sample.labels
        if own is not None and labels is None:
            labels = tuple(sorted({box.name for box in own}))
        samples.append(replace(sample, boxes=own, labels=labels))
    if all(sample.boxes is None for sample in samples):
        known = next(iter(boxes), None)
        raise DataError(
            f"{path} has none of the {len(samples)} images of {data.path}, as "
            f"'{data.samples[0].name}'; it has {len(boxes)}"
            + ("" if known is None else f", as '{known}'")
        )
    return replace(data, samples=tuple(samples))
