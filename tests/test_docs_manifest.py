"""docs/manifest.md lists every field of the manifest and of a plan's sidecar, with its type."""

from __future__ import annotations

import re
import types
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import pytest
from documents import ROOT

from whycam.runtime.cam import METHODS
from whycam.runtime.engines.plan import VERSION as PLAN_VERSION
from whycam.runtime.engines.plan import Plan
from whycam.runtime.manifest import METADATA_KEY, VERSION

PAGE = (ROOT / "docs" / "manifest.md").read_text("utf-8")
WORDS = {int: "integer", float: "number", str: "text", bool: "boolean"}


def within(kind: Any) -> set[type[msgspec.Struct]]:
    """The structs that a type is, or holds."""
    found = set().union(*(within(each) for each in get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        found |= {kind}.union(*(within(field.type) for field in msgspec.structs.fields(kind)))
    return found


STRUCTS = sorted(within(Plan), key=lambda struct: struct.__name__)  # a plan holds the manifest


def said(kind: Any) -> str:
    """A type in the page's words."""
    arguments = get_args(kind)
    if arguments == METHODS:
        return "method"
    if kind in WORDS:
        return WORDS[kind]
    if get_origin(kind) is Literal:
        return ", ".join(arguments)
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = (each for each in arguments if each is not type(None))
        return f"{said(inner)}; null"
    if get_origin(kind) is dict:
        return f"object of {said(arguments[1])}"
    if get_origin(kind) is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {said(arguments[0])}"
        assert len(set(arguments)) == 1
        return f"{len(arguments)} x {said(arguments[0])}"
    return kind.__name__


def rows_under(heading: str) -> dict[str, str]:
    """Field to type in the tables of one section, as plain text."""
    section = re.split(rf"^##+ {heading}$", PAGE, flags=re.MULTILINE)[1]
    section = re.split(r"^##+ ", section, flags=re.MULTILINE)[0]
    found: dict[str, str] = {}
    for row in re.findall(r"^\| (`.*)\|$", section, re.MULTILINE):
        names, kind, meaning = (cell.strip() for cell in row.split(" | ", 2))
        assert meaning
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", kind)
        for name in names.split(", "):
            assert name.strip("`") not in found
            found[name.strip("`")] = plain
    return found


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_page_lists_the_fields_that_are_written(struct: type[msgspec.Struct]) -> None:
    fields = msgspec.structs.fields(struct)
    assert rows_under(struct.__name__) == {field.encode_name: said(field.type) for field in fields}


def test_page_names_all_methods() -> None:
    listed = re.split(r"a \*method\* is one of", PAGE)[1].partition(".")[0]
    assert tuple(re.findall(r"`([^`]+)`", listed)) == METHODS


def test_page_names_versions_and_key() -> None:
    assert f"`{METADATA_KEY}`" in PAGE
    assert f"of this layout: {VERSION}" in PAGE
    assert f"of the sidecar's layout: {PLAN_VERSION}" in PAGE
