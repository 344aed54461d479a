"""Write many explanations as data: a CSV table, JSON lines, COCO annotations."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class NoDetection:
    """An image in which a detector found nothing.

    Attributes:
        height, width: in pixels.
    """

    height: int
    width: int


# What is said of an image: an explanation, that there is nothing to explain, or why it cannot be.
Result = Attribution | NoDetection | str
# Takes an image's name and what is said of it.
Add = Callable[[str, Result], None]

COLUMNS = (
    "file", "height", "width", "method", "index", "label", "probability", "tft", "threshold",
    "rpi", "improved", "masked_probability", "left", "top", "right", "bottom", "area", "share",
    "error",
)  # fmt: skip
# Of detectors; ``left`` to ``bottom`` are of the region there as well. A row without a label is an
# image without detections.
DETECTION_COLUMNS = (
    "file", "height", "width", "method", "index", "label", "score", "candidate", "edge",
    "box_left", "box_top", "box_right", "box_bottom", *COLUMNS[COLUMNS.index("tft"):],
)  # fmt: skip


def to_record(name: str, explanation: Attribution) -> dict[str, Any]:
    """Collect an explanation's numbers, its region and the most probable classes for JSON.

    Args:
        name: of the image.
        explanation: of it.

    Returns:
        ``file``, ``to_dict()``, ``top`` (not of a detection) and ``region``: area, share, box
        (left, top, right, bottom), polygons.
    """
    region = explanation.region
    top = {"top": [one._asdict() for one in explanation.top]} if explanation.box is None else {}
    return {
        "file": name,
        **explanation.to_dict(),
        **top,
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
    """Collect the numbers for one row with ``COLUMNS``, of a detection ``DETECTION_COLUMNS``.

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
        "probability" if explanation.box is None else "score": explanation.probability,
        "threshold": explanation.threshold,
        "area": region.area,
        "share": round(region.share, 6),
    }
    if explanation.box is not None:
        row |= {"candidate": explanation.candidate, "edge": explanation.edge}
        row |= {f"box_{side}": value for side, value in explanation.box._asdict().items()}
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


def _convert(
    convert: Callable[[str, Attribution], dict[str, Any]], name: str, found: Result
) -> dict[str, Any]:
    if isinstance(found, str):
        return {"file": name, "error": found}
    if isinstance(found, NoDetection):
        return {"file": name, "height": found.height, "width": found.width}
    return convert(name, found)


@contextmanager
def csv_writer(target: Path, manifest: Manifest, overwrite: bool = False) -> Iterator[Add]:
    """Write a table with a row for each explanation, see ``to_row``; whole or not at all.

    Raises:
        OutputError: the file exists and may not be overwritten, or cannot be written.
    """
    with (
        replacing(target, overwrite) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        columns = COLUMNS if manifest.detector is None else DETECTION_COLUMNS
        writer = csv.DictWriter(file, columns)
        writer.writeheader()

        def add(name: str, explanation: Result) -> None:
            writer.writerow(_convert(to_row, name, explanation))

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

        def add(name: str, explanation: Result) -> None:
            record = _convert(to_record, name, explanation)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

        yield add


@contextmanager
def coco_writer(target: Path, manifest: Manifest, overwrite: bool = False) -> Iterator[Add]:
    """Write COCO annotations: a region for each explanation; whole or not at all.

    The box of a detection is the object's, and its segmentation the region that explains it.

    A region without holes is written as polygons. Polygons of COCO have no holes: a region with
    holes is written as uncompressed run lengths. Beside COCO's fields an annotation has ``score``,
    the probability, and ``method``. Categories are the classes of the network, by their index.

    Raises:
        OutputError: the file exists and may not be overwritten, or cannot be written.
    """
    with replacing(target, overwrite) as temporary:
        images: dict[str, dict[str, Any]] = {}
        annotations: list[dict[str, Any]] = []

        def add(name: str, explanation: Result) -> None:
            if isinstance(explanation, str):
                return
            if isinstance(explanation, NoDetection):
                height, width = explanation.height, explanation.width
            else:
                height, width = explanation.placement.image
            image = {"id": len(images) + 1, "file_name": name, "height": height, "width": width}
            image = images.setdefault(name, image)
            if isinstance(explanation, NoDetection):
                return
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
    left, top, right, bottom = explanation.box or region.box or (0, 0, 0, 0)
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
                adds.append(stack.enter_context(csv_writer(target, manifest, overwrite)))
            elif kind == "jsonl":
                adds.append(stack.enter_context(jsonl_writer(target, overwrite)))
            else:
                adds.append(stack.enter_context(coco_writer(target, manifest, overwrite)))

        def add(name: str, explanation: Result) -> None:
            for each in adds:
                each(name, explanation)

        yield add
