"""Register the verbs, run one, and turn what goes wrong into one line and an exit code.

Exit codes: 0 done; 2 the request cannot be met, and one red line says why; 1 a fault of whycam;
130 after Ctrl-C, 128 and the number of another signal that ended it.
"""

from __future__ import annotations

import io
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from ..runtime.errors import RequestError, WhyCamError
from ..runtime.version import package_version
from .bench import bench
from .build import build
from .calibrate_int8 import int8
from .calibrate_thresholds import thresholds
from .compare import compare
from .console import note, print_error, say
from .doctor import doctor
from .evaluate import evaluate
from .explain import explain
from .export import export
from .half import half
from .info import info
from .options import expand
from .prompts import prompts
from .signals import EndedBySignal, ending_by_signals
from .stream import stream
from .train_aft import aft
from .train_classifier import classifier
from .verify import verify

_SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="whycam",
    help="Make deployed image classifiers and detectors explain themselves.",
    epilog="Any command takes --debug, which shows the traceback of an error.",
    **_SETTINGS,
)
calibrate = typer.Typer(
    name="calibrate",
    help="Fit a model file to your images: INT8, fewer thresholds.",
    **_SETTINGS,
)
train = typer.Typer(
    name="train",
    help="Train on your images: a classifier, or cleaner maps (AFT).",
    **_SETTINGS,
)

# Each verb with an example that its --help shows.
_VERBS: tuple[tuple[typer.Typer, Callable[..., None], str], ...] = (
    (
        app,
        export,
        "export torchvision/resnet50 -o resnet50.onnx; or of the file that is deployed: "
        "whycam export deployed.onnx -o explained.onnx --preprocess imagenet",
    ),
    (app, explain, "explain resnet50.onnx cat.jpg dog.jpg -o maps/ --tft --save overlay,figure"),
    (app, stream, "stream lite0.onnx --source walk.mp4 --tft track --output why.mp4"),
    (app, evaluate, "evaluate resnet50.onnx images/ -o report/ --method gradcam,layercam"),
    (app, compare, "compare resnet50.onnx resnet50.int8.onnx images/ -o compared/ --report"),
    (
        app,
        prompts,
        'prompts cat dog --template "a photo of a {}." --model open_clip/RN50/openai -o pets.npz',
    ),
    (app, info, "info resnet50.onnx"),
    (app, verify, "verify resnet50.onnx --threads 2"),
    (app, bench, "bench resnet50.onnx --precision fp32,bf16 --batch 1,8 -o bench/"),
    (app, half, "half resnet50.onnx -o resnet50.fp16.onnx"),
    (app, build, "build resnet50.onnx -o resnet50.plan --precision fp16 --compute 86,89"),
    (app, doctor, "doctor --check resnet50.onnx --images images/ -o report.json"),
    (
        calibrate,
        int8,
        "calibrate int8 resnet50.onnx images/ -o resnet50.int8.onnx --floor pearson=0.97,top1=0.96",
    ),
    (
        calibrate,
        thresholds,
        "calibrate thresholds resnet50.onnx images/ --method gradcam -o learnt/",
    ),
    (train, classifier, "train classifier torchvision/resnet50 images/ -o run/"),
    (train, aft, "train aft run/ images/ --method gradcam -o tuned/"),
)
for _group, _verb, _example in _VERBS:
    _group.command(epilog=f"Example: whycam {_example}")(expand(_verb))
app.add_typer(calibrate)
app.add_typer(train)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Make deployed image classifiers and detectors explain themselves."""
    if version:
        say(f"whycam {package_version()}")
        raise typer.Exit


@app.command("help", epilog="Example: whycam help calibrate int8")
def show_help(
    context: typer.Context,
    verb: Annotated[list[str] | None, typer.Argument(help="A verb, as explain.")] = None,
) -> None:
    """Show the verbs, or what one of them does and takes."""
    assert context.parent is not None
    within: Any = context.parent
    for word in verb or []:
        known = getattr(within.command, "commands", {})
        if word not in known:
            raise RequestError(f"there is no verb '{word}'; choose from: {', '.join(known)}")
        within = known[word].make_context(word, [], parent=within, resilient_parsing=True)
    print(within.get_help())


_INTERRUPTED = 130  # what shells expect after SIGINT


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    Args:
        arguments: of the command line; None: those of this process.
    """
    # File names may hold bytes that are no text, and labels letters that a terminal has not.
    for printed in (sys.stdout, sys.stderr):
        if isinstance(printed, io.TextIOWrapper):
            printed.reconfigure(errors="backslashreplace")
    command_line = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in command_line
    sys.exit(_run([argument for argument in command_line if argument != "--debug"], debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        with ending_by_signals(), _warnings_in_a_line():
            code = app(arguments, prog_name="whycam", standalone_mode=False)
        if code == _INTERRUPTED:  # newer versions of typer turn Ctrl-C into this themselves
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        note("interrupted; nothing half-written is left")
        return _INTERRUPTED
    except EndedBySignal as error:
        note(f"ended by {error.signal}; nothing half-written is left")
        return error.exit_code
    except WhyCamError as error:
        return _fail(error, str(error), 2, arguments, debug)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's: its class is click's in some versions
            if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help
                print(error.format_message())
                return 2
            return _fail(error, _usage(error), 2, arguments, debug)
        text = f"{type(error).__name__}: {error} (a fault of whycam; --debug shows where)"
        return _fail(error, text, 1, arguments, debug)


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Show this package's warnings as a line, without the place in the code."""
    package = Path(__file__).resolve().parents[1]
    show = warnings.showwarning

    def show_line(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if package in Path(filename).resolve().parents:
            note(f"warning: {message}")
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = show_line
    try:
        yield
    finally:
        warnings.showwarning = show


def _usage(error: Any) -> str:
    """Say what is wrong with a command line, and where its options are listed."""
    context = getattr(error, "ctx", None)
    command = "whycam" if context is None else context.command_path
    message = error.format_message().strip().replace("Value error, ", "")
    # A WhyCamError shows what any terminal can.
    then = " See" if message.endswith("?") else "; see"
    return str(RequestError(f"{message.rstrip('.')}{then} {command} --help"))


def _fail(error: Exception, text: str, code: int, arguments: list[str], debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if "--json" in arguments:
        print(json.dumps({"error": text}))
    print_error(text)
    return code
