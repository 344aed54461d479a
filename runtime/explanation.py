"""What a caller gets for one class of one image: its values, drawn and saved on request."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from . import drawing, saving
from .attribution import Attribution
from .errors import RequestError
from .file_names import Kind
from .files import write_whole
from .images import RGBImage
from .manifest import Manifest
from .overlay import DEFAULT_STYLE, Style
from .pipeline import ClassMap
from .pixels import Pixels, show_pixels
from .preprocess import Placement
from .request import Settings
from .sweep import Choice, Floats
from .targets import rank_classes
from .tft import Tft

if TYPE_CHECKING:
    from matplotlib.figure import Figure


AnyExplanation = TypeVar("AnyExplanation", bound="Explanation")


class Explanation(Attribution):
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
        threshold: tau*, or the method's naive threshold; None without thresholding, and where no
            threshold of TFT improves.
        cut: the map value below which the threshold mutes.
        rpi: float32 [T], relative probability increase at each of ``tft.taus``, NaN where it was
            not tried (``tft.evaluations``); None without TFT. NaN throughout: a stream had no time
            to try any, and threshold and ``improved`` are those of an earlier frame.
        improved: whether some threshold raised the probability; None without TFT.
        masked_probability: of the class for the image under ``mask``; None without TFT, or where
            no threshold improves and 0 was not tried.
        tft: the reading of TFT, with the thresholds that could be tried; None without TFT.
        image: uint8 [h, w, 3], RGB; of images of bands or of more than 8 bits what
            ``pixels.show_pixels`` makes of them.
        placement: where the network's input lies in the image.
        geometry: ``input`` or ``image``: what ``map`` lies over.
        top: the most probable classes of the image, five at most; of several heads those of the
            class's own.
        explained_area: of a segmentation network, which share of the network's input the region
            covers whose mean score is explained; else None.
        weights: of the places of that region, float32 [h, w] over the network's input; else None.
        box, candidate, edge: of a ``Detection``; None for classes of whole images.

    Example:
        >>> e = whycam.load("model.onnx").explain("cat.jpg", tft=True)
        >>> e
        Explanation('tabby' (0), p 0.891, gradcam, tau* 0.2, image 75 x 113)
        >>> e.map.shape, e.map.dtype, e.region.box
        ((8, 8), dtype('float32'), (33, 0, 94, 60))
        >>> [(one.label, round(one.probability, 2)) for one in e.top[:2]]
        [('tabby', 0.89), ('espresso', 0.07)]
        >>> e.save("why.png", style=whycam.Style(colormap="viridis")).name
        'why.png'
    """

    def _repr_html_(self) -> str:
        """Show the overlay and the most probable classes in a notebook."""
        return drawing.draw_html(self)

    def over_image(self: AnyExplanation) -> AnyExplanation:
        """Return a copy with ``geometry="image"``: maps and mask over the image's own pixels."""
        return replace(
            self,
            map=self.on_image(self.map),
            original_map=self.on_image(self.original_map),
            mask=None if self.mask is None else self.on_image(self.mask),
            geometry="image",
        )

    def overlay(
        self, style: Style = DEFAULT_STYLE, original: bool = False, scale: int = 1
    ) -> RGBImage:
        """Draw the map over the image, with an outline of the region above the threshold.

        Args:
            style: colours, opacity, outline.
            original: show the map without thresholding.
            scale: repeat each pixel of the image so many times first, and draw at that size.

        Returns:
            uint8 [scale * h, scale * w, 3], RGB.

        Raises:
            RequestError: a scale below 1.
        """
        return drawing.draw_overlay(self, style, original, scale)

    def figure(self, style: Style = DEFAULT_STYLE) -> Figure:
        """Draw image, map, thresholded map and rpi curve side by side (paper figure 3).

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return drawing.draw_figure(self, style)

    def save(
        self,
        path: str | os.PathLike[str],
        kind: Kind = "overlay",
        style: Style = DEFAULT_STYLE,
        overwrite: bool = True,
    ) -> Path:
        """Write the overlay, the figure, the map or the mask as a file; whole or not at all.

        Args:
            path: its ending says the type. Overlays and figures are images. Maps and masks are
                written over the image's own pixels: float32 [h, w] in ``.npy``, 8-bit grey in
                ``.png``.
            kind: ``overlay``: small images are enlarged, and above the image stands a caption;
                ``figure``, ``map`` or ``mask``.
            style: of overlays and figures.
            overwrite: whether an older file is replaced.

        Returns:
            Where the file is.

        Raises:
            RequestError: an ending that does not fit, or a mask without thresholding.
            OutputError: a place that cannot be written, or an older file that stays.
            MissingExtraError: a figure without matplotlib.
        """
        target = Path(path)
        saving.check_type(target, kind)
        return write_whole(target, saving.encode(self, target.suffix, kind, style), overwrite)

    def to_detections(self) -> Any:
        """Return the region as ``supervision.Detections``: box, mask, confidence, class.

        Returns:
            One detection, or none where the region is empty.

        Raises:
            RequestError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise RequestError("supervision is not installed: pip install supervision") from error
        box = self.region.box
        if box is None:
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=np.array([box], np.float32),
            mask=self.region.mask[None],
            confidence=np.array([self.probability], np.float32),
            class_id=np.array([self.index]),
            data={"class_name": np.array([self.label])},
        )


def make_explanation(
    manifest: Manifest,
    class_map: ClassMap,
    choice: Choice | None,
    settings: Settings,
    image: Pixels,
    placement: Placement,
    probabilities: Floats,
) -> Explanation:
    """Build the explanation of one map from what the steps returned.

    Args:
        manifest: of the graph.
        class_map: from ``pipeline.map``.
        choice: its threshold; None without.
        settings: how it was chosen.
        image, placement: from ``pipeline.prepare``.
        probabilities: of all classes of the image, float32 [C].
    """
    head, first = manifest.head_of(class_map.target)
    plain = Explanation(
        index=class_map.target,
        label=manifest.label(class_map.target),
        probability=class_map.probability,
        task=head.task,
        method=class_map.method,
        map=class_map.map,
        original_map=class_map.map,
        image=show_pixels(image, manifest.preprocess, manifest.show_bands),
        placement=placement,
        top=rank_classes(probabilities, manifest, first, head.num_classes),
    )
    return with_choice(plain, choice, settings)


def with_choice(plain: AnyExplanation, choice: Choice | None, settings: Settings) -> AnyExplanation:
    """Return an explanation with the threshold that was chosen for its map.

    Args:
        plain: of the whole map.
        choice: its threshold; None without.
        settings: how it was chosen.
    """
    if choice is None:
        return plain
    cut = replace(
        plain, map=choice.map, mask=choice.mask, threshold=choice.threshold, cut=choice.cut
    )
    if not isinstance(settings, Tft):
        return cut
    return replace(
        cut,
        threshold=choice.threshold if choice.improved else None,
        rpi=choice.rpi,
        improved=choice.improved,
        masked_probability=choice.masked_probability,
        tft=settings,
    )
