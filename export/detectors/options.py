"""Refuse options of an export that are for classifiers, before a detector is worked on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from ...runtime.cam import METHODS, Method
from ...runtime.errors import RequestError
from ...runtime.manifest_parts import EDGES, ExplainedScore

# Of gradients and activations alone, element by element or channel by channel.
DETECTOR_METHODS: tuple[Method, ...] = ("layercam", "gradcam", "gradcam++", "hirescam", "xgradcam")
DEFAULT_METHODS: tuple[Method, ...] = ("layercam", "gradcam")
_REFUSED = {
    "ablation": "compares probabilities of the whole image without a channel",
    "scorecam": "compares probabilities of the whole image under masks",
    "cam": "needs a head of global average pooling and one linear layer",
    "legrad": "reads attention before a class token",
}


@dataclass(frozen=True)
class DetectorOptions:
    """The arguments of ``to_onnx`` for detectors, and those that none takes.

    Attributes:
        methods: whose maps the graph returns.
        score: what is explained.
    """

    methods: tuple[Method, ...]
    score: ExplainedScore


def check_detector_options(
    outputs: Sequence[str] | None,
    methods: Sequence[str] | None,
    map_methods: Sequence[str] | None,
    score: str | None,
    for_classifiers: Sequence[tuple[str, bool, str]],
) -> DetectorOptions:
    """Check the options of an export for a detector.

    Args:
        outputs, methods, map_methods, score: see ``to_onnx``.
        for_classifiers: options by name, whether each is given, and why no detector takes it.

    Raises:
        RequestError: one of them is not for detectors.
    """
    for name, is_given, why in for_classifiers:
        if is_given:
            raise RequestError(f"the model is a detector, and {why}: leave out {name}")
    if outputs is not None and tuple(outputs) != ("map",):
        strange = next(name for name in (*outputs, "none") if name != "map")
        why = {
            "raw": "its maps are finished in the graph, of several layers",
            "tft": "thresholds of detections are found outside the graph, by whycam explain --tft",
        }.get(strange, "it returns the output map")
        raise RequestError(
            f"the model is a detector, and {why}: choose the output map, not {strange}"
        )
    stated = tuple(dict.fromkeys((*(map_methods or ()), *(methods or ()))))
    for name in stated:
        if name not in METHODS:
            raise RequestError(
                f"there is no method '{name}'; for detectors choose from: "
                f"{', '.join(DETECTOR_METHODS)}"
            )
        if name in _REFUSED:
            raise RequestError(
                f"the method {name} {_REFUSED[name]}, which a detector has not: choose from "
                f"{', '.join(DETECTOR_METHODS)}"
            )
    if score not in (None, "class", *EDGES):
        raise RequestError(
            f"score {score} is for classifiers; of a detection class, {', '.join(EDGES)} are "
            "explained"
        )
    return DetectorOptions(
        cast("tuple[Method, ...]", stated) or DEFAULT_METHODS,
        cast(ExplainedScore, score or "class"),
    )
