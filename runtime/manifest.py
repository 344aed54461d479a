"""Define the manifest: the JSON under the ONNX metadata key ``whycam``."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from .cam import Method, Score, finest
from .input_format import (
    BYTE_RANGE,
    MOST,
    DynamicSize,
    ImageType,
    Layout,
    Preprocess,
    describe_images,
)
from .manifest_parts import Attention, Detector, FusedLayer, OutputHead, Reference
from .place_weights import REGION
from .search import Prior
from .tft import Tft
from .versioned import decode_versioned

__all__ = ["Manifest", "Preprocess", "Reference"]

VERSION = 2
METADATA_KEY = "whycam"
_SAME_STD = 1e-3  # JSON may have rounded 1/255

Outputs = Literal["raw", "map", "tft"]
OUTPUTS: tuple[Outputs, ...] = get_args(Outputs)
FilePrecision = Literal["fp32", "fp16", "bf16", "int8"]
FileTask = Literal["softmax", "sigmoid", "binary", "none", "heads", "detect"]
INPUTS = ("image", "target", "class_embeddings", REGION)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the runtime must know about a graph.

    Attributes:
        version: of this layout.
        model: where the network came from, as given to ``whycam export``; files without folders.
        weights: ``default``, ``none`` or the weight file's name.
        target_layer: the layer that is explained.
        target_layer_reason: why that layer was chosen; empty where it was named.
        target_tensor: the graph's own tensor at that layer, where the backbone ends.
        activations: (K, h, w) at that layer, of an input of ``preprocess.size``.
        pooled_linear: whether the head is global average pooling and one linear layer.
        task: what ``probabilities`` holds. ``softmax``: of classes that exclude each other;
            ``sigmoid``: of independent labels; ``binary``: of two classes, from one logit;
            ``none``: values that are no probabilities, as regression gives them; ``heads``: each of
            ``heads`` has a task of its own. ``detect``: there are no probabilities of the image,
            but objects with a box and a class, see ``detector``.
        num_classes: C; 2 for ``binary``; of several heads, all their classes. Where class
            embeddings are an input, of the example classes in ``references``, or of the prompts
            once there are some.
        labels: C class names, or empty; for ``binary`` (``not NAME``, ``NAME``); of several heads
            always, as ``HEAD:CLASS``.
        heads: where several heads are explained, in the order of their classes; else empty.
        preprocess: how an image becomes the input. With ``dynamic_size`` its ``size`` is the
            model's usual one, and ``resize`` does not apply.
        detector: of the task ``detect``; else None. Outputs are then as it says.
        dynamic_size: which heights and widths the graph takes; None: ``preprocess.size`` alone.
        layout: of the input ``image``, without ``embedded_preprocess``.
        image_dtype: of the input ``image``, without ``embedded_preprocess``. ``uint8``: the file
            normalises by itself and is fed pixels of the network's size and colour order.
        names: contract name to the graph's own name of an input or output, where they differ.
        own_outputs: the graph's names of outputs that the file had before it was explained.
        top: the graph has no input ``target`` and explains so many classes, the most probable
            ones; None: it has that input.
        batch: N, where the graph takes only that; None: any.
        outputs: groups of outputs the graph has. ``raw``: activations, gradients; ``map``:
            finished maps; ``tft``: maps thresholded in the graph.
        methods: the methods it supports.
        map_methods: the methods whose finished maps the graph has; empty without ``map`` and
            ``tft``. The first one's are ``maps`` (with ``tft`` ``original_maps``, and ``maps``
            thresholded), those of every other method ``maps_METHOD``.
        fused_layers: whose Layer-CAM maps are fused with the target layer's in the maps of
            ``map_methods[0]``, from the image to the target layer; empty: the target layer alone.
        attention: whose maps ``legrad`` reads; None without that method.
        class_embeddings: the length D of class embeddings, float32 [C, D], where the graph takes
            them as an input of that name; None: its classes are fixed.
        region: (h, w) of the class scores of a segmentation network, which has them at every place;
            else None. The graph then takes as an input of that name the weight of each place,
            float32 [N, h, w]; ``probabilities`` and maps are of the mean scores there, and
            ``place_scores`` has the scores themselves, float32 [N, C, h, w] (C is 1 for
            ``binary``).
        embedded_preprocess: whether the graph takes RGB images, uint8 [N, h, w, 3], and does
            ``preprocess`` itself.
        source_size: (h, w) of the images it takes with ``embedded_preprocess``; None: any.
        show_bands: which bands of an image overlays show, counted from 1: three as red, green and
            blue, or one in grey; empty: the mean of all.
        gradient_score, ablation_score: what gradients and Ablation-CAM are taken of.
        tft: the reading that TFT uses unless told otherwise; in the graph, always.
        precision: of the backbone's weights and arithmetic (``int8``: by ``whycam calibrate``);
            head, gradients and maps are always float32.
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
    target_layer_reason: str = ""
    target_tensor: str = "activations"
    activations: tuple[int, int, int]
    pooled_linear: bool
    task: FileTask = "softmax"
    num_classes: int
    labels: tuple[str, ...]
    heads: tuple[OutputHead, ...] = ()
    detector: Detector | None = None
    preprocess: Preprocess
    dynamic_size: DynamicSize | None = None
    layout: Layout = "NCHW"
    image_dtype: ImageType = "float32"
    names: dict[str, str] = {}
    own_outputs: tuple[str, ...] = ()
    top: int | None = None
    batch: int | None = None
    outputs: tuple[Outputs, ...] = ("raw",)
    methods: tuple[Method, ...]
    map_methods: tuple[Method, ...] = ()
    fused_layers: tuple[FusedLayer, ...] = ()
    attention: Attention | None = None
    class_embeddings: int | None = None
    region: tuple[int, int] | None = None
    embedded_preprocess: bool = False
    source_size: tuple[int, int] | None = None
    show_bands: tuple[int, ...] = ()
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
        self._check_task()
        self._check_heads()
        self._check_detector()
        self._check_region()
        self._check_maps()
        self._check_interface()
        self._check_dynamic_size()
        for reference in self.references:
            if reference.size is not None and not self.takes(reference.size):
                raise ValueError(f"a reference of {reference.size}, which the graph does not take")
            height, width = self.at(reference.size).map_shape
            cells = height * width
            if not 0 <= reference.target < self.num_classes or len(reference.raw_map) != cells:
                raise ValueError(f"a reference for class {reference.target} that does not fit")

    def _check_dynamic_size(self) -> None:
        if self.dynamic_size is None:
            return
        if self.embedded_preprocess or self.fused_layers:
            raise ValueError("dynamic_size goes with neither embedded preprocessing nor fusing")
        if not self.dynamic_size.allows(self.preprocess.size):
            raise ValueError(f"the usual size {self.preprocess.size} is out of the range")

    def _check_task(self) -> None:
        if self.task == "binary" and self.num_classes != 2:
            raise ValueError(f"task binary has 2 classes, not {self.num_classes}")
        if self.task != "none":
            return
        if "tft" in self.outputs:
            raise ValueError("outputs tft need probabilities, and task none has none")
        if unfit := sorted({"ablation", "scorecam"}.intersection(self.methods)):
            raise ValueError(f"methods {unfit} need probabilities, and task none has none")

    def _check_detector(self) -> None:
        if (self.task == "detect") != (self.detector is not None):
            raise ValueError(f"task {self.task} with detector {self.detector}")
        if self.detector is None:
            return
        plain = (
            self.outputs == ("map",)
            and {self.top, self.class_embeddings, self.attention, self.dynamic_size} == {None}
            and not (self.embedded_preprocess or self.fused_layers or self.heads)
        )
        if not plain:
            raise ValueError(
                "a detector has finished maps, targets and images of one size, prepared outside"
            )

    def _check_region(self) -> None:
        if self.region is None:
            return
        if not all(1 <= side <= MOST for side in self.region):
            raise ValueError(f"a region of {self.region}")
        plain = self.detector is None and self.class_embeddings is None and not self.heads
        if not plain or "tft" in self.outputs or self.dynamic_size is not None:
            raise ValueError(
                "a segmentation network has one head, one size, and thresholds outside the graph"
            )

    def _check_heads(self) -> None:
        if (self.task == "heads") != bool(self.heads):
            raise ValueError(f"task {self.task} with {len(self.heads)} heads")
        if not self.heads:
            return
        names = {head.name for head in self.heads}
        total = sum(head.num_classes for head in self.heads)
        if len(self.heads) < 2 or len(names) != len(self.heads) or total != self.num_classes:
            raise ValueError(f"{len(self.heads)} heads {sorted(names)} of {total} classes in all")
        if not self.labels or self.top is not None:
            raise ValueError("several heads have labels, and targets for them")
        if any(head.task == "none" for head in self.heads):
            raise ValueError("a head of values beside others")

    def _check_maps(self) -> None:
        first = self.map_method
        if not self.outputs or (first is None) != (self.outputs == ("raw",)):
            raise ValueError(f"map_methods {self.map_methods} do not go with {self.outputs}")
        distinct = set(self.map_methods)
        if not distinct.issubset(self.methods) or len(distinct) != len(self.map_methods):
            raise ValueError(
                f"map_methods {self.map_methods} must be some of {self.methods}, each once"
            )
        if self.fused_layers and first != "layercam":
            raise ValueError(f"layers are fused by layercam, not by {first}")
        if ("legrad" in self.methods) != (self.attention is not None):
            raise ValueError("the method legrad and an attention go together")
        if "legrad" in self.methods and "legrad" not in distinct:
            raise ValueError("legrad is computed in the graph alone: it must be in map_methods")
        if "raw" not in self.outputs and distinct != set(self.methods):
            raise ValueError(f"{self.methods} need raw outputs, or finished maps of each")

    def _check_interface(self) -> None:
        if self.top is not None and not 1 <= self.top <= self.num_classes:
            raise ValueError(f"top {self.top} of {self.num_classes} classes")
        if self.class_embeddings is not None and not 1 <= self.class_embeddings <= MOST:
            raise ValueError(f"class embeddings of length {self.class_embeddings}")
        if self.batch is not None and not 1 <= self.batch <= MOST:
            raise ValueError(f"a batch of {self.batch} images")
        known = {*INPUTS, *self.output_shapes}
        if not known.issuperset(self.names):
            raise ValueError(
                f"names for {sorted(set(self.names) - known)}, which the graph has not"
            )
        own = [self.names.get(name, name) for name in known]
        if len(set(own)) != len(own) or not all(own):
            raise ValueError(f"two inputs or outputs with one name, or none: {self.names}")
        spec = self.preprocess
        self._check_bands()
        self._check_letterbox()
        as_it_is = max(map(abs, spec.mean)) == 0 and all(
            abs(255 * value - 1) < _SAME_STD for value in spec.std
        )
        if self.image_dtype == "uint8" and not self.embedded_preprocess and not as_it_is:
            raise ValueError(
                f"a uint8 input takes pixels as they are, with mean 0 and std 1/255, not mean "
                f"{spec.mean} and std {spec.std}"
            )

    def _check_letterbox(self) -> None:
        spec = self.preprocess
        if spec.letterbox is not None and self.dynamic_size is not None:
            raise ValueError("a letterbox fits images into one size, and the graph takes several")
        if self.embedded_preprocess and (spec.letterbox is not None or not spec.antialias):
            raise ValueError(
                "preprocessing inside the graph resizes with antialias and crops; it has no "
                "letterbox and no resize as OpenCV's"
            )

    def _check_bands(self) -> None:
        spec = self.preprocess
        if self.embedded_preprocess and not spec.accepts_rgb:
            raise ValueError(
                "preprocessing inside the graph is for 8-bit RGB images, and this network takes "
                f"{describe_images(spec)}"
            )
        if self.image_dtype == "uint8" and spec.value_range not in (None, BYTE_RANGE):
            raise ValueError("a uint8 input takes 8-bit images, without a value range")
        if not self.show_bands:
            return
        if spec.accepts_rgb:
            raise ValueError("show_bands are for networks that take bands, and this takes RGB")
        allowed = range(1, spec.channels + 1)
        if len(self.show_bands) not in (1, 3) or not set(self.show_bands).issubset(allowed):
            raise ValueError(
                f"show_bands {list(self.show_bands)}: name one or three bands, of 1 to "
                f"{spec.channels}"
            )

    @property
    def output_heads(self) -> tuple[OutputHead, ...]:
        """List the heads, be it one, which is then named ``probabilities``; a detector has none."""
        if self.task != "heads" and self.task != "detect":
            return (OutputHead("probabilities", self.task, self.num_classes),)
        return self.heads

    def head_of(self, index: int) -> tuple[OutputHead, int]:
        """Return the head that a class belongs to, and the index of its first class."""
        first = 0
        for head in self.output_heads:
            if index < first + head.num_classes:
                return head, first
            first += head.num_classes
        raise IndexError(index)

    @property
    def map_method(self) -> Method | None:
        """Name the method whose maps the graph finishes first, the default; None if it has none."""
        return self.map_methods[0] if self.map_methods else None

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """Return the shape of the input ``image`` without the batch; None where it is free."""
        if self.embedded_preprocess:
            return (*(self.source_size or (None, None)), 3)
        size, channels = self.map_size, self.preprocess.channels
        return (*size, channels) if self.layout == "NHWC" else (channels, *size)

    @property
    def map_size(self) -> tuple[int | None, int | None]:
        """Return (H, W) of finished maps and of the network's input; None where it is free."""
        return self.preprocess.size if self.dynamic_size is None else (None, None)

    def takes(self, size: tuple[int, int]) -> bool:
        """Tell whether the network takes inputs of (H, W)."""
        if self.dynamic_size is None:
            return size == self.preprocess.size
        return self.dynamic_size.allows(size)

    def at(self, size: tuple[int, int] | None) -> Manifest:
        """Describe the graph for inputs of one size (H, W), to which images are resized.

        Without ``dynamic_size``, or a size, it is this manifest.
        """
        free = self.dynamic_size
        if free is None:
            return self
        height, width = size or self.preprocess.size
        channels, *cells = self.activations
        rows, columns = (
            count + grown * ((side - usual) // free.step)
            for count, grown, side, usual in zip(
                cells, free.cells, (height, width), self.preprocess.size, strict=True
            )
        )
        return msgspec.structs.replace(
            self,
            dynamic_size=None,
            preprocess=msgspec.structs.replace(
                self.preprocess, size=(height, width), resize=(height, width)
            ),
            activations=(channels, rows, columns),
            references=(),
        )

    def size_of(self, inputs: tuple[int, ...]) -> tuple[int, int]:
        """Return (H, W) of the network's inputs from their shape [N, ...]."""
        if self.embedded_preprocess or self.dynamic_size is None:
            return self.preprocess.size
        return (inputs[1], inputs[2]) if self.layout == "NHWC" else (inputs[2], inputs[3])

    @property
    def image_type(self) -> ImageType:
        """Return the element type of the input ``image``."""
        return "uint8" if self.embedded_preprocess else self.image_dtype

    @property
    def map_shape(self) -> tuple[int, int]:
        """Return (h, w) of a reference's map before it is resized: of the finest layer used."""
        if self.map_method == "legrad" and self.attention is not None:
            return self.attention.shape[1:]
        if self.detector is not None:
            return self.detector.map_size
        layers = [self.activations, *(layer.activations for layer in self.fused_layers)]
        return finest(layers)

    def map_output(self, method: Method) -> str | None:
        """Name the output with a method's finished maps, not thresholded; None if there is none."""
        if method not in self.map_methods:
            return None
        if method != self.map_method:
            return f"maps_{method}"
        return "original_maps" if "tft" in self.outputs else "maps"

    @property
    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """List the graph's outputs with their shapes without the batch; None is k.

        By their contract names, without ``own_outputs``. Height and width are None as well where
        these are free.
        """
        if self.detector is not None:
            return self._detector_shapes(self.detector)
        size = self.map_size
        activations: tuple[int | None, ...] = self.activations
        if self.dynamic_size is not None:
            activations = (self.activations[0], None, None)
        shapes: dict[str, tuple[int | None, ...]] = {
            "probabilities": (self.num_classes,),
            "targets": (None,),
        }
        shapes |= {f"probabilities_{head.name}": (head.num_classes,) for head in self.heads}
        if self.region is not None:
            scores = 1 if self.task == "binary" else self.num_classes
            shapes["place_scores"] = (scores, *self.region)
        if "raw" in self.outputs:
            shapes["activations"] = activations
            shapes["gradients"] = (None, *activations)
            if "ablation" in self.methods:
                shapes["ablation_weights"] = (None, self.activations[0])
        if "tft" in self.outputs:
            steps = len(self.tft.taus)
            shapes |= {"original_maps": (None, *size), "maps": (None, *size)}
            shapes |= {"thresholds": (None,), "rpi": (None, steps)}
            shapes["masked_probabilities"] = (None, steps)
        elif "map" in self.outputs:
            shapes["maps"] = (None, *size)
        return shapes | {f"maps_{method}": (None, *size) for method in self.map_methods[1:]}

    def _detector_shapes(self, detector: Detector) -> dict[str, tuple[int | None, ...]]:
        count = detector.candidates
        shapes: dict[str, tuple[int | None, ...]] = {
            "detections": (None, 2),
            "scores": (None,),
            "boxes": (None, 4),
            "candidate_scores": (count, self.num_classes),
            "candidate_boxes": (count, 4),
        }
        maps = [name for method in self.methods if (name := self.map_output(method)) is not None]
        return shapes | dict.fromkeys(maps, (None, *detector.map_size))

    def label(self, index: int) -> str:
        """Return the name of a class, or its number where the file holds no names."""
        return self.labels[index] if self.labels else str(index)

    def to_json(self) -> str:
        """Write the text that ``parse`` reads back."""
        return msgspec.json.encode(self).decode()


def parse(text: str | bytes, source: str) -> Manifest:
    """Read a manifest.

    Raises:
        ModelFileError: not JSON, of another version, or with fields missing or wrong; names
            ``source``.
    """
    remedy = "Export the model again, or install the whycam that made it"
    return decode_versioned(text, Manifest, VERSION, f"{source}: its manifest", remedy)
