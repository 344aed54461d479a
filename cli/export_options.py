"""Groups of options of whycam export: preprocessing, TFT's reading, the graph's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..runtime.cam import METHODS
from ..runtime.input_format import Color, Interpolation, Layout
from ..runtime.manifest import OUTPUTS
from ..runtime.manifest_parts import Activation, DetectorFormat, ExportScore
from . import parse
from .options import ImageSize, Preprocess, ReadingOptions, ShowBands, complete

if TYPE_CHECKING:
    from ..export import Overrides


@dataclass(frozen=True)
class PreprocessOptions:
    """How images are prepared for the network."""

    preprocess: Preprocess = None
    image_size: ImageSize = None
    resize: Annotated[
        int | None,
        typer.Option(
            help="Shorter side before the centre crop; 0: straight to the input's size "
            "[default: the model's]."
        ),
    ] = None
    interpolation: Annotated[
        Interpolation | None, typer.Option(help="Of the resize [default: the model's].")
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(help="A number a channel, for [0, 1] pixels, as 0.485,0.456,0.406."),
    ] = None
    std: Annotated[str | None, typer.Option(help="A number a channel, as 0.229,0.224,0.225.")] = (
        None
    )
    color: Annotated[
        Color | None,
        typer.Option(
            help="The network's channel order; L for grey, bands for channels that are no colours."
        ),
    ] = None
    channels: Annotated[
        int | None,
        typer.Option(
            help="Channels of the images [default: as the first convolution or the file says]."
        ),
    ] = None
    value_range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="For images of more than 8 bits: the pixel values that training mapped to 0 and "
            "1, as 0:65535, 0:10000 or, for values as they are, 0:1.",
        ),
    ] = None
    show_bands: ShowBands = None
    layout: Annotated[
        Layout | None,
        typer.Option(help="Of an ONNX file's input [default: as its first convolution reads it]."),
    ] = None

    def overrides(self) -> Overrides:
        """Return what ``to_onnx`` takes."""
        from ..export import Overrides

        return Overrides(
            preprocess=self.preprocess,
            image_size=parse.size("--image-size", self.image_size),
            resize=self.resize,
            interpolation=self.interpolation,
            mean=parse.per_channel("--mean", self.mean),
            std=parse.per_channel("--std", self.std),
            color=self.color,
            channels=self.channels,
            value_range=parse.value_range("--value-range", self.value_range),
            layout=self.layout,
        )


@dataclass(frozen=True)
class ZeroShotOptions:
    """The classes of an image encoder (CLIP, SigLIP), and how they are scored."""

    classes: Annotated[
        str | None,
        typer.Option(
            metavar="input|FILE",
            help="For an image encoder: input (class embeddings become an input of the graph), or "
            "a .npy or .npz file of class embeddings.",
        ),
    ] = None
    logit_scale: Annotated[
        float | None,
        typer.Option(
            help="With --classes: logarithm of the factor of cosine similarities, as the trained "
            "model has it [default: the PyTorch model's]."
        ),
    ] = None
    logit_bias: Annotated[
        float | None,
        typer.Option(
            help="With --classes: added to scaled similarities, as SigLIP does [default: the "
            "PyTorch model's]."
        ),
    ] = None


@dataclass(frozen=True)
class DetectorOptions:
    """How a detector's outputs are read, and who chooses detections."""

    format: Annotated[
        DetectorFormat | None,
        typer.Option(
            help="Of a detector's outputs: yolov8 is [N, 4 + C, A], yolov5 (and 7) and yolox "
            "[N, A, 5 + C], yolov10 (and 26) [N, A, 6], picodet scores and distributions of each "
            "level, detr and ssd scores and boxes apart "
            "[default: what the graph and its file prove]."
        ),
    ] = None
    activation: Annotated[
        Activation | None,
        typer.Option(
            help="Of a detector's class logits, where neither the graph nor the number of labels "
            "says."
        ),
    ] = None
    explicit_targets: Annotated[
        bool,
        typer.Option(
            "--explicit-targets",
            help="For engines without NonMaxSuppression: a detector's graph takes the candidates "
            "to explain by their numbers, which the caller finds after suppression.",
        ),
    ] = False

    def arguments(self) -> dict[str, Any]:
        """Return these options as ``to_onnx`` takes them."""
        return {
            "format": self.format,
            "activation": self.activation,
            "ranks": not self.explicit_targets,
        }


@dataclass(frozen=True)
class SearchOptions(ReadingOptions):
    """The file's reading of TFT, and how many thresholds its graph tries."""

    evaluations: Annotated[
        int | None,
        typer.Option(
            help="With the output tft: number of thresholds to try, chosen one after the other by "
            "what --search holds [default: all of them]."
        ),
    ] = None
    search: Annotated[
        Path | None,
        typer.Option(
            help="What whycam calibrate thresholds learnt: its thresholds.json, or the ONNX file "
            "that it stored it in."
        ),
    ] = None


@dataclass(frozen=True)
class OutputOptions:
    """What the graph returns."""

    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"Methods that the file must support, of: {', '.join(METHODS)}. "
            "[default: all but ablation and legrad, which make every call slower; legrad is for "
            "transformers]",
            autocompletion=complete(METHODS),
        ),
    ] = None
    map_method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Methods whose finished maps the graph returns, the first one's also for tft "
            "[default: all methods but scorecam; Grad-CAM alone without raw].",
            autocompletion=complete(METHODS),
        ),
    ] = None
    outputs: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="What the graph returns besides probabilities, one or more of: raw (activations "
            "and gradients), map (finished maps), tft (the first method's map, cut at the "
            "threshold that a sweep inside the graph finds) [default: raw,map; of a detector map].",
            autocompletion=complete(OUTPUTS),
        ),
    ] = None
    score: Annotated[
        ExportScore | None,
        typer.Option(
            help="Score that gradients and Ablation-CAM are computed of: logit or prob; of a "
            "detector class, or the edge of the box whose place is explained "
            "[default: as published, logit and prob; of a detector class]."
        ),
    ] = None
    top: Annotated[
        int | None,
        typer.Option(
            help="Explain the K most probable classes: the graph then takes images alone, as the "
            "file that it replaces [default: an input says which classes]."
        ),
    ] = None
    fuse: Annotated[
        str | None,
        typer.Option(
            help="With the outputs map or tft: earlier layers whose Layer-CAM maps are fused with "
            "the target layer's, for finer detail; see --list-layers."
        ),
    ] = None
    embed_preprocess: Annotated[
        bool,
        typer.Option(
            "--embed-preprocess",
            help="Feed the graph uint8 images; it resizes, crops and normalises them itself.",
        ),
    ] = False
    source_size: Annotated[
        str | None,
        typer.Option(
            help="With --embed-preprocess: HxW of the images as they come [default: any size]."
        ),
    ] = None

    dynamic_size: Annotated[
        str | None,
        typer.Option(
            metavar="LEAST:MOST",
            help="Explain images in their own resolution: heights and widths from LEAST to MOST "
            "pixels, rounded to multiples of the network's total stride [default: the model's own "
            "size alone].",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return these options as ``to_onnx`` takes them."""
        return {
            "methods": parse.methods(self.method),
            "map_methods": parse.methods(self.map_method),
            "outputs": None if self.outputs is None else parse.names(self.outputs),
            "score": self.score,
            "top": self.top,
            "fused_layers": () if self.fuse is None else parse.names(self.fuse),
            "embed_preprocess": self.embed_preprocess,
            "source_size": parse.size("--source-size", self.source_size),
            "dynamic_size": parse.limits("--dynamic-size", self.dynamic_size),
        }
