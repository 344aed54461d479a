"""Parse the text of options: lists with commas, sizes, ranges, classes, images."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..runtime.cam import METHODS, Method
from ..runtime.engines.plan import Range
from ..runtime.errors import RequestError
from ..runtime.explained_region import RegionSource
from ..runtime.images import ImageSource, find_images, list_images


def names(text: str) -> list[str]:
    """Split names at commas: ``a, b`` to ``["a", "b"]``."""
    return text.replace(" ", "").split(",")


def choices(option: str, text: str, allowed: Sequence[str]) -> list[str]:
    """Split names at commas, each of which must be allowed."""
    chosen = names(text)
    for name in chosen:
        if name not in allowed:
            raise RequestError(
                f"{option} must be one or more of {', '.join(allowed)}; not '{name}'"
            )
    return chosen


def methods(text: str | None) -> list[Method] | None:
    """Split names of CAM methods at commas; None stays None."""
    if text is None:
        return None
    return choices("--method", text, METHODS)  # type: ignore[return-value]


def counts(option: str, text: str) -> list[int]:
    """Split numbers from 1 on at commas."""
    try:
        numbers = [int(part) for part in names(text)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise RequestError(f"{option} must be numbers from 1 on with commas, not '{text}'")
    return numbers


def assignments(option: str, text: str) -> dict[str, float]:
    """Read names with numbers: ``pearson=0.95,top1=0.9``."""
    values = {}
    for part in names(text):
        name, _, value = part.partition("=")
        try:
            values[name] = float(value)
        except ValueError as error:
            raise RequestError(f"{option} must be NAME=NUMBER with commas, not '{text}'") from error
    return values


def floats(option: str, text: str) -> list[float]:
    """Split numbers at commas."""
    try:
        return [float(part) for part in names(text)]
    except ValueError as error:
        raise RequestError(f"{option} must be numbers with commas, not '{text}'") from error


def per_channel(option: str, text: str | None) -> tuple[float, ...] | None:
    """Read a number for each channel, with commas."""
    return None if text is None else tuple(floats(option, text))


def value_range(option: str, text: str | None) -> tuple[float, float] | None:
    """Read ``LOW:HIGH``, two pixel values."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise RequestError(f"{option} must be LOW:HIGH, as 0:65535, not '{text}'") from error
    if not low < high:
        raise RequestError(f"{option} must be LOW:HIGH, the lower number first, not '{text}'")
    return low, high


def show_bands(text: str | None) -> tuple[int, ...] | None:
    """Read the bands to show."""
    return None if text is None else tuple(counts("--show-bands", text))


def target(text: str | None) -> int | str | None:
    """Read a class: its index or rank as a number, or its label."""
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        return text


def targets(text: str | None, labels: Sequence[str]) -> list[int | str]:
    """Read one class or several with commas; a label that has commas is one class.

    Args:
        text: as given; None: the most probable class.
        labels: of the network.
    """
    if text is None:
        return [-1]
    if text.lower() in {label.lower() for label in labels}:
        return [text]
    try:
        parts = next(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise RequestError(f"--target cannot be read: {error}, in '{text}'") from error
    return [found for part in parts if (found := target(part.strip())) is not None]


def objects(
    text: str | None, labels: Sequence[str]
) -> list[int | str | tuple[int, int | str]] | None:
    """Read what a detector explains: classes, or ``CANDIDATE:CLASS``, several with commas.

    Args:
        text: as given; None stays None.
        labels: of the network.
    """
    if text is None:
        return None
    found: list[int | str | tuple[int, int | str]] = []
    for one in targets(text, labels):
        before, colon, after = str(one).partition(":")
        if isinstance(one, str) and colon and before.isdecimal() and one not in labels:
            found.append((int(before), target(after) or 0))
        else:
            found.append(one)
    return found


def size(option: str, text: str | None) -> tuple[int, int] | None:
    """Read height and width in pixels: one number for both, or HxW."""
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise RequestError(f"{option} must be a number or HxW, as 224 or 240x320, not '{text}'")
    return sides[0], sides[-1]


def span(option: str, text: str) -> Range:
    """Read ``MIN:OPT:MAX``; ``MAX`` alone is 1:1:MAX."""
    parts = text.split(":")
    try:
        numbers = [int(part) for part in (["1", "1", *parts] if len(parts) == 1 else parts)]
        least, best, most = numbers
        return Range(least, best, most)
    except ValueError as error:
        raise RequestError(
            f"{option} must be MAX or MIN:OPT:MAX, whole numbers that do not fall and begin at 1 "
            f"or more, as 1:8:16; not '{text}'"
        ) from error


def limits(option: str, text: str | None) -> tuple[int, int] | None:
    """Read ``LEAST:MOST`` in pixels."""
    if text is None:
        return None
    least, _, most = text.partition(":")
    if not (least.isdecimal() and most.isdecimal() and 0 < int(least) < int(most)):
        raise RequestError(
            f"{option} must be LEAST:MOST in pixels, the least below the most, as 160:640; not "
            f"'{text}'"
        )
    return int(least), int(most)


def areas(option: str, text: str) -> tuple[Range, Range]:
    """Read ``HxW:HxW:HxW``, or one HxW for all three, as ranges of height and of width."""
    parts = text.split(":")
    sizes = [size(option, part) for part in (parts * 3 if len(parts) == 1 else parts)]
    try:
        least, best, most = (each for each in sizes if each is not None)
        height, width = (Range(*sides) for sides in zip(least, best, most, strict=True))
    except ValueError as error:
        raise RequestError(
            f"{option} must be HxW or three of them that do not fall, as "
            f"32x32:480x640:1088x1920; not '{text}'"
        ) from error
    return height, width


def capabilities(text: str) -> list[str]:
    """Read compute capabilities: ``75,8.6,120`` as 7.5, 8.6, 12.0."""
    versions = []
    for part in names(text):
        digits = part.replace(".", "", 1)
        if not digits.isdecimal() or len(digits) < 2 or ("." in part and part[-2] != "."):
            raise RequestError(
                f"--compute must be compute capabilities with commas, as 75,86,89,120; not '{text}'"
            )
        versions.append(f"{digits[:-1]}.{digits[-1]}")
    return versions


def region(text: str | None) -> RegionSource | Callable[[ImageSource], RegionSource]:
    """Read which region of a segmentation network's answer is explained.

    Args:
        text: ``X,Y``, ``image``, a mask's file, or a folder of masks named as the images are.

    Raises:
        RequestError: none of these.
    """
    if text is None or text == "image":
        return None if text is None else "image"
    point = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*,\s*(\d+(?:\.\d+)?)\s*", text)
    if point is not None:
        return float(point[1]), float(point[2])
    place = Path(text)
    if place.is_file():
        return place
    if not place.is_dir():
        raise RequestError(
            f"--region '{text}' is no point X,Y, no mask and no folder of masks: name one, or "
            "'image'"
        )
    masks = {file.stem: file for file in list_images(place)}

    def find(image: ImageSource) -> RegionSource:
        stem = Path(str(image)).stem
        if stem not in masks:
            raise RequestError(f"{place} has no mask for {image}, as {stem}.png")
        return masks[stem]

    return find


def images(sources: Sequence[str | os.PathLike[str]]) -> list[tuple[Path, str]]:
    """List images, those of folders and patterns too.

    Returns:
        Each file with a name for its outputs, unique even where stems repeat.

    Raises:
        ImageError: a folder or a pattern without images, or an address.
    """
    files = [file for source in sources for file in find_images(source) or [Path(source)]]
    used: set[str] = set()
    named = []
    for file in files:
        name, count = file.stem, 1
        while name in used:
            count += 1
            name = f"{file.stem}-{count}"
        used.add(name)
        named.append((file, name))
    return named
