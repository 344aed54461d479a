"""The verb explain."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..runtime import tft as runtime_tft
from ..runtime.attribution import format_probability
from ..runtime.errors import ImageError, RequestError
from ..runtime.images import is_coloured
from ..runtime.onnxfile import read_manifest
from ..runtime.prompts import apply_prompts, choose_prompts
from ..runtime.report.document import check_count
from ..runtime.report.entry import ranks_to_show
from . import parse
from .cluster import ClusterOptions, explain_on_cluster
from .console import out, print_error, print_json, say
from .explain_output import OutputOptions, example_name, plan_output
from .options import (
    DetectorOptions,
    Json,
    Method,
    Model,
    PromptedEngineOptions,
    ShowBands,
    Targets,
)
from .progress import progress
from .tables import Cell, colored, sweep_cells, table
from .tft_options import TftOptions

if TYPE_CHECKING:
    from ..runtime.manifest import Manifest


def explain(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders of images, or patterns as 'a/*.jpg'; with --on one folder, or an "
            "address as s3://bucket/folder."
        ),
    ],
    writing: OutputOptions,
    tft: TftOptions,
    engine: PromptedEngineOptions,
    cluster: ClusterOptions,
    detector: DetectorOptions,
    method: Method = None,
    target: Targets = None,
    top: Annotated[
        int | None,
        typer.Option(
            help="Explain so many of the most probable classes, 1 to 5, and compare them; of a "
            "detector so many of the best detections [default: 10]."
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y|image|MASK",
            help="Of a segmentation network: where the class's score is explained, a point in "
            "pixels, the whole image, a mask (what is not black), or a folder of masks named as "
            "the images are [default: where the class is predicted].",
        ),
    ] = None,
    show_bands: ShowBands = None,
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
    """Show what a network sees in images, and where it looked.

    Files are named after image, class, method and threshold; none is overwritten. With --on the
    results are Parquet files, see docs/cluster.md.
    """
    from .explain_detections import explain_detections
    from .explain_report import add_to_report, describe_report, shorten_names

    tft.check()
    cluster.check()
    methods = parse.methods(method)
    manifest = read_manifest(model)
    regions = parse.region(region)
    if region is not None and (manifest.region is None or cluster.on is not None):
        raise RequestError(
            f"--region is for segmentation networks, without --on, and {manifest.model} "
            + ("is one" if manifest.region is not None else "has no scores at places")
        )
    if manifest.detector is not None:
        explain_detections(
            model, manifest, images, writing, tft, engine, cluster, detector, methods, target, top,
            show_bands, report, as_json,
        )  # fmt: skip
        return
    detector.refuse(manifest)
    if top is not None and target is not None:
        raise RequestError("--top and --target exclude each other")
    if cluster.on is not None:
        _refuse_drawing(writing, report, show_bands)
        prompts = choose_prompts(manifest, engine.prompts)
        if prompts is not None:
            manifest = apply_prompts(manifest, prompts)
        classes = _choose_classes(manifest, target, top)
        thresholding = tft.thresholding(manifest)
        explain_on_cluster(
            model, images, writing.output, cluster, engine, manifest, classes, methods,
            thresholding, as_json,
        )  # fmt: skip
        return
    files = parse.images(images)
    # Before the model file says whether a comma belongs to a label.
    several = top or (2 if target is not None and "," in target else 1)
    images_of_methods = len(files) * len(methods or [""])
    is_thresholded = tft.tft or tft.naive
    output = plan_output(writing, images_of_methods, several, is_thresholded, report)
    if report:
        check_count(len(files))
    explainer = engine.load(model, show_bands=parse.show_bands(show_bands))
    thresholding = tft.thresholding(explainer.manifest)
    plan = explainer.plan(methods, thresholding)
    count = len(plan.methods)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    takes_grey = explainer.manifest.preprocess.color == "L"
    coloured, example = 0, ""
    classes = _choose_classes(explainer.manifest, target, top)
    output = plan_output(writing, images_of_methods, len(classes), is_thresholded, report)
    if output is not None:
        stems = [name for _, name in files]
        output.check_absent(stems, classes, plan, thresholding, explainer.manifest)
    shown = [*classes, *(ranks_to_show(explainer.manifest) if report else ())]
    short_names = shorten_names([file for file, _ in files])
    with ExitStack() as stack:
        advance = stack.enter_context(progress("explaining", len(files) * count, as_json))
        add = None if output is None else stack.enter_context(output.tables_of(explainer.manifest))
        page = None if output is None else stack.enter_context(output.report_of(len(files)))
        results = explainer.iter_explanations(
            [file for file, _ in files],
            shown,
            methods,
            thresholding,
            progress=lambda done, total: advance(f"{done} of {total} passes", 0),
            thresholded=len(classes),
            region=regions,
        )
        for (file, name), (_, outcome) in zip(files, results, strict=True):
            if isinstance(outcome, ImageError):
                if len(files) == 1:
                    raise outcome
                failed.append(str(outcome))
                rows.append({"file": str(file), "error": str(outcome)})
                if add is not None:
                    add(str(file), str(outcome))
                advance(name, count)
                continue
            if takes_grey and is_coloured(next(iter(outcome.values()))[0].image):
                coloured += 1
            if page is not None:
                add_to_report(page, short_names[file], outcome)
            for listed in outcome.values():
                # Two targets, as a rank and a label, may be one class.
                explanations = list({one.index: one for one in listed[: len(classes)]}.values())
                if output is None and not example:
                    example = example_name(name, explanations)
                for explanation in explanations:
                    row: dict[str, Any] = {"file": str(file), **explanation.to_dict()}
                    if output is not None and add is not None:
                        row["written"] = output.write(explanation, name)
                        add(str(file), explanation)
                    rows.append(row)
                if output is not None:
                    rows[-1]["written"] += output.write_comparison(explanations, name)
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
        if isinstance(thresholding, runtime_tft.Tft):
            say(f"TFT: {thresholding.reading}")
        for line in failed:
            print_error(line)
        if coloured:
            say(f"{coloured} colour images were converted to grey, which the network takes")
        if output is not None:
            say(output.summary())
        elif example:
            say(f"nothing was written; with -o maps/ the {example}")
    if failed:
        raise typer.Exit(2)


def _refuse_drawing(writing: OutputOptions, report: bool, show_bands: str | None) -> None:
    """Refuse options of images and pages, where results are Parquet files."""
    if writing != OutputOptions(writing.output) or report or show_bands is not None:
        raise RequestError(
            "with --on the results are Parquet files, which hold the maps: leave out --report and "
            "the options of images (--save, --format, --colormap, --overwrite and their like)"
        )


def _choose_classes(manifest: Manifest, target: str | None, top: int | None) -> list[int | str]:
    """List the classes to explain: those named, or the ranks of the most probable ones.

    Raises:
        RequestError: there are fewer ranks.
    """
    if top is None:
        return parse.targets(target, manifest.labels)
    most = len(ranks_to_show(manifest))
    if not 1 <= top <= most:
        raise RequestError(f"--top must be 1 to {most} for this file, not {top}")
    return [-rank for rank in range(1, top + 1)]


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
    name = Path(row["file"]).name
    if "error" in row:
        return [name, "", colored("unreadable", "red")]
    named = row["label"] != str(row["index"])
    label = f"{row['label']} ({row['index']})" if named else row["label"]
    cells: list[Cell] = [name, row["method"], label]
    cells.append(format_probability(row["probability"], row["task"], 4))
    return [*cells, *(sweep_cells(row, row["probability"]) if tft else ())]
