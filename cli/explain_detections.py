"""Explain the detections of a detector, for the verb explain."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from ..runtime import tft as runtime_tft
from ..runtime.errors import ImageError, RequestError
from ..runtime.file_names import detection_stem, detections_name
from ..runtime.report.document import check_count
from ..runtime.report.entry import encode_explanations
from ..runtime.results import NoDetection
from . import parse
from .console import out, print_error, print_json, say
from .explain_output import OutputOptions, plan_output
from .explain_report import describe_report, shorten_names
from .progress import progress
from .tables import Cell, colored, sweep_cells, table

if TYPE_CHECKING:
    from ..runtime.cam import Method
    from ..runtime.manifest import Manifest
    from .cluster import ClusterOptions
    from .options import DetectorOptions, PromptedEngineOptions
    from .tft_options import TftOptions


def explain_detections(
    model: Path,
    manifest: Manifest,
    images: Sequence[str],
    writing: OutputOptions,
    tft: TftOptions,
    engine: PromptedEngineOptions,
    cluster: ClusterOptions,
    detector: DetectorOptions,
    methods: Sequence[Method] | None,
    target: str | None,
    top: int | None,
    show_bands: str | None,
    report: bool,
    as_json: bool,
) -> None:
    """Detect objects in images, and explain each; see ``explain.explain`` for the options.

    Raises:
        WhyCamError: the request cannot be met; nothing was begun.
        typer.Exit: an image cannot be read.
    """
    if cluster.on is not None:
        raise RequestError(
            f"{manifest.model} is a detector, and --on explains classifiers: run whycam explain "
            "without it"
        )
    thresholding = tft.thresholding(manifest)
    plan = detector.plan(manifest, target, methods, thresholding, top)
    files = parse.images(images)
    names = [one.method for one in plan.request.methods]
    output = plan_output(
        writing,
        len(files) * len(names),
        plan.most,
        thresholding is not None,
        report,
        detector=True,
    )
    if output is not None:
        output.check_no_detections([name for _, name in files], plan, thresholding)
    if report:
        check_count(len(files) * plan.most)
    explainer = engine.load(model, takes_detectors=True, show_bands=parse.show_bands(show_bands))
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    short_names = shorten_names([file for file, _ in files])
    with ExitStack() as stack:
        advance = stack.enter_context(progress("explaining", len(files), as_json))
        add = None if output is None else stack.enter_context(output.tables_of(manifest))
        page = None
        if output is not None:
            page = stack.enter_context(output.report_of(len(files) * plan.most))
        results = explainer.iter_detections([file for file, _ in files], plan)
        for (file, name), (_, outcome) in zip(files, results, strict=True):
            if isinstance(outcome, ImageError):
                if len(files) == 1:
                    raise outcome
                failed.append(str(outcome))
                rows.append({"file": str(file), "error": str(outcome)})
                if add is not None:
                    add(str(file), str(outcome))
                advance(name, 1)
                continue
            found = outcome.by_method
            if not found[names[0]]:
                rows.append({"file": str(file), "detections": 0})
                if add is not None:
                    add(str(file), NoDetection(*outcome.placement.image))
            for rank in range(len(found[names[0]])):
                stem = detection_stem(name, rank + 1)
                for one in names:
                    detection = found[one][rank]
                    row: dict[str, Any] = {"file": str(file), **detection.to_dict()}
                    if output is not None and add is not None:
                        row["written"] = output.write(detection, stem)
                        add(str(file), detection)
                    rows.append(row)
                if page is not None:
                    shown = [[found[one][rank] for one in names]]
                    title = f"{short_names[file]} #{rank + 1}"
                    page.add(encode_explanations(title, shown))
            if output is not None:
                for one in names:
                    files_written = output.write_detections(outcome, name, one, thresholding)
                    rows[-1].setdefault("written", []).extend(files_written)
            advance(name, 1)
        if page is not None:
            about = describe_report(
                model, explainer, plan.request, thresholding, len(files) - len(failed), failed
            )
            page.write(about)
    if as_json:
        where = {} if page is None else {"report": str(page.path)}
        print_json({"model": str(model), "detections": rows, **where})
    else:
        out.print(detections_table(rows, tft.tft))
        if isinstance(thresholding, runtime_tft.Tft):
            say(f"TFT: {thresholding.reading}")
        for line in failed:
            print_error(line)
        nothing = sum("detections" in row for row in rows)
        if nothing and plan.pairs is None:
            say(f"{nothing} images without a detection of score {plan.min_score:g} or more")
        if output is not None:
            say(output.summary())
        else:
            example = detections_name(files[0][1], names[0], thresholding, ".png")
            say(f"nothing was written; with -o maps/ the image with boxes goes to maps/{example}")
    if failed:
        raise typer.Exit(2)


def detections_table(rows: Sequence[dict[str, Any]], tft: bool) -> Table:
    """Lay out detections, one a line.

    Args:
        rows: as ``Detection.to_dict`` gives them, with ``file``; or ``file`` and ``error``; or
            ``file`` and ``detections``, 0.
        tft: with columns for the threshold.
    """
    thresholds = ["tau*", "rpi", "p masked"] if tft else []
    columns = ["image", "method", "class", "score", "left, top, right, bottom", *thresholds]
    return table(columns, [_cells(row, tft) for row in rows], numbers=thresholds)


def _cells(row: dict[str, Any], tft: bool) -> list[Cell]:
    name = Path(row["file"]).name
    if "error" in row:
        return [name, "", colored("unreadable", "red")]
    if "detections" in row:
        return [name, "", "no detection"]
    named = row["label"] != str(row["index"])
    label = f"{row['label']} ({row['index']})" if named else row["label"]
    box = ", ".join(f"{edge:.0f}" for edge in row["box"])
    cells: list[Cell] = [name, row["method"], label, f"{row['score']:.4f}", box]
    return [*cells, *(sweep_cells(row, row["score"]) if tft else ())]
