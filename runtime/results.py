"""Write many explanations as data: a CSV table, JSON lines, COCO annotations."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from .attribution import Attribution
from .files import replacing
from .manifest import Manifest

Table = Literal["csv", "jsonl", "coco"]
TABLES: tuple[Table, ...] = get_args(Table)
TABLE_FILES: dict[Table, str] = {
    "csv": "explanations.csv",
    "jsonl": "explanations.jsonl",
    "coco": "explanations.coco.json",
}
# Takes an image's name and its explanation, or why there is none.
Add = Callable[[str, "Attribution | str"], None]

COLUMNS = (
    "file", "height", "width", "method", "index", "label", "probability", "tft", "threshold",
    "rpi", "improved", "masked_probability", "left", "top", "right", "bottom", "area", "share",
    "error",
)  # fmt: skip


def to_record(name: str, explanation: Attribution) -> dict[str, Any]:
    """Collect an explanation's numbers, its region and the most probable classes for JSON.

    Args:
        name: of the image.
        explanation: of it.

    Returns:
        ``file``, ``to_dict()``, ``top`` and ``region``: area, share, box (left, top, right,
        bottom), polygons.
    """
    region = explanation.region
    return {
        "file": name,
        **explanation.to_dict(),
        "top": [one._asdict() for one in explanation.top],
        "region": {
            "area": region.area,
            "share": region.share,
            "box": region.box,
            "polygons": [
                {
                    "exterior": polygon.exterior.tolist(),
                    "holes": [hole.tolist() for hole in polygon.holes],
                }
                for polygon in region.polygons
            ],
        },
    }


def to_row(name: str, explanation: Attribution) -> dict[str, Any]:
    """Collect an explanation's numbers for one row of a table with ``COLUMNS``.

    Where no threshold of TFT helps, ``threshold`` is ``none``; cells that do not apply are empty.
    """
    region, rpi = explanation.region, explanation.rpi
    height, width = explanation.placement.image
    row: dict[str, Any] = {
        "file": name,
        "height": height,
        "width": width,
        "method": explanation.method,
        "index": explanation.index,
        "label": explanation.label,
        "probability": explanation.probability,
        "threshold": explanation.threshold,
        "area": region.area,
        "share": round(region.share, 6),
    }
    if region.box is not None:
        row |= dict(zip(("left", "top", "right", "bottom"), region.box, strict=True))
    if explanation.tft is not None and rpi is not None:
        row |= {
            "tft": explanation.tft.reading,
            "threshold": "none" if explanation.threshold is None else explanation.threshold,
            "rpi": float(np.nanmax(rpi)),
            "improved": explanation.improved,
            "masked_probability": explanation.masked_probability,
        }
    return row


def _error_or(
    convert: Callable[[str, Attribution], dict[str, Any]], name: str, found: Attribution | str
) -> dict[str, Any]:
    if isinstance(found, str):
        return {"file": name, "error": found}
    return convert(name, found)


@contextmanager
def csv_writer(target: Path, overwrite: bool = False) -> Iterator[Add]:
    """Write a table with ``COLUMNS``, a row for each explanation; whole or not at all.

    Raises:
        OutputError: the file exists and may not be overwritten, or cannot be written.
    """
    with (
        replacing(target, overwrite) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()

        def add(name: str, explanation: Attribution | str) -> None:
            writer.writerow(_error_or(to_row, name, explanation))

        yield add


@contextmanager
def jsonl_writer(target: Path, overwrite: bool = False) -> Iterator[Add]:
    """Write a line of JSON for each explanation, see ``to_record``; whole or not at all.

    Raises:
        OutputError: the file exists and may not be overwritten, or cannot be written.
    """
    with (
        replacing(target, overwrite) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):

        def add(name: str, explanation: Attribution | str) -> None:
            record = _error_or(to_record, name, explanation)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

        yield add


@contextmanager
def coco_writer(target: Path, manifest: Manifest, overwrite: bool = False) -> Iterator[Add]:
    """Write COCO annotations: a region for each explanation; whole or not at all.

    A region without holes is written as polygons. Polygons of COCO have no holes: a region with
    holes is written as uncompressed run lengths. Beside COCO's fields an annotation has ``score``,
    the probability, and ``method``. Categories are the classes of the network, by their index.

    Raises:
        OutputError: the file exists and may not be overwritten, or cannot be written.
    """
    with replacing(target, overwrite) as temporary:
        images: dict[str, dict[str, Any]] = {}
        annotations: list[dict[str, Any]] = []

        def add(name: str, explanation: Attribution | str) -> None:
            if isinstance(explanation, str):
                return
            height, width = explanation.placement.image
            image = {"id": len(images) + 1, "file_name": name, "height": height, "width": width}
            image = images.setdefault(name, image)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], **_annotation(explanation)}
            )

        yield add
        categories = [
            {"id": index, "name": manifest.label(index)} for index in range(manifest.num_classes)
        ]
        document = {
            "images": list(images.values()),
            "annotations": annotations,
            "categories": categories,
        }
        temporary.write_text(json.dumps(document), encoding="utf-8")


def _annotation(explanation: Attribution) -> dict[str, Any]:
    region = explanation.region
    left, top, right, bottom = region.box or (0, 0, 0, 0)
    segmentation: Any = [polygon.exterior.ravel().tolist() for polygon in region.polygons]
    if any(polygon.holes for polygon in region.polygons):
        segmentation = {"counts": region.runs, "size": list(region.mask.shape)}
    return {
        "category_id": explanation.index,
        "bbox": [left, top, right - left, bottom - top],
        "area": region.area,
        "segmentation": segmentation,
        "iscrowd": 0,
        "score": explanation.probability,
        "method": explanation.method,
    }


@contextmanager
def table_writers(
    targets: dict[Table, Path], manifest: Manifest, overwrite: bool = False
) -> Iterator[Add]:
    """Write several of ``TABLES`` at once.

    Args:
        targets: where each is written.
        manifest: of the network.
        overwrite: whether older files are replaced.

    Raises:
        OutputError: a file exists and may not be overwritten, or cannot be written.
    """
    with ExitStack() as stack:
        adds: list[Add] = []
        for kind, target in targets.items():
            if kind == "csv":
                adds.append(stack.enter_context(csv_writer(target, overwrite)))
            elif kind == "jsonl":
                adds.append(stack.enter_context(jsonl_writer(target, overwrite)))
            else:
                adds.append(stack.enter_context(coco_writer(target, manifest, overwrite)))

        def add(name: str, explanation: Attribution | str) -> None:
            for each in adds:
                each(name, explanation)

        yield add
