"""Plot a benchmark. Needs matplotlib."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..timing import median
from .bench import Benchmark, Row
from .report import names_of, shared_by
from .stages import ANSWER, STAGES

_COLOURS = dict(
    zip(
        STAGES,
        ("#c7cdd4", "#9aa0a6", "#31688e", "#35b779", "#e0a458", "#c03a2b"),
        strict=True,
    )
)
_BASELINE = "#7a5195"


def stage_bars(found: Benchmark) -> Figure:
    """Draw a bar for each configuration from its stages' medians; another tool's is one piece."""
    figure = Figure(figsize=(9, 1.2 + 0.34 * len(found.rows)), layout="constrained")
    axis = figure.subplots()
    shared = shared_by(found.rows)
    places = range(len(found.rows))
    left = np.zeros(len(found.rows))
    for stage in STAGES:
        wide = np.array(
            [median(row.seconds[stage]) if stage in row.seconds else 0 for row in found.rows]
        )
        axis.barh(places, wide * 1e3, left=left, color=_COLOURS[stage], label=stage)
        left += wide * 1e3
    baselines = [place for place, row in enumerate(found.rows) if row.baseline]
    if baselines:
        answers = [median(found.rows[place].seconds[ANSWER]) * 1e3 for place in baselines]
        axis.barh(baselines, answers, color=_BASELINE, label="other tools")
    axis.set_yticks(places, [_bar_name(row, shared) for row in found.rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("median ms; of other tools from the prepared input on")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        frameon=False, fontsize=8, ncols=len(STAGES) + 1, loc="lower left", bbox_to_anchor=(0, 1)
    )
    return figure


def _bar_name(row: Row, shared: dict[str, str]) -> str:
    named = names_of(row, shared)
    tft = named.pop("tft")
    return " ".join([*named.values(), *(["TFT"] if tft == "on" else [])]).replace("$", r"\$")
