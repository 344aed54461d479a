"""The paper's figure 3 for one explanation: picture, map, TFT map, rpi curve. Needs matplotlib."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .explanation import Explanation, format_probability
from .images import Picture


def draw(explanation: Explanation) -> Figure:
    """Draw the panels that the explanation has: two without thresholding, four with TFT."""
    panels = 2 if explanation.threshold is None else 3 if explanation.rpi is None else 4
    height, width = explanation.picture.shape[:2]
    tall = min(max(3.2 * height / width, 1.8), 6.0)
    figure = Figure(figsize=(3.4 * panels, tall + 0.5), layout="constrained")
    axes = figure.subplots(1, panels)
    label = explanation.label.replace("$", r"\$")  # no formula
    number = format_probability(explanation.probability, explanation.task, 3)
    symbol = "value" if explanation.task == "none" else "p"
    pictures = [
        (explanation.picture, f"{label}  {symbol} = {number}"),
        (explanation.overlay(original=True), explanation.method),
    ]
    if explanation.threshold is not None:
        name = "naive" if explanation.tft is None else "TFT"
        pictures.append((explanation.overlay(), f"{name}  $\\tau$ = {explanation.threshold:.2g}"))
    for axis, (picture, title) in zip(axes, pictures, strict=False):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    if explanation.rpi is not None and explanation.tft is not None:
        _curve(axes[-1], explanation)
    return figure


def rasterised(figure: Figure) -> Picture:
    """A figure as pixels, uint8 [h, w, 3], RGB."""
    figure.set_dpi(120)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _curve(axis: object, explanation: Explanation) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    assert explanation.tft is not None
    assert explanation.rpi is not None
    tried = ~np.isnan(explanation.rpi)
    taus = np.asarray(explanation.tft.taus)[tried]
    axis.plot(taus, explanation.rpi[tried], marker="o", color="#31688e")
    if explanation.improved and explanation.threshold is not None:
        axis.axvline(explanation.threshold, color="#c03a2b", linestyle=":", label=r"$\tau^*$")
        axis.legend(frameon=False)
        title = f"p under mask = {explanation.masked_probability:.3f}"
    else:
        title = "no threshold improves"
    axis.set_title(title, fontsize=10)
    unit = " (share muted)" if explanation.tft.thresholds == "rank" else ""
    axis.set_xlabel(rf"threshold $\tau${unit}")
    axis.set_ylabel("relative probability increase")
    axis.set_xlim(-0.05, 1.0)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
