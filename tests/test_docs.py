"""Every command and every Python block of README.md, docs/ and the examples' pages is run.

They are found, not listed: each line of a block marked ``sh``, and each block marked ``python``.
README and the first three pages are run by ``make test``, a page a test; on the others each is a
test of its own, which ``make test-all`` runs. It is run as a reader would, after what stands before
it on its page, in a folder with small materials under the names that the documents use
(`documents.materials`).

One thing is changed in commands: ``torchvision/NAME``, ``timm/NAME`` and
``examples/efficientnet_lite0.py:model`` become a small network (`documents.stood_in`); options stay
as they are written. ``whycam`` is the console script's own function, called in this process: torch
takes seconds to import. A dear command that stands on several pages is run once on the same files.
What cannot be run here stands in `documents.NOT_RUN` with its reason; of that, whycam's command
lines must still parse, and extras, targets and scripts must exist. So must commands and files that
are named within sentences.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import (
    NOT_RUN,
    PAGES,
    ROOT,
    Reader,
    Step,
    blocks,
    inline_commands,
    materials,
    prose,
    steps,
    stood_in,
    why_not,
)

from whycam.cli import app

# README and the first three pages of the site's navigation; a test below compares them with it.
FIRST = ("README.md", "docs/index.md", "docs/read-a-map.md", "docs/troubleshooting.md")
ALL = [step for page in PAGES for step in steps(page)]
# Languages of blocks that are no commands: what programs print, and what is not Python.
OTHER = {"text", "json", "cpp", "js", "protobuf"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("skimage")
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small are slower on several
    yield materials(tmp_path_factory.mktemp("documents") / "materials")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reader_of(made: Path) -> Callable[[str], Reader]:
    readers: dict[str, Reader] = {}

    def reader(page: str) -> Reader:
        if page not in readers:
            folder = made.with_name(re.sub(r"\W", "_", page))
            shutil.copytree(made, folder, symlinks=True)
            readers[page] = Reader(page, folder)
        return readers[page]

    return reader


@pytest.mark.timeout(1800)  # a minute of CPU time for all of README's commands
@pytest.mark.parametrize("page", FIRST)
def test_what_everybody_reads_first_works(page: str, reader_of: Callable[[str], Reader]) -> None:
    """From top to bottom, in one test: ``make test`` runs this page."""
    taken = [step for step in steps(page) if why_not(step) is None and lacking(step) is None]
    assert taken
    problems = {str(step): take(step, reader_of) for step in taken}
    assert {name: problem for name, problem in problems.items() if problem} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [step for step in ALL if why_not(step) is None and step.page not in FIRST], ids=str
)
def test_step_of_a_document_works(step: Step, reader_of: Callable[[str], Reader]) -> None:
    missing = lacking(step)
    if missing is not None:
        pytest.skip(missing)
    problem = take(step, reader_of)
    assert problem is None, f"{step.page}:{step.line}: {step.text}\n{problem}"


def take(step: Step, reader_of: Callable[[str], Reader]) -> str | None:
    if step.is_whycam:
        parse(step.words[1:])
    return reader_of(step.page).follow(step)


def lacking(step: Step) -> str | None:
    """What this machine lacks for a step; None: nothing."""
    if step.python:
        lacks = "to_supervision" in step.text and find_spec("supervision") is None
        return "supervision is not installed" if lacks else None
    if re.search(r"--precision bf16", step.text):
        openvino = pytest.importorskip("openvino")
        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return "this processor has no bf16"
    if step.is_whycam and step.words[1] == "build" and find_spec("tensorrt_rtx") is None:
        return "TensorRT-RTX is not installed"
    return None


def parse(words: list[str]) -> None:
    """What typer makes of a command line, without running it; raises where it cannot be."""
    words = [word for word in words if word != "--debug"]
    if ">" in words:
        words = words[: words.index(">")]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    command.make_context("whycam", list(words))


@pytest.mark.parametrize(
    "step",
    [step for step in ALL if why_not(step) is not None and not step.python and step.is_whycam],
    ids=str,
)
def test_command_that_cannot_be_run_here_parses(step: Step) -> None:
    parse(stood_in(step.words)[1:])


@pytest.mark.parametrize(
    "step", [step for step in ALL if why_not(step) is not None and step.python], ids=str
)
def test_python_that_cannot_be_run_here_compiles(step: Step) -> None:
    compile(step.text, f"{step.page}:{step.line}", "exec")


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_what_is_not_run_is_in_some_document(pattern: str) -> None:
    assert any(re.search(pattern, step.text) for step in ALL)


def test_the_first_pages_are_those_of_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    pages = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert ("README.md", *(f"docs/{page}" for page in pages[:3])) == FIRST


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for step in ALL for word in made_by(step)}
    assert named
    assert named <= targets


def made_by(step: Step) -> list[str]:
    return [] if step.python or step.words[0] != "make" else step.words[1:]


def test_extras_that_documents_install_exist() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = set(re.findall(r"^([a-z0-9-]+) = ", section, re.MULTILINE))
    named = {
        (page, extra)
        for page in PAGES
        for extras in re.findall(
            r"(?:whycam|\"\.)\[([a-z0-9,-]+)\]", (ROOT / page).read_text("utf-8")
        )
        for extra in extras.split(",")
    }
    assert len(named) > 10
    assert not {each for each in named if each[1] not in known}


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_what_they_hold(page: str) -> None:
    unmarked = [
        f"{page}:{block.line} {block.language or 'unmarked'}"
        for block in blocks(page)
        if block.language not in {"sh", "python", *OTHER}
    ]
    assert not unmarked
    hidden = [line for line in prose(page).splitlines() if re.match(r" {4,}\$?\s*whycam ", line)]
    assert not hidden, "an indented block is run by nobody: fence it"


@pytest.mark.parametrize("page", [page for page in PAGES if list(inline_commands(page))])
def test_commands_within_sentences_exist(page: str) -> None:
    problems = [
        f"{page}:{line}: {text}: {problem}"
        for line, text in inline_commands(page)
        if (problem := problem_of(shlex.split(text))) is not None
    ]
    assert not problems


def problem_of(words: list[str]) -> str | None:
    if words[0] == "whycam":
        known = options_of(words[1:])
        if known is None:
            return "there is no such verb"
    elif words[1].endswith(".py"):
        if not (ROOT / words[1]).is_file():
            return "there is no such script"
        known = set(re.findall(r"\"(--?[a-z][a-z0-9-]*)\"", (ROOT / words[1]).read_text("utf-8")))
    else:
        return None
    used = {word.partition("=")[0] for word in words if word.startswith("-")}
    return None if used <= known else f"there is no {', '.join(sorted(used - known))}"


def options_of(words: list[str]) -> set[str] | None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return None
        command, words = command.commands[words[0]], words[1:]
    names: Iterator[str] = (
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    )
    return {*names, "--help", "-h", "--debug"}


# In documents alone: what a reader has, and what commands make.
READERS_OWN = {"my_model.py", "file.py", "model.py"}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_sentences_name_exist(page: str) -> None:
    text = prose(page)
    named = re.findall(r"`((?:cli|runtime|export|train|calibrate|tests|benchmarks)/[\w./]*)`", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    modules = set(re.findall(r"[`/ ](\w+\.py)\b", text)) - READERS_OWN
    known = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    missing += sorted(modules - known - {path.name for path in ROOT.glob("*.py")})
    assert not missing


FOLDERS = ("cli", "runtime", "export", "train", "calibrate", "tests", "benchmarks", "examples")
