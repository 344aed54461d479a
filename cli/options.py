"""Options that several verbs share: name, type, help and completion, written once.

A verb takes a group of options as one parameter, a dataclass; ``expand`` spells its fields out for
typer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..runtime import cam, manifest_parts, tft
from ..runtime.cam import METHODS
from ..runtime.detection_plan import DETECTIONS, DetectionPlan, plan_detection
from ..runtime.engines import base, registry
from ..runtime.errors import RequestError, WhyCamError
from ..runtime.onnxfile import read_manifest
from ..runtime.request import Thresholding, check_classifier
from . import parse
from .console import note

if TYPE_CHECKING:
    from ..runtime.explainer import Explainer
    from ..runtime.manifest import Manifest

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
ENGINES = sorted(registry.ENGINES)
SLOW_INT8 = (
    "ONNX Runtime runs INT8 files on CPUs slower than the float files that they were made of"
)
_COMPLETIONS = 100  # labels that a shell is offered


def complete(values: Sequence[str]) -> Callable[[str], list[str]]:
    """Complete the last of several values that are separated by commas."""

    def completions(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{value}" for value in values if value.startswith(last)]

    return completions


def complete_labels(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a class of the model that stands before it on the command line."""
    # An option that still has no value ends the parsing: the model is then among what is left.
    model = context.params.get("model") or next(iter(context.args), None)
    if model is None:
        return []
    try:
        labels = read_manifest(model).labels
    except WhyCamError:
        return []
    before, comma, last = incomplete.rpartition(",")
    for kept, begun in (("", incomplete), (before + comma, last)):  # a name may hold a comma
        found = [label for label in labels if label.lower().startswith(begun.lower())]
        if found:
            # As it was typed: shells take what begins so, and classes are found in any case.
            return [f"{kept}{begun}{label[len(begun) :]}" for label in found[:_COMPLETIONS]]
    return []


def _method(default: str, of: Sequence[str] = METHODS) -> Any:
    return typer.Option(
        "--method",
        metavar="NAME,...",
        help=f"One or more, with commas, of: {', '.join(of)} [default: {default}].",
        autocompletion=complete(of),
    )


def _mask(default: str) -> Any:
    return typer.Option(
        "--mask",
        help=f"TFT masks the image by the map's region (binary) or by its values (soft){default}.",
    )


def _thresholds(default: str) -> Any:
    return typer.Option(
        "--thresholds",
        help=f"TFT's thresholds are map values (value) or shares of the pixels (rank){default}.",
    )


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Model = Annotated[
    Path, typer.Argument(help="A file made by whycam export, half, build or calibrate int8.")
]
Data = Annotated[
    Path,
    typer.Argument(
        help="A folder with a subfolder for each class, a CSV file of image and label (or labels), "
        "or a Pascal VOC folder (JPEGImages and Annotations)."
    ),
]
ShowBands = Annotated[
    str | None,
    typer.Option(
        "--show-bands",
        metavar="R,G,B",
        help="Bands that overlays show, counted from 1: three as red, green and blue, or one in "
        "grey.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help=f"What runs the graph: auto, {', '.join(ENGINES)}.",
        autocompletion=complete(["auto", *ENGINES]),
    ),
]
Precision = Annotated[
    base.Precision,
    typer.Option(help="Precision of the arithmetic; bf16 is faster where the processor has it."),
]
Threads = Annotated[int | None, typer.Option(help="Threads for one run [default: every core].")]
Cache = Annotated[
    Path | None, typer.Option(help="Folder for compiled models, for a faster start next time.")
]
Gpu = Annotated[int, typer.Option(help="Index of the GPU, for engines that use one.")]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="Classes of a file exported with --classes input: a .npz file, see whycam prompts."
    ),
]
Method = Annotated[str | None, _method("what the graph finishes itself, or gradcam")]
PaperMethod = Annotated[str | None, _method("the paper's four, as far as the file has them")]
Target = Annotated[
    str | None,
    typer.Option(
        help="Class to explain: index, label, or rank -1 to -5 [default: -1].",
        autocompletion=complete_labels,
    ),
]
Targets = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="CLASS,...",
        help="Class to explain: index, label, or rank -1 to -5; several with commas are compared "
        "[default: -1]. Of a detector: classes that are looked for, or CANDIDATE:CLASS "
        "[default: all].",
        autocompletion=complete_labels,
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        help="default (pretrained; a factory's own), none (random), or a .pth or .safetensors file."
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="imagenet, or a file: one name a line or a JSON list; for several heads a JSON object "
        "from head to list."
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(help="Number of classes, where the weights have another than the model."),
]
ImageSize = Annotated[
    str | None, typer.Option(help="Side of the network input, or HxW [default: the model's].")
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        help="How images are prepared, where the model does not say: imagenet (RGB, ImageNet's "
        "mean and std) or caffe (BGR, 0 .. 255 less ImageNet's mean), both with the shorter side "
        "resized to 256/224 of the input and a centre crop; tf (-1 .. 1), zero-one (0 .. 1) or raw "
        "(0 .. 255), resized straight to the input's size; or a JSON file (a manifest's "
        "'preprocess', or a preprocessor_config.json).",
        autocompletion=complete(["imagenet", "caffe", "tf", "zero-one", "raw"]),
    ),
]
TargetLayer = Annotated[
    str | None, typer.Option(help="The layer to explain [default: found from the graph].")
]
ClassMap = Annotated[
    Path | None,
    typer.Option("--classes", help="CSV: the data's label, the network's class (index or name)."),
]
ReportFolder = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder for the report and its plots.")
]


@dataclass(frozen=True)
class RunOptions:
    """The engine, in the precision of the file."""

    engine: Engine = "auto"
    threads: Threads = None
    gpu: Gpu = 0


@dataclass(frozen=True)
class EngineOptions(RunOptions):
    """The engine and its precision."""

    precision: Precision = "fp32"
    cache: Cache = None

    def load(self, model: Path, takes_detectors: bool = False, **rest: Any) -> Explainer:
        """Load a model file; ``rest`` goes to ``whycam.load``.

        Raises:
            RequestError: it is a detector's, and the verb is for classifiers alone.
        """
        from ..runtime.load import load

        if not takes_detectors:
            check_classifier(read_manifest(model))
        explainer = load(
            model,
            self.engine,
            self.threads,
            precision=self.precision,
            cache=self.cache,
            gpu=self.gpu,
            **rest,
        )
        if registry.is_slower_in_int8(explainer.manifest, explainer.engine.name):
            note(f"note: {SLOW_INT8}: use that one here, or --engine openvino")
        return explainer


@dataclass(frozen=True)
class PromptedEngineOptions(EngineOptions):
    """The engine, and the classes of a file that takes class embeddings."""

    prompts: Prompts = None

    def load(self, model: Path, takes_detectors: bool = False, **rest: Any) -> Explainer:
        """Load a model file with the prompts."""
        return super().load(model, takes_detectors, prompts=self.prompts, **rest)


@dataclass(frozen=True)
class DetectorOptions:
    """Which objects a detector finds, and what is explained of them."""

    min_score: Annotated[
        float | None, typer.Option(help="Of a detector: objects score more [default: the file's].")
    ] = None
    iou: Annotated[
        float | None,
        typer.Option(
            help="Of a detector: overlap from which on a worse box of the same class is suppressed "
            "[default: the file's]."
        ),
    ] = None
    score: Annotated[
        manifest_parts.ExplainedScore | None,
        typer.Option(
            help="Of a detector: what the file must explain, the score of the class or an edge of "
            "the box [default: whatever it does]."
        ),
    ] = None

    def refuse(self, manifest: Manifest, top: int | None = None) -> None:
        """Refuse these options for a classifier, and --top where that is of detectors alone.

        Raises:
            RequestError: one of them is given.
        """
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in {**own, "top": top}.items():
            if value is not None:
                raise RequestError(
                    f"--{name.replace('_', '-')} is for detectors, and {manifest.model} "
                    "classifies whole images: leave it out"
                )

    def plan(
        self,
        manifest: Manifest,
        target: str | None = None,
        methods: Sequence[cam.Method] | None = None,
        thresholding: Thresholding = None,
        most: int | None = None,
    ) -> DetectionPlan:
        """Plan what is explained.

        Raises:
            RequestError: the file cannot do that.
        """
        return plan_detection(
            manifest,
            parse.objects(target, manifest.labels),
            methods,
            thresholding,
            most=DETECTIONS if most is None else most,
            min_score=self.min_score,
            iou=self.iou,
            score=self.score,
        )


@dataclass(frozen=True)
class ReadingOptions:
    """The reading of TFT; by default the file's."""

    mask: Annotated[tft.Mask | None, _mask(" [default: the file's]")] = None
    thresholds: Annotated[tft.Thresholds | None, _thresholds(" [default: the file's]")] = None

    def reading(self, default: tft.Tft, evaluations: int | None = None) -> tft.Tft:
        """Return the reading; options that are not set are as in ``default``."""
        return tft.Tft(
            mask=self.mask or default.mask,
            thresholds=self.thresholds or default.thresholds,
            taus=default.taus,
            evaluations=default.evaluations if evaluations is None else evaluations,
        )


@dataclass(frozen=True)
class PaperReading:
    """The reading of TFT, for networks that are no file yet; by default the paper's equations."""

    mask: Annotated[tft.Mask, _mask("")] = "binary"
    thresholds: Annotated[tft.Thresholds, _thresholds("")] = "value"

    def reading(self) -> tft.Tft:
        """Return the reading."""
        return tft.Tft(mask=self.mask, thresholds=self.thresholds)


def expand(function: Callable[..., None]) -> Callable[..., None]:
    """Spell out the options of each parameter that is a dataclass, as typer wants them.

    The verb's own options come first, then the groups', then --json.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = [
        parameter.replace(kind=_KEYWORD, annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in groups
    ]
    for group in groups.values():
        inner = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, _KEYWORD, default=field.default, annotation=inner[field.name]
            )
            for field in fields(group)
        ]
    parameters.sort(key=lambda parameter: parameter.name == "as_json")

    @wraps(function)
    def run(**arguments: Any) -> None:
        for name, group in groups.items():
            values = {field.name: arguments.pop(field.name) for field in fields(group)}
            arguments[name] = group(**values)
        function(**arguments)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__
    return run


def require(option: str, is_set: bool, needed: str, needed_is_set: bool) -> None:
    """Refuse an option that has no meaning without another one.

    Raises:
        RequestError: ``option`` is set, and ``needed`` is not.
    """
    if is_set and not needed_is_set:
        raise RequestError(f"{option} is a setting of {needed}: add it")
