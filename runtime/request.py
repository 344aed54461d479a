"""Decide which graph outputs a request needs, and what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from . import tft
from .cam import METHODS, Method
from .errors import RequestError
from .manifest import Manifest
from .search import Prior, prior_for
from .tft import Tft

NOT_PROBABILITIES = "the network's outputs are values, not probabilities"

Thresholding = Tft | Literal["naive"] | bool | None
Settings = Tft | Literal["naive"] | None
# The outputs of a sweep inside the graph.
_SWEEP = ("rpi", "masked_probabilities")


@dataclass(frozen=True)
class MethodPlan:
    """How one method's maps are computed and thresholded.

    Attributes:
        method: how the map is made.
        settings: how it is thresholded.
        map_output: the output that holds the finished map; None: it is computed from raw outputs.
        in_graph: whether the graph itself chooses the threshold.
        prior: what a search of thresholds starts from.
    """

    method: Method
    settings: Settings
    map_output: str | None
    in_graph: bool
    prior: Prior | None = None


@dataclass(frozen=True)
class RequestPlan:
    """What one run of the graph must return for all methods of a request.

    Attributes:
        methods: one plan a method, in the order asked for.
        outputs: the graph's outputs that are needed, each once.
        thresholded: maps of how many of an image's classes are thresholded, from the first; None:
            all.
    """

    methods: tuple[MethodPlan, ...]
    outputs: tuple[str, ...]
    thresholded: int | None = None

    @property
    def in_graph(self) -> bool:
        """Whether the graph sweeps thresholds in this run."""
        return any(one.in_graph for one in self.methods)


def check_classifier(manifest: Manifest) -> None:
    """Refuse a detector's file where classes of whole images are meant.

    Raises:
        RequestError: the file detects objects.
    """
    if manifest.detector is not None:
        raise RequestError(
            f"{manifest.model} is a detector: it finds objects, and this is for classes of whole "
            "images. Its detections are explained by Explainer.detect, and by whycam explain, "
            "stream, evaluate and bench"
        )


def check_whole_image(manifest: Manifest) -> None:
    """Refuse a segmentation network's file where classes of whole images are meant.

    Raises:
        RequestError: the file scores every place of an image.
    """
    if manifest.region is not None:
        raise RequestError(
            f"{manifest.model} is a segmentation network: it scores every place, and this is for "
            "classes of whole images. A region's class is explained by Explainer.explain and by "
            "whycam explain"
        )


def check_detector(manifest: Manifest) -> None:
    """Refuse a classifier's file where detections are meant.

    Raises:
        RequestError: the file classifies images.
    """
    if manifest.detector is None:
        raise RequestError(
            f"{manifest.model} is no detector: it classifies whole images and finds no boxes. Its "
            "classes are explained by Explainer.explain, and by whycam explain"
        )


def plan_request(
    manifest: Manifest,
    methods: Method | Sequence[Method] | None = None,
    thresholding: Thresholding = None,
    sweep_outside: bool = False,
) -> RequestPlan:
    """Plan a request for maps of one or several methods.

    Args:
        manifest: knows what the graph has.
        methods: one or several; None: what the graph finishes itself, or Grad-CAM.
        thresholding: ``None``, ``"naive"``, ``True`` (TFT in the file's reading) or a ``Tft``.
        sweep_outside: thresholds are tried by other means than the graph's own sweep.

    Raises:
        RequestError: the file cannot do that; the message says how to export one that can.
    """
    check_classifier(manifest)
    return plan_methods(manifest, methods, thresholding, sweep_outside)


def plan_methods(
    manifest: Manifest,
    methods: Method | Sequence[Method] | None = None,
    thresholding: Thresholding = None,
    sweep_outside: bool = False,
) -> RequestPlan:
    """Plan the maps of one or several methods, of classes or of detections.

    Args:
        manifest, methods, thresholding, sweep_outside: see ``plan_request``.

    Raises:
        RequestError: the file cannot do that; the message says how to export one that can.
    """
    if methods is None:
        methods = manifest.map_method or "gradcam"
    chosen: tuple[Method, ...] = (
        (methods,) if isinstance(methods, str) else tuple(dict.fromkeys(methods))
    )
    if not chosen:
        raise RequestError("an empty list of methods: name at least one")
    plans = tuple(_plan_method(manifest, one, thresholding, sweep_outside) for one in chosen)
    always: tuple[str, ...] = ("probabilities", "targets")
    if manifest.detector is not None:
        always = ("detections", "scores", "boxes")
    outputs = dict.fromkeys((*always, *(name for one in plans for name in _outputs(one))))
    return RequestPlan(plans, tuple(outputs))


def find_refusal(manifest: Manifest, method: Method, thresholding: Thresholding) -> str | None:
    """Return why a file cannot do what ``plan_methods`` plans; None if it can."""
    try:
        plan_methods(manifest, method, thresholding)
    except RequestError as error:
        return str(error)
    return None


def _plan_method(
    manifest: Manifest, method: Method, thresholding: Thresholding, sweep_outside: bool
) -> MethodPlan:
    _check_method(method, manifest)
    settings, prior = _searched(_settings(thresholding, method, manifest), method, manifest)
    is_own = method == manifest.map_method and "tft" in manifest.outputs
    in_graph = is_own and settings == manifest.tft
    if not in_graph and (isinstance(settings, Tft) or method == "scorecam"):
        _check_masks(method, manifest)
    return MethodPlan(
        method, settings, manifest.map_output(method), in_graph and not sweep_outside, prior
    )


def _outputs(plan: MethodPlan) -> tuple[str, ...]:
    if plan.map_output is not None:
        return (plan.map_output, *(_SWEEP if plan.in_graph else ()))
    if plan.method == "ablation":
        return "activations", "ablation_weights"
    if plan.method == "scorecam":
        return ("activations",)
    return "activations", "gradients"


def _check_method(method: str, manifest: Manifest) -> None:
    if method not in METHODS:
        raise RequestError(f"there is no method '{method}'; choose from: {', '.join(METHODS)}")
    if method in manifest.methods:
        return
    if manifest.detector is not None:
        raise RequestError(
            f"this detector was exported with the methods {', '.join(manifest.methods)}; export it "
            f"again with --method {method}, where that is possible"
        )
    if manifest.task == "none" and method in ("ablation", "scorecam"):
        raise RequestError(
            f"'{method}' weighs channels by probabilities, and {NOT_PROBABILITIES}. Use another "
            f"method: {', '.join(manifest.methods)}"
        )
    if method == "legrad":
        raise RequestError(
            f"'legrad' is computed from attention maps inside the graph, and {manifest.model} was "
            "exported without it. Where the model has attention maps with places, export again "
            "with --method legrad"
        )
    if "raw" not in manifest.outputs:
        raise RequestError(
            f"this file holds finished maps of {' and '.join(map(repr, manifest.map_methods))} "
            f"alone, so '{method}' cannot be computed from it. Export again with --outputs raw"
        )
    if method == "cam":
        raise RequestError(
            "'cam' needs a head of global average pooling and one linear layer and gradients "
            f"of the logit; {manifest.model} was exported without these. Use 'gradcam', "
            "which equals it there and works for every head"
        )
    raise RequestError(
        f"this file was exported without '{method}' (it has: "
        f"{', '.join(manifest.methods)}). Export again with --method {method}"
    )


def _settings(wanted: Thresholding, method: Method, manifest: Manifest) -> Settings:
    if wanted is None or wanted is False:
        return None
    if manifest.task == "none" and (wanted is True or isinstance(wanted, Tft)):
        raise RequestError(
            f"TFT looks for the threshold that raises a probability, and {NOT_PROBABILITIES}. Use "
            "tft='naive' (--naive), or no threshold"
        )
    if wanted is True:
        return manifest.tft
    if wanted == "naive":
        if method not in tft.NAIVE:
            raise RequestError(
                f"no customary threshold is known for '{method}' (paper table 1 has "
                f"{', '.join(tft.NAIVE)}); use TFT, which finds one"
            )
        return "naive"
    if isinstance(wanted, Tft):
        return wanted
    raise RequestError(f"tft must be None, True, 'naive' or a Tft, not {wanted!r}")


def _searched(
    settings: Settings, method: Method, manifest: Manifest
) -> tuple[Settings, Prior | None]:
    """Take the thresholds that the search's prior was learnt for."""
    if not isinstance(settings, Tft) or settings.evaluations is None:
        return settings, None
    prior = prior_for(manifest.priors, method, settings)
    return msgspec.structs.replace(settings, taus=prior.taus), prior


def _check_masks(method: Method, manifest: Manifest) -> None:
    """Refuse masked, normalised images for a graph that takes pixels."""
    if manifest.image_type != "uint8":
        return
    if not manifest.embedded_preprocess:
        what = "Score-CAM" if method == "scorecam" else "TFT"
        raise RequestError(
            f"{what} masks the normalised image, and this file takes uint8 pixels and normalises "
            "them itself, so nothing outside can mask them. "
            + ("Use another method" if method == "scorecam" else "Export again with --outputs tft")
        )
    if method == "scorecam":
        why, how = "Score-CAM shows the network masked images", "without --embed-preprocess"
    elif "tft" not in manifest.outputs:
        why, how = "TFT shows the network masked images", "with --outputs tft"
    else:
        own = manifest.tft
        why = (
            "this graph's own TFT is "
            f"{manifest.map_method}, mask {own.mask}, thresholds {own.thresholds}, "
            f"{'all' if own.evaluations is None else own.evaluations} evaluations"
        )
        how = "with the settings you want"
    raise RequestError(
        f"{why}, and a graph with --embed-preprocess takes whole images only. Export again {how}"
    )
