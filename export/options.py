"""Check the options of an export, and complete them for a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import msgspec

from ..runtime.cam import ACTIVATION_METHODS, METHODS, Method, Score
from ..runtime.errors import ExportError, RequestError
from ..runtime.manifest import OUTPUTS, Outputs
from ..runtime.manifest_parts import Task
from ..runtime.search import Prior, prior_for
from ..runtime.tft import Tft
from .ablation_head import Head, explain_refusal
from .assemble import Request
from .heads import OutputMeaning
from .loading import LoadedModel
from .resample import check_embeddable

_LARGEST_SIDE = 2**15


@dataclass(frozen=True)
class ExportOptions:
    """The arguments of ``to_onnx`` that choose what the file contains."""

    outputs: Sequence[str]
    methods: Sequence[str] | None
    map_methods: Sequence[str] | None
    fused_layers: Sequence[str]
    score: Score | None
    tft: Tft | None
    priors: Sequence[Prior]
    embed_preprocess: bool
    source_size: tuple[int, int] | None
    top: int | None
    dynamic_size: tuple[int, int] | None = None
    task: Task | None = None

    def check(self) -> None:
        """Refuse options that contradict each other, before any work is done.

        Raises:
            RequestError: two options do not go together, or one is unknown.
        """
        unknown = [name for name in self.outputs if name not in OUTPUTS]
        if unknown or not self.outputs:
            raise RequestError(
                f"there are no outputs {', '.join(map(repr, unknown)) or 'wanted'}; choose from: "
                f"{', '.join(OUTPUTS)}"
            )
        for names in (self.methods, self.map_methods):
            strange = [name for name in names or () if name not in METHODS]
            if strange or (names is not None and not names):
                raise RequestError(
                    f"there is no method {', '.join(map(repr, strange))}; choose from: "
                    f"{', '.join(METHODS)}"
                )
        if self.map_methods is not None and tuple(self.outputs) == ("raw",):
            raise RequestError(
                f"map_methods {', '.join(self.map_methods)} need the outputs map or tft"
            )
        if "scorecam" in (self.map_methods or ()):
            raise RequestError(
                "Score-CAM takes one forward pass for each channel, which no graph should hold; "
                "name another method for the outputs map and tft"
            )
        if self.needs_attention and self.groups == ("raw",):
            raise RequestError(
                "legrad is computed from attention maps, which are no raw outputs: add the output "
                "map, or tft"
            )
        if self.top is not None and self.top < 1:
            raise RequestError(f"top must be 1 or more, not {self.top}")
        self._check_source_size()
        self._check_dynamic_size()
        self._check_tft()
        self._check_task()
        if self.fused_layers and self.groups == ("raw",):
            raise RequestError(
                "layers are fused in maps of layercam that the graph finishes: choose the outputs "
                "map or tft"
            )
        if self.fused_layers and (self.map_methods or ["layercam"])[0] != "layercam":
            raise RequestError(
                "layers are fused in maps of layercam that the graph finishes: choose no other "
                f"map_methods ({', '.join(self.map_methods or ())})"
            )

    def _check_source_size(self) -> None:
        size = self.source_size
        if size is not None and not self.embed_preprocess:
            raise RequestError("source_size is for graphs with embed_preprocess")
        if size is not None and not (min(size) >= 1 and max(size) <= _LARGEST_SIDE):
            raise RequestError(
                f"source_size must be (height, width) from 1 to {_LARGEST_SIDE} pixels, not {size}"
            )

    def _check_dynamic_size(self) -> None:
        if self.dynamic_size is None:
            return
        least, most = self.dynamic_size
        if not 1 <= least < most <= _LARGEST_SIDE:
            raise RequestError(
                f"dynamic_size must be two numbers of pixels that rise from 1 to {_LARGEST_SIDE}, "
                f"not {self.dynamic_size}"
            )
        if self.embed_preprocess:
            raise RequestError(
                "embed_preprocess resizes every image to one size inside the graph, and "
                "dynamic_size keeps each image's own: choose one of the two"
            )
        if self.fused_layers:
            raise RequestError(
                "layers are fused at sizes that are known when the file is written: leave out "
                "fused_layers or dynamic_size"
            )
        if "tft" in self.outputs and (self.tft or Tft()).thresholds == "rank":
            raise RequestError(
                "thresholds by rank mute a number of pixels, which dynamic_size leaves open: "
                "choose thresholds by value, or leave out the output tft and threshold outside "
                "the graph"
            )

    def _check_tft(self) -> None:
        tft, swept = self.tft, "tft" in self.outputs
        if tft is not None and tft.evaluations is not None and not swept:
            raise RequestError(
                f"evaluations={tft.evaluations} is a search inside the graph: add the output tft. "
                "Files without it are searched by: whycam explain --tft --evaluations"
            )

    def _check_task(self) -> None:
        if self.task != "none":
            return
        if "tft" in self.outputs:
            raise RequestError(
                "TFT maximises a class's probability, and with task none there are no "
                "probabilities: leave out the output tft"
            )
        stated = (*(self.methods or ()), *(self.map_methods or ()))
        if refused := [method for method in ("ablation", "scorecam") if method in stated]:
            raise RequestError(
                f"{refused[0]} compares probabilities, and with task none there are none"
            )
        if self.score == "prob":
            raise RequestError("score prob needs probabilities, and with task none there are none")

    @property
    def needs_attention(self) -> bool:
        """Whether a method reads attention maps."""
        return "legrad" in (*(self.methods or ()), *(self.map_methods or ()))

    @property
    def groups(self) -> tuple[Outputs, ...]:
        """The outputs in the contract's order."""
        return tuple(name for name in OUTPUTS if name in self.outputs)


def plan_export(
    options: ExportOptions, head: Head, meaning: OutputMeaning, loaded: LoadedModel
) -> tuple[Request, tuple[Prior, ...], Tft]:
    """Complete the options for one network.

    Returns:
        What to add; the priors that the file keeps; the settings of TFT that it recommends.

    Raises:
        ExportError, RequestError: the options do not fit the network.
    """
    if meaning.place_scores is not None:
        _check_segmentation(options)
    is_fixed = meaning.similarity is None or meaning.similarity.embeddings is not None
    if options.top is not None and meaning.single is None:
        raise RequestError(
            f"top {options.top} explains the most probable classes of one head, and "
            f"{len(meaning.heads)} were chosen: leave it out, and name the classes by targets"
        )
    if options.top is not None and is_fixed and options.top > meaning.num_classes:
        raise RequestError(f"top {options.top} of {meaning.num_classes} classes")
    if options.embed_preprocess:
        check_embeddable(loaded.preprocess)
    score: Score = options.score or "logit"
    methods, map_methods = _choose_methods(options, head, meaning, score)
    own = map_methods[0] if map_methods else None
    tft = options.tft or Tft()
    prior = None
    if own is not None and tft.evaluations is not None and "tft" in options.groups:
        prior = prior_for(options.priors, own, tft)
        tft = msgspec.structs.replace(tft, taus=prior.taus)
    request = Request(
        outputs=options.groups,
        methods=methods,
        map_methods=map_methods,
        gradient_score=score,
        ablation_score=options.score or ("prob" if meaning.has_probabilities else "logit"),
        tft=tft if "tft" in options.groups else None,
        prior=prior,
        top=options.top,
        preprocess=loaded.preprocess if options.embed_preprocess else None,
        source_size=options.source_size,
    )
    kept = tuple(prior for prior in options.priors if prior.method in methods)
    return request, kept, tft


def _check_segmentation(options: ExportOptions) -> None:
    """Refuse what a segmentation network's file cannot have.

    Raises:
        RequestError: such an option was given.
    """
    asked = {*(options.methods or ()), *(options.map_methods or ())}
    for name, is_given, why in (
        ("output tft", "tft" in options.outputs, "its thresholds are tried outside the graph"),
        ("top", options.top is not None, "each class has a region of its own: name it by target"),
        ("ablation", "ablation" in asked, "it takes a linear head of the whole image"),
        ("scorecam", "scorecam" in asked, "it shows the network masked images, without a region"),
        ("legrad", "legrad" in asked, "it reads attention of the class score of a whole image"),
        ("score prob", options.score == "prob", "the mean logit of a region is explained"),
    ):
        if is_given:
            raise RequestError(f"{name} is not there for a segmentation network: {why}")


def _choose_methods(
    options: ExportOptions, head: Head, meaning: OutputMeaning, score: Score
) -> tuple[tuple[Method, ...], tuple[Method, ...]]:
    """Choose the methods that the file supports, and those whose finished maps it returns."""
    has_cam = head.is_pooled_linear and score == "logit" and meaning.similarity is None
    groups = options.groups
    finishes = groups != ("raw",)
    if options.methods is not None:
        supported: set[str] = {*options.methods, *(options.map_methods or ())}
    elif "raw" in groups:
        supported = {m for m in ACTIVATION_METHODS if m not in ("ablation", "cam")}
        supported |= ({"cam"} if has_cam else set()) | set(options.map_methods or ())
    else:
        default = "layercam" if options.fused_layers else "gradcam"
        supported = set(options.map_methods or (default,))
    if not meaning.has_probabilities or meaning.place_scores is not None:
        supported.discard("scorecam")
    if options.fused_layers:
        supported.add("layercam")
    if "ablation" in supported and (why := explain_refusal(head.layer)) is not None:
        raise ExportError(f"Ablation-CAM is not possible here: {why}. Use 'gradcam'")
    if "cam" in supported and not has_cam:
        raise ExportError(
            "'cam' needs a head of global average pooling and one linear layer, and the logit as "
            "score; this model's head or score is another. Use 'gradcam'"
        )
    methods = tuple(m for m in METHODS if m in supported)
    if not finishes:
        return methods, ()
    if options.map_methods is not None:
        chosen = [cast(Method, m) for m in options.map_methods]
    elif "map" not in groups:
        first = (options.methods or ["gradcam"])[0]
        chosen = [cast(Method, "layercam" if options.fused_layers else first)]
    else:
        order = [m for m in ("gradcam", *(options.methods or ()), *METHODS) if m in methods]
        chosen = [cast(Method, m) for m in order if m != "scorecam"]
    if options.fused_layers:
        chosen = ["layercam", *(m for m in chosen if m != "layercam")]
    if not chosen or chosen[0] == "scorecam":
        raise RequestError(
            "Score-CAM takes one forward pass for each channel, which no graph should hold; name "
            "another method for the outputs map and tft"
        )
    if "legrad" in methods and "legrad" not in chosen:
        raise RequestError(
            "legrad is computed from attention maps, which are no raw outputs: add the output map, "
            f"or name it with the methods whose maps the graph finishes ({', '.join(chosen)})"
        )
    if "raw" not in groups:
        surplus = [m for m in methods if m not in chosen]
        if surplus:
            raise RequestError(
                f"a file without raw outputs holds the methods whose maps it finishes "
                f"({', '.join(chosen)}); for {', '.join(surplus)} as well add the output raw"
            )
    return methods, tuple(dict.fromkeys(chosen))
