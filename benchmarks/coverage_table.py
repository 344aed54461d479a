"""What benchmarks/coverage.py found, as the tables of docs/models.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import compress
from typing import Any

Row = dict[str, Any]
STEPS = ("export", "baseline", "rtx", "int8", "overhead")
# The step that fills a column, its title, and how it is aligned.
HEADER = (
    ("export", "network", "---"),
    ("export", "target layer", "---"),
    ("export", "A", "---"),
    ("export", "against float64", "---:"),
    ("export", "export s", "---:"),
    ("export", "nodes, kB added", "---:"),
    ("baseline", "pytorch-grad-cam", "---:"),
    ("overhead", "explain / classify", "---:"),
    ("rtx", "TensorRT-RTX", "---:"),
    ("int8", "INT8: class, maps", "---:"),
    ("export", "gradient rules", "---"),
)


def markdown(rows: dict[str, Row], groups: dict[str, Callable[[str], bool]]) -> str:
    """One table for each group of networks, without columns of steps that were never run, and the
    refusals of all of them word for word.
    """
    parts = []
    run = [any(step in row for row in rows.values()) for step, _, _ in HEADER]
    for title, belongs in groups.items():
        own = {name: row for name, row in rows.items() if belongs(name)}
        if not own:
            continue
        exported = sum(is_exported(row) for row in own.values())
        parts += [f"### {title}", "", f"{exported} of {len(own)} exported.", ""]
        if exported:
            lines = [[name for _, name, _ in HEADER], [rule for _, _, rule in HEADER]]
            lines += [_cells(n, row) for n, row in own.items() if is_exported(row)]
            parts += [_line(compress(cells, run)) for cells in lines]
            parts.append("")
        rounded = {n: row["baseline"]["rounded"] for n, row in own.items() if _is_rounded(row)}
        if rounded:
            parts += [
                "†: two float32 programs round apart; distance of each one's maps from those of",
                "pytorch-grad-cam in float64, ours and its own:",
                "; ".join(
                    f"`{name.partition('/')[2]}` {each['ours']:.0e}, {each['theirs']:.0e}"
                    for name, each in rounded.items()
                )
                + ".",
                "",
            ]
        refused = [
            f"- `{name}`, {step}: {_said(why)}"
            for name, row in own.items()
            for step, why in refusals(row)
        ]
        if refused:
            parts += ["What was refused, in the tool's own words:", "", *refused, ""]
    return "\n".join(parts)


def is_exported(row: Row) -> bool:
    return "export" in row and "error" not in row["export"]


def refusals(row: Row) -> list[tuple[str, str]]:
    """(step, why) of what did not work."""
    found = [(step, row[step]["error"]) for step in STEPS if "error" in row.get(step, {})]
    return found + ([("all", row["lost"])] if "lost" in row else [])


def summary(rows: dict[str, Row]) -> str:
    """In one line, for the terminal."""
    told = [f"{len(rows)} networks tried"]
    for step in STEPS:
        tried = [row[step] for row in rows.values() if step in row]
        told.append(f"{step} {sum('error' not in each for each in tried)} of {len(tried)}")
    return ", ".join(told)


def _cells(name: str, row: Row) -> list[str]:
    export = row["export"]
    channels, height, width = export["shape"]
    compared = ("probabilities", "activations", "gradients", "differences")
    worst = max(export["errors"].get(each, 0.0) for each in compared)
    return [
        f"`{name.partition('/')[2]}`{' ‡' if export.get('patterns') else ''}",
        f"`{export['layer']}`",
        f"{channels} x {height} x {width}",
        f"{worst:.0e}",
        f"{export['export_seconds']:.0f}",
        f"{export['nodes_added']}, {export['bytes_added'] / 1e3:.0f}",
        _of(row, "baseline", lambda found: f"{found['furthest']:.0e}{_where(found)}"),
        _of(row, "overhead", lambda found: f"{found['ratio']:.2f}"),
        _of(row, "rtx", lambda found: f"{found['megabytes']:.0f} MB"),
        _of(row, "int8", lambda found: f"{found['top1']:.0%}, {found['pearson']:.3f}"),
        ", ".join(f"`{rule}`" for rule in export["rules"]),
    ]


def _where(found: Row) -> str:
    return ("" if found["at"] == "module" else " *") + (" †" if "rounded" in found else "")


def _is_rounded(row: Row) -> bool:
    return "rounded" in row.get("baseline", {})


def _of(row: Row, step: str, shown: Callable[[Row], str]) -> str:
    if step not in row:
        return "not run"
    return "no" if "error" in row[step] else shown(row[step])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _said(why: str) -> str:
    """A message on one line, without lists of layers."""
    return re.sub(r"\s+", " ", why.partition("\n")[0]).strip()
