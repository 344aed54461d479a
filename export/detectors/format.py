"""Define what a format of detector outputs states, and what is read from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...runtime.input_format import Color, Letterbox
from ...runtime.manifest_parts import DetectorFormat
from ..tensors import Tensor

if TYPE_CHECKING:
    from ..plain_model import PlainModel
    from .reading import Reading


@dataclass(frozen=True)
class Candidates:
    """The boxes that a detector predicts, recorded in its graph.

    Attributes:
        scores: of each class, float32 [N, A, C] in [0, 1].
        boxes: left, top, right, bottom in pixels of the input, float32 [N, A, 4].
        explained: what gradients of a class are taken of, [N, A, C]: the logits where a score is
            the sigmoid of one, the logarithm of a product of two, else ``scores``. Their maps are
            the same up to the scale, and are not lost where a score is rounded to 1.
        is_logit: whether logits are differentiated.
        notes: what was assumed, for the user.
    """

    scores: Tensor
    boxes: Tensor
    explained: Tensor
    is_logit: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A format of detector outputs.

    Attributes:
        name: of the format.
        iou: the overlap from which on a candidate of the same class is suppressed; None: the
            network gives each object once.
        refuse: says why a model has not this format, by its outputs' number and shapes; None: it
            has.
        read: records scores and boxes of the candidates.
        letterbox: how images are fitted in, unless the file or user says otherwise; None: nothing
            is known, and preprocessing must be stated.
        color, std: of the same preprocessing, whose mean is 0.
        min_score: a detection scores more than that.
    """

    name: DetectorFormat
    iou: float | None
    refuse: Callable[[PlainModel], str | None]
    read: Callable[[Reading], Candidates]
    letterbox: Letterbox | None = None
    color: Color = "RGB"
    std: float = 1.0
    min_score: float = 0.25
