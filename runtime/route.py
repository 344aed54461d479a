"""What to ask of a graph: its own maps and thresholds where it has them, else the raw outputs."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Route:
    """How an explanation is computed.

    Attributes:
        method: how the map is made.
        settings: how it is thresholded.
        outputs: what the graph is asked for.
        maps: the output that holds the finished map; None: the map is computed from raw outputs.
        swept: whether the graph chooses the threshold.
        prior: what a search of thresholds starts from.
    """

    method: Method
    settings: Settings
    outputs: tuple[str, ...]
    maps: str | None
    swept: bool
    prior: Prior | None = None


def route(manifest: Manifest, method: Method | None, wanted: Thresholding) -> Route:
    """Find the way to an explanation.

    Args:
        manifest: knows what the graph has.
        method: None for the graph's own, or Grad-CAM.
        wanted: how to threshold.

    Raises:
        RequestError: the file cannot do that; the message says how to export one that can.
    """
    chosen = method if method is not None else manifest.map_method or "gradcam"
    _check_method(chosen, manifest)
    settings, prior = _searched(_settings(wanted, chosen, manifest), chosen, manifest)
    in_graph = chosen == manifest.map_method and "tft" in manifest.outputs
    swept = in_graph and settings == manifest.tft
    if not swept and (isinstance(settings, Tft) or chosen == "scorecam"):
        _check_masks(chosen, manifest)
    outputs = ["probabilities", "targets"]
    maps = manifest.map_output(chosen)
    if maps is not None:
        outputs.append(maps)
        if swept:
            outputs += ["rpi", "masked_probabilities"]
    else:
        outputs.append("activations")
        if chosen == "ablation":
            outputs.append("ablation_weights")
        elif chosen != "scorecam":
            outputs.append("gradients")
    return Route(chosen, settings, tuple(outputs), maps, swept, prior)


def _check_method(method: str, manifest: Manifest) -> None:
    if method not in METHODS:
        raise RequestError(f"there is no method '{method}'; choose from: {', '.join(METHODS)}")
    if method in manifest.methods:
        return
    if manifest.task == "none" and method in ("ablation", "scorecam"):
        raise RequestError(
            f"'{method}' weighs channels by probabilities, and {NOT_PROBABILITIES}. Use another "
            f"method: {', '.join(manifest.methods)}"
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
    """A search tries the thresholds that its prior was learnt for."""
    if not isinstance(settings, Tft) or settings.forwards is None:
        return settings, None
    prior = prior_for(manifest.priors, method, settings)
    return msgspec.structs.replace(settings, taus=prior.taus), prior


def _check_masks(method: Method, manifest: Manifest) -> None:
    """A graph that takes pixels cannot be shown masked, normalised images."""
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
            f"{'all' if own.forwards is None else own.forwards} forwards"
        )
        how = "with the settings you want"
    raise RequestError(
        f"{why}, and a graph with --embed-preprocess takes whole pictures only. Export again {how}"
    )
