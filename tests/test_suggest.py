"""Suggestions: parts of words first, then what is spelt alike."""

from __future__ import annotations

import pytest

from whycam.runtime.errors import RequestError
from whycam.runtime.suggest import suggest
from whycam.runtime.targets import resolve_targets

CATS = ["catamaran", "Egyptian cat", "cart", "tiger cat", "bobcat", "tabby"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", ["tiger cat", "Egyptian cat", "catamaran"]),
        ("Tiger", ["tiger cat"]),
        ("egypt", ["Egyptian cat"]),
        ("bob", ["bobcat"]),
        ("tiger ct", ["tiger cat"]),
        ("tabyb", ["tabby"]),
        ("zzz", []),
        ("", []),
        ("c(t", ["cart"]),
    ],
)
def test_what_is_suggested(name, expected):
    assert suggest(name, CATS)[: len(expected) or 3] == expected


def test_as_many_as_asked_for():
    assert len(suggest("cat", CATS, 2)) == 2


def test_an_unknown_class_is_answered_with_those_that_hold_its_word(manifest_of):
    manifest = manifest_of(labels=("cot", "tiger cat", "Persian cat"))
    with pytest.raises(RequestError, match="did you mean 'tiger cat' or 'Persian cat' or 'cot'"):
        resolve_targets("cat", 1, False, manifest)
