"""The verb explain."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from ..runtime.errors import ImageError, RequestError
from ..runtime.images import is_coloured
from . import parse
from .console import out, print_error, print_json, say
from .options import (
    Json,
    Method,
    Model,
    PromptedEngineOptions,
    ReadingOptions,
    ShowBands,
    Target,
    require,
)
from .progress import progress
from .tables import Cell, colored, table

if TYPE_CHECKING:
    from ..runtime.explanation import Explanation
    from ..runtime.manifest import Manifest
    from ..runtime.tft import Tft


@dataclass(frozen=True)
class TftOptions(ReadingOptions):
    """Thresholding of the maps."""

    tft: Annotated[bool, typer.Option("--tft", help="Find the best threshold of each map.")] = False
    forwards: Annotated[
        int | None,
        typer.Option(
            help="TFT: number of thresholds to try; needs whycam calibrate thresholds "
            "[default: the file's, or all]."
        ),
    ] = None
    naive: Annotated[
        bool,
        typer.Option("--naive", help="Mute the share of the map that is usual for the method."),
    ] = False

    def check(self) -> None:
        """Refuse options that exclude each other or need --tft."""
        settings = self.mask or self.thresholds or self.forwards is not None
        if self.naive and self.tft:
            raise RequestError("--naive and --tft exclude each other")
        require("--mask, --thresholds or --forwards", bool(settings), "--tft", self.tft)

    def thresholding(self, manifest: Manifest) -> Tft | Literal["naive"] | None:
        """Return what ``Explainer.explain`` takes as ``tft``."""
        if self.naive:
            return "naive"
        return self.reading(manifest.tft, self.forwards) if self.tft else None


def explain(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    tft: TftOptions,
    engine: PromptedEngineOptions,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the overlays.")
    ] = None,
    method: Method = None,
    target: Target = None,
    show_bands: ShowBands = None,
    figure: Annotated[
        bool, typer.Option("--figure", help="Write image, map, TFT map and rpi curve as well.")
    ] = False,
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="Write maps as .npy, at the image's size.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Write report.html instead of overlays: one page to search and sort all images "
            "and see the maps of their five most probable classes.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Classify images, and show where the network looked."""
    if output is None and (figure or save_maps or report):
        raise RequestError("--figure, --save-maps and --report need a folder to write to: -o DIR")
    from ..runtime.report.document import Report, check_count
    from .explain_report import add_to_report, describe_report, report_classes

    tft.check()
    files = parse.images(images)
    if report:
        if figure or save_maps:
            raise RequestError("--report is written instead of --figure and --save-maps")
        check_count(len(files))
    methods = parse.methods(method)
    explainer = engine.load(model, show_bands=parse.show_bands(show_bands))
    thresholding = tft.thresholding(explainer.manifest)
    plan = explainer.plan(methods, thresholding)
    count = len(plan.methods)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    takes_grey = explainer.manifest.preprocess.color == "L"
    coloured = 0
    classes = [parse.target(target) if target is not None else -1]
    shown = [*classes, *(report_classes(explainer.manifest) if report else ())]
    with (
        progress("explaining", len(files) * count, as_json) as advance,
        Report(output / "report.html", len(files)) if report and output else nullcontext() as page,
    ):
        results = explainer.iter_explanations(
            [file for file, _ in files],
            shown,
            methods,
            thresholding,
            progress=lambda done, total: advance(f"{done} of {total} passes", 0),
            thresholded=len(classes),
        )
        for (file, name), (_, outcome) in zip(files, results, strict=True):
            if isinstance(outcome, ImageError):
                if len(files) == 1:
                    raise outcome
                failed.append(str(outcome))
                rows.append({"file": str(file), "error": str(outcome)})
                advance(name, count)
                continue
            if takes_grey and is_coloured(next(iter(outcome.values()))[0].image):
                coloured += 1
            if page is not None:
                add_to_report(page, file, outcome)
            for method_name, explanations in outcome.items():
                explanation = explanations[0]
                row: dict[str, Any] = {"file": str(file), **explanation.to_dict()}
                if output is not None and page is None:
                    stem = f"{name}.{method_name}"
                    row["written"] = _write(explanation, output, stem, figure, save_maps)
                rows.append(row)
                advance(name, 1)
        if page is not None:
            page.write(
                describe_report(
                    model, explainer, plan, thresholding, len(files) - len(failed), failed
                )
            )
    if as_json:
        written = {} if page is None else {"report": str(page.path)}
        print_json({"model": str(model), "explanations": rows, **written})
    else:
        out.print(explanations_table(rows, tft.tft))
        for line in failed:
            print_error(line)
        if coloured:
            say(f"{coloured} colour images were converted to grey, which the network takes")
        if output is not None:
            say(f"written to {output}/" if page is None else f"written to {page.path}")
    if failed:
        raise typer.Exit(2)


def _write(
    explanation: Explanation, folder: Path, name: str, figure: bool, save_maps: bool
) -> list[str]:
    written = [explanation.save(folder / f"{name}.png")]
    if figure:
        written.append(explanation.save(folder / f"{name}.figure.png", figure=True))
    if save_maps:
        written.append(explanation.save_map(folder / f"{name}.npy"))
    return [str(path) for path in written]


def explanations_table(rows: Sequence[dict[str, Any]], tft: bool) -> Table:
    """Lay out explanations, one a line.

    Args:
        rows: as ``Explanation.to_dict`` gives them, with ``file``; or ``file`` and ``error``.
        tft: with columns for the threshold.
    """
    values = any(row.get("task") == "none" for row in rows)
    thresholds = ["tau*", "rpi", "p masked"] if tft else []
    columns = ["image", "method", "class", "value" if values else "probability", *thresholds]
    return table(columns, [_cells(row, tft) for row in rows], numbers=thresholds)


def _cells(row: dict[str, Any], tft: bool) -> list[Cell]:
    from ..runtime.explanation import format_probability

    name = Path(row["file"]).name
    if "error" in row:
        return [name, "", colored("unreadable", "red")]
    named = row["label"] != str(row["index"])
    label = f"{row['label']} ({row['index']})" if named else row["label"]
    cells: list[Cell] = [name, row["method"], label]
    cells.append(format_probability(row["probability"], row["task"], 4))
    if not tft:
        return cells
    # A search also tries thresholds between the tenths.
    tau = f"{row['threshold']:.2f}".removesuffix("0")
    if not row["improved"]:
        return [*cells, tau, "-", f"{row['probability']:.4f}"]
    rpi = max(value for value in row["rpi"] if value is not None)
    return [*cells, tau, f"{rpi:.3f}", f"{row['masked_probability']:.4f}"]
