"""Name the files of explanations after image, class, method and threshold, and find older ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from .attribution import Attribution
from .tft import Tft

Kind = Literal["overlay", "figure", "map", "mask"]
_LONGEST_LABEL = 40  # letters of a class name in a file's name
_ANY_CLASS = r"\d+(-[^.]*)?"


def file_name(stem: str, explanation: Attribution, kind: Kind, image_type: str = ".png") -> str:
    """Name a file by image, class, method and threshold.

    ``cat.282-tiger-cat.gradcam.tft.png``; with ``.figure``, ``.map`` or ``.mask`` before the
    ending. Another reading of TFT than the default names itself: ``tft-soft-rank``.

    Args:
        stem: the image's name without its ending.
        explanation: what is written.
        kind: of ``KINDS``.
        image_type: ending of images; maps end in ``.npy``, masks in ``.png``.
    """
    named = class_name(explanation.index, explanation.label)
    tail = _tail(explanation.method, _thresholding_of(explanation), kind, image_type)
    return f"{stem}.{named}{tail}"


def comparison_name(stem: str, explanations: Sequence[Attribution], image_type: str) -> str:
    """Name the comparison of several classes, as ``file_name``.

    ``cat.281-tabby-vs-282-tiger-cat.gradcam.tft.comparison.png``.
    """
    first = explanations[0]
    names = _join_classes([class_name(one.index, one.label) for one in explanations])
    tail = _tail(first.method, _thresholding_of(first), "comparison", image_type)
    return f"{stem}.{names}{tail}"


def detections_name(
    stem: str, method: str, thresholding: Tft | Literal["naive"] | None, image_type: str
) -> str:
    """Name the image with all detections: ``street.detections.gradcam.tft.png``."""
    return f"{stem}.detections{_tail(method, thresholding, 'overlay', image_type)}"


def detection_stem(stem: str, rank: int) -> str:
    """Name one detection of an image by its rank, from 1: ``street.2``."""
    return f"{stem}.{rank}"


def class_name(index: int, label: str) -> str:
    """Write a class's index and label so that any file system takes it: ``282-tiger-cat``."""
    letters = (letter if letter.isalnum() else "-" for letter in label.lower())
    words = "-".join(part for part in "".join(letters).split("-") if part)
    name = str(index)
    return name if words in ("", name) else f"{name}-{words[:_LONGEST_LABEL].rstrip('-')}"


def find_files(
    folder: Path,
    stems: Iterable[str],
    classes: Sequence[str | None],
    methods: Iterable[str],
    thresholding: Tft | Literal["naive"] | None,
    kinds: Iterable[Kind | Literal["comparison"]],
    image_type: str,
) -> list[str]:
    """Find files in a folder that have the names of explanations that are still to be made.

    Args:
        folder: that need not exist.
        stems: the images' names without their endings.
        classes: their names, see ``class_name``; None for a class that is chosen by its rank, in
            the place of which any class is found.
        methods: of the maps.
        thresholding: of the maps.
        kinds: of the files; ``comparison`` is of all classes of an image together.
        image_type: ending of images.

    Returns:
        Their names, sorted.
    """
    known, chosen = set(stems), tuple(methods)
    patterns = [_ANY_CLASS if name is None else re.escape(name) for name in classes]
    distinct = list(dict.fromkeys(patterns))
    class_of: dict[str, re.Pattern[str]] = {}
    for kind in kinds:
        # Ranks may be one class of some image; equal names are one class of every image.
        pattern = "|".join(distinct)
        if kind == "comparison":
            pattern = _join_classes(patterns if None in classes else distinct)
        for method in chosen:
            class_of[_tail(method, thresholding, kind, image_type)] = re.compile(pattern)
    found = []
    for file in folder.iterdir() if folder.is_dir() else ():
        for tail, compiled in class_of.items():
            stem, _, named = file.name.removesuffix(tail).rpartition(".")
            if file.name.endswith(tail) and stem in known and compiled.fullmatch(named):
                found.append(file.name)
    return sorted(found)


def _join_classes(names: Sequence[str]) -> str:
    joined = "-vs-".join(names[:2])
    return joined if len(names) <= 2 else f"{joined}-and-{len(names) - 2}-more"


def _thresholding_of(explanation: Attribution) -> Tft | Literal["naive"] | None:
    if explanation.tft is not None:
        return explanation.tft
    return None if explanation.threshold is None else "naive"


def _tail(
    method: str,
    thresholding: Tft | Literal["naive"] | None,
    kind: Kind | Literal["comparison"],
    image_type: str,
) -> str:
    """Write what follows the class in a file's name: ``.gradcam.tft.figure.png``."""
    parts = ["", method]
    if thresholding == "naive":
        parts.append("naive")
    elif thresholding is not None:
        mask, thresholds = thresholding.mask, thresholding.thresholds
        default = (mask, thresholds) == ("binary", "value")
        parts.append("tft" if default else f"tft-{mask}-{thresholds}")
    if kind != "overlay":
        parts.append(kind)
    return ".".join(parts) + {"map": ".npy", "mask": ".png"}.get(kind, image_type)
