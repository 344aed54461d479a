"""Describe a network's input: size, resize, colours, normalisation, layout, element type."""

from __future__ import annotations

from typing import Literal

import msgspec

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Color = Literal["RGB", "BGR", "L"]
Layout = Literal["NCHW", "NHWC"]
ImageType = Literal["float32", "float16", "uint8"]

MOST = 1e6  # pixels of a side, and what mean and std may be


class DynamicSize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The heights and widths of a graph that takes images in their own resolution.

    Attributes:
        least, most: the range of either side in pixels, multiples of ``step``.
        step: the network's total stride: both sides are multiples of it.
        cells: rows and columns by which the activations grow with each step.
    """

    least: int
    most: int
    step: int
    cells: tuple[int, int]

    def __post_init__(self) -> None:
        if not 1 <= self.step <= self.least < self.most <= MOST or min(self.cells) < 0:
            raise ValueError(f"unusable range of sizes: {self}")
        if self.least % self.step or self.most % self.step:
            raise ValueError(f"{self.least} and {self.most} must be multiples of {self.step}")

    def choose(self, image: tuple[int, int]) -> tuple[int, int]:
        """Choose the input size (H, W) nearest to an image's own resolution.

        Images with a shorter side below ``least`` are enlarged and those with a longer side above
        ``most`` are shrunk, in proportion; then each side becomes the nearest multiple of ``step``
        within the range, halves upwards.

        Args:
            image: (height, width) in pixels.
        """
        scale = min(max(1.0, self.least / min(image)), self.most / max(image))
        sides = [int(side * scale / self.step + 0.5) * self.step for side in image]
        height, width = (min(max(side, self.least), self.most) for side in sides)
        return height, width

    def allows(self, size: tuple[int, int]) -> bool:
        """Tell whether the graph takes inputs of (H, W)."""
        return all(self.least <= side <= self.most and side % self.step == 0 for side in size)


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
