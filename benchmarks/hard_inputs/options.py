"""Command lines: any verb with any of its options, and values that suit it or do not."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo

from whycam.cli import app
from whycam.runtime.cam import METHODS
from whycam.runtime.engines.registry import ENGINES

from . import images
from .command import command
from .rules import Case, Fault
from .trees import TEXTS

# How often, of a hundred. What imports torch or starts processes takes seconds.
SHARES = {
    "explain": 40, "info": 8, "verify": 8, "stream": 10, "evaluate": 8, "half": 8, "bench": 1,
    "calibrate thresholds": 3, "compare": 2, "calibrate int8": 1, "doctor": 0.5,
    "export": 0.5, "build": 0.3, "train classifier": 0.5, "train aft": 0.5,
}  # fmt: skip
# Said last, which wins: nothing may run for hours, or without end.
LAST = {
    "stream": ("--limit", "2", "--threads", "1"),
    "bench": ("--rounds", "1", "--threads", "1"),
    "doctor": ("--rounds", "1"),
    "evaluate": ("--threads", "1"),
}
NEVER = {"show", "loop", "source"}  # windows; streams without end; cameras of whoever runs this
WORDS = {
    "method": [*METHODS, "gradcam,layercam", "gradcam,", ",", "GradCAM", "gradcam,gradcam"],
    "engine": ["auto", *ENGINES, "warp", "onnxruntime,openvino"],
    "precision": ["fp32", "bf16", "fp16", "int8", "fp32,bf16"],
    "target": ["0", "-1", "-5", "-6", "1000000", "1.5", "tench"],
    "mask": ["binary", "soft", "hard"],
    "thresholds": ["value", "rank"],
    "tft": ["off", "on", "off,on", "every", "track"],
    "variants": ["original", "tft", "naive", "original,tft"],
    "outputs": ["raw", "map", "tft", "raw,map", "raw,tft"],
    "batch": ["1", "2", "1,2", "0"],
    "threads": ["1", "2", "0", "-1", "1,2"],
    "floor": ["pearson=0.9", "top1=2", "pearson", "=1", "x=nan"],
    "codec": ["mpeg4", "libx264", "", "x", "aac"],
    "host": ["127.0.0.1", "0.0.0.0", "256.1.1.1", ""],
    "image_size": ["32", "0", "32x32", "1x1x1"],
}
INTEGERS = ("0", "1", "2", "-1", "-6", "7", "1.5", "", "x", "2147483648", "1" + "0" * 20, "0x10")
FLOATS = ("0", "1", "0.5", "-1", "nan", "inf", "-inf", "1e309", "1e-320", "", "x", "1,5")


@dataclass(frozen=True)
class Option:
    """One parameter of a verb."""

    name: str
    flag: str
    kind: Any
    positional: bool


@cache
def verbs() -> dict[str, list[Option]]:
    """Every verb of the command line with its parameters, as its function declares them."""
    found = {}
    groups: list[tuple[str, typer.Typer]] = [("", app)]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        groups.append((f"{group.name or group.typer_instance.info.name} ", group.typer_instance))
    for prefix, group_app in groups:
        for each in group_app.registered_commands:
            assert each.callback is not None
            name = prefix + (each.name or each.callback.__name__.replace("_", "-"))
            if name != "help":
                found[name] = _options(each.callback)
    return found


def _options(function: Any) -> list[Option]:
    found = []
    hints = typing.get_type_hints(function, include_extras=True)
    for name in inspect.signature(function).parameters:
        kind, about = typing.get_args(hints[name])[:2]
        inner = [part for part in typing.get_args(kind) if part is not types.NoneType]
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            (kind,) = inner
        positional = isinstance(about, ArgumentInfo)
        names = [text for text in (about.default, *(about.param_decls or ())) if text is not ...]
        declared = [text.split("/")[0] for text in names if text.startswith("-")]
        flag = declared[-1] if declared else f"--{name.replace('_', '-')}"
        found.append(Option(name, flag, kind, positional))
    return found


def run(case: Case) -> str:
    """Run one command line in a folder of its own."""
    chance = case.chance
    known = verbs()
    if missing := SHARES.keys() - known.keys():
        raise Fault(f"no verbs {missing}: {list(known)}")
    if case.odds(0.03):
        words = [*TEXTS[:9], "explain", "--version", "-h", "--json", "--", "-", "calibrate"]
        return command(case, chance.choices(words, k=chance.randint(0, 3)))
    (verb,) = chance.choices(list(SHARES), list(SHARES.values()))
    arguments = [*verb.split(), *_usual(case, verb)]
    if case.odds(0.05) and len(arguments) > 1:
        del arguments[chance.randrange(len(arguments))]
    others = [each for each in known[verb] if not each.positional and each.name not in NEVER]
    for option in chance.sample(others, min(len(others), chance.choice([0, 1, 1, 2, 3]))):
        arguments.append(option.flag)
        if option.kind is not bool:
            arguments.append(_value(case, option))
        elif option.name == "as_json":
            continue
    if case.odds(0.3):
        arguments.append("--json")
    if case.odds(0.02):
        arguments.append(chance.choice(["-h", "--nonsense", "surplus", "--", ""]))
    before = case.material.data
    (case.folder / "model.onnx").write_bytes(before)
    became = command(case, [*arguments, *LAST.get(verb, ())])
    if (case.folder / "model.onnx").read_bytes() != before and verb not in _CHANGE:
        raise Fault(f"{arguments} changed the model file")
    return became


_CHANGE = {"calibrate thresholds", "calibrate int8", "half"}  # they may be told to


def _usual(case: Case, verb: str) -> list[str]:
    """What makes the verb do something."""
    chance, folder = case.chance, case.folder
    model = str(folder / "model.onnx") if case.odds(0.93) else _path(case)
    out = str(case.out)
    if verb == "explain":
        place = ["-o", out] if case.odds(0.6) else []
        flags = ("--tft", "--save=map,csv,coco", "--colormap=jet", "--crop=dim")
        extra = [flag for flag in flags if place and case.odds(0.3)]
        return [model, *_images(case, 2), *place, *extra]
    if verb in ("evaluate", "compare", "calibrate thresholds", "calibrate int8"):
        data = folder / "images"
        data.mkdir()
        for number in range(chance.choice([0, 1, 3])):
            (data / f"{number}.png").write_bytes(images.content(case))
        many = [model, model] if verb == "compare" else [model]
        kept = ["-o", f"{out}/small.onnx"] if verb == "calibrate int8" else []
        return [*many, str(data) if case.odds(0.9) else _path(case), *kept]
    if verb == "stream":
        source = chance.choice([*_images(case, 1), str(folder), "nowhere.mp4", "no ! such", ""])
        return [model, "-s", source, *(["-o", f"{out}/why.mp4"] if case.odds(0.5) else [])]
    if verb == "half":
        return [model, "-o", f"{out}/half.onnx"]
    if verb == "bench":
        return [model, "--tft", "off"]
    if verb == "build":
        return [model, "-o", f"{out}/model.plan", "--compute", chance.choice(["86", "1", "x"])]
    if verb == "export":
        return [f"{Path(__file__).with_name('factory.py')}:model", "-o", f"{out}/new.onnx"]
    if verb == "train classifier":
        return ["no.such.module:model", str(folder / "none"), "-o", out]
    if verb == "train aft":
        return [str(folder / "none"), str(folder / "none"), "-o", out]
    return [] if verb == "doctor" else [model]


def _images(case: Case, most: int) -> list[str]:
    found = [str(images.file(case)) for _ in range(case.chance.randint(1, most))]
    if case.odds(0.2):
        found.append(_path(case))
    return found


def _value(case: Case, option: Option) -> str:
    chance = case.chance
    if option.name in WORDS and case.odds(0.7):
        return chance.choice(WORDS[option.name])
    if typing.get_origin(option.kind) is typing.Literal and case.odds(0.7):
        return str(chance.choice(typing.get_args(option.kind)))
    if option.kind is int:
        return chance.choice(INTEGERS)
    if option.kind is float:
        return chance.choice(FLOATS)
    if option.kind is Path or typing.get_origin(option.kind) is list:
        return _path(case)
    return chance.choice([*_printable(TEXTS), *INTEGERS[:4]])


def _printable(texts: Sequence[str]) -> list[str]:
    """What a shell can pass: no NUL; bytes that are no UTF-8 as Python hands them on."""
    return [each.replace("\ud800", "\udcff") for each in texts if "\0" not in each]


def _path(case: Case) -> str:
    chance, folder = case.chance, case.folder
    taken = folder / "taken"
    taken.write_text("kept")
    return chance.choice(
        [str(case.out), str(case.out / "new.png"), str(case.out / "new.json"), str(taken),
         str(taken / "below"), str(folder / "no" / "such.onnx"), str(folder / "model.onnx"),
         "/dev/null", "/dev/null/below", "/proc/none", str(folder / ("x" * 300)),
         str(folder / "[/red] [bold].png"), str(folder / "a\\[/b].onnx"), str(folder / "end\\"),
         str(folder / "\udcff.png"), str(folder / "line\nline.png"), str(folder / "\x1b[2J.png"),
         "", ".", "-"]
    )  # fmt: skip
