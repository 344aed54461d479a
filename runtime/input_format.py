"""Describe a network's input: size, resize, colours, normalisation, layout, element type."""

from __future__ import annotations

from typing import Literal

import msgspec

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Color = Literal["RGB", "BGR", "L"]
Layout = Literal["NCHW", "NHWC"]
ImageType = Literal["float32", "float16", "uint8"]

MOST = 1e6  # pixels of a side, and what mean and std may be


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From an RGB image of any size to the network's input, as the model was trained.

    The input's values are (x / 255 - mean) / std of pixels x from 0 to 255; with mean 0 and std
    1 / 255 they are the pixels themselves.

    Attributes:
        size: (H, W) of the network input.
        resize: what the image is resized to before the crop. One number: its shorter side;
            two: (height, width) whatever the image's proportions; none: not at all.
        interpolation: of the resize.
        antialias: whether the resize averages where it shrinks, as Pillow does it; always so.
        crop: ``center`` is the only one there is; an image smaller than the crop gets a black
            border.
        color: the network's channels in order; ``L`` is one channel of grey, by Pillow's weights
            (ITU-R 601-2).
        mean, std: one for each of the network's channels in their order, for values in [0, 1].
    """

    size: tuple[int, int]
    resize: tuple[int, ...]
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    crop: Literal["center"] = "center"
    color: Color = "RGB"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        sides = (*self.size, *self.resize)
        if len(self.resize) > 2 or min(sides) < 1 or max(sides) > MOST:
            raise ValueError(f"unusable sizes: input {self.size}, resize {self.resize}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"mean {self.mean} and std {self.std} need {self.channels} numbers each for color "
                f"{self.color}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
        # For pixels in [0, 1]; far from that float32 overflows.
        if max(map(abs, self.mean)) > MOST or not all(
            1 / MOST <= value <= MOST for value in self.std
        ):
            raise ValueError(f"mean {self.mean} and std {self.std} are not those of pixels")

    @property
    def channels(self) -> int:
        """Count the channels of the network's input: 3, or 1 for ``L``."""
        return 1 if self.color == "L" else 3
