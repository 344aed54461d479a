"""List the images of a data set with their labels or boxes: image folder, CSV or Pascal VOC."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from ..runtime.errors import DataError
from ..runtime.images import IMAGE_SUFFIXES, list_images
from .csv_labels import read_csv_labels


@dataclass(frozen=True)
class Box:
    """Bounding box of an object.

    Attributes:
        name: the class name in the data set.
        left, top, right, bottom: in pixels of the image, 0-based, right and bottom exclusive.
    """

    name: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Sample:
    """An image of a data set, with its label or boxes.

    Attributes:
        path: the image file.
        name: unique in its data set.
        labels: as written in the data set, each once; None if it states none; empty if it states
            that the image has none.
        annotation: a VOC file with boxes, for ``boxes_of``.
        boxes: those of another source, in place of it.
    """

    path: Path
    name: str
    labels: tuple[str, ...] | None = None
    annotation: Path | None = None
    boxes: tuple[Box, ...] | None = None

    @property
    def label(self) -> str | None:
        """Return the one label; None if there is none, or several."""
        return self.labels[0] if self.labels is not None and len(self.labels) == 1 else None


@dataclass(frozen=True)
class Dataset:
    """The images at a path.

    Attributes:
        path: as given.
        kind: ``folder``, ``csv`` or ``voc``.
        samples: in a fixed order.
        columns: the labels of a CSV file with a column for each; some may have no image.
    """

    path: Path
    kind: str
    samples: tuple[Sample, ...]
    columns: tuple[str, ...] = ()

    def labels(self) -> tuple[str, ...]:
        """Return the labels that are the only one of some image, sorted."""
        return tuple(sorted({sample.label for sample in self.samples if sample.label is not None}))

    def all_labels(self) -> tuple[str, ...]:
        """Return the labels of all images and columns, sorted."""
        labels = {label for sample in self.samples for label in sample.labels or ()}
        return tuple(sorted(labels.union(self.columns)))


def open_dataset(path: str | Path) -> Dataset:
    """List the images of a data set, without reading them.

    Args:
        path: a folder with a subfolder for each class, or a flat one without labels; a CSV file,
            paths relative to the file; or a Pascal VOC folder with JPEGImages and Annotations,
            where an image has the labels of its objects. A CSV file has two columns, image and
            label, with or without a header, where several labels of an image are separated by
            ``;`` or ``|`` or have a row each, and an empty label states none; or it has a header
            and a column for each label, with 1 where the image has it and 0 where not.

    Returns:
        The images, in a fixed order.

    Raises:
        DataError: there are no images, or the data set cannot be read.
    """
    root = Path(path)
    if not os.path.exists(path):  # False, where pathlib raises: names too long, or with NUL
        raise DataError(f"there is no folder or file {root}")
    columns: tuple[str, ...] = ()
    if root.is_file():
        table = read_csv_labels(root)
        kind, columns = "csv", table.columns
        samples = [
            Sample(root.parent / name, name, labels) for name, labels in table.images.items()
        ]
    elif (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir():
        kind, samples = "voc", _from_voc(root)
    else:
        kind, samples = "folder", _from_folder(root)
    if not samples:
        raise DataError(f"no images in {root}")
    return Dataset(root, kind, tuple(samples), columns)


def check_one_label(data: Dataset, reason: str) -> None:
    """Refuse a CSV file that gives an image several labels.

    Other images of several classes, those of Pascal VOC, count as images without a label.

    Args:
        data: from ``open_dataset``.
        reason: why one label an image is needed, and what to do.

    Raises:
        DataError: it does.
    """
    for sample in data.samples if data.kind == "csv" else ():
        if sample.labels is not None and len(sample.labels) > 1:
            several = ", ".join(sample.labels[:3]) + (" ..." if len(sample.labels) > 3 else "")
            raise DataError(
                f"{data.path} gives the image '{sample.name}' several labels ({several}), and "
                f"{reason}"
            )


def shuffle_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Shuffle samples the same way each time, so that any part of them represents the whole."""
    return sorted(samples, key=lambda s: hashlib.sha256(s.name.encode()).digest())


def _from_folder(folder: Path) -> list[Sample]:
    files = list_images(folder)
    samples = []
    for file in files:
        relative = file.relative_to(folder)
        labels = relative.parts[:1] if len(relative.parts) > 1 else None
        samples.append(Sample(file, relative.as_posix(), labels))
    return samples


def _from_voc(folder: Path) -> list[Sample]:
    samples = []
    for file in sorted((folder / "JPEGImages").iterdir()):
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        annotation = folder / "Annotations" / f"{file.stem}.xml"
        known = annotation if annotation.is_file() else None
        labels = tuple(sorted({box.name for box in read_boxes(known)})) if known else None
        samples.append(Sample(file, file.name, labels, known))
    return samples


def boxes_of(sample: Sample) -> tuple[Box, ...] | None:
    """Return the boxes of an image; None where the data set says nothing of them.

    Raises:
        DataError: its annotation cannot be read.
    """
    if sample.boxes is not None:
        return sample.boxes
    return None if sample.annotation is None else read_boxes(sample.annotation)


def read_boxes(annotation: Path) -> tuple[Box, ...]:
    """Read the bounding boxes of a Pascal VOC annotation file.

    Raises:
        DataError: it cannot be read as one.
    """
    try:
        objects = ElementTree.parse(annotation).getroot().iter("object")
        return tuple(_box(item) for item in objects)
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"cannot read boxes from {annotation}: {error}") from error


def _box(item: ElementTree.Element) -> Box:
    name = item.findtext("name")
    sides = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if name is None or None in sides:
        raise ValueError("an object without name or bndbox")
    left, top, right, bottom = (float(side) for side in sides if side is not None)
    # VOC counts pixels from 1 and includes the last one.
    return Box(name.strip(), left - 1, top - 1, right, bottom)


class Classes:
    """Map labels of a data set to classes of a network.

    Args:
        labels: the network's class names, or empty.
        num_classes: of the network.
        names: a CSV file with two columns, the data set's label and the network's class (its
            index or name), for labels that are neither.

    Raises:
        DataError: the file cannot be read or names a class that does not exist.
    """

    def __init__(
        self, labels: Sequence[str], num_classes: int, names: str | Path | None = None
    ) -> None:
        self._num_classes = num_classes
        self._of_label: dict[str, int] = {}
        for index, label in enumerate(labels):
            self._of_label.setdefault(_normalise_label(label), index)
        self._of_name: dict[str, int] = {}
        if names is not None:
            self._of_name = {
                label: self._parse_class(value, Path(names))
                for label, value in _read_pairs(Path(names))
            }

    def _parse_class(self, value: str, file: Path) -> int:
        index = self._network_class(value)
        if index is None:
            raise DataError(f"{file}: the network has no class '{value}'")
        return index

    def _network_class(self, text: str) -> int | None:
        if _normalise_label(text) in self._of_label:
            return self._of_label[_normalise_label(text)]
        if re.fullmatch(r"\d+", text) and int(text) < self._num_classes:
            return int(text)
        return None

    def index(self, label: str | None) -> int | None:
        """Return the network's class for a label; None if there is none."""
        if label is None:
            return None
        return self._of_name[label] if label in self._of_name else self._network_class(label)

    def unknown(self, labels: Iterable[str]) -> list[str]:
        """Return the labels without a class of the network."""
        return [label for label in labels if self.index(label) is None]

    def describe_unknown(self, labels: Sequence[str], result: str) -> list[str]:
        """Say which labels are no class of the network, and what follows; nothing if all are.

        Args:
            labels: of the data.
            result: what follows for their images.

        Returns:
            A sentence, or none.
        """
        unknown = self.unknown(labels)
        if not unknown:
            return []
        examples = ", ".join(unknown[:3]) + (" ..." if len(unknown) > 3 else "")
        return [
            f"{len(unknown)} of {len(labels)} labels are no class of the network ({examples}), and "
            f"{result}: map them with --classes FILE"
        ]


def _normalise_label(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", label).strip().casefold()


def _read_pairs(file: Path) -> list[tuple[str, str]]:
    try:
        rows = list(csv.reader(file.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read class names from {file}: {error}") from error
    if any(len(row) != 2 for row in rows if row):
        raise DataError(f"{file} must have two columns: the data's label, the network's class")
    return [(row[0].strip(), row[1].strip()) for row in rows if row]
