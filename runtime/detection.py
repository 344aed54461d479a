"""What a caller gets for one object that a detector found: its box, its score and its map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import RequestError
from .explanation import Explanation


class Detection(Explanation):
    """Why a detector found one object: drawn, saved and cut out like an ``Explanation``.

    ``score`` is the probability under the name that detectors have for it; ``region`` is where the
    map lies in the image, which need not be within the box.

    Attributes:
        index: the object's class.
        label: its name, or its number where the model file holds no names.
        probability: the score of the class for this box, in [0, 1], as the detector returns it.
        box: left, top, right, bottom in pixels of the image.
        candidate: which of the network's candidates it is, from 0.
        edge: the edge of the box whose place the map explains; None: the map explains the score.
        method: how the map was made.
        map: float32 [h, w] in [0, 1], a grid over the network's input, as fine as the finest layer
            explained; of the input's size with TFT, and of the image's with ``geometry="image"``.
            ``on_image`` carries it to the image's own pixels.
        original_map, mask, threshold, cut, rpi, improved, tft: see ``Explanation``.
        masked_probability: the best score of the class, in the image under ``mask``, of a candidate
            that overlaps the box by half.
        image, placement, geometry: see ``Explanation``.
        task: ``sigmoid``: scores of classes do not exclude each other.
        top: the class alone, with its score.
        explained_area, weights: None.

    Example:
        >>> first, *others = whycam.load("detector.onnx").detect("street.jpg")
        >>> first.label, first.box
        ('dog', Box(left=40.0, top=24.0, right=72.0, bottom=56.0))
        >>> first.save("why-this-dog.png").name
        'why-this-dog.png'
    """

    @property
    def score(self) -> float:
        """Return the score of the class for this box, in [0, 1]."""
        return self.probability

    def __repr__(self) -> str:
        edges = " ".join(f"{edge:.0f}" for edge in self.box or ())
        named = f"{self.label!r} ({self.index})" if self.label != str(self.index) else self.label
        words = [named, f"score {self.score:.3f}", f"box {edges}", self.method]
        if self.edge is not None:
            words.append(f"{self.edge} edge")
        if self.tft is not None:
            words.append(f"tau* {'none' if self.threshold is None else f'{self.threshold:.2g}'}")
        elif self.threshold is not None:
            words.append(f"naive {self.threshold:.2g}")
        height, width = self.placement.image
        return f"Detection({', '.join(words)}, image {height} x {width})"

    def to_dict(self) -> dict[str, Any]:
        """Collect the numbers, without arrays, ready for JSON."""
        numbers = super().to_dict()
        return {
            "index": numbers.pop("index"),
            "label": numbers.pop("label"),
            "task": numbers.pop("task"),
            "score": numbers.pop("probability"),
            "box": None if self.box is None else list(self.box),
            "candidate": self.candidate,
            "edge": self.edge,
            **numbers,
        }

    def caption_lines(self) -> list[str]:
        """Say in two lines what was explained, and how."""
        found, how = super().caption_lines()
        return [found if self.edge is None else f"{found}  {self.edge} edge", how]

    def to_detections(self) -> Any:
        """Return the object as ``supervision.Detections``, see ``to_supervision``."""
        return to_supervision([self])


def to_supervision(detections: Sequence[Detection]) -> Any:
    """Convert detections of one image and one method to ``supervision.Detections``.

    Args:
        detections: from ``Explainer.detect``.

    Returns:
        Boxes, scores and classes; ``mask`` is each map's region, bool [n, h, w], and ``data`` has
        ``class_name``.

    Raises:
        RequestError: supervision is not installed, or the images have several sizes.

    Example:
        >>> detections = whycam.to_supervision(whycam.load("detector.onnx").detect("street.jpg"))
        >>> detections.class_id.tolist(), detections.mask.shape
        ([0, 1], (2, 128, 128))
    """
    try:
        import supervision
    except ImportError as error:
        raise RequestError("supervision is not installed: pip install supervision") from error
    if not detections:
        return supervision.Detections.empty()
    if len({one.placement.image for one in detections}) > 1:
        raise RequestError("these detections are of images of several sizes: pass those of one")
    return supervision.Detections(
        xyxy=np.array([one.box for one in detections], np.float32),
        mask=np.stack([one.region.mask for one in detections]),
        confidence=np.array([one.score for one in detections], np.float32),
        class_id=np.array([one.index for one in detections]),
        data={"class_name": np.array([one.label for one in detections])},
    )
