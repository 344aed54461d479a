"""The verb compare."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..runtime.errors import RequestError
from ..runtime.onnxfile import read_manifest
from ..runtime.tft import Tft
from . import parse
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
    require,
)
from .progress import progress
from .tables import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..calibrate.detection_fidelity import DetectionFidelity
    from ..calibrate.fidelity import Fidelity
    from ..runtime.cam import Method
    from ..runtime.explainer import Explainer


def compare(
    reference: Annotated[Path, typer.Argument(help="A file made by whycam export, run in fp32.")],
    model: Model,
    data: Data,
    engine: PromptedEngineOptions,
    reading: ReadingOptions,
    detector: DetectorOptions,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for compare.json and compare.csv.")
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Write report.html too: every image with both maps and the difference."
        ),
    ] = False,
    images: Annotated[int, typer.Option(help="Images to compare on, at most.")] = 200,
    method: PaperMethod = None,
    tft: Annotated[
        bool,
        typer.Option(
            "--tft/--no-tft", help="Compare thresholds too; maps alone are ten times faster."
        ),
    ] = True,
    classes: ClassMap = None,
    as_json: Json = False,
) -> None:
    """Compare the labels, maps and thresholds of two files.

    As before and after AFT, fp32 and INT8, two networks of the same classes, or one file in two
    engines or precisions. Of two detectors the objects that both find are compared.
    """
    import msgspec

    from ..calibrate.comparison_page import add_compared, describe_comparison
    from ..calibrate.dataset import Classes, open_dataset, shuffle_samples
    from ..calibrate.fidelity import compare as run_comparison
    from ..calibrate.int8_report import write_fidelity_report
    from ..runtime.load import load
    from ..runtime.report.document import Report, check_count

    if report and output is None:
        raise RequestError("--report needs a place to write to: -o FOLDER")
    require("--classes", classes is not None, "--report", report)
    if images < 1:
        raise RequestError(f"--images must be 1 or more, not {images}")
    methods = parse.methods(method)
    if any(read_manifest(file).detector is not None for file in (reference, model)):
        _refuse_for_detectors(reading, tft, report, output, classes)
        _compare_detectors(reference, model, data, engine, detector, methods, images, as_json)
        return
    detector.refuse(read_manifest(reference))
    dataset = open_dataset(data)
    first = load(reference, threads=engine.threads, prompts=engine.prompts)
    second = engine.load(model, check=False)  # differences are measured below, not refused
    samples = shuffle_samples(dataset.samples)[:images]
    settings = reading.reading(first.manifest.tft) if tft else None
    names = _name_both((reference, first), (model, second))
    labels = first.manifest.labels or second.manifest.labels
    lookup = Classes(labels, first.manifest.num_classes, classes)
    if report:
        check_count(len(samples))
    with ExitStack() as stack:
        advance = stack.enter_context(progress("comparing", len(samples), as_json))
        advance("comparing", 0)
        page, collect = None, None
        if report and output is not None:
            page = stack.enter_context(Report(output / "report.html", len(samples)))
            collect = partial(add_compared, page, lookup, labels)
        fidelity = run_comparison(first, second, samples, methods, settings, advance, collect)
        written = [] if output is None else write_fidelity_report(fidelity, output)
        if page is not None:
            unknown = lookup.describe_unknown(
                sorted({one.label for one in samples if one.label is not None}),
                "their images are shown without a label",
            )
            about = describe_comparison(first, names, data.name, fidelity, settings, unknown)
            written.append(page.write(about))
    if as_json:
        document = msgspec.to_builtins(fidelity)
        print_json({**document, "written": [str(path) for path in written]})
        return
    out.print(fidelity_table(fidelity))
    say(fidelity_lines(fidelity))
    if output is not None:
        say_written(output, written)


def _refuse_for_detectors(
    reading: ReadingOptions, tft: bool, report: bool, output: Path | None, classes: Path | None
) -> None:
    """Refuse options of classes of whole images, before any work is done.

    Raises:
        RequestError: one is given.
    """
    for name, is_given in (
        ("--report", report),
        ("-o", output is not None),
        ("--classes", classes is not None),
        ("a reading of TFT", reading != ReadingOptions() and tft),
    ):
        if is_given:
            raise RequestError(
                f"{name} is for classes of whole images: of detectors boxes, scores and whole maps "
                "are compared, and --json writes all figures"
            )


def _compare_detectors(
    reference: Path,
    model: Path,
    data: Path,
    engine: PromptedEngineOptions,
    detector: DetectorOptions,
    methods: Sequence[Method] | None,
    images: int,
    as_json: bool,
) -> None:
    """Compare two detectors' files, and print what agrees."""
    import msgspec

    from ..calibrate.dataset import open_dataset, shuffle_samples
    from ..calibrate.detection_fidelity import compare_detectors
    from ..runtime.load import load

    for file in (reference, model):
        detector.plan(read_manifest(file))
    samples = shuffle_samples(open_dataset(data).samples)[:images]
    first = load(reference, threads=engine.threads)
    second = engine.load(model, takes_detectors=True, check=False)
    with progress("comparing", len(samples), as_json) as advance:
        advance("comparing", 0)
        found = compare_detectors(
            first, second, samples, methods, min_score=detector.min_score, tick=advance
        )
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    rows = [
        [
            name,
            f"{one.pearson:.4f}",
            f"{one.pearson_low:.4f}",
            f"{one.iou:.3f}",
            f"{one.iou_low:.3f}",
        ]
        for name, one in found.maps.items()
    ]
    out.print(table(["method", "correlation", "5 %", "IoU of top 20 %", "5 %"], rows))
    say(detections_lines(found))


def detections_lines(found: DetectionFidelity) -> str:
    """Describe which objects two detectors both find."""
    lines = [
        f"{found.other} against {found.reference}",
        f"{found.images} images: {found.matched} of {found.detections} objects are found again, of "
        f"{found.others} that the other finds",
    ]
    if found.iou is not None:
        lines.append(
            f"their boxes overlap by {found.iou:.3f} (IoU), their scores are off by "
            f"{found.score:.4f}, on average"
        )
    if found.lost:
        worst = sorted(found.lost, key=lambda name: -found.lost[name])[:3]
        lines.append("not found again in: " + ", ".join(f"{n} ({found.lost[n]})" for n in worst))
    return "\n".join([*lines, *unreadable_lines(found.unreadable)])


def _name_both(first: tuple[Path, Explainer], second: tuple[Path, Explainer]) -> tuple[str, str]:
    """Name two files so that they are told apart: by name, engine, or folder."""
    (one, a), (other, b) = first, second
    if one.name != other.name:
        return one.name, other.name
    if a.engine.description != b.engine.description:
        names = (f"{p.name} ({e.engine.description})" for p, e in (first, second))
        return next(names), next(names)
    if one != other:
        return str(one), str(other)
    return f"{one} (first)", f"{other} (second)"


def fidelity_table(fidelity: Fidelity) -> Table:
    """Lay out how well maps agree, a line for each method."""
    swept = ["same tau*", "average increase", "average drop"] if fidelity.mask is not None else []
    rows = []
    for method, maps in fidelity.maps.items():
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
        rows.append(cells)
    return table(["method", "correlation", "5 %", "IoU of top 20 %", "5 %", *swept], rows)


def fidelity_lines(fidelity: Fidelity) -> str:
    """Describe what was compared, and the agreement of classes and probabilities."""
    lines = [
        f"{fidelity.other} against {fidelity.reference}",
        f"{fidelity.images} images: same class on {fidelity.top1:.1%}, its probability off by "
        f"{fidelity.probability:.4f} on average",
        "correlation and IoU: the median; 5 %: the 5th percentile",
    ]
    if fidelity.mask is not None and fidelity.thresholds is not None:
        tft = Tft(mask=fidelity.mask, thresholds=fidelity.thresholds)
        lines.append(f"TFT: {tft.reading}")
    return "\n".join([*lines, *unreadable_lines(fidelity.unreadable)])
