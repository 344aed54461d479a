"""The verb calibrate thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..runtime.errors import RequestError
from ..runtime.tft import Mask, Tft, Thresholds
from . import parse
from .console import print_json, say, say_all, say_written, unreadable_lines
from .options import (
    Data,
    Json,
    Model,
    PaperMethod,
    PromptedEngineOptions,
    ReadingOptions,
    ReportFolder,
)
from .progress import progress
from .tables import table

if TYPE_CHECKING:
    from ..calibrate.thresholds import LearntThresholds
    from ..calibrate.thresholds_curve import Curve, Point


def thresholds(
    model: Model,
    data: Data,
    engine: PromptedEngineOptions,
    output: ReportFolder = None,
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Store what was learnt in the model file.")
    ] = True,
    method: PaperMethod = None,
    mask: Annotated[
        Mask | None,
        typer.Option(help="With --thresholds: the reading of TFT to learn for [default: both]."),
    ] = None,
    by: Annotated[
        Thresholds | None,
        typer.Option(
            "--thresholds", help="With --mask: the reading of TFT to learn for [default: both]."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Learn which of TFT's thresholds are worth trying.

    A few evaluations then replace ten.
    Takes 20 evaluations of the network for each image, method and reading. Then whycam explain
    --tft --evaluations 4 searches, and whycam export --outputs tft --evaluations 4 --search FILE
    puts the search into a graph.
    """
    import msgspec

    from ..calibrate.dataset import open_dataset
    from ..calibrate.thresholds import READINGS, learn_thresholds, store_priors
    from ..calibrate.thresholds_report import write_learnt
    from ..runtime.files import writable_folder

    if not write and output is None and not as_json:
        raise RequestError("--no-write leaves no result: add -o DIR or --json")
    methods = parse.methods(method)
    reading = ReadingOptions(mask, by).reading(Tft())
    dataset = open_dataset(data)
    explainer = engine.load(model)
    if output is not None:
        writable_folder(output)  # known before the minutes it takes
    with progress("trying thresholds", len(dataset.samples), as_json) as advance:
        advance("trying thresholds", 0)
        learnt = learn_thresholds(
            explainer,
            dataset,
            methods=methods,
            readings=[(reading.mask, reading.thresholds)] if mask or by else READINGS,
            tick=advance,
        )
    written = [] if output is None else write_learnt(learnt, output)
    if write:
        store_priors(model, learnt.priors)
    if as_json:
        paths = [*map(str, written), *([str(model)] if write else [])]
        print_json({**msgspec.to_builtins(learnt), "written": paths})
        return
    say_all([*map(curve_table, learnt.curves), learnt_lines(learnt)])
    if output is not None:
        say_written(output, written)
    if write:
        first = learnt.priors[0]
        say(
            f"stored in {model}\n"
            f"next: whycam explain {model} IMAGE -o maps --method {first.method} --tft "
            f"--mask {first.mask} --thresholds {first.thresholds} --evaluations 4"
        )


def curve_table(curve: Curve) -> Table:
    """Lay out a line for each number of evaluations, with increase, rpi and time."""
    columns = ["increase", "of the gain", "rpi", "of all ten", "ms"]
    rows = [
        ["unchanged map", f"{curve.original_average_increase:.3f}"],
        *([f"search of {point.evaluations}", *_cells(point)] for point in curve.search),
        *(
            ["only " + " ".join(f"{tau:g}" for tau in point.taus), *_cells(point)]
            for point in curve.fixed
        ),
        ["all ten", *_cells(curve.every)],
    ]
    return table(
        ["tried", *columns],
        rows,
        numbers=columns,
        title=f"{curve.method}, {Tft(mask=curve.mask, thresholds=curve.thresholds).reading}",
    )


def _cells(point: Point) -> list[str]:
    increase = f"{point.average_increase:.3f}±{point.average_increase_standard_error:.3f}"
    time = "" if point.milliseconds is None else f"{point.milliseconds:.1f}"
    return [
        increase,
        _share(point.increase_kept),
        f"{point.mean_rpi:.3f}",
        _share(point.rpi_kept),
        time,
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def learnt_lines(learnt: LearntThresholds) -> str:
    """Describe what was learnt from, and the columns of the tables."""
    curve = learnt.curves[0]
    lines = [
        f"{learnt.model}: {learnt.images} images of {learnt.data}, learnt from "
        f"{curve.learnt_from}, measured on {curve.held_out} others; engine {learnt.engine}",
        "increase: average increase ± standard error; of the gain: its gain over the unchanged "
        "map, as a share of the gain of all ten thresholds; rpi: mean relative probability "
        "increase; ms: median time of one map",
    ]
    return "\n".join([*lines, *unreadable_lines(learnt.unreadable)])
