"""The verb evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..calibrate.settings import VARIANTS, Target
from ..runtime.errors import RequestError
from ..runtime.onnxfile import read_manifest
from ..runtime.tft import Tft
from . import parse
from .cluster import ClusterOptions
from .console import out, print_json, say, say_written, unreadable_lines
from .options import (
    ClassMap,
    Data,
    DetectorOptions,
    Json,
    Model,
    PaperMethod,
    PromptedEngineOptions,
    ReadingOptions,
    complete,
)
from .progress import progress
from .tables import table

if TYPE_CHECKING:
    from ..calibrate.label_figures import LabelFigures
    from ..calibrate.summary import Evaluation, Result
    from ..runtime.manifest import Manifest

_TITLES = {
    "average_increase": "average increase",
    "average_drop": "average drop",
    "cross_asked_increase": "cross-asked increase",
    "cross_asked_drop": "cross-asked drop",
    "coverage": "coverage",
    "insertion": "insertion",
    "deletion": "deletion",
    "pointing_game": "pointing game",
    "energy_in_box": "energy in box",
    "region_iou": "region IoU",
    "road_most_relevant": "ROAD, most first",
    "road_least_relevant": "ROAD, least first",
    "sparsity": "sparsity",
    "noise_stability": "stable to noise",
    "shift_stability": "stable to shifts",
}
_LOWER_IS_BETTER = {"average_drop", "cross_asked_drop", "deletion", "road_most_relevant"}
_NEITHER_IS_BETTER = {"coverage", "sparsity"}


def evaluate(
    model: Model,
    data: Data,
    engine: PromptedEngineOptions,
    tft: ReadingOptions,
    cluster: ClusterOptions,
    detector: DetectorOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for the figures; a stopped evaluation resumes from it.",
        ),
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Write report.html too: figures by class, confusion matrix, worst cases, and "
            "images with their maps on one page.",
        ),
    ] = False,
    method: PaperMethod = None,
    variants: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help=f"Variants of each map, of: {', '.join(VARIANTS)}.",
            autocompletion=complete(VARIANTS),
        ),
    ] = ",".join(VARIANTS),
    target: Annotated[
        Target | None,
        typer.Option(
            help="The class to explain: the predicted one, or the data's label; of a detector all "
            "detections, or those that match an annotated box. [default: predicted; for "
            "independent labels each label that an image has]"
        ),
    ] = None,
    ask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Another file that is asked about these maps as well: the network before AFT or "
            "quantisation, or any with the same input and classes.",
        ),
    ] = None,
    classes: ClassMap = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Boxes of the images, as COCO's instances; file names are those of the data. "
            "Pascal VOC folders bring their own.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(help="Of a detector: detections explained of an image [default: 10]."),
    ] = None,
    curves: Annotated[
        int,
        typer.Option(help="Steps of insertion and deletion, as 20; 0: not measured."),
    ] = 0,
    road: Annotated[
        bool,
        typer.Option(
            "--road", help="Measure ROAD as well: 18 evaluations and some seconds for each map."
        ),
    ] = False,
    stability: Annotated[
        bool,
        typer.Option(
            "--stability",
            help="Compare with the maps of images with a little noise, and shifted by 1/28.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how well maps explain.

    Measures average increase and drop, rpi, the pointing game and more. For a file of independent
    labels (task sigmoid) each label has figures of its own. Of a detector each detection's map is
    measured, by its score and against the annotated box of its class that overlaps it by half.
    """
    import msgspec

    from ..calibrate.coco import with_coco
    from ..calibrate.dataset import open_dataset
    from ..calibrate.evaluate import evaluate as run_evaluation
    from ..calibrate.evaluation_page import write_evaluation_page
    from ..calibrate.on_cluster import measure_on_cluster
    from ..calibrate.report import write_report

    if report and output is None:
        raise RequestError("--report needs a place to write to: -o FOLDER")
    if curves < 0:
        raise RequestError(f"--curves must be 0 or more, not {curves}")
    cluster.check()
    methods = parse.methods(method)
    _check_kind(read_manifest(model), detector, top, report)
    dataset = open_dataset(data)
    if boxes is not None:
        dataset = with_coco(dataset, boxes)
    explainer = engine.load(model, takes_detectors=True)
    reading = explainer.manifest.tft
    with ExitStack() as stack:
        measure = None
        if cluster.on is not None:
            connected = stack.enter_context(cluster.connect(model, engine))
            measure = measure_on_cluster(*connected)
        advance = stack.enter_context(progress("evaluating", len(dataset.samples), as_json))
        advance("evaluating", 0)
        evaluation = run_evaluation(
            explainer,
            dataset,
            methods=methods,
            variants=parse.choices("--variants", variants, VARIANTS),  # type: ignore[arg-type]
            tft=tft.reading(Tft(mask=reading.mask, thresholds=reading.thresholds)),
            target=target,
            curve_steps=curves,
            road=road,
            stability=stability,
            classes=classes,
            folder=output,
            tick=advance,
            measure=measure,
            asked=None if ask is None else engine.load(ask),
            most=top,
            min_score=detector.min_score,
            iou=detector.iou,
        )
    written = [] if output is None else write_report(evaluation, output)
    if report and output is not None:
        with progress("writing the report", evaluation.images, as_json) as advance:
            advance("writing the report", 0)
            written.append(write_evaluation_page(explainer, dataset, evaluation, output, advance))
    if as_json:
        document = msgspec.to_builtins(evaluation)
        print_json({**document, "written": [str(path) for path in written]})
        return
    if evaluation.labels:
        out.print(labels_table(evaluation))
        say(labels_lines(evaluation))
        out.print()
    out.print(results_table(evaluation))
    say(summary_lines(evaluation))
    if output is not None:
        say_written(output, written)


def _check_kind(
    manifest: Manifest, detector: DetectorOptions, top: int | None, report: bool
) -> None:
    """Refuse options that a classifier, or a detector, has not.

    Raises:
        RequestError: one is given.
    """
    if manifest.detector is None:
        detector.refuse(manifest, top)
        return
    if report:
        raise RequestError(
            f"the page of --report is of classes, and {manifest.model} is a detector: whycam "
            "explain --report shows its detections"
        )
    detector.plan(manifest, most=top)


def results_table(evaluation: Evaluation) -> Table:
    """Lay out results as the paper's table 3: measures down, variants across, ratios beside."""
    variants = list(dict.fromkeys(result.variant for result in evaluation.results))
    rows = []
    for method in dict.fromkeys(result.method for result in evaluation.results):
        results = {one.variant: one for one in evaluation.results if one.method == method}
        lines = measure_rows({name: results.get(name) for name in variants})
        rows += [[method, *line] for line in lines]
    return table(["method", "measure", *variants], rows, numbers=variants)


_LABELS_SHOWN = 30


def labels_table(evaluation: Evaluation) -> Table:
    """Lay out a line for each label, the least average precision first."""
    numbers = ["present", "AP", "acc.", "prec.", "recall", "incr.", "drop"]
    rows = []
    for label in _sort_labels(evaluation)[:_LABELS_SHOWN]:
        maps = label.maps[0] if label.maps else None
        rows.append(
            [
                label.label,
                str(label.present),
                _figure(label.average_precision),
                _figure(label.accuracy),
                _figure(label.precision),
                _figure(label.recall),
                _figure(None if maps is None else maps.average_increase),
                _figure(None if maps is None else maps.average_drop),
            ]
        )
    return table(["label", *numbers], rows, numbers=numbers)


def _sort_labels(evaluation: Evaluation) -> list[LabelFigures]:
    """Sort labels by average precision; those without any come last."""
    return sorted(
        evaluation.labels,
        key=lambda one: 2.0 if one.average_precision is None else one.average_precision,
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def labels_lines(evaluation: Evaluation) -> str:
    """Describe the columns of the labels' table, and the mean average precision."""
    lines = []
    more = len(evaluation.labels) - _LABELS_SHOWN
    if more > 0:
        lines.append(f"{more} labels more: see --json, or labels.csv with -o")
    mean = _figure(evaluation.mean_average_precision)
    counted = sum(one.average_precision is not None for one in evaluation.labels)
    lines.append(
        f"mean average precision {mean} over {counted} labels, {evaluation.labelled} images"
    )
    lines.append(
        "present: images with the label; AP: average precision; accuracy, precision and recall of "
        "a probability above 0.5"
    )
    first = next((one.maps[0] for one in evaluation.labels if one.maps), None)
    if first is not None:
        lines.append(
            f"incr., drop: average increase and drop of {first.method} ({first.variant}), on the "
            "images with the label"
            + (" that is also predicted" if evaluation.target == "predicted" else "")
        )
    return "\n".join(lines)


def measure_rows(results: Mapping[str, Result | None]) -> list[list[str]]:
    """Lay out a line for each measure: its title, and each result's value and standard error.

    Args:
        results: by name; ratios are to the one named ``original``. None leaves its cells empty.
    """
    rows = []
    for field, title in _TITLES.items():
        cells = [_cell(result, results.get("original"), field) for result in results.values()]
        if any(cells):
            rows.append([title, *cells])
    return rows


def _cell(result: Result | None, original: Result | None, field: str) -> str:
    value = None if result is None else getattr(result, field)
    if value is None:
        return ""
    text = f"{value:.3f} ± {getattr(result, f'{field}_standard_error'):.3f}"
    before = None if original is None or original is result else getattr(original, field)
    if before is None or field in _NEITHER_IS_BETTER:
        return text
    # As the paper: above 1 is better than the original, for drops as for increases.
    above, below = (before, value) if field in _LOWER_IS_BETTER else (value, before)
    return f"{text} (x{above / below:.2f})" if below else text


def _describe_target(evaluation: Evaluation) -> str:
    if evaluation.detections is not None:
        count = f"{evaluation.detections} detections"
        if evaluation.target == "label":
            return f"{count} that match an annotated box of their class"
        if evaluation.matched is None:
            return f"{count}, measured against their own boxes"
        return f"{count}, of which {evaluation.matched} match an annotated box of their class"
    if evaluation.target == "label" and evaluation.labels:
        return f"each label that an image has, {evaluation.results[0].maps} in all"
    return f"the {evaluation.target} class"


def summary_lines(evaluation: Evaluation) -> str:
    """Describe what was evaluated, with the reading, accuracy and images left out."""
    reading = evaluation.results[0]
    lines = [
        f"{evaluation.model}: {evaluation.images} images of {evaluation.data}, explaining "
        + _describe_target(evaluation),
        f"TFT: {reading.mask} mask, {reading.thresholds} thresholds; ± standard error; x: "
        "ratio to the original, above 1 is better",
    ]
    if evaluation.accuracy is not None:
        lines.append(
            f"accuracy {evaluation.accuracy:.4f} ± {evaluation.accuracy_standard_error:.4f} on "
            f"{evaluation.labelled} labelled images"
        )
    if evaluation.annotated is not None:
        precision = _figure(evaluation.precision)
        lines.append(
            f"at an overlap of half: precision {precision}, recall {_figure(evaluation.recall)} of "
            f"{evaluation.annotated} annotated boxes, each matched once (--top and --min-score "
            "choose the detections)"
        )
    lines += unreadable_lines(evaluation.unreadable, evaluation.unreadable_count)
    if evaluation.skipped:
        lines.append(
            f"{evaluation.skipped} images left out: they have no label that is a class of the "
            "network"
        )
    return "\n".join([*lines, *evaluation.notes])
