"""Images side by side and the curve of a threshold sweep, as in figure 3. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from numpy.typing import NDArray

from . import fonts, text
from .images import RGBImage
from .overlay import Style, tables

# Lengths in inches.
_GAP, _TITLE, _EDGE = 0.22, 0.5, 0.1
_BAR, _BAR_LABELS = 0.11, 0.42
_CURVE, _CURVE_LEFT, _CURVE_BELOW = 3.0, 0.62, 0.46
_LETTER = 0.078  # mean width of a letter of a title
_LEAST_RPI = 0.01  # top of the axis, at least
_INK = "#222222"
_GREY = "#666666"


@dataclass(frozen=True, eq=False)
class Panel:
    """An image of a figure.

    Attributes:
        image: uint8 [h, w, 3], RGB.
        title: of any script.
        detail: a smaller line below the title.
    """

    image: RGBImage
    title: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Curve:
    """A sweep of thresholds.

    Attributes:
        taus: the thresholds tried.
        rpi: the relative probability increase at each.
        best: the one chosen; None: none improves.
        title: above the curve.
        detail: a smaller line below the title.
        by_rank: whether a threshold is a share of the pixels, not a value of the map.
    """

    taus: NDArray[np.float64]
    rpi: NDArray[np.float32]
    best: float | None
    title: str
    detail: str
    by_rank: bool


@dataclass(frozen=True, eq=False)
class ColorBar:
    """The colours of map values 0 to 1.

    Attributes:
        panel: the panel that it stands beside, counted from 0.
        colors: uint8 [256, 1, 3].
    """

    panel: int
    colors: NDArray[np.uint8]


def color_bar(panel: int, style: Style) -> ColorBar:
    """Make the bar of a style's colours as they look over white."""
    kept, colors = tables(style.opacity, style.colormap)
    return ColorBar(panel, kept + colors)


def draw(
    panels: Sequence[Panel], curve: Curve | None = None, bar: ColorBar | None = None
) -> Figure:
    """Draw images of one size with their titles, and a curve after them.

    Images stand side by side; wide ones in two columns, very wide ones below each other.
    """
    count = len(panels) + (curve is not None)
    height, width = panels[0].image.shape[:2]
    aspect = width / height
    columns = count if aspect <= 1.8 or (count <= 2 and aspect <= 2.5) else 1
    if columns == 1 and count % 2 == 0 and aspect <= 4:
        columns = 2
    wide = min(max(2.7 * aspect, 1.6), 6.5 if columns == 1 else 4.4)
    tall = min(wide / aspect, 5.0)
    cells = [(wide, tall)] * len(panels)
    if curve is not None:
        cells.append((_CURVE if columns > 2 else wide, max(tall, 1.7)))
    lefts, tops, size = _arrange(cells, columns, None if bar is None else bar.panel % columns)
    figure = Figure(figsize=size)
    for index, panel in enumerate(panels):
        axis = _axes(figure, size, lefts[index], tops[index] + _TITLE, wide, tall)
        axis.imshow(panel.image)
        axis.set_axis_off()
        _write_title(figure, size, lefts[index], tops[index], wide, panel.title, panel.detail)
        if bar is not None and bar.panel == index:
            shown = min(wide, tall * aspect)
            left = lefts[index] + (wide + shown) / 2 + 0.08
            _draw_bar(_axes(figure, size, left, tops[index] + _TITLE, _BAR, tall), bar)
    if curve is not None:
        left, top = lefts[-1], tops[-1]
        wide, tall = cells[-1]
        axis = _axes(
            figure, size, left + _CURVE_LEFT, top + _TITLE, wide - _CURVE_LEFT, tall - _CURVE_BELOW
        )
        _draw_curve(axis, curve)
        _write_title(
            figure, size, left + _CURVE_LEFT, top, wide - _CURVE_LEFT, curve.title, curve.detail
        )
    return figure


def _arrange(
    cells: Sequence[tuple[float, float]], columns: int, bar_column: int | None
) -> tuple[list[float], list[float], tuple[float, float]]:
    """Compute the left and top edges of cells in rows, and the size of the figure."""
    widths = [max(wide for wide, _ in cells[column::columns]) for column in range(columns)]
    if bar_column is not None:
        widths[bar_column] += _BAR + _BAR_LABELS
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [_TITLE + max(tall for _, tall in row) for row in rows]
    lefts = [_EDGE + sum(widths[:column]) + column * _GAP for column in range(columns)]
    tops = [sum(heights[:row]) + row * _GAP / 2 for row in range(len(rows))]
    size = (
        2 * _EDGE + sum(widths) + (columns - 1) * _GAP,
        sum(heights) + (len(rows) - 1) * _GAP / 2 + _EDGE,
    )
    return (
        [lefts[index % columns] for index in range(len(cells))],
        [tops[index // columns] for index in range(len(cells))],
        size,
    )


def _axes(
    figure: Figure, size: tuple[float, float], left: float, top: float, wide: float, tall: float
) -> Axes:
    bottom = size[1] - top - tall
    return figure.add_axes(
        (left / size[0], bottom / size[1], wide / size[0], tall / size[1]), anchor="C"
    )


def _write_title(
    figure: Figure,
    size: tuple[float, float],
    left: float,
    top: float,
    wide: float,
    title: str,
    detail: str,
) -> None:
    room = int((wide + _GAP / 2) / _LETTER)
    x, y = (left + wide / 2) / size[0], 1 - (top + 0.08) / size[1]
    if has_glyphs(title):
        line = title if len(title) <= room else title[: max(1, room - 1)] + "…"
        figure.text(x, y, _plain(line), fontsize=11, color=_INK, ha="center", va="top")
    else:
        image = _text_image(title, round(150 * wide))
        across, high = (side / 150 for side in (image.shape[1], image.shape[0]))
        axis = _axes(figure, size, left + (wide - across) / 2, top + 0.06, across, high)
        axis.imshow(image)
        axis.set_axis_off()
    if detail:
        fontsize = max(5.0, min(8.5, 8.5 * 1.25 * room / len(detail)))  # whole, if smaller
        y = 1 - (top + _TITLE - 0.07) / size[1]
        figure.text(x, y, _plain(detail), fontsize=fontsize, color=_GREY, ha="center", va="bottom")


def _plain(line: str) -> str:
    return line.replace("$", r"\$")  # no formula


def _text_image(line: str, width: int) -> RGBImage:
    """Write a line that matplotlib cannot, dark on white, at 150 pixels an inch."""
    size = 24
    line = text.shorten(line, width, size)
    image = np.zeros((round(1.35 * size), max(1, min(width, text.width_of(line, size))), 3), "u1")
    text.write(image, line, 0, 0, size)
    return np.asarray(255 - image)


@lru_cache(maxsize=256)
def has_glyphs(line: str) -> bool:
    """Tell whether matplotlib's font writes a line: it has its letters, from left to right."""
    font = get_font(fontManager.findfont(FontProperties()))
    return fonts.is_written_by_letters(line) and all(
        ord(each) in font.get_charmap() for each in line
    )


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


def _draw_bar(axis: Axes, bar: ColorBar) -> None:
    axis.imshow(bar.colors, aspect="auto", origin="lower", extent=(0, 1, 0, 1))
    axis.set_xticks([])
    axis.yaxis.tick_right()
    axis.set_yticks([0, 0.5, 1])
    axis.tick_params(labelsize=8, length=2, colors=_GREY)
    axis.spines[:].set_color("#bbbbbb")
    axis.set_label("color bar")


def _draw_curve(axis: Axes, curve: Curve) -> None:
    axis.plot(curve.taus, curve.rpi, marker="o", markersize=4, color="#31688e")
    if curve.best is not None:
        axis.axvline(curve.best, color="#c03a2b", linestyle=":", label=r"$\tau^*$")
        axis.legend(frameon=False, fontsize=9)
    unit = " (share muted)" if curve.by_rank else ""
    axis.set_xlabel(rf"threshold $\tau${unit}", fontsize=9, color=_INK)
    axis.set_ylabel("relative probability\nincrease (rpi)", fontsize=9, color=_INK)
    axis.tick_params(labelsize=8, colors=_GREY)
    axis.set_xlim(-0.05, 1.0)
    # A curve that never rises lies on the axis, not in the middle.
    axis.set_ylim(0, max(1.12 * float(np.max(curve.rpi, initial=0.0)), _LEAST_RPI))
    axis.spines[["top", "right"]].set_visible(False)
