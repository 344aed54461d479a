"""What an explaining graph says about itself: the JSON under the ONNX metadata key ``whycam``."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from .cam import Method, Score, finest
from .errors import ModelFileError, RequestError
from .search import Prior
from .tft import Tft

__all__ = ["Manifest", "Preprocess", "Reference"]

VERSION = 1
METADATA_KEY = "whycam"
_LARGEST = 1e6
_FLOAT32 = 3.4e38
_PATTERNS = 100  # that may ever be used; each is made by a formula with its number in it

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Outputs = Literal["raw", "map", "tft"]
OUTPUTS: tuple[Outputs, ...] = get_args(Outputs)
FilePrecision = Literal["fp32", "fp16", "bf16", "int8"]


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From an RGB picture of any size to the network's input, as the model was trained.

    Attributes:
        size: (H, W) of the network input.
        resize: what the picture is resized to before the crop. One number: its shorter side;
            two: (height, width) whatever the picture's proportions; none: not at all.
        interpolation: of the resize.
        antialias: whether the resize averages where it shrinks, as Pillow does it; always so.
        crop: ``center`` is the only one there is; a picture smaller than the crop gets a black
            border.
        color: the channel order the network wants.
        mean, std: per channel, for values in [0, 1].
    """

    size: tuple[int, int]
    resize: tuple[int, ...]
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    crop: Literal["center"] = "center"
    color: Literal["RGB"] = "RGB"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        sides = (*self.size, *self.resize)
        if len(self.resize) > 2 or min(sides) < 1 or max(sides) > _LARGEST:
            raise ValueError(f"unusable sizes: input {self.size}, resize {self.resize}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
        # For pixels in [0, 1]; far from that float32 overflows.
        if max(map(abs, self.mean)) > _LARGEST or not all(
            1 / _LARGEST <= value <= _LARGEST for value in self.std
        ):
            raise ValueError(f"mean {self.mean} and std {self.std} are not those of pixels")


class FusedLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A layer before the target layer, whose Layer-CAM map is fused with the target layer's.

    Attributes:
        name: of the layer.
        activations: (K, h, w) there.
    """

    name: str
    activations: tuple[int, int, int]

    def __post_init__(self) -> None:
        if min(self.activations) < 1:
            raise ValueError(f"fused layer '{self.name}' has no activations: {self.activations}")


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The right answer for one built-in test pattern, kept to check engines by.

    PyTorch's in float64; for an INT8 file with raw outputs, its own in ONNX Runtime.

    Attributes:
        pattern: which pattern of ``selftest.pattern``.
        target: the class explained, the most probable one.
        probability: its probability.
        raw_map: its map before resizing, row by row, the numbers of ``Manifest.map_shape``; by the
            method that the graph finishes itself, else Grad-CAM.
    """

    pattern: int
    target: int
    probability: float
    raw_map: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.pattern < _PATTERNS:
            raise ValueError(f"there is no test pattern {self.pattern}")
        if not all(-_FLOAT32 <= value <= _FLOAT32 for value in self.raw_map):
            raise ValueError("a reference map with numbers that are too large")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the runtime must know about a graph.

    Attributes:
        version: of this layout.
        model: where the network came from, as given to ``whycam export``; files without folders.
        weights: ``default``, ``none`` or the weight file's name.
        target_layer: the layer that is explained.
        activations: (K, h, w) at that layer.
        pooled_linear: whether the head is global average pooling and one linear layer.
        num_classes: C.
        labels: C class names, or empty.
        preprocess: how a picture becomes the input.
        outputs: groups of outputs the graph has. ``raw``: activations, gradients; ``map``:
            finished maps; ``tft``: maps thresholded in the graph.
        methods: the methods it supports.
        map_method: the method of the graph's own maps; None without ``map`` and ``tft``.
        fused_layers: whose Layer-CAM maps are fused with the target layer's in the graph's own
            maps, from the picture to the target layer; empty: the target layer alone.
        embedded_preprocess: whether the graph takes pictures, uint8 [N, h, w, 3], and does
            ``preprocess`` itself; else it takes float32 [N, 3, H, W], normalised.
        picture_size: (h, w) of the pictures it takes; None: any.
        gradient_score, ablation_score: what gradients and Ablation-CAM are taken of.
        tft: the reading that TFT uses unless told otherwise; in the graph, always.
        precision: of the trunk's weights and arithmetic (``int8``: by ``whycam calibrate``); head,
            gradients and maps are always float32.
        opset: ONNX operator set.
        image_bytes: activations alive at once for one image, in bytes; bounds batches.
        tools: versions of what made the file.
        references: see ``Reference``.
        priors: what ``whycam calibrate thresholds`` learnt of the thresholds worth trying, one
            for each method and reading of TFT.
        digest: ``sha256:`` of the file without its metadata.
    """

    version: int = VERSION
    model: str
    weights: str
    target_layer: str
    activations: tuple[int, int, int]
    pooled_linear: bool
    num_classes: int
    labels: tuple[str, ...]
    preprocess: Preprocess
    outputs: tuple[Outputs, ...] = ("raw",)
    methods: tuple[Method, ...]
    map_method: Method | None = None
    fused_layers: tuple[FusedLayer, ...] = ()
    embedded_preprocess: bool = False
    picture_size: tuple[int, int] | None = None
    gradient_score: Score
    ablation_score: Score
    tft: Tft = Tft()
    precision: FilePrecision = "fp32"
    opset: int
    image_bytes: int
    tools: dict[str, str]
    references: tuple[Reference, ...] = ()
    priors: tuple[Prior, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        if self.num_classes < 1 or min(self.activations) < 1 or self.image_bytes < 0:
            raise ValueError("classes, activations and image_bytes must be positive")
        if self.labels and len(self.labels) != self.num_classes:
            raise ValueError(f"{len(self.labels)} labels for {self.num_classes} classes")
        if not self.outputs or (self.map_method is None) != (self.outputs == ("raw",)):
            raise ValueError(f"map_method {self.map_method} does not go with {self.outputs}")
        if self.map_method is not None and self.map_method not in self.methods:
            raise ValueError(f"map_method {self.map_method} is none of {self.methods}")
        if self.fused_layers and self.map_method != "layercam":
            raise ValueError(f"layers are fused by layercam, not by {self.map_method}")
        if "raw" not in self.outputs and self.methods != (self.map_method,):
            raise ValueError(f"{self.methods} need raw outputs")

        cells = self.map_shape[0] * self.map_shape[1]
        for reference in self.references:
            if not 0 <= reference.target < self.num_classes or len(reference.raw_map) != cells:
                raise ValueError(f"a reference for class {reference.target} that does not fit")

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """Of the input ``image`` without the batch; None where it is free."""
        if not self.embedded_preprocess:
            return (3, *self.preprocess.size)
        return (*(self.picture_size or (None, None)), 3)

    @property
    def map_shape(self) -> tuple[int, int]:
        """(h, w) of a map before it is resized: of the finest layer that it shows."""
        layers = [self.activations, *(layer.activations for layer in self.fused_layers)]
        return finest(layers)

    @property
    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The graph's outputs in order, each with its shape without the batch; None is k."""
        size = self.preprocess.size
        shapes: dict[str, tuple[int | None, ...]] = {
            "probabilities": (self.num_classes,),
            "targets": (None,),
        }
        if "raw" in self.outputs:
            shapes["activations"] = self.activations
            shapes["gradients"] = (None, *self.activations)
            if "ablation" in self.methods:
                shapes["ablation_weights"] = (None, self.activations[0])
        if "tft" in self.outputs:
            steps = len(self.tft.taus)
            shapes |= {"original_maps": (None, *size), "maps": (None, *size)}
            shapes |= {"thresholds": (None,), "rpi": (None, steps)}
            shapes["masked_probabilities"] = (None, steps)
        elif "map" in self.outputs:
            shapes["maps"] = (None, *size)
        return shapes

    def label(self, index: int) -> str:
        """The name of a class, or its number where the file holds no names."""
        return self.labels[index] if self.labels else str(index)

    def to_json(self) -> str:
        """The text that ``parse`` reads back."""
        return msgspec.json.encode(self).decode()


class _Versioned(msgspec.Struct):
    version: int


def parse(text: str | bytes, source: str) -> Manifest:
    """Read a manifest.

    Raises:
        ModelFileError: not JSON, of another version, or with fields missing or wrong; names
            ``source``.
    """
    try:
        version = msgspec.json.decode(text, type=_Versioned).version
        if version != VERSION:
            raise ModelFileError(
                f"{source}: its manifest has version {version}, this whycam reads {VERSION}. "
                "Export the model again, or install the whycam that made it"
            )
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestError) as error:
        raise ModelFileError(f"{source}: its manifest is damaged: {error}") from error
