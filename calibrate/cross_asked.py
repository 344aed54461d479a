"""Ask one network what the maps of another show it.

Fine-tuning for maps (AFT) makes a network answer masked images better, whatever its maps show. So
average increase and drop of its own answers rise even where its maps are no better. Asked of the
network before, they rise only if the maps show more of what that network needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime import pipeline, tft
from ..runtime.errors import RequestError
from ..runtime.explainer import Explainer
from ..runtime.manifest import Manifest
from ..runtime.pipeline import ClassMap
from ..runtime.sweep import masked_image
from ..runtime.tft import Mask
from .quality import drops, increases

Floats = NDArray[np.float32]
# A map, its values in one variant, and the numbers measured of that variant.
Measured = tuple[ClassMap, Floats, dict[str, Any]]


def check_asked(manifest: Manifest, asked: Manifest) -> None:
    """Refuse a network that cannot be asked about the maps of another.

    Args:
        manifest: of the network whose maps are measured.
        asked: of the other.

    Raises:
        RequestError: it takes other images, has other classes, or no probabilities.
    """
    if asked.task in ("none", "similarity") or asked.heads:
        raise RequestError(
            f"{asked.model} cannot be asked: it has no probabilities of fixed classes, or several "
            "heads"
        )
    for what, own, other in (
        ("image sizes or channels", manifest.image_shape, asked.image_shape),
        ("pixel types", manifest.image_type, asked.image_type),
        ("preprocessing", manifest.preprocess, asked.preprocess),
        ("class counts", manifest.num_classes, asked.num_classes),
        ("class names", manifest.labels, asked.labels),
    ):
        if own != other:
            raise RequestError(
                f"{asked.model} cannot be asked about the maps of {manifest.model}: they have "
                f"other {what}. It must be the same network before or after fine-tuning or "
                "quantisation, or another that takes the same images and has the same classes"
            )


def ask(asked: Explainer, inputs: NDArray[Any], measured: Sequence[Measured], mask: Mask) -> None:
    """Add what another network answers to measured maps: ``asked_increase`` and ``asked_drop``.

    Both are as ``quality.increases`` and ``quality.drops``, of the class that the map explains.

    Args:
        asked: the network that is asked.
        inputs: the prepared images, [N, ...].
        measured: maps of these images; their numbers are extended.
        mask: how a map masks the image.

    Raises:
        EngineError: the engine failed.
    """
    model = asked.model
    whole = pipeline.classify(model, inputs)
    for start in range(0, len(measured), model.batch):
        chunk = measured[start : start + model.batch]
        images = np.stack(
            [masked_image(one.image, tft.mask_of(map_, mask), one.layout) for one, map_, _ in chunk]
        )
        for (one, _, numbers), row in zip(chunk, pipeline.classify(model, images), strict=True):
            numbers |= _compare(whole[one.row, one.target], row[one.target])


def _compare(whole: Any, masked: Any) -> Mapping[str, Any]:
    return {
        "asked_increase": bool(increases(masked, whole)),
        "asked_drop": float(drops(masked, whole)),
    }
