"""The public API: listed in one place, and described as its code is."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import whycam
from whycam.runtime import errors

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text("utf-8")
MODULES = re.findall(r"^::: (whycam[\w.]*)$", PAGE, re.MULTILINE)
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$", re.MULTILINE)
ENTRY = re.compile(r"^    (\w+(?:, \w+)*): \S", re.MULTILINE)
ARRAY = re.compile(r"NDArray|RGBImage\b|Floats|Inputs")
DTYPE = re.compile(r"\b(float32|uint8|int64|bool)\b")
SHAPE = re.compile(r"\[[^\]]*\]")
# Said where ``prepare`` and ``read_image`` are described, and elsewhere by these words.
REFERS = re.compile(r"see ``|[Ff]rom ``|as ``|prepared inputs")


def classes_and_functions() -> Iterator[tuple[str, Any]]:
    """Everything public that has a docstring of its own."""
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            thing = getattr(importlib.import_module(module), name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield f"{module}.{name}", thing


def members(thing: Any) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines itself."""
    for name, member in vars(thing).items():
        if name.startswith("_"):
            continue
        if inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod):
            yield name, member


def _listed() -> list[tuple[str, Any]]:
    pytest.importorskip("torch", reason="the API of export and train needs torch")
    pytest.importorskip("lightning_fabric")
    found = list(classes_and_functions())
    for path, thing in list(found):
        if inspect.isclass(thing):
            found += [(f"{path}.{name}", member) for name, member in members(thing)]
    return found


@pytest.fixture(scope="module")
def public() -> list[tuple[str, Any]]:
    return _listed()


def function_of(thing: Any) -> Callable[..., Any] | None:
    """What is called: of a property its getter, of a class its own ``__init__``."""
    if isinstance(thing, property):
        return thing.fget
    if isinstance(thing, classmethod | staticmethod):
        return thing.__func__
    if inspect.isclass(thing):
        own = vars(thing).get("__init__")
        return own if inspect.isfunction(own) and not is_record(thing) else None
    return thing


def is_record(thing: Any) -> bool:
    return dataclasses.is_dataclass(thing) or (
        inspect.isclass(thing) and issubclass(thing, msgspec.Struct)
    )


def sections(thing: Any) -> dict[str, str]:
    """A docstring's parts by their headings; what comes first has none."""
    parts = SECTION.split(inspect.getdoc(thing) or "")
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(text: str) -> list[str]:
    return [name for match in ENTRY.finditer(text) for name in match[1].split(", ")]


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def annotations(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    kinds = [p.annotation for p in signature.parameters.values()] + [signature.return_annotation]
    return " ".join(str(kind) for kind in kinds)


def raised(function: Callable[..., Any]) -> set[str]:
    """The package's errors that a function raises in its own lines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and n.exc is not None]
    names = {getattr(call.func, "id", "") for call in calls if isinstance(call, ast.Call)}
    return names & set(errors.__all__)


def faults(public: list[tuple[str, Any]], rule: Callable[[Any], Any]) -> dict[str, Any]:
    """What breaks a rule, by name."""
    found = {name: rule(thing) for name, thing in public}
    return {name: why for name, why in found.items() if why}


def test_the_page_names_each_module_once_and_each_says_what_is_public():
    assert {"whycam", "whycam.export", "whycam.runtime.live.video"} <= set(MODULES)
    assert len(set(MODULES)) == len(MODULES)
    assert [m for m in MODULES if not getattr(importlib.import_module(m), "__all__", None)] == []


def test_the_page_names_what_is_public_before_it_describes_it():
    parts = re.split(r"^::: whycam[\w.]*$", PAGE, flags=re.MULTILINE)
    for module, part in zip(MODULES, parts, strict=False):
        named = {name for name in re.findall(r"`(\w+)`", part) if not name.startswith("whycam")}
        public = set(importlib.import_module(module).__all__)
        assert public <= named | {"WhyCamError"}, module
        assert named - public <= {"__all__", "WhyCamError"}, module


def test_a_module_that_says_what_is_public_is_on_the_page():
    names = [m.name for m in pkgutil.walk_packages(whycam.__path__, "whycam.")]
    parts = r"whycam\.(distributed|runtime|export|calibrate|train)\b"
    own = [name for name in names if re.match(parts, name)]
    sources = {name: Path(ROOT, *name.split(".")[1:]) for name in own}
    texts = {
        name: (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(
            "utf-8"
        )
        for name, path in sources.items()
    }
    saying = {name for name, text in texts.items() if re.search(r"^__all__ = ", text, re.MULTILINE)}
    assert saying | {"whycam"} == set(MODULES)


def test_every_error_of_the_package_is_public():
    """All are in one file, so that a program can name whatever it wants to catch."""
    kinds = {name for name in dir(errors) if name.endswith("Error")}
    assert kinds == set(errors.__all__)
    texts = [
        path
        for part in ("runtime", "export", "calibrate", "train")
        for path in (ROOT / part).rglob("*.py")
    ]
    elsewhere = [
        path.name
        for path in texts
        if path.name != "errors.py"
        and re.search(r"^class \w+\(WhyCamError\)", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert elsewhere == []


def test_every_name_that_readme_and_pages_import_is_public(public):
    """Apart from benchmarks and what runs on the command line."""
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        name
        for text in texts
        if text.name != "api.md"
        for line in re.findall(r"^from (whycam\S*) import (.*)$", text.read_text("utf-8"), re.M)
        for name in (f"{line[0]}.{each.strip()}" for each in line[1].split(","))
    }
    spoken = {
        name
        for text in texts
        for name in re.findall(r"`(whycam\.runtime\.[\w.]+)`", text.read_text("utf-8"))
    }
    assert "whycam.runtime.serve.server.Server" in named
    known = {name for name, _ in public} | set(MODULES)
    assert (named | spoken) - known == set()


def test_every_class_function_method_and_property_has_a_docstring(public):
    assert len(public) > 100
    assert faults(public, lambda thing: not (inspect.getdoc(thing) or "").strip()) == {}


def test_docstrings_name_the_arguments_that_there_are(public):
    def rule(thing: Any) -> Any:
        function, text = function_of(thing), sections(thing)
        if function is None or isinstance(thing, property):
            return "Args" in text
        own = parameters(function)
        named = entries(text.get("Args", ""))
        if inspect.isclass(thing):
            # Of a class arguments may be described as the attributes that they become.
            named += [name for name in entries(text.get("Attributes", "")) if name in own]
        unknown = [name for name in named if name not in own]
        required = len(own) > 1 and not said_in_words(text[""], own)
        missing = [name for name in own if name not in named] if required or named else []
        return (unknown, missing) if unknown or missing else None

    assert faults(public, rule) == {}


def said_in_words(text: str, names: list[str]) -> bool:
    """Whether the text before the sections speaks of every argument."""
    return all(re.search(rf"``{name}``", text) for name in names)


def test_records_describe_the_fields_that_they_have(public):
    def rule(thing: Any) -> Any:
        if not is_record(thing):
            return None
        bases = [vars(each).get("__annotations__", {}) for each in thing.__mro__]
        named = set(entries(sections(thing).get("Attributes", "")))
        # Those of its bases may be described there.
        mine = bases[:1] if named <= {*bases[0]} and bases[0] else bases
        fields = {name for names in mine for name in names if not name.startswith("_")}
        # A standard error may go without words of its own where its figure's are there.
        beside = {name for name in fields if name.removesuffix("_standard_error") in named}
        told = re.search("standard.error", inspect.getdoc(thing) or "")
        silent = beside - named if told else set()
        return (named ^ fields) - silent

    assert faults(public, rule) == {}


def test_docstrings_name_the_errors_that_the_code_raises(public):
    def rule(thing: Any) -> Any:
        function = function_of(thing)
        if function is None:
            return None
        text = sections(thing).get("Raises", "")
        return {name for name in raised(function) if name not in text}

    assert faults(public, rule) == {}


def test_errors_that_docstrings_name_exist(public):
    def rule(thing: Any) -> Any:
        named = entries(sections(thing).get("Raises", ""))
        return [n for n in named if n not in errors.__all__ and n not in ("ValueError", "KeyError")]

    assert faults(public, rule) == {}


def test_where_arrays_come_or_go_shape_and_type_are_said(public):
    def rule(thing: Any) -> Any:
        function = function_of(thing)
        if function is None or not ARRAY.search(annotations(function)):
            return None
        text = inspect.getdoc(thing) or ""
        return not (REFERS.search(text) or (DTYPE.search(text) and SHAPE.search(text)))

    assert faults(public, rule) == {}
    arrays = [
        name for name, thing in public if (f := function_of(thing)) and ARRAY.search(annotations(f))
    ]
    assert len(arrays) >= 8


def test_what_returns_something_for_several_arguments_says_what(public):
    """Where arguments get a section, so does what comes back."""

    def rule(thing: Any) -> Any:
        function = function_of(thing)
        if function is None or inspect.isclass(thing) or isinstance(thing, property):
            return None
        text = sections(thing)
        returned = str(inspect.signature(function).return_annotation)
        return "Args" in text and returned != "None" and "Returns" not in text

    assert faults(public, rule) == {}
