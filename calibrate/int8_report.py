"""INT8 calibrations and comparisons as tables for people, and as files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
from rich.table import Table

from ..runtime.files import write_whole
from .fidelity import Fidelity
from .int8 import Int8


def trials_table(found: Int8) -> Table:
    """What was tried, on the photographs that ranges were taken from."""
    methods = list(found.tried[0].pearson)
    table = Table("calibrator", "float layers", "same class")
    for method in methods:
        table.add_column(f"{method}: correlation", justify="right")
    for trial in found.tried:
        chosen = (trial.recipe, trial.floating) == (found.recipe, len(found.floating))
        cells = [str(trial.recipe), str(trial.floating), f"{trial.top1:.3f}"]
        cells += [f"{trial.pearson[method]:.4f}" for method in methods]
        table.add_row(*cells, style="bold" if chosen else None)
    return table


def fidelity_table(found: Fidelity) -> Table:
    """One line a method."""
    swept = found.mask is not None
    table = Table("method", "correlation", "5 %", "IoU of top 20 %", "5 %")
    if swept:
        for column in ("same tau*", "average increase", "average drop"):
            table.add_column(column)
    for method, maps in found.maps.items():
        cells = [
            method,
            f"{maps.pearson:.4f}",
            f"{maps.pearson_low:.4f}",
            f"{maps.iou:.3f}",
            f"{maps.iou_low:.3f}",
        ]
        if swept:
            cells += [
                f"{maps.same_threshold:.3f}",
                f"{maps.increase_before:.3f} -> {maps.increase_after:.3f}",
                f"{maps.drop_before:.4f} -> {maps.drop_after:.4f}",
            ]
        table.add_row(*cells)
    return table


def fidelity_lines(found: Fidelity) -> str:
    """What the table does not say."""
    lines = [
        f"{found.other} against {found.reference}",
        f"{found.pictures} photographs: same class on {found.top1:.1%}, its probability off by "
        f"{found.probability:.4f} on average",
        "correlation and IoU: median, and 5th percentile beside it",
    ]
    if found.mask is not None:
        lines.append(f"TFT: mask {found.mask}, thresholds by {found.thresholds}")
    if found.unreadable:
        shown = "; ".join(list(found.unreadable.values())[:3])
        lines.append(f"{len(found.unreadable)} photographs left out: {shown}")
    return "\n".join(lines)


def int8_lines(found: Int8) -> str:
    """What was made, what it costs and saves."""
    kept = len(found.floating)
    speed = found.milliseconds_before / found.milliseconds_after
    lines = [
        f"{found.file}: {found.bytes_after / 1e6:.1f} MB (float {found.bytes_before / 1e6:.1f}), "
        f"{found.layers - kept} of {found.layers} layers in INT8, ranges by {found.recipe} of "
        f"{found.calibrated_on} photographs",
        f"one explanation: {found.milliseconds_after:.2f} ms, float "
        f"{found.milliseconds_before:.2f} ms (x{speed:.2f}), {found.proof.other}",
    ]
    if found.weight_bits == 7:
        lines.append(
            "weights have 7 bits, which every processor adds without overflow; those with VNNI, "
            "and GPUs, can have 8: --weight-bits 8"
        )
    else:
        lines.append(
            "weights have 8 bits: processors without VNNI add these with overflow, and whycam "
            "refuses the file there; for them: --weight-bits 7"
        )
    if found.milliseconds_all_int8 is not None:
        cost = found.milliseconds_after / found.milliseconds_all_int8
        lines.append(
            f"{kept} layers in float cost x{cost:.2f} of the time with all in INT8 "
            f"({found.milliseconds_all_int8:.2f} ms):"
        )
        lines += [f"  {each.name} ({each.kind}), gain {each.gain:.4f}" for each in found.floating]
    return "\n".join(lines)


def write_int8_report(found: Int8, folder: Path) -> list[Path]:
    """``int8.json`` with everything, ``int8.csv`` with one line a method.

    Raises:
        OutputError: the folder cannot be written.
    """
    return [
        write_whole(folder / "int8.json", msgspec.json.format(msgspec.json.encode(found))),
        write_whole(folder / "int8.csv", _csv(found.proof).encode()),
    ]


def write_fidelity_report(found: Fidelity, folder: Path) -> list[Path]:
    """``compare.json`` with everything, ``compare.csv`` with one line a method."""
    return [
        write_whole(folder / "compare.json", msgspec.json.format(msgspec.json.encode(found))),
        write_whole(folder / "compare.csv", _csv(found).encode()),
    ]


def _csv(found: Fidelity) -> str:
    text = io.StringIO()
    rows = [
        {"method": method, "pictures": found.pictures, "top1": found.top1}
        | msgspec.structs.asdict(maps)
        for method, maps in found.maps.items()
    ]
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
