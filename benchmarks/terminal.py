"""Photograph what each verb prints, as terminals of 80 and 120 columns show it.

``screenshots.py --terminal FOLDER`` calls this. Commands are those of the documents, on their
tests' small networks and images: names and numbers are as long as anybody's, and every verb takes
seconds.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.text import Text

from whycam.cli import console, main

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from documents import materials

WIDTHS = (80, 120)
COMMANDS = (
    "explain resnet50.onnx images/tabby/ --tft",
    "explain resnet50.onnx cat.jpg --top 3",
    "info resnet50.onnx",
    "verify resnet50.onnx",
    "export deployed.onnx -o explained.onnx --preprocess imagenet",
    "evaluate resnet50.onnx images/",
    "calibrate int8 resnet50.onnx images/ -o resnet50.int8.onnx",
    "compare resnet50.onnx resnet50.int8.onnx images/",
    "calibrate thresholds resnet50.onnx images/ --method gradcam",
    "half resnet50.onnx -o resnet50.fp16.onnx",
    "build resnet50.onnx -o resnet50.plan",
    "doctor --check resnet50.onnx",
    "bench resnet50.onnx --rounds 3",
    "stream lite0.onnx --source walk.mp4 --tft track --output why.mp4",
    "train classifier torchvision/resnet50 images/ -o run/ --epochs 1 --weights none",
    "train aft mine/ images/ --method gradcam -o tuned/ --epochs 1",
)
Printed = list[tuple[tuple[Any, ...], dict[str, Any]]]


def photograph_verbs(folder: Path, take: Callable[[Path], bytes]) -> None:
    """Write an SVG and a PNG file for each verb and width.

    Args:
        folder: for the files.
        take: photographs an SVG file, as PNG.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for command, printed in run_all():
        for width in WIDTHS:
            terminal = Console(
                record=True, width=width, file=io.StringIO(), force_terminal=True,
                color_system="truecolor", highlight=False, markup=False, emoji=False,
            )  # fmt: skip
            for arguments, options in printed:
                if options.get("soft_wrap"):  # broken by the terminal, at any letter
                    arguments = tuple(fold(text, width) for text in arguments)
                terminal.print(*arguments)
            name = "-".join(re.findall(r"[\w.]+", command)[:2]).removesuffix(".onnx")
            if "--top" in command:
                name += "-top"
            target = folder / f"{name}.{width}.svg"
            target.write_text(terminal.export_svg(title=f"whycam {command}"))
            target.with_suffix(".png").write_bytes(take(target))
        print(f"whycam {command}", flush=True)


def fold(printed: str | Text, width: int) -> Text:
    """Break lines where a terminal does that is so wide."""
    text = Text(printed) if isinstance(printed, str) else printed
    lines = [
        part
        for line in text.split("\n", allow_blank=True)
        for part in line.divide(range(width, len(line), width)) or [line]
    ]
    return Text("\n").join(lines)


def run_all() -> Iterator[tuple[str, Printed]]:
    """Run the commands in a temporary folder, and yield what each prints on standard output."""
    with tempfile.TemporaryDirectory() as temporary:
        place = materials(Path(temporary) / "materials")
        before = Path.cwd()
        os.chdir(place)
        try:
            for command in COMMANDS:
                yield command, run(command)
        finally:
            os.chdir(before)


def run(command: str) -> Printed:
    """Run a command and return what it prints, before that is broken into lines."""
    printed: Printed = []

    def keep(*arguments: Any, **options: Any) -> None:
        printed.append((arguments, options))

    words = ["standin" if word.startswith("torchvision/") else word for word in command.split()]
    with mock.patch.object(console.out, "print", keep):
        try:
            main(words)
        except SystemExit as stop:
            if stop.code:
                printed.append(((f"exit code {stop.code}",), {}))
    return printed
