"""Plot what a search of few thresholds keeps. Needs matplotlib."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from .thresholds import LearntThresholds


def plot_kept(learnt: LearntThresholds) -> Figure:
    """Plot the gain and the rpi kept by number of evaluations, a row of panels for each reading."""
    readings = list(dict.fromkeys((c.mask, c.thresholds) for c in learnt.curves))
    figure = Figure(figsize=(9, 3.2 * len(readings)), layout="constrained")
    axes = figure.subplots(len(readings), 2, squeeze=False, sharex=True)
    for row, (mask, thresholds) in zip(axes, readings, strict=True):
        curves = [c for c in learnt.curves if (c.mask, c.thresholds) == (mask, thresholds)]
        for axis, name, title in zip(
            row,
            ("increase_kept", "rpi_kept"),
            ("gain in average increase kept", "mean rpi kept"),
            strict=True,
        ):
            for curve in curves:
                colour = axis.plot(
                    [point.evaluations for point in curve.search],
                    [_percent(getattr(point, name)) for point in curve.search],
                    marker="o",
                    label=curve.method,
                )[0].get_color()
                axis.plot(
                    [point.evaluations for point in curve.fixed],
                    [_percent(getattr(point, name)) for point in curve.fixed],
                    marker="x",
                    linestyle="",
                    color=colour,
                )
            axis.axhline(100, color="#9aa0a6", linewidth=1)
            axis.set_title(f"{title} (mask {mask}, by {thresholds})", fontsize=10)
            axis.set_ylabel("% of all ten thresholds")
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("evaluations for each map (crosses: fixed thresholds)")
    axes[0][0].legend(frameon=False, fontsize=9)
    return figure


def _percent(share: float | None) -> float:
    return np.nan if share is None else 100 * share
