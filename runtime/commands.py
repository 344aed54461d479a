"""The verbs that run a model file: explain, info, verify. Each imports what it needs when run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import options
from .cam import METHODS
from .console import out, print_error, print_json, progress
from .errors import RequestError, WhyCamError
from .options import Cache, Engine, Gpu, Json, Precision, SweepIn, Threads

if TYPE_CHECKING:
    from .explanation import Explanation
    from .manifest import Manifest
    from .tft import Tft


def explain(
    model: Annotated[Path, typer.Argument(help="A file made by whycam export.")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the overlays.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"One or more of: {', '.join(METHODS)}; with commas "
            "[default: what the graph finishes itself, or gradcam]."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Class to explain: index, label, or rank -1 to -5 [default: -1]."),
    ] = None,
    tft: Annotated[
        bool, typer.Option("--tft", help="Find the best threshold of each map.")
    ] = False,
    mask: Annotated[str | None, typer.Option(help="TFT: binary or soft [default: file's].")] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="TFT: value or rank [default: the file's].")
    ] = None,
    forwards: Annotated[
        int | None,
        typer.Option(
            help="TFT: try so few thresholds; needs whycam calibrate thresholds [default: the "
            "file's, or all]."
        ),
    ] = None,
    naive: Annotated[
        bool, typer.Option("--naive", help="Mute the share that the method's users mute by habit.")
    ] = False,
    figure: Annotated[
        bool, typer.Option("--figure", help="Write picture, map, TFT map and rpi curve as well.")
    ] = False,
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="Write maps as .npy, at the picture's size.")
    ] = False,
    engine: Engine = "auto",
    precision: Precision = "fp32",
    sweep_in: SweepIn = None,
    again: Annotated[
        int | None,
        typer.Option(help="With --sweep-in: how many of the best are tried again [default: 2]."),
    ] = None,
    threads: Threads = None,
    cache: Cache = None,
    gpu: Gpu = 0,
    as_json: Json = False,
) -> None:
    """Say what a network sees in pictures, and where it looked."""
    from .explainer import load
    from .report import explanations_table

    if output is None and (figure or save_maps):
        raise RequestError("--figure and --save-maps need a folder to write to: -o DIR")
    if sweep_in is not None and not tft:
        raise RequestError("--sweep-in is a setting of --tft: add it")
    if again is not None and sweep_in is None:
        raise RequestError("--again is a setting of --sweep-in: say where to try first")
    explainer = load(
        model,
        engine,
        threads,
        precision=precision,  # type: ignore[arg-type]
        cache=cache,
        sweep_in=sweep_in,
        gpu=gpu,
    )
    wanted = _thresholding(explainer.manifest, tft, naive, mask, thresholds, forwards, again)
    chosen = (
        options.names(method)
        if method is not None
        else [explainer.manifest.map_method or "gradcam"]
    )
    files = options.pictures(pictures)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    with progress("explaining", len(files) * len(chosen), as_json) as advance:
        for file, name in files:
            for each in chosen:
                try:
                    found = explainer.explain(
                        file,
                        options.target(target),
                        each,  # type: ignore[arg-type]
                        wanted,
                        progress=lambda done, total, name=name: advance(  # type: ignore[misc]
                            f"{name}: {done} of {total} passes", 0
                        ),
                    )
                except WhyCamError as error:
                    if len(files) == 1 or isinstance(error, RequestError):
                        raise
                    failed.append(str(error))
                    rows.append({"file": str(file), "error": str(error)})
                    advance(name, len(chosen))
                    break
                row: dict[str, Any] = {"file": str(file), **found.to_dict()}
                if output is not None:
                    row["written"] = _write(found, output, f"{name}.{each}", figure, save_maps)
                rows.append(row)
                advance(name, 1)
    if as_json:
        print_json({"model": str(model), "explanations": rows})
    else:
        out.print(explanations_table(rows, tft))
        for line in failed:
            print_error(line)
        if output is not None:
            out.print(f"written to {output}/", soft_wrap=True)
    if failed:
        raise typer.Exit(2)


def info(
    model: Annotated[Path, typer.Argument(help="A file made by whycam export.")],
    labels: Annotated[
        bool, typer.Option("--labels", help="Print the class names alone, one a line.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a model file says about itself, and which engines here can run it."""
    import msgspec

    from .engines.base import EngineSettings
    from .engines.plan import is_plan, read_plan
    from .engines.registry import candidates
    from .onnxfile import read_manifest
    from .report import engines_table, manifest_table, plan_table

    manifest = read_manifest(model)
    found = candidates(manifest, EngineSettings(), model)
    plan = read_plan(model) if is_plan(model) else None
    if labels:
        if not manifest.labels:
            raise RequestError(f"{model} holds no class names: it was exported without --labels")
        print("\n".join(manifest.labels))
    elif as_json:
        engines = [msgspec.to_builtins(each) for each in found]
        built = None if plan is None else msgspec.to_builtins(plan)
        if built is not None:
            del built["manifest"]
        print_json({**msgspec.to_builtins(manifest), "plan": built, "engines": engines})
    else:
        out.print(manifest_table(model, manifest))
        if plan is not None:
            out.print(plan_table(plan))
        out.print(engines_table(found))


def verify(
    model: Annotated[Path, typer.Argument(help="A file made by whycam export.")],
    engine: Engine = "auto",
    precision: Precision = "fp32",
    threads: Threads = None,
    cache: Cache = None,
    gpu: Gpu = 0,
    as_json: Json = False,
) -> None:
    """Check a file, and the engine here, against the export's reference answers."""
    from .engines.plan import is_plan
    from .engines.selftest import check, method_of, tolerance_of
    from .explainer import load
    from .onnxfile import check_digest, read_manifest
    from .report import agreements_table

    with progress("digest", 3, as_json) as advance:
        if not is_plan(model):  # a plan's is compared when it is loaded
            check_digest(model, read_manifest(model))
        advance("loading", 1)
        explainer = load(
            model,
            engine,
            threads,
            precision=precision,  # type: ignore[arg-type]
            cache=cache,
            gpu=gpu,
            check=False,  # the check is what follows
        )
        advance("test patterns", 1)
        agreements = check(explainer.engine, explainer.manifest)
        tolerance = tolerance_of(explainer.manifest, precision)  # type: ignore[arg-type]
        problems = [text for found in agreements if (text := found.problem(tolerance))]
    if as_json:
        document = {
            "model": str(model),
            "engine": explainer.engine.description,
            "ok": not problems,
            "problems": problems,
            "agreements": [agreement.to_dict() for agreement in agreements],
        }
        print_json(document)
    else:
        out.print(explainer.engine.description)
        out.print(agreements_table(agreements, method_of(explainer.manifest)))
        out.print(
            f"allowed: probability {tolerance.probability:g}, map {tolerance.map:g} (file "
            f"{explainer.manifest.precision}, arithmetic {precision})"
        )
    for problem in problems:
        print_error(problem)
    if problems:
        raise typer.Exit(2)
    if not as_json:
        out.print("[green]ok[/green]: this engine gives the export's reference answers")


def _write(found: Explanation, folder: Path, name: str, figure: bool, save_maps: bool) -> list[str]:
    written = [found.save(folder / f"{name}.png")]
    if figure:
        written.append(found.save(folder / f"{name}.figure.png", figure=True))
    if save_maps:
        written.append(found.save_map(folder / f"{name}.npy"))
    return [str(path) for path in written]


def _thresholding(
    manifest: Manifest,
    use_tft: bool,
    naive: bool,
    mask: str | None,
    thresholds: str | None,
    forwards: int | None,
    again: int | None,
) -> Tft | Literal["naive"] | None:
    if naive and use_tft:
        raise RequestError("--naive and --tft exclude each other")
    if (mask or thresholds or forwards is not None) and not use_tft:
        raise RequestError("--mask, --thresholds and --forwards are settings of --tft: add it")
    if naive:
        return "naive"
    if not use_tft:
        return None
    return options.reading(mask, thresholds, manifest.tft, forwards, again)
