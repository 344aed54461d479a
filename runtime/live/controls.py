"""Settings of a running stream, and the frames it yields."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec

from ..cam import Method
from ..detection import Detection
from ..detection_plan import DETECTIONS, DetectionPlan, plan_detection
from ..errors import RequestError
from ..explanation import Explanation
from ..images import RGBImage
from ..manifest import Manifest
from ..overlay import Colormap
from ..request import check_whole_image, plan_request
from ..targets import resolve_targets
from .annotate import View, check_view

__all__ = ["Controls", "Look", "StreamFrame", "Timing"]

Sweep = Literal["off", "every", "track"]
SWEEPS: tuple[Sweep, ...] = get_args(Sweep)
Quality = Literal["rate", "balanced", "full"]
QUALITIES: tuple[Quality, ...] = get_args(Quality)
Reused = Literal["threshold", "explanation", "unchanged"]


class Look(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a stream explains and draws; see ``Controls`` for changing it while it runs.

    Attributes:
        method: one of ``manifest.methods``; None: the file's own, or Grad-CAM.
        tft: ``off``; ``every``: all thresholds at each frame; ``track``: the best threshold is
            followed from frame to frame with as many evaluations of the network as there is time
            for.
        target: the class explained: index, label, or rank from -1, the most probable; of a
            detector the class that is looked for, and -1 for all.
        threshold: least map value that is drawn, in [0, 1]; None: tau* with TFT, else 0.
        opacity: of the colours where the map is 1, in [0, 1].
        smoothing: weight of the last frame's map, in [0, 1); 0: none.
        contour: whether the region above the threshold is outlined.
        colormap: of the map, a name in ``runtime.overlay.COLORMAPS``.
        view: what frames show, ``overlay``, ``map`` or ``side-by-side``; see ``Overlay``.
    """

    method: Method | None = None
    tft: Sweep = "off"
    target: int | str = -1
    threshold: float | None = None
    opacity: float = 0.6
    smoothing: float = 0.5
    contour: bool = True
    colormap: Colormap = "inferno"
    view: View = "overlay"

    def __post_init__(self) -> None:
        if self.tft not in SWEEPS:
            raise RequestError(f"tft must be {', '.join(SWEEPS)}, not {self.tft!r}")
        for name, value, most in (
            ("threshold", self.threshold, 1.0),
            ("opacity", self.opacity, 1.0),
            ("smoothing", self.smoothing, 0.99),
        ):
            if value is not None and not 0.0 <= value <= most:
                raise RequestError(f"{name} must lie between 0 and {most:g}, not {value}")
        check_view(self.colormap, self.view)


@dataclass(frozen=True)
class Found:
    """What a detector looks for in each frame of a stream.

    Attributes:
        most: detections explained, at most.
        min_score, iou: see ``Explainer.detect``; None: the file's.
    """

    most: int = DETECTIONS
    min_score: float | None = None
    iou: float | None = None


class Controls:
    """Holds the current look, which any thread may change while the stream runs.

    Args:
        manifest: of the model file.
        look: the first one; None: the default.
        found: what a detector looks for; None: the default.

    Raises:
        RequestError: a look that cannot be used with this file.
    """

    def __init__(
        self, manifest: Manifest, look: Look | None = None, found: Found | None = None
    ) -> None:
        check_whole_image(manifest)
        self._manifest = manifest
        self._found = found or Found()
        self._lock = threading.Lock()
        self._look = self._checked(look or Look())

    @property
    def manifest(self) -> Manifest:
        """Return the manifest, whose classes and methods can be chosen."""
        return self._manifest

    def plan_detection(self, look: Look) -> DetectionPlan:
        """Plan what a detector explains of each frame.

        Raises:
            RequestError: a look that cannot be used with this file.
        """
        return plan_detection(
            self._manifest,
            None if look.target == -1 else look.target,
            look.method,
            look.tft == "every",
            most=self._found.most,
            min_score=self._found.min_score,
            iou=self._found.iou,
        )

    @property
    def look(self) -> Look:
        """Return how the next frame will be explained and drawn."""
        return self._look

    def change(self, /, **fields: Any) -> Look:
        """Change attributes of the look: all those passed, or none if one is refused.

        Raises:
            RequestError: an attribute that does not exist, or a value that cannot be used with
                this file; the look stays as it was.
        """
        unknown = set(fields) - set(Look.__struct_fields__)
        if unknown:
            raise RequestError(
                f"a stream has no setting {', '.join(sorted(unknown))}; there are: "
                f"{', '.join(Look.__struct_fields__)}"
            )
        with self._lock:
            try:
                # Converted from plain values, which checks the types of what a page sends.
                look = msgspec.convert(msgspec.to_builtins(self._look) | fields, Look)
            except msgspec.ValidationError as error:
                raise RequestError(f"a setting of the stream cannot be used: {error}") from error
            self._look = self._checked(look)
            return self._look

    def _checked(self, look: Look) -> Look:
        if self._manifest.detector is not None:
            if look.tft == "track":
                raise RequestError(
                    "tft=track follows the threshold of one class from frame to frame, and the "
                    "objects that a detector finds come and go: use every or off"
                )
            self.plan_detection(look)
            return look
        resolve_targets(look.target, 1, False, self._manifest)
        plan_request(self._manifest, look.method, None if look.tft == "off" else True)
        if look.tft == "track" and self._manifest.image_type == "uint8":
            raise RequestError(
                "tft=track shows the network masked images, and a graph that takes uint8 pixels "
                "(as with --embed-preprocess) takes whole images only: use every, or a file "
                "that takes normalised images"
            )
        return look


@dataclass(frozen=True)
class Timing:
    """Time spent on a frame, in seconds.

    Attributes:
        read: decoding, on the reader's thread.
        explain: preprocessing, network, map and thresholds.
        draw: the overlay.
        latency: from the arrival of the frame until it was drawn.
        fps: frames drawn a second, over the last 30.
        evaluations: evaluations of masked images.
    """

    read: float
    explain: float
    draw: float
    latency: float
    fps: float
    evaluations: int


@dataclass(frozen=True, eq=False)
class StreamFrame:
    """One frame of a stream, explained and drawn.

    Attributes:
        index: of the frame in its source, from 0.
        seconds: its time in the source.
        original: the frame as read, uint8 [h, w, 3], RGB.
        image: the frame with its explanation drawn as the look's view says: uint8 [h, w, 3], or
            [h, 2 w, 3] side by side.
        explanation: of this frame; None for a detector.
        ranking: the most probable classes: index, label, probability; five at most.
        timing: time spent on it.
        dropped: number of frames dropped for newer ones so far.
        look: that it was explained and drawn with.
        live: whether the source sends frames at its own rate; the latency of others, which wait
            to be read, says nothing.
        reused: what an earlier frame's explanation was used for, if anything. ``threshold``: there
            was no time to evaluate any, so the last one of the class holds, on this frame's own
            map; ``explanation``: there was no time for the network (``quality="rate"``), so this
            frame shows the map and class of an earlier one; ``unchanged``: all pixels are the same,
            and so is the explanation.
        detections: of this frame, the best first; None for a classifier.
    """

    index: int
    seconds: float
    original: RGBImage
    image: RGBImage
    explanation: Explanation | None
    ranking: tuple[tuple[int, str, float], ...]
    timing: Timing
    dropped: int
    look: Look
    live: bool
    reused: Reused | None = None
    detections: tuple[Detection, ...] | None = None
