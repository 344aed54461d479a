"""Hold, draw and save the result of explaining an image."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import overlay
from .cam import Method
from .errors import MissingExtraError, RequestError
from .files import write_whole
from .images import RGBImage
from .manifest import Manifest, Task
from .pipeline import ClassMap
from .pixels import Pixels, show_pixels
from .preprocess import Placement, to_image
from .request import Settings
from .sweep import Choice
from .tft import Tft

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why the network gave one class to one image.

    Attributes:
        index: the class explained.
        label: its name, or its number where the model file holds no names.
        probability: of the class, in [0, 1]; its value where the task is ``none``.
        task: what the class's head computes, see ``Manifest.task``.
        method: how the map was made.
        map: float32 [H, W] in [0, 1] over the network's input, or [h, w] over the image's own
            pixels with ``geometry="image"``; thresholded if thresholding was asked for.
        original_map: the same before thresholding.
        mask: float32, as ``map``: what multiplies the image under the threshold; None without
            thresholding.
        threshold: tau*, or the method's naive threshold; None without thresholding.
        cut: the map value below which the threshold mutes.
        rpi: float32 [T], relative probability increase at each of ``tft.taus``, NaN where it was
            not tried (``tft.forwards``); None without TFT.
        improved: whether some threshold raised the probability; None without TFT.
        masked_probability: of the class for the image under ``mask``; None without TFT, or where
            no threshold improves and 0 was not tried.
        tft: the reading of TFT, with the thresholds that could be tried; None without TFT.
        image: uint8 [h, w, 3], RGB; of images of bands or of more than 8 bits what
            ``pixels.show_pixels`` makes of them.
        placement: where the network's input lies in the image.
        geometry: ``input`` or ``image``: what ``map`` lies over.
    """

    index: int
    label: str
    probability: float
    method: Method
    map: NDArray[np.float32]
    original_map: NDArray[np.float32]
    image: RGBImage = field(repr=False)
    placement: Placement
    mask: NDArray[np.float32] | None = None
    threshold: float | None = None
    cut: float = 0.0
    rpi: NDArray[np.float32] | None = None
    improved: bool | None = None
    masked_probability: float | None = None
    tft: Tft | None = None
    geometry: str = "input"
    task: Task = "softmax"

    def on_image(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Carry ``map``, ``original_map`` or ``mask`` to the image's own pixels.

        Args:
            values: float32, one of the three.

        Returns:
            float32 [h, w], 0 outside what the network saw.
        """
        if self.geometry == "image":
            return values
        return to_image(values, self.placement)

    def over_image(self) -> Explanation:
        """Return a copy with ``geometry="image"``: maps and mask over the image's own pixels."""
        return replace(
            self,
            map=self.on_image(self.map),
            original_map=self.on_image(self.original_map),
            mask=None if self.mask is None else self.on_image(self.mask),
            geometry="image",
        )

    @cached_property
    def _region(self) -> NDArray[np.bool_]:
        """Mark where the thresholded map is not zero, at the image's own pixels."""
        original = self.on_image(self.original_map)
        return np.asarray((original >= self.cut) & (original > 0))

    def overlay(self, opacity: float = 0.6, original: bool = False) -> RGBImage:
        """Draw the map over the image, with an outline of the region above the threshold.

        Args:
            opacity: of the colour where the map is 1, in [0, 1].
            original: show the map without thresholding.

        Returns:
            uint8 [h, w, 3], RGB, the image's own size.

        Raises:
            RequestError: an opacity out of its range.
        """
        if not 0 <= opacity <= 1:
            raise RequestError(f"opacity must lie in [0, 1], not {opacity}")
        values = self.on_image(self.original_map)
        if original or self.threshold is None:
            return overlay.blend(self.image, values, opacity)
        # Thresholded here, at full resolution, so that the edge is as sharp as the image.
        region = self._region
        blended = overlay.blend(self.image, np.where(region, values, np.float32(0)), opacity)
        # Nothing is muted at threshold 0: an outline would only trace where the map is not 0.
        if self.cut > 0:
            overlay.outline(blended, region.astype(np.uint8))
        return blended

    def figure(self) -> Figure:
        """Draw image, map, thresholded map and rpi curve side by side (paper figure 3).

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        try:
            from .figure import Curve, draw, make_panel
        except ImportError as error:
            raise MissingExtraError("matplotlib", "plot", "drawing figures") from error
        symbol = "value" if self.task == "none" else "p"
        number = format_probability(self.probability, self.task, 3)
        panels = [
            make_panel(self.image, self.label, f"{symbol} = {number}"),
            (self.overlay(original=True), self.method),
        ]
        if self.threshold is not None:
            name = "naive" if self.tft is None else "TFT"
            panels.append((self.overlay(), f"{name}  $\\tau$ = {self.threshold:.2g}"))
        if self.rpi is None or self.tft is None:
            return draw(panels)
        tried = ~np.isnan(self.rpi)
        curve = Curve(
            taus=np.asarray(self.tft.taus)[tried],
            rpi=self.rpi[tried],
            best=self.threshold if self.improved else None,
            title=f"p under mask = {self.masked_probability:.3f}"
            if self.improved
            else "no threshold improves",
            by_rank=self.tft.thresholds == "rank",
        )
        return draw(panels, curve)

    def save(self, path: str | os.PathLike[str], figure: bool = False) -> Path:
        """Write the overlay, or the figure, as an image file; whole or not at all.

        Args:
            path: its ending says the type.
            figure: write ``figure()`` instead of ``overlay()``.

        Returns:
            Where the file is.

        Raises:
            RequestError: an ending that is no image type.
            OutputError: a place that cannot be written.
            MissingExtraError: a figure without matplotlib.
        """
        target = Path(path)
        if target.suffix.lower() not in IMAGE_TYPES:
            raise RequestError(f"cannot tell the image type of {target}: end it with .png")
        return write_whole(target, _encoded(self._drawn(figure), target.suffix))

    def save_map(self, path: str | os.PathLike[str]) -> Path:
        """Write the map over the image's own pixels, float32 [h, w], as a NumPy ``.npy`` file.

        Args:
            path: ends with ``.npy``.

        Returns:
            Where the file is.

        Raises:
            RequestError: another ending.
            OutputError: a place that cannot be written.
        """
        if Path(path).suffix.lower() != ".npy":
            raise RequestError(f"a map is written as a NumPy array: end {path} with .npy")
        buffer = io.BytesIO()
        np.save(buffer, self.on_image(self.map))
        return write_whole(Path(path), buffer.getvalue())

    def _drawn(self, figure: bool) -> RGBImage:
        if figure:
            drawn = self.figure()
            from .figure import rasterise

            return rasterise(drawn)
        text = f"{self.label} {format_probability(self.probability, self.task, 3)}  {self.method}"
        if self.threshold is not None:
            text += f"  tau {self.threshold:.2g}"
        return overlay.caption(self.overlay(), text)

    def to_dict(self) -> dict[str, Any]:
        """Collect the numbers, without arrays, ready for JSON; None for an rpi not tried."""
        numbers = {
            "index": self.index,
            "label": self.label,
            "task": self.task,
            "probability": self.probability,
            "method": self.method,
            "threshold": self.threshold,
            "cut": self.cut,
        }
        if self.rpi is not None and self.tft is not None:
            numbers |= {
                "improved": self.improved,
                "masked_probability": self.masked_probability,
                "mask": self.tft.mask,
                "thresholds": self.tft.thresholds,
                "taus": list(self.tft.taus),
                "forwards": self.tft.forwards,
                "rpi": [None if np.isnan(value) else float(value) for value in self.rpi],
            }
        return numbers


def format_probability(probability: float, task: Task, digits: int) -> str:
    """Write a probability with so many decimals, or the value that task ``none`` has instead."""
    return f"{probability:.{digits}f}" if task != "none" else f"{probability:.{digits + 1}g}"


def _encoded(image: RGBImage, suffix: str) -> bytes:
    import cv2

    done, data = cv2.imencode(suffix, image[..., ::-1])
    if not done:
        raise RequestError(f"OpenCV cannot write an image of {image.shape} as {suffix}")
    return bytes(data)


def make_explanation(
    manifest: Manifest,
    class_map: ClassMap,
    choice: Choice | None,
    settings: Settings,
    image: Pixels,
    placement: Placement,
) -> Explanation:
    """Build the explanation of one map from what the steps returned.

    Args:
        manifest: of the graph.
        class_map: from ``pipeline.map``.
        choice: its threshold; None without.
        settings: how it was chosen.
        image, placement: from ``pipeline.prepare``.
    """
    plain = Explanation(
        index=class_map.target,
        label=manifest.label(class_map.target),
        probability=class_map.probability,
        task=manifest.task_of(class_map.target),
        method=class_map.method,
        map=class_map.map,
        original_map=class_map.map,
        image=show_pixels(image, manifest.preprocess, manifest.show_bands),
        placement=placement,
    )
    if choice is None:
        return plain
    cut = replace(
        plain, map=choice.map, mask=choice.mask, threshold=choice.threshold, cut=choice.cut
    )
    if not isinstance(settings, Tft):
        return cut
    return replace(
        cut,
        rpi=choice.rpi,
        improved=choice.improved,
        masked_probability=choice.masked_probability,
        tft=settings,
    )
