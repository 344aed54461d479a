"""Installs the wheel with each extra into an environment of its own, and runs what it is for.

    make dist
    python benchmarks/install.py dist/*.whl lite0.onnx images/ --extras cpu,openvino

For each extra: everything public is imported, with the sources out of reach; the verbs it is for do
their work; every other verb must end with exit code 2 and one red line that names the right ``pip
install``. Extras that need torch share one environment, each installed over those before, where
what has worked is not tried again. Packages come from the index that pip knows; an extra it does
not have is reported with pip's own words.

This is no test, since it takes minutes, gigabytes and a connection. Exit code 1: something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BARE = "none"
TORCH = ("export", "train", "demo", "dev")  # in this order, in one environment
_TIMEOUT_S = 1800
_FEW, _MANY = 20, 40  # images: for a quick look, and what learning thresholds takes
_ENGINE = "onnxruntime|openvino"
_DOC = re.compile(r"^::: (whycam[\w.]*)$", re.MULTILINE)


@dataclass(frozen=True)
class Verb:
    """A command of whycam, and what it cannot do without.

    Attributes:
        arguments: {model}, {image}, {few}, {many}, {classes} and {out} are filled in.
        needs: modules, each with the extras whose installation an error may advise; ``a|b``: one of
            the two will do.
    """

    arguments: str
    needs: tuple[tuple[str, str], ...] = ()


_RUNS = (_ENGINE, "cpu")
_ONNX, _CPU = ("onnx", "build|calibrate"), ("onnxruntime", "cpu|calibrate")
_SERVE = (("starlette", "serve"), ("uvicorn", "serve"), ("websockets", "serve"))
_TORCH = ("torch", "export")
_SERVED = "stream {model} --source {few} --loop --serve 0"
VERBS = (
    Verb("--version"),
    Verb("info {model}"),
    Verb("doctor", (_RUNS,)),
    Verb("verify {model}", (_RUNS,)),
    Verb("explain {model} {image} -o {out} --tft", (_RUNS,)),
    Verb("explain {model} {image} -o {out} --engine onnxruntime", (_CPU,)),
    Verb("explain {model} {image} -o {out} --engine openvino", (("openvino", "openvino"),)),
    Verb("explain {model} {image} -o {out} --save figure", (_RUNS, ("matplotlib", "plot"))),
    Verb("evaluate {model} {few} -o {out} --method gradcam", (_RUNS,)),
    Verb("bench {model} --rounds 1 --tft off", (_RUNS,)),
    Verb("stream {model} --source {few} --record {out}/why.jsonl", (_RUNS,)),
    Verb("stream {model} --source {few} -o {out}/why.mp4", (_RUNS, ("av", "video"))),
    Verb(_SERVED, (*_SERVE, _RUNS)),
    Verb(
        "calibrate thresholds {model} {many} --no-write -o {out} --method gradcam "
        "--mask binary --thresholds value",
        (_RUNS,),
    ),
    Verb("compare {model} {model} {few}", (_RUNS,)),
    Verb("calibrate int8 {model} {few} -o {out}/int8.onnx --calibrator minmax", (_ONNX, _CPU)),
    Verb("half {model} -o {out}/half.onnx", (_ONNX, _CPU)),
    Verb(
        "build {model} -o {out}/lite0.plan --engine tensorrt-rtx --compute 86",
        (("tensorrt_rtx", "tensorrt-rtx"),),
    ),
    Verb("export torchvision/resnet18 --weights none -o {out}/resnet18.onnx", (_TORCH,)),
    Verb(
        "train classifier torchvision/resnet18 --weights none --epochs 1 {classes} -o {out}",
        (_TORCH, ("lightning_fabric|lightning.fabric", "train")),
    ),
    Verb(
        "train aft torchvision/resnet18 --weights none --epochs 1 {few} -o {out}",
        (_TORCH, ("lightning_fabric|lightning.fabric", "train")),
    ),
)
# What must be refused in words where a GPU is missing: by extra.
WITHOUT_GPU = {
    "gpu": "explain {model} {image} -o {out} --engine onnxruntime-cuda",
    "tensorrt": "build {model} -o {out}/lite0.plan --engine tensorrt",
    "tensorrt-rtx": "explain {out}/../built.plan {image} -o {out}",
}
# What is no verb: a program of the repository, run in a copy of these files.
PROGRAMS = {
    "demo": ("examples", ["examples/demo.py", "{out}"]),
    "docs": ("docs mkdocs.yml", ["-m", "mkdocs", "build", "--strict", "-d", "{out}"]),
    "dev": ("tests pyproject.toml", ["-m", "pytest", "-q", "tests/test_cam.py"]),
}


@dataclass
class Outcome:
    """What came of one extra."""

    extra: str
    seconds: float = 0.0
    size_mb: float = 0.0
    torch: bool = False
    done: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    absent: str | None = None


class Environment:
    """A virtual environment that cannot see the sources."""

    def __init__(self, folder: Path, python: str) -> None:
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.bare = self.size()
        self.worked: set[Verb] = set()  # what need not be tried again when more is installed

    def size(self) -> int:
        """Bytes of all files, links not followed."""
        return sum(p.lstat().st_size for p in self.folder.rglob("*") if not p.is_dir())

    def run(self, command: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """What the environment's Python makes of a command; 124: it found no end."""
        try:
            return subprocess.run(
                [str(self.python), *command],
                cwd=cwd,
                env=clean_environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"no end after {_TIMEOUT_S} s")

    def install(self, *what: str) -> subprocess.CompletedProcess[str]:
        """Install with pip, from wherever it is set to look."""
        return self.run(["-m", "pip", "install", "--quiet", *what], self.folder)

    def has(self, modules: str) -> bool:
        """Whether one of ``a|b`` can be found, without importing it."""
        code = (
            "import importlib.util, sys\n"
            "def found(name):\n"
            "    try: return importlib.util.find_spec(name) is not None\n"
            "    except ImportError: return False\n"
            "sys.exit(not any(map(found, sys.argv[1].split('|'))))"
        )
        return self.run(["-I", "-c", code, modules], self.folder).returncode == 0

    def whycam(self, arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run the command that the wheel has installed."""
        return self.run([str(self.folder / "bin" / "whycam"), *arguments], cwd)


def clean_environment() -> dict[str, str]:
    """Without what would lead Python to the sources, and without colours."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "FORCE_COLOR")
    return {k: v for k, v in os.environ.items() if k not in hidden} | {"COLUMNS": "100"}


_IMPORTS = """
import importlib, json, pathlib, sys
import whycam
assert pathlib.Path(whycam.__file__).is_relative_to(sys.prefix), whycam.__file__
found = {"torch": "torch" in sys.modules, "wrong": []}
for name in json.loads(sys.argv[1]):
    try:
        module = importlib.import_module(name)
    except whycam.WhyCamError as error:
        found["wrong"].append([name, str(error)])
        continue
    for each in module.__all__:
        try:
            getattr(module, each)
        except whycam.WhyCamError as error:
            found["wrong"].append([f"{name}.{each}", str(error)])
print(json.dumps(found))
"""


def check_imports(there: Environment, outcome: Outcome) -> None:
    """Everything public is there, or says which extra brings it."""
    modules = _DOC.findall((ROOT / "docs" / "api.md").read_text("utf-8"))
    done = there.run(["-I", "-c", _IMPORTS, json.dumps(modules)], there.folder)
    if done.returncode != 0:
        outcome.faults.append(f"import: {done.stderr.strip()[-300:]}")
        return
    found = json.loads(done.stdout)
    if found["torch"]:
        outcome.faults.append("import whycam imports torch")
    lacking = {"export"} if not there.has("torch") else set()
    lacking |= {"train"} if not there.has("lightning_fabric|lightning.fabric") else set()
    for name, said in found["wrong"]:
        if not any(f'pip install "whycam[{extra}]"' in said for extra in lacking):
            outcome.faults.append(f"import {name}: {said}")
    outcome.done.append(f"{len(modules)} public modules")


def filled(arguments: str, places: dict[str, Path]) -> list[str]:
    return [part.format(**places) for part in arguments.split()]


def short(arguments: str) -> str:
    return re.sub(r"/?\{\w+\}\S*|-o ", "", arguments).replace("  ", " ").strip()


def one_red_line(done: subprocess.CompletedProcess[str]) -> str | None:
    """What is wrong with a refusal, if anything."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 2:
        return f"exit code {done.returncode}, not 2: {done.stderr.strip()[-300:]}"
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"not one red line: {done.stderr.strip()[-300:]}"
    return None


def check_verb(there: Environment, verb: Verb, places: dict[str, Path], outcome: Outcome) -> None:
    out = places["out"]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    arguments = filled(verb.arguments, places)
    missing = [extras for modules, extras in verb.needs if not there.has(modules)]
    if not missing and verb.arguments == _SERVED:
        fault = served(there, arguments, out)
        outcome.done.append(short(verb.arguments))
        outcome.faults += [f"{short(verb.arguments)}: {fault}"] if fault else []
        return
    done = there.whycam(arguments, out)
    if not missing:
        outcome.done.append(short(verb.arguments))
        if done.returncode == 0:
            there.worked.add(verb)
        if done.returncode != 0:
            outcome.faults.append(f"{short(verb.arguments)}: {done.stderr.strip()[-400:]}")
        elif "build" in arguments[0]:
            for path in out.iterdir():
                shutil.copy(path, out.parent / path.name.replace("lite0", "built"))
        return
    outcome.refused.append(short(verb.arguments))
    advised = {extra for extras in missing for extra in extras.split("|")}
    fault = one_red_line(done)
    if fault is None and not any(f'pip install "whycam[{e}]"' in done.stderr for e in advised):
        fault = f"names none of {sorted(advised)}: {done.stderr.strip()}"
    outcome.faults += [f"{short(verb.arguments)}: {fault}"] if fault else []


def served(there: Environment, arguments: Sequence[str], out: Path) -> str | None:
    """Start the page, fetch it from loopback, end it as Ctrl-C does."""
    with (out / "said").open("w+") as said:
        process = subprocess.Popen(
            [str(there.python), str(there.folder / "bin" / "whycam"), *arguments],
            cwd=out,
            env=clean_environment() | {"PYTHONUNBUFFERED": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            page = None
            end = time.monotonic() + 120
            while page is None and process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
                page = re.search(r"http://127\.0\.0\.1:\d+/", (out / "said").read_text())
            if page is None:
                return f"no page: {(out / 'said').read_text()[-300:]}"
            with urllib.request.urlopen(page[0], timeout=20) as answer:
                if b"<html" not in answer.read():
                    return "the page is not HTML"
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
            return None if code in (130, -signal.SIGINT) else f"exit code {code} after Ctrl-C"
        finally:
            process.kill()
            process.wait()


def check_program(there: Environment, extra: str, work: Path, outcome: Outcome) -> None:
    names, command = PROGRAMS[extra]
    copy, out = work / "copy", work / "site"
    for name in names.split():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name)
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, copy)
    done = there.run([part.format(out=out) for part in command], copy)
    outcome.done.append(" ".join(command[:-1]))
    if done.returncode != 0:
        outcome.faults.append(f"{command}: {(done.stdout + done.stderr).strip()[-400:]}")
    shutil.rmtree(copy)


def check_without_gpu(
    there: Environment, extra: str, places: dict[str, Path], outcome: Outcome
) -> None:
    """Asked for a GPU that is not there: words, and never another engine instead."""
    arguments = WITHOUT_GPU[extra]
    shutil.rmtree(places["out"], ignore_errors=True)
    places["out"].mkdir()
    fault = one_red_line(there.whycam(filled(arguments, places), places["out"]))
    outcome.refused.append(f"{short(arguments)} (no GPU)")
    outcome.faults += [f"{short(arguments)}: {fault}"] if fault else []


def check_advice(there: Environment, places: dict[str, Path], outcome: Outcome) -> None:
    """The command that an error names does help, also where no index knows whycam."""
    arguments = filled("explain {model} {image} -o {out}", places)
    said = there.whycam(arguments, places["out"]).stderr
    advice = re.search(r'pip install ("whycam\[[a-z-]+\]")', said)
    if advice is None:
        outcome.faults.append(f"no advice: {said}")
        return
    done = there.install(advice[1].strip('"'))
    again = there.whycam(arguments, places["out"])
    outcome.done.append(f"pip install {advice[1]}, as the error says, then explain")
    if done.returncode != 0 or again.returncode != 0:
        outcome.faults.append(f"its own advice: {done.stderr[-300:]}{again.stderr[-300:]}")


def gpu_here() -> bool:
    return shutil.which("nvidia-smi") is not None


def check(
    there: Environment, extra: str, wheel: Path, work: Path, given: dict[str, Path]
) -> Outcome:
    """Install one extra and run everything."""
    outcome, begin = Outcome(extra), time.perf_counter()
    done = there.install(str(wheel) if extra == BARE else f"{wheel}[{extra.replace('+', ',')}]")
    outcome.seconds = time.perf_counter() - begin
    if done.returncode != 0:
        outcome.absent = reasons(done.stderr)
        return outcome
    outcome.size_mb = (there.size() - there.bare) / 1e6
    outcome.torch = there.has("torch")
    if outcome.torch != (extra in TORCH):
        outcome.faults.append("torch is installed" if outcome.torch else "torch is not installed")
    consistent = there.run(["-m", "pip", "check"], work)
    if consistent.returncode != 0:
        outcome.faults.append(f"pip check: {consistent.stdout.strip()}")
    check_imports(there, outcome)
    places = {**given, "out": work / "out"}
    for verb in VERBS:
        if verb in there.worked:
            continue
        print(f"  {extra}: {short(verb.arguments)}", file=sys.stderr, flush=True)
        check_verb(there, verb, places, outcome)
    if extra in WITHOUT_GPU and not gpu_here():
        check_without_gpu(there, extra, places, outcome)
    if extra in PROGRAMS:
        check_program(there, extra, work, outcome)
    if extra == BARE:
        check_advice(there, places, outcome)
    return outcome


def reasons(said: str) -> str:
    """The errors in what pip said, also those of a package's own set-up, each once."""
    found = re.findall(r"^ *((?:[\w.]*Error|ERROR|error): .*)$", said, re.MULTILINE)
    return "; ".join(dict.fromkeys(found))[:400] or said.strip()[-400:]


def extras_of(wheel: Path) -> list[str]:
    """As the wheel lists them, which is what pyproject says."""
    with zipfile.ZipFile(wheel) as opened:
        name = next(name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(opened.read(name)).get_all("Provides-Extra") or []


def groups(extras: Sequence[str]) -> Iterator[list[str]]:
    """Extras that share an environment."""
    yield from ([extra] for extra in extras if extra not in TORCH)
    if shared := [extra for extra in TORCH if extra in extras]:
        yield shared


def prepared(model: Path, folder: Path, work: Path) -> dict[str, Path]:
    """The few images that every verb gets, away from the sources."""
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    few, many, classes = work / "few", work / "many", work / "classes"
    for folder in (few, many, classes / "a", classes / "b"):
        folder.mkdir(parents=True)
    for index, image in enumerate(images[:_MANY]):
        shutil.copy(image, many / f"{index:02}.jpg")
        if index < _FEW:
            shutil.copy(image, few / f"{index:02}.jpg")
            shutil.copy(image, classes / "ab"[index % 2])
    shutil.copy(model, work / "lite0.onnx")
    return {
        "model": work / "lite0.onnx",
        "image": few / "00.jpg",
        "few": few,
        "many": many,
        "classes": classes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("model", type=Path, help="an ONNX file made by whycam export")
    parser.add_argument("images", type=Path, help="a folder with 40 of them or more")
    parser.add_argument(
        "--extras", help=f"of the wheel's, {BARE}, or several as cpu+serve [default: each]"
    )
    parser.add_argument("--python", default=sys.executable, help="what makes the environments")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args()
    wheel = options.wheel.resolve()
    wanted = options.extras.split(",") if options.extras else [BARE, *extras_of(wheel)]
    found: list[Outcome] = []
    for group in groups(wanted):
        with tempfile.TemporaryDirectory(prefix="whycam-install-") as folder:
            work = Path(folder)
            given = prepared(options.model, options.images, work)
            there = Environment(work / "environment", options.python)
            for extra in group:
                found.append(check(there, extra, wheel, work, given))
                print(row(found[-1]), flush=True)
                if options.json:
                    options.json.write_text(json.dumps([vars(each) for each in found], indent=1))
    print("\n| extra | MB | s | verbs that work | refused in words | faults |")
    print("|---|---|---|---|---|---|")
    print("\n".join(row(each) for each in found))
    for each in found:
        for fault in each.faults:
            print(f"{each.extra}: {fault}")
    sys.exit(any(each.faults for each in found))


def row(each: Outcome) -> str:
    if each.absent:
        return f"| {each.extra} | | {each.seconds:.0f} | cannot be installed: {each.absent} | | |"
    return (
        f"| {each.extra} | {each.size_mb:.0f} | {each.seconds:.0f} | {len(each.done)} | "
        f"{len(each.refused)} | {len(each.faults)} |"
    )


if __name__ == "__main__":
    main()
