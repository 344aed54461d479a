"""Plot a benchmark. Needs matplotlib."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..timing import median
from .bench import Benchmark, Row
from .report import find_differing, find_shared
from .stages import ANSWER, STAGES

_COLOURS = dict(
    zip(
        STAGES,
        ("#c7cdd4", "#9aa0a6", "#31688e", "#35b779", "#e0a458", "#c03a2b"),
        strict=True,
    )
)
_BASELINE = "#7a5195"


def plot_stages(benchmark: Benchmark) -> Figure:
    """Plot a bar for each configuration, of its stages' medians; another tool has one stage."""
    figure = Figure(figsize=(9, 1.2 + 0.34 * len(benchmark.rows)), layout="constrained")
    axis = figure.subplots()
    shared = find_shared(benchmark.rows)
    places = range(len(benchmark.rows))
    left = np.zeros(len(benchmark.rows))
    for stage in STAGES:
        widths = np.array(
            [median(row.seconds[stage]) if stage in row.seconds else 0 for row in benchmark.rows]
        )
        axis.barh(places, widths * 1e3, left=left, color=_COLOURS[stage], label=stage)
        left += widths * 1e3
    baselines = [place for place, row in enumerate(benchmark.rows) if row.baseline]
    if baselines:
        answers = [median(benchmark.rows[place].seconds[ANSWER]) * 1e3 for place in baselines]
        axis.barh(baselines, answers, color=_BASELINE, label="other tools")
    axis.set_yticks(places, [_bar_name(row, shared) for row in benchmark.rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("median ms; of other tools from the prepared input on")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        frameon=False, fontsize=8, ncols=len(STAGES) + 1, loc="lower left", bbox_to_anchor=(0, 1)
    )
    return figure


def _bar_name(row: Row, shared: dict[str, str]) -> str:
    settings = find_differing(row, shared)
    tft = settings.pop("tft")
    return " ".join([*settings.values(), *(["TFT"] if tft == "on" else [])]).replace("$", r"\$")
