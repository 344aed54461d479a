"""Images side by side and the curve of a threshold sweep, as in figure 3. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from numpy.typing import NDArray

from .images import RGBImage
from .overlay import caption


@dataclass(frozen=True)
class Curve:
    """A sweep of thresholds.

    Attributes:
        taus: the thresholds tried.
        rpi: the relative probability increase at each.
        best: the one chosen; None: none improves.
        title: above the curve.
        by_rank: whether a threshold is a share of the pixels, not a value of the map.
    """

    taus: NDArray[np.float64]
    rpi: NDArray[np.float32]
    best: float | None
    title: str
    by_rank: bool


def draw(panels: Sequence[tuple[RGBImage, str]], curve: Curve | None = None) -> Figure:
    """Draw images of one size side by side with their titles, and a curve right of them."""
    count = len(panels) + (curve is not None)
    height, width = panels[0][0].shape[:2]
    tall = min(max(3.2 * height / width, 1.8), 6.0)
    figure = Figure(figsize=(3.4 * count, tall + 0.5), layout="constrained")
    axes = figure.subplots(1, count)
    for axis, (image, title) in zip(axes, panels, strict=False):
        axis.imshow(image)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    if curve is not None:
        _draw_curve(axes[-1], curve)
    return figure


def make_panel(image: RGBImage, label: str, number: str) -> tuple[RGBImage, str]:
    """Title a panel with its label, or write the label above the image where no font has it.

    Args:
        image: uint8 [h, w, 3], RGB.
        label: of any script.
        number: what is known of it.

    Returns:
        The image to show and the panel's title.
    """
    font = get_font(fontManager.findfont(FontProperties()))
    if all(ord(letter) in font.get_charmap() for letter in label):
        return image, label.replace("$", r"\$") + f"  {number}"  # no formula
    return caption(image, label), number


def rasterise(figure: Figure) -> RGBImage:
    """Render a figure as pixels, uint8 [h, w, 3], RGB."""
    figure.set_dpi(120)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


def encode_png(figure: Figure) -> bytes:
    """Encode a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _draw_curve(axis: Axes, curve: Curve) -> None:
    axis.plot(curve.taus, curve.rpi, marker="o", color="#31688e")
    if curve.best is not None:
        axis.axvline(curve.best, color="#c03a2b", linestyle=":", label=r"$\tau^*$")
        axis.legend(frameon=False)
    axis.set_title(curve.title, fontsize=10)
    unit = " (share muted)" if curve.by_rank else ""
    axis.set_xlabel(rf"threshold $\tau${unit}")
    axis.set_ylabel("relative probability increase")
    axis.set_xlim(-0.05, 1.0)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
