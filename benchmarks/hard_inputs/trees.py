"""JSON documents of which a part is missing, of another type, or far too large."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from . import damage

# Text that terminals, markup, JSON and file systems each read in their own way.
TEXTS = ("", " ", "0", "gradcam", "[/red]", "[bold]x[/]", "\\[/b]", "a\\", "\x1b[2J", "line\nline",
         "\u0000", "\u200f\U0001f431", "../up", "x" * 5000, "%s{0}", "NaN", "\ud800")  # fmt: skip
NUMBERS = (0, 1, -1, 2, 255, 2**31 - 1, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.5, -0.0,
           1e-320, 1e-45, 1e38, 1e308, -1e308, 3.0, 1.0)  # fmt: skip
OTHERS = (None, True, False, [], {}, [[]], [1], {"a": 1}, [None] * 3)


def mutated(chance: random.Random, tree: Any) -> bytes:
    """A damaged document."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        tree = chance.choice(_WAYS)(chance, tree)
    text = json.dumps(tree, ensure_ascii=chance.random() < 0.5)
    if chance.random() < 0.15:
        text = chance.choice(_TEXTUAL)(chance, text)
    data = text.encode(errors="surrogatepass")
    return damage.bytes_of(chance, data) if chance.random() < 0.15 else data


def value(chance: random.Random, old: Any) -> Any:
    """Another value, of the same type as often as not."""
    if chance.random() < 0.5:
        if isinstance(old, str):
            return chance.choice(TEXTS)
        if isinstance(old, int | float) and not isinstance(old, bool):
            return chance.choice([*NUMBERS, old + 1, old * 2, -old])
        if isinstance(old, list) and old:
            return chance.choice([old[:-1], [*old, old[-1]], old[::-1], old * 50, [old], []])
    return copy.deepcopy(chance.choice([*TEXTS, *NUMBERS, *OTHERS]))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value, those of long lists by a few."""
    found: list[tuple[Any, Any]] = []
    keys: list[Any] = []
    if isinstance(tree, dict):
        keys = list(tree)
    elif isinstance(tree, list):
        keys = list(range(len(tree)))[:4]
    for key in keys:
        found.append((tree, key))
        found.extend(_places(tree[key]))
    return found


def _replace(chance: random.Random, tree: Any) -> Any:
    places = _places(tree)
    if not places:
        return value(chance, tree)
    # Values deep inside lists are many, and alike.
    top = [place for place in places if place[0] is tree]
    holder, key = chance.choice(chance.choice([top, places]) or places)
    holder[key] = value(chance, holder[key])
    return tree


def _delete(chance: random.Random, tree: Any) -> Any:
    if places := _places(tree):
        holder, key = chance.choice(places)
        del holder[key]
    return tree


def _add(chance: random.Random, tree: Any) -> Any:
    holders = [holder for holder, _ in _places(tree) if isinstance(holder, dict)]
    if holders:
        chance.choice(holders)[chance.choice(TEXTS)] = value(chance, None)
    return tree


def _swap(chance: random.Random, tree: Any) -> Any:
    """A value that stands elsewhere in the document."""
    if places := _places(tree):
        holder, key = chance.choice(places)
        other, there = chance.choice(places)
        holder[key] = copy.deepcopy(other[there])
    return tree


def _version(chance: random.Random, tree: Any) -> Any:
    if isinstance(tree, dict):
        tree["version"] = chance.choice([*NUMBERS, "1", None, [1]])
    return tree


_WAYS = (_replace,) * 6 + (_delete, _add, _swap, _version)


def _deep(chance: random.Random, text: str) -> str:
    depth = chance.choice([100, 10_000, 200_000])
    opened, closed = chance.choice([("[", "]"), ('{"a":', "}")])
    deep = opened * depth + "1" + closed * chance.choice([0, depth])
    return chance.choice([deep, text[:-1] + ', "deep": ' + deep + "}"])


def _token(chance: random.Random, text: str) -> str:
    """What some writers of JSON write, and JSON does not know."""
    old, new = chance.choice(
        [("1", "NaN"), ("0.", "."), ("1", "Infinity"), ("1", "01"), (",", ",,"), ('"', "'"),
         (":", ": //\n"), ("{", "\ufeff{"), ("true", "True"), ("0", "1e400"), ('"', '"\\ud800'),
         ("e", "\\u0000"), ("}", '}{"version": 2}')]
    )  # fmt: skip
    at = text.find(old, chance.randrange(max(1, len(text))))
    return text if at < 0 else text[:at] + new + text[at + len(old) :]


def _repeated(chance: random.Random, text: str) -> str:
    """A key that is there twice."""
    return text[:-1] + f', "{chance.choice(["version", "labels", "model"])}": 2}}'


_TEXTUAL = (_deep, _token, _token, _repeated)
