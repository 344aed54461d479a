"""What several commands read from their options: names, sizes, pictures, readings of TFT."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .engines.registry import ENGINES
from .errors import RequestError
from .images import pictures_in
from .tft import Tft

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Engine = Annotated[
    str, typer.Option(help=f"What runs the graph: auto, {', '.join(sorted(ENGINES))}.")
]
Precision = Annotated[
    str,
    typer.Option(help="Of the arithmetic: fp32, or bf16 (faster where the processor has it)."),
]
SweepIn = Annotated[
    str | None,
    typer.Option(
        help="Where TFT tries its thresholds: bf16, or the network's INT8 file; the best (--again) "
        "are tried again in the map's own precision [default: all in that]."
    ),
]
Cache = Annotated[
    Path | None, typer.Option(help="Folder for compiled models, for a faster start next time.")
]
Gpu = Annotated[int, typer.Option(help="Index of the GPU, for engines that use one.")]
Threads = Annotated[int | None, typer.Option(help="Threads for one run [default: every core].")]
Weights = Annotated[
    str,
    typer.Option(
        help="default (pretrained; a factory's own), none (random), or a .pth or .safetensors file."
    ),
]


def pictures(given: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each picture with a name for its outputs, unique even where stems repeat."""
    files: list[Path] = []
    for path in given:
        if os.path.isdir(path):  # False, where pathlib raises: names too long
            inside = pictures_in(path)
            if not inside:
                raise RequestError(f"no pictures in the folder {path}")
            files.extend(inside)
        else:
            files.append(path)
    seen: dict[str, int] = {}
    named = []
    for file in files:
        seen[file.stem] = seen.get(file.stem, 0) + 1
        count = seen[file.stem]
        named.append((file, file.stem if count == 1 else f"{file.stem}-{count}"))
    return named


def reading(
    mask: str | None,
    thresholds: str | None,
    own: Tft,
    forwards: int | None = None,
    again: int | None = None,
) -> Tft:
    """A reading of TFT from its options; what is not given is as in ``own``."""
    return Tft(
        mask=one_of("--mask", mask, ("binary", "soft")) or own.mask,  # type: ignore[arg-type]
        thresholds=one_of("--thresholds", thresholds, ("value", "rank")) or own.thresholds,  # type: ignore[arg-type]
        taus=own.taus,
        forwards=own.forwards if forwards is None else forwards,
        again=again if forwards is not None or again is not None else own.again,
    )


def names(text: str) -> list[str]:
    """Names with commas between them."""
    return text.replace(" ", "").split(",")


def counts(option: str, text: str) -> list[int]:
    """Numbers from 1 on, with commas between them."""
    try:
        found = [int(part) for part in names(text)]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise RequestError(f"{option} must be numbers from 1 on with commas, not '{text}'")
    return found


def switches(option: str, text: str) -> list[bool]:
    """``off``, ``on``, or both with a comma between them."""
    return [one_of(option, each, ("off", "on")) == "on" for each in names(text)]


def target(text: str | None) -> int | str | None:
    """A class: index or rank, or a label."""
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        return text


def size(option: str, text: str | None) -> tuple[int, int] | None:
    """A side, or HxW."""
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise RequestError(f"{option} must be a number or HxW, as 224 or 240x320, not '{text}'")
    return sides[0], sides[-1]


def per_channel(option: str, text: str | None) -> tuple[float, ...] | None:
    """A number for each channel, with commas between them: three, or one for grey."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise RequestError(f"{option} must be three numbers with commas, or one, not '{text}'")
    return values


def numbers(option: str, text: str) -> dict[str, float]:
    """Names with numbers, as pearson=0.95,top1=0.9."""
    found = {}
    for part in text.replace(" ", "").split(","):
        name, _, value = part.partition("=")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise RequestError(f"{option} must be NAME=NUMBER with commas, not '{text}'") from error
    return found


def one_of(option: str, value: str | None, allowed: Sequence[str]) -> str | None:
    """A value that is one of those allowed, or none."""
    if value is not None and value not in allowed:
        raise RequestError(f"{option} must be {' or '.join(allowed)}, not '{value}'")
    return value
