"""Describe a network's input: size, resize, colours, normalisation, layout, element type."""

from __future__ import annotations

from typing import Literal

import msgspec

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Color = Literal["RGB", "BGR", "L", "bands"]
Layout = Literal["NCHW", "NHWC"]
ImageType = Literal["float32", "float16", "uint8"]

MOST = 1e6  # pixels of a side, and what mean and std may be
BYTE_RANGE = (0.0, 255.0)  # of 8-bit images
_LARGEST = 1e9  # pixel value


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


class Letterbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fit whole images into the network's input in their own proportions, and pad the rest.

    Attributes:
        anchor: where the image lies in the input: in its ``center``, where an odd pixel of padding
            goes below and to the right, or in its ``top-left`` corner.
        value: of the padding, as an 8-bit image has it, in every channel.
    """

    anchor: Literal["center", "top-left"] = "center"
    value: int = 114

    def __post_init__(self) -> None:
        if not 0 <= self.value <= BYTE_RANGE[1]:
            raise ValueError(f"the padding's value must lie in 0 .. 255, not {self.value}")

    def fit(self, image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Compute what an image of (height, width) is resized to in an input of (H, W)."""
        scale = min(new / full for full, new in zip(image, size, strict=True))
        height, width = (
            min(new, max(1, round(full * scale))) for full, new in zip(image, size, strict=True)
        )
        return height, width


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From an image of any size to the network's input, as the model was trained.

    The input's values are (x / 255 - mean) / std of pixels x from 0 to 255; with mean 0 and std
    1 / 255 they are the pixels themselves. With a ``value_range`` they are
    ((x - low) / (high - low) - mean) / std.

    Attributes:
        size: (H, W) of the network input.
        resize: what the image is resized to before the crop. One number: its shorter side;
            two: (height, width) whatever the image's proportions; none: not at all.
        interpolation: of the resize.
        antialias: whether the resize averages where it shrinks, as Pillow does it. Without, it is
            OpenCV's, which detectors are often trained with; for whole images alone.
        crop: ``center`` is the only one there is; an image smaller than the crop gets a black
            border.
        letterbox: how whole images are fitted in, in place of resize and crop; None: they are not.
        color: the network's channels in order; ``L`` is one channel of grey, by Pillow's weights
            (ITU-R 601-2); ``bands`` are any number of channels that are no colours, in the order
            of the image's bands.
        mean, std: one for each of the network's channels in their order, for values in [0, 1].
        value_range: (low, high), the pixel values that are mapped to 0 and 1; values outside are
            not cut off. Needed for images of more than 8 bits, whose scale no file states. None:
            8-bit images, 0 to 255.
    """

    size: tuple[int, int]
    resize: tuple[int, ...]
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    crop: Literal["center"] = "center"
    color: Color = "RGB"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    value_range: tuple[float, float] | None = None
    letterbox: Letterbox | None = None

    def __post_init__(self) -> None:
        sides = (*self.size, *self.resize)
        if len(self.resize) > 2 or min(sides) < 1 or max(sides) > MOST:
            raise ValueError(f"unusable sizes: input {self.size}, resize {self.resize}")
        self._check_fit()
        if not len(self.mean) == len(self.std) == self.channels > 0:
            count = "as many" if self.color == "bands" else f"{self.channels}"
            raise ValueError(
                f"mean {self.mean} and std {self.std} need {count} numbers each for color "
                f"{self.color}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
        # For pixels in [0, 1]; far from that float32 overflows.
        if max(map(abs, self.mean)) > MOST or not all(
            1 / MOST <= value <= MOST for value in self.std
        ):
            raise ValueError(f"mean {self.mean} and std {self.std} are not those of pixels")
        if self.value_range is None:
            return
        low, high = self.value_range
        if not (high - low >= 1 / MOST and max(abs(low), abs(high)) <= _LARGEST):
            raise ValueError(f"value range {low:g} to {high:g}: the second must be the larger one")

    def _check_fit(self) -> None:
        if self.letterbox is not None and self.resize:
            raise ValueError(f"a letterbox takes the place of resize {self.resize}: leave it empty")
        if self.letterbox is not None and self.value_range not in (None, BYTE_RANGE):
            raise ValueError("a letterbox is for 8-bit images, without a value range")
        if self.antialias:
            return
        if self.letterbox is None and self.resize != self.size:
            raise ValueError("a resize without antialias is for whole images: no crop")
        if self.interpolation not in ("nearest", "bilinear"):
            raise ValueError(f"a resize without antialias is not {self.interpolation}: bilinear is")

    @property
    def channels(self) -> int:
        """Count the channels of the network's input."""
        return len(self.mean) if self.color == "bands" else 1 if self.color == "L" else 3

    @property
    def accepts_rgb(self) -> bool:
        """Tell whether 8-bit RGB images, as cameras give them, can be fed."""
        return self.color != "bands" and self.value_range in (None, BYTE_RANGE)


def describe_images(spec: Preprocess) -> str:
    """Describe in words which images a network takes, as "images of 13 bands of 8 bits"."""
    count = spec.channels
    what = {"L": "grey images", "bands": f"images of {count} band{'s' * (count > 1)}"}
    values = "of 8 bits"
    if spec.value_range is not None:
        values = "with values of {:g} to {:g}".format(*spec.value_range)
    return f"{what.get(spec.color, 'RGB images')} {values}"


def color_of(channels: int) -> Color:
    """Choose what channels are: one is grey, three are RGB, any others can only be bands."""
    return "L" if channels == 1 else "RGB" if channels == 3 else "bands"
