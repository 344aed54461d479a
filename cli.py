"""The command line: one thin command per verb.

Exit codes: 0 done, 2 the request cannot be met (one red line says why), 1 our fault.
"""

from __future__ import annotations

import io
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .calibrate.commands import app as calibrate_app
from .calibrate.commands import evaluate
from .export.commands import build, half
from .runtime import options
from .runtime.cam import METHODS
from .runtime.commands import explain, info, verify
from .runtime.console import err, out, print_error, print_json, progress
from .runtime.doctor.command import doctor
from .runtime.engines.registry import ENGINES
from .runtime.errors import RequestError, WhyCamError
from .runtime.live.command import stream
from .runtime.options import Json, Weights
from .runtime.version import package_version
from .train.commands import app as train_app

if TYPE_CHECKING:
    from .runtime.bench.bench import PeerRuns
    from .runtime.bench.plan import Configuration
    from .runtime.sweep import Floats

app = typer.Typer(
    name="whycam",
    help="Make deployed CNN classifiers explain themselves.",
    epilog="Any command takes --debug, which shows the traceback of an error.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(train_app)
app.add_typer(calibrate_app)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Make deployed CNN classifiers explain themselves."""
    if version:
        out.print(f"whycam {package_version()}")
        raise typer.Exit


_PREPROCESS_HELP = (
    "How images are prepared, where the model does not say: imagenet (RGB, ImageNet's mean and "
    "std) or caffe (BGR, 0 .. 255 less ImageNet's mean), both with the shorter side resized to "
    "256/224 of the input and a centre crop; tf (-1 .. 1), zero-one (0 .. 1) or raw (0 .. 255), "
    "resized straight to the input's size; or a JSON file (a manifest's 'preprocess', or a "
    "preprocessor_config.json). --mean, --std, --resize, --color change parts of it."
)


@app.command(
    epilog="Example: whycam export torchvision/resnet50 -o resnet50.onnx; or of the file that is "
    "deployed: whycam export deployed.onnx -o explained.onnx --preprocess imagenet"
)
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="FILE.onnx, torchvision/NAME, timm/NAME, package.module:factory, file.py:factory, "
            "or the folder of a training."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The ONNX file to write.")
    ] = None,
    weights: Weights = "default",
    weights_key: Annotated[
        str | None,
        typer.Option(help="Which of several sets of weights in that file, as state_dict_ema."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="imagenet, or a file: one name a line or a JSON list."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What the outputs mean: softmax, sigmoid (independent labels), binary (one logit) "
            "or none (values) [default: what the graph's last operator says]."
        ),
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option("--output-name", help="Which of several outputs to explain, name or number."),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(help=_PREPROCESS_HELP),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Classes, where the weights have another number than usual.")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Side of the network input, or HxW [default: the model's].")
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(
            help="Shorter side before the centre crop; 0: straight to the input's size "
            "[default: the model's]."
        ),
    ] = None,
    interpolation: Annotated[
        str | None,
        typer.Option(help="nearest, bilinear, bicubic or lanczos [default: the model's]."),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="A number a channel, for [0, 1] pixels, as 0.485,0.456,0.406."),
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="A number a channel, as 0.229,0.224,0.225.")
    ] = None,
    color: Annotated[
        str | None, typer.Option(help="The network's channel order: RGB, BGR, or L for grey.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="Of an ONNX file's input: NCHW or NHWC [default: from its shape]."),
    ] = None,
    target_layer: Annotated[
        str | None,
        typer.Option(help="The layer to explain [default: found from the graph]."),
    ] = None,
    list_layers: Annotated[
        bool, typer.Option("--list-layers", help="Show where the model can be cut, and stop.")
    ] = False,
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"What the file must support, of: {', '.join(METHODS)}. "
            "[default: all but ablation, which makes every call do more]"
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="logit or prob: what gradients and Ablation-CAM are taken of "
            "[default: as published, logit and prob]."
        ),
    ] = None,
    outputs: Annotated[
        str,
        typer.Option(
            help="What the graph returns besides probabilities, one or more of: raw (activations "
            "and gradients), map (finished maps), tft (the first method's map, cut at the "
            "threshold that a sweep inside the graph finds)."
        ),
    ] = "raw,map",
    map_methods: Annotated[
        str | None,
        typer.Option(
            help="Whose maps the graph finishes, the first one's also for tft [default: all "
            "methods but scorecam; Grad-CAM alone without raw]."
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            help="Explain the K most probable classes: the graph then takes images alone, as the "
            "file that it replaces [default: an input says which classes]."
        ),
    ] = None,
    straight_through: Annotated[
        bool,
        typer.Option(
            "--straight-through",
            help="Pass gradients through quantisation after the target layer.",
        ),
    ] = False,
    check: Annotated[
        list[Path] | None,
        typer.Option(help="An image of yours, on which the file's own outputs are compared too."),
    ] = None,
    fuse: Annotated[
        str | None,
        typer.Option(
            help="With the outputs map or tft: earlier layers whose Layer-CAM maps are fused with "
            "the target layer's, for finer detail; see --list-layers."
        ),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="The file's TFT: binary or soft [default: binary].")
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="The file's TFT: value or rank [default: value].")
    ] = None,
    forwards: Annotated[
        int | None,
        typer.Option(
            help="With the output tft: try so few thresholds, chosen one after the other by what "
            "--search holds [default: all of them]."
        ),
    ] = None,
    again: Annotated[
        int | None,
        typer.Option(
            help="With the output tft: try so many of the best thresholds once more, and let only "
            "these count; for a sweep that whycam calibrate int8 --part sweep makes cheap."
        ),
    ] = None,
    search: Annotated[
        Path | None,
        typer.Option(
            help="What whycam calibrate thresholds learnt: its thresholds.json, or the ONNX file "
            "that it stored it in."
        ),
    ] = None,
    embed_preprocess: Annotated[
        bool,
        typer.Option(
            "--embed-preprocess",
            help="Feed the graph uint8 pictures; it resizes, crops and normalises them itself.",
        ),
    ] = False,
    picture_size: Annotated[
        str | None,
        typer.Option(help="With --embed-preprocess: HxW of every picture [default: any size]."),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(help="Write a Triton model repository here, with or without -o."),
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 18,
    as_json: Json = False,
) -> None:
    """Turn a classifier into one ONNX file that classifies and explains, and check it."""
    from .export import Overrides, to_onnx
    from .export import list_layers as find_layers
    from .export.onnx import STEPS
    from .export.report import export_document, export_lines, layers_document, layers_table
    from .export.triton import model_path, repository_name, write_repository
    from .runtime.priors import read_priors
    from .runtime.tft import Tft

    overrides = Overrides(
        image_size=options.size("--image-size", image_size),
        resize=resize,
        interpolation=options.one_of(  # type: ignore[arg-type]
            "--interpolation", interpolation, ("nearest", "bilinear", "bicubic", "lanczos")
        ),
        mean=options.per_channel("--mean", mean),
        std=options.per_channel("--std", std),
        preprocess=preprocess,
        color=options.one_of("--color", color, ("RGB", "BGR", "L")),  # type: ignore[arg-type]
        layout=options.one_of("--layout", layout, ("NCHW", "NHWC")),
    )
    meaning = options.one_of("--task", task, ("softmax", "sigmoid", "binary", "none"))
    if list_layers:
        with progress("reading the graph", None, as_json):
            # Weights do not matter for this: do not download any.
            found, chosen = find_layers(
                model,
                weights="none" if weights == "default" else weights,
                num_classes=num_classes,
                overrides=overrides,
                task=meaning,  # type: ignore[arg-type]
                output=output_name,
            )
        if as_json:
            print_json(layers_document(found, chosen))
            return
        out.print(layers_table(found, chosen))
        out.print(
            f"-> is found by itself: {chosen.name}" if chosen else "none would be chosen by itself"
        )
        return
    if output is None and triton is None:
        raise RequestError("say where to write the file: -o FILE.onnx")
    if forwards is not None and search is None:
        raise RequestError("--forwards needs what was learnt of thresholds: --search FILE")
    priors = () if search is None else read_priors(search)
    target = output or model_path(triton or "", repository_name(model))
    with progress("starting", len(STEPS), as_json) as advance:
        made = to_onnx(
            model,
            target,
            weights=weights,
            weights_key=weights_key,
            labels=labels,
            num_classes=num_classes,
            overrides=overrides,
            task=meaning,  # type: ignore[arg-type]
            output=output_name,
            target_layer=target_layer,
            methods=options.names(methods) if methods is not None else None,
            score=options.one_of("--score", score, ("logit", "prob")),  # type: ignore[arg-type]
            outputs=options.names(outputs),
            map_methods=options.names(map_methods) if map_methods is not None else None,
            fused_layers=() if fuse is None else options.names(fuse),
            tft=options.reading(mask, thresholds, Tft(), forwards, again),
            priors=priors,
            embed_preprocess=embed_preprocess,
            picture_size=options.size("--picture-size", picture_size),
            top=top,
            straight_through=straight_through,
            check=check or (),
            opset=opset,
            step=lambda name: advance(name, 1),
        )
    home = None if triton is None else write_repository(target, triton, repository_name(model))
    if as_json:
        print_json({**export_document(made), "triton": None if home is None else str(home)})
        return
    out.print(export_lines(made), soft_wrap=True)
    if home is not None:
        out.print(f"next: tritonserver --model-repository {home.parent.absolute()}", soft_wrap=True)
    else:
        can_mask = "tft" in made.manifest.outputs or not (
            embed_preprocess or made.manifest.task == "none" or made.manifest.image_type == "uint8"
        )
        tft = " --tft" if can_mask else ""
        out.print(f"next: whycam explain {target} IMAGE -o maps{tft}", soft_wrap=True)


app.command(epilog="Example: whycam explain resnet50.onnx cat.jpg dog.jpg -o maps/ --tft --figure")(
    explain
)
app.command(
    epilog="Example: whycam evaluate resnet50.onnx photos/ -o report/ --methods gradcam,layercam"
)(evaluate)
app.command(epilog="Example: whycam info resnet50.onnx")(info)
app.command(epilog="Example: whycam verify resnet50.onnx --threads 2")(verify)
app.command(
    epilog="Example: whycam build resnet50.onnx -o resnet50.plan --precision fp16 --compute 86,89"
)(build)
app.command(epilog="Example: whycam half resnet50.onnx -o resnet50.fp16.onnx")(half)
app.command(
    epilog="Example: whycam doctor --check resnet50.onnx --pictures photos/ -o report.json"
)(doctor)
app.command(
    epilog="Example: whycam stream lite0.onnx --source walk.mp4 --tft track --output why.mp4"
)(stream)


@app.command(
    epilog="Example: whycam bench resnet50.onnx --precisions fp32,bf16 --batches 1,8 -o bench/"
)
def bench(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Files made by whycam export.")
    ],
    engines: Annotated[
        str | None,
        typer.Option(help=f"Of: {', '.join(sorted(ENGINES))} [default: those installed]."),
    ] = None,
    precisions: Annotated[str, typer.Option(help="Of: fp32, bf16.")] = "fp32",
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Of: {', '.join(METHODS)} [default: what the graph finishes itself, or gradcam]."
        ),
    ] = None,
    tft: Annotated[str, typer.Option("--tft", help="Without TFT, with it: off, on.")] = "off,on",
    batches: Annotated[str, typer.Option(help="Pictures explained at once, as 1,8.")] = "1",
    threads: Annotated[
        str | None, typer.Option(help="For one run, as 1,2 [default: every core].")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each is timed, in turn.")] = 20,
    against: Annotated[
        str | None,
        typer.Option(
            help="Other tools to run on the same PyTorch network: pytorch-grad-cam, torchcam."
        ),
    ] = None,
    torch_model: Annotated[
        str | None,
        typer.Option(
            help="With --against: that network, as for whycam export [default: as in the file]."
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The picture [default: one that is generated].")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for bench.json and bench.png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how long explanations take here, beside plain classification and other tools.

    Lists have commas. Every combination is timed once a round, in turn.
    """
    from .runtime.bench.bench import measure, steps
    from .runtime.bench.plan import plan
    from .runtime.bench.report import document, report
    from .runtime.bench.save import write_bench
    from .runtime.files import writable
    from .runtime.machine import describe_machine

    planned = plan(
        [str(model) for model in models],
        options.names(engines) if engines is not None else None,
        options.names(precisions),
        options.names(methods) if methods is not None else None,
        options.switches("--tft", tft),
        options.counts("--batches", batches),
        options.counts("--threads", threads) if threads is not None else None,
    )
    peers = None
    if against is not None:
        peers = _peers(options.names(against), models, torch_model)
    if output is not None:
        writable(output)  # known before the hours it may take
    with progress("benchmarking", None, as_json) as advance:
        advance.total(steps(planned, rounds))
        found = measure(planned, None if image is None else str(image), rounds, peers, advance)
    about = describe_machine()
    written = [] if output is None else write_bench(found, about, output)
    if as_json:
        print_json({**document(found, about), "written": [str(path) for path in written]})
        return
    for part in report(found, about):
        out.print(part, soft_wrap=isinstance(part, str))
    if output is not None:
        out.print(f"written to {output}/: {', '.join(p.name for p in written)}", soft_wrap=True)


def _peers(names: list[str], models: Sequence[Path], torch_model: str | None) -> PeerRuns:
    """Other tools on the networks of files, all found before anything is measured."""
    from .runtime.bench.bench import PEERS
    from .runtime.onnxfile import read_manifest

    for name in names:
        options.one_of("--against", name, list(PEERS))
    from .export.requirements import require_torch

    require_torch("comparing with other tools")
    from .export.peers import check_installed, network, peers

    check_installed(names)
    manifests = {str(model): read_manifest(model) for model in models}
    networks = {model: network(own, torch_model) for model, own in manifests.items()}

    def runs_for(what: Configuration, image: Floats) -> dict[str, Callable[[], Any]]:
        layer = manifests[what.model].target_layer
        return peers(networks[what.model], layer, image, names, what.threads)

    return runs_for


_INTERRUPTED = 130  # what shells expect after SIGINT


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point: runs a command and exits."""
    # File names may hold bytes that are no text, and labels letters that a terminal has not.
    for printed in (sys.stdout, sys.stderr):
        if isinstance(printed, io.TextIOWrapper):
            printed.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    sys.exit(_run([argument for argument in given if argument != "--debug"], debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = app(arguments, standalone_mode=False)
        if code == _INTERRUPTED:  # newer versions of typer turn Ctrl-C into this themselves
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted; nothing half-written is left")
        return _INTERRUPTED
    except WhyCamError as error:
        return _report(error, str(error), 2, arguments, debug)
    except Exception as error:
        # Usage errors, by what they do: typer has its own copy of click in some versions.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        text = f"{type(error).__name__}: {error} (a fault of whycam; --debug shows where)"
        return _report(error, text, 1, arguments, debug)


def _report(error: Exception, text: str, code: int, arguments: list[str], debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if "--json" in arguments:
        print(json.dumps({"error": text}))
    print_error(text)
    return code


if __name__ == "__main__":
    main()
