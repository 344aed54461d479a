"""Plot an evaluation. Needs matplotlib."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from .summary import Evaluation

_COLOURS = {"original": "#9aa0a6", "naive": "#e0a458", "tft": "#31688e"}


def plot_quality(evaluation: Evaluation) -> Figure:
    """Plot average increase and average drop, a group of bars for each method."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    methods = list(dict.fromkeys(result.method for result in evaluation.results))
    variants = list(dict.fromkeys(result.variant for result in evaluation.results))
    width = 0.8 / len(variants)
    axes = figure.subplots(1, 2)
    for axis, field, title in zip(
        axes,
        ("average_increase", "average_drop"),
        ("average increase (higher is better)", "average drop (lower is better)"),
        strict=True,
    ):
        for place, variant in enumerate(variants):
            of_variant = {
                result.method: result for result in evaluation.results if result.variant == variant
            }
            present = [i for i, method in enumerate(methods) if method in of_variant]
            axis.bar(
                [i + (place - (len(variants) - 1) / 2) * width for i in present],
                [getattr(of_variant[methods[i]], field) for i in present],
                width,
                yerr=[getattr(of_variant[methods[i]], f"{field}_standard_error") for i in present],
                color=_COLOURS.get(variant),
                label=variant,
                error_kw={"linewidth": 1},
            )
        axis.set_xticks(range(len(methods)), methods)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    _place_legend(figure)
    return figure


def plot_rpi(evaluation: Evaluation) -> Figure:
    """Plot the mean relative probability increase at each threshold."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    for method, values in evaluation.rpi.items():
        axis.plot(evaluation.taus, values, marker="o", label=method)
    by_rank = evaluation.results[0].thresholds == "rank"
    axis.set_xlabel(r"threshold $\tau$" + (" (share muted)" if by_rank else ""))
    axis.set_ylabel("mean relative probability increase")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    _place_legend(figure)
    return figure


def plot_thresholds(evaluation: Evaluation) -> Figure:
    """Plot how often each threshold was chosen."""
    figure = Figure(figsize=(6.5, 3.4), layout="constrained")
    axis = figure.subplots()
    labels = [*(f"{tau:g}" for tau in evaluation.taus), "none"]
    width = 0.8 / max(1, len(evaluation.chosen))
    for place, (method, counts) in enumerate(evaluation.chosen.items()):
        shift = (place - (len(evaluation.chosen) - 1) / 2) * width
        shares = np.asarray(counts) / sum(counts)
        axis.bar(np.arange(len(labels)) + shift, shares, width, label=method)
    axis.set_xticks(range(len(labels)), labels)
    axis.set_xlabel(r"best threshold $\tau^*$")
    axis.set_ylabel("share of maps")
    axis.spines[["top", "right"]].set_visible(False)
    _place_legend(figure)
    return figure


def _place_legend(figure: Figure) -> None:
    """Place the legend below the plots, where it hides nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9
    )
