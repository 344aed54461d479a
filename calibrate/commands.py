"""The verbs of ``whycam calibrate``. What they need is imported when one runs, not before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..runtime import options
from ..runtime.console import escape, out, print_json, progress
from ..runtime.errors import RequestError
from ..runtime.options import Cache, Engine, Gpu, Json, Precision, Threads

app = typer.Typer(
    name="calibrate",
    help="Fit a model file to your photographs: INT8, thresholds worth trying, and the proof.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Model = Annotated[Path, typer.Argument(help="A file made by whycam export, with raw outputs.")]
Data = Annotated[
    Path,
    typer.Argument(
        help="A folder of pictures, a CSV file of picture and label, or a Pascal VOC folder. "
        "Labels are not needed."
    ),
]


@app.command(
    epilog="Example: whycam calibrate thresholds resnet50.onnx photos/ --methods gradcam -o found/"
)
def thresholds(
    model: Model,
    data: Data,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for report and plot.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Store what was learnt in the model file.")
    ] = True,
    methods: Annotated[
        str | None,
        typer.Option(help="With commas [default: the paper's four, as far as the file has them]."),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(help="One reading of TFT, with --thresholds: binary or soft [default: both]."),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--thresholds", help="With --mask: value or rank.")
    ] = None,
    engine: Engine = "auto",
    precision: Precision = "fp32",
    threads: Threads = None,
    cache: Cache = None,
    gpu: Gpu = 0,
    as_json: Json = False,
) -> None:
    """Learn which thresholds are worth trying, so that a few forwards replace TFT's ten.

    Takes 20 forwards for each photograph, method and reading. Then whycam explain --tft --forwards
    4 searches, and whycam export --outputs tft --forwards 4 --search FILE puts the search into a
    graph.
    """
    import msgspec

    from ..runtime.explainer import load
    from ..runtime.files import writable
    from ..runtime.tft import Tft
    from .dataset import open_dataset
    from .thresholds import READINGS, learn, store
    from .thresholds_report import curve_table, learnt_lines, write_learnt

    one = options.reading(mask, by, Tft())
    if not write and output is None and not as_json:
        raise RequestError("with --no-write say where the result goes: -o DIR, or --json")
    found_data = open_dataset(data)
    explainer = load(
        model,
        engine,
        threads,
        precision=precision,  # type: ignore[arg-type]
        cache=cache,
        gpu=gpu,
    )
    if output is not None:
        writable(output)  # known before the minutes it takes
    with progress("trying thresholds", len(found_data.samples), as_json) as advance:
        advance("trying thresholds", 0)
        found = learn(
            explainer,
            found_data,
            methods=options.names(methods) if methods else None,  # type: ignore[arg-type]
            readings=[(one.mask, one.thresholds)] if mask or by else READINGS,
            tick=advance,
        )
    written = [] if output is None else write_learnt(found, output)
    if write:
        store(model, found.priors)
    if as_json:
        paths = [*map(str, written), *([str(model)] if write else [])]
        print_json({**msgspec.to_builtins(found), "written": paths})
        return
    for curve in found.curves:
        out.print(curve_table(curve))
    out.print(learnt_lines(found), soft_wrap=True)
    if output is not None:
        out.print(f"written to {output}/: {', '.join(p.name for p in written)}", soft_wrap=True)
    if write:
        first = found.priors[0]
        out.print(f"stored in {model}", soft_wrap=True)
        out.print(
            f"next: whycam explain {model} PICTURE -o maps --method {first.method} --tft "
            f"--mask {first.mask} --thresholds {first.thresholds} --forwards 4",
            soft_wrap=True,
        )


@app.command(
    epilog="Example: whycam calibrate int8 resnet50.onnx photos/ -o resnet50.int8.onnx "
    "--floor pearson=0.97,top1=0.96"
)
def int8(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="The INT8 file to write.")],
    calibrator: Annotated[
        str,
        typer.Option(
            help="minmax, percentile, entropy, or auto: the one whose maps agree best with float."
        ),
    ] = "auto",
    percentile: Annotated[
        float | None,
        typer.Option(help="Of an activation's magnitudes [default: the better of 99.99, 99.9]."),
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(
            help="8, or 7 for processors without VNNI, whose sums overflow with 8 [default: 8, or "
            "7 where 8 miss the floor here]."
        ),
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            help="trunk: everything up to the target layer. sweep: only the second pass of a file "
            "with --outputs tft, so that probabilities and maps stay as they are."
        ),
    ] = "trunk",
    pictures: Annotated[int, typer.Option(help="Photographs to take ranges from, at most.")] = 128,
    held_out: Annotated[int, typer.Option(help="Others, to prove it on, at most.")] = 200,
    floor: Annotated[
        str,
        typer.Option(
            help="Agreement with the float file that must hold: top1 (share with the same class), "
            "pearson (median correlation of every method's maps). Layers are left in float "
            "until it does."
        ),
    ] = "pearson=0.95,top1=0.95",
    methods: Annotated[
        str | None,
        typer.Option(help="Whose maps [default: the paper's four, as far as the file has them]."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for int8.json and int8.csv.")] = None,
    engine: Engine = "auto",
    threads: Threads = None,
    gpu: Gpu = 0,
    as_json: Json = False,
) -> None:
    """Quantise a file to INT8 and prove, on photographs held out, that labels and maps survive."""
    import msgspec

    from .dataset import open_dataset
    from .int8 import Settings, calibrate_int8
    from .int8_report import (
        fidelity_lines,
        fidelity_table,
        int8_lines,
        trials_table,
        write_int8_report,
    )

    settings = Settings(
        calibrator=calibrator,
        percentile=percentile,
        weight_bits=weight_bits,
        part=options.one_of("--part", part, ("trunk", "sweep")),  # type: ignore[arg-type]
        pictures=pictures,
        held_out=held_out,
        floor=options.numbers("--floor", floor),
        methods=options.names(methods) if methods else None,  # type: ignore[arg-type]
        engine=engine,
        threads=threads,
        gpu=gpu,
    )
    found_data = open_dataset(data)
    with progress("reading the graph", None, as_json) as advance:
        found = calibrate_int8(model, found_data, output, settings, advance, advance.total)
    written = [] if report is None else write_int8_report(found, report)
    if as_json:
        document = msgspec.to_builtins(found)
        print_json({**document, "written": [str(path) for path in written]})
        return
    out.print("on the photographs that ranges were taken from:")
    out.print(trials_table(found))
    out.print("proof, on photographs held out:")
    out.print(fidelity_table(found.proof))
    out.print(fidelity_lines(found.proof), soft_wrap=True)
    out.print(escape(int8_lines(found)), soft_wrap=True)
    if report is not None:
        out.print(f"written to {report}/: {', '.join(p.name for p in written)}", soft_wrap=True)
    out.print(f"next: whycam explain {output} PICTURE -o maps", soft_wrap=True)


@app.command(
    epilog="Example: whycam calibrate compare resnet50.onnx resnet50.onnx photos/ --precision bf16"
)
def compare(
    reference: Annotated[Path, typer.Argument(help="A file made by whycam export, run in fp32.")],
    model: Annotated[Path, typer.Argument(help="The same, or its INT8 file.")],
    data: Data,
    pictures: Annotated[int, typer.Option(help="Photographs to compare on, at most.")] = 200,
    methods: Annotated[
        str | None,
        typer.Option(help="Whose maps [default: the paper's four, as far as both have them]."),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="TFT: binary or soft [default: the file's].")
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="TFT: value or rank [default: the file's].")
    ] = None,
    no_tft: Annotated[
        bool, typer.Option("--no-tft", help="Compare maps alone, which is ten times faster.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Folder for compare.json and compare.csv.")
    ] = None,
    engine: Engine = "auto",
    precision: Precision = "fp32",
    threads: Threads = None,
    gpu: Gpu = 0,
    as_json: Json = False,
) -> None:
    """Say whether labels, maps and thresholds survive another precision, file or engine."""
    import msgspec

    from ..runtime.explainer import load
    from .dataset import in_fixed_order, open_dataset
    from .fidelity import compare as run_comparison
    from .int8_report import fidelity_lines, fidelity_table, write_fidelity_report

    first = load(reference, threads=threads)
    second = load(
        model,
        engine,
        threads,
        precision=precision,  # type: ignore[arg-type]
        gpu=gpu,
        check=False,  # how far it is off is the question
    )
    tft = None if no_tft else options.reading(mask, thresholds, first.manifest.tft)
    if pictures < 1:
        raise RequestError(f"--pictures must be 1 or more, not {pictures}")
    samples = in_fixed_order(open_dataset(data).samples)[:pictures]
    with progress("comparing", len(samples), as_json) as advance:
        advance("comparing", 0)
        found = run_comparison(
            first,
            second,
            samples,
            options.names(methods) if methods else None,  # type: ignore[arg-type]
            tft,
            advance,
        )
    written = [] if report is None else write_fidelity_report(found, report)
    if as_json:
        document = msgspec.to_builtins(found)
        print_json({**document, "written": [str(path) for path in written]})
        return
    out.print(fidelity_table(found))
    out.print(fidelity_lines(found), soft_wrap=True)
    if report is not None:
        out.print(f"written to {report}/: {', '.join(p.name for p in written)}", soft_wrap=True)


def evaluate(
    model: Annotated[Path, typer.Argument(help="A file made by whycam export, with raw outputs.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder with a subfolder for each class, a CSV file of picture and label, or a "
            "folder with JPEGImages and Annotations as Pascal VOC has them."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for report and plots; an evaluation that was stopped goes on there.",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="With commas [default: the paper's four, as far as the file has them]."),
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Of each map: original, naive, tft.")
    ] = "original,naive,tft",
    mask: Annotated[str, typer.Option(help="How a map masks the image: soft or binary.")] = "soft",
    thresholds: Annotated[
        str, typer.Option(help="What TFT's thresholds count: rank or value.")
    ] = "rank",
    explained: Annotated[
        str, typer.Option(help="The class to explain: predicted or label.")
    ] = "predicted",
    classes: Annotated[
        Path | None,
        typer.Option(help="CSV: the data's label, the network's class (index or name)."),
    ] = None,
    curves: Annotated[
        int,
        typer.Option(help="Steps of insertion and deletion, as 20 [default: 0, not measured]."),
    ] = 0,
    engine: Engine = "auto",
    precision: Precision = "fp32",
    threads: Threads = None,
    cache: Cache = None,
    gpu: Gpu = 0,
    as_json: Json = False,
) -> None:
    """Measure how well maps explain: average increase and drop, rpi, pointing game and more."""
    import msgspec

    from ..runtime.explainer import load
    from ..runtime.tft import Tft
    from .dataset import open_dataset
    from .evaluate import evaluate as run_evaluation
    from .report import results_table, summary_lines, write_report

    if curves < 0:
        raise RequestError(f"--curves must be 0 or more, not {curves}")
    found_data = open_dataset(data)
    explainer = load(
        model,
        engine,
        threads,
        precision=precision,  # type: ignore[arg-type]
        cache=cache,
        gpu=gpu,
    )
    options.one_of("--explained", explained, ("predicted", "label"))
    with progress("evaluating", len(found_data.samples), as_json) as advance:
        advance("evaluating", 0)
        found = run_evaluation(
            explainer,
            found_data,
            methods=options.names(methods) if methods else None,  # type: ignore[arg-type]
            variants=options.names(variants),  # type: ignore[arg-type]
            tft=options.reading(mask, thresholds, Tft()),
            explained=explained,  # type: ignore[arg-type]
            curve_steps=curves,
            names=classes,
            folder=output,
            tick=advance,
        )
    written = [] if output is None else write_report(found, output)
    if as_json:
        print_json({**msgspec.to_builtins(found), "written": [str(path) for path in written]})
        return
    out.print(results_table(found))
    out.print(summary_lines(found), soft_wrap=True)
    if output is not None:
        out.print(f"written to {output}/: {', '.join(p.name for p in written)}", soft_wrap=True)
