"""Draw the same images before and after tuning, side by side. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..runtime.cam import Method
from ..runtime.errors import ImageError
from ..runtime.explainer import Explainer
from ..runtime.explanation import Explanation
from ..runtime.figure import encode_png, make_panel
from ..runtime.text import name_class


def draw_sheet(
    explainers: Sequence[Explainer], paths: Sequence[Path], method: Method
) -> bytes | None:
    """Draw images and the maps of their most probable class before and after, as PNG.

    Args:
        explainers: of the network before and after tuning.
        paths: of the images; those that cannot be read are left out.
        method: of the maps.

    Returns:
        The PNG file, or None if no image can be read.
    """
    rows = [row for path in paths if (row := _row(explainers, path, method)) is not None]
    if not rows:
        return None
    figure = Figure(figsize=(2.2 * len(rows), 7.0), layout="constrained")
    axes = figure.subplots(3, len(rows), squeeze=False)
    for column, row in enumerate(rows):
        panels = [
            (row[0].image, ""),
            *(
                make_panel(
                    one.overlay(), name_class(one.label, one.index), f"{one.probability:.3f}"
                )
                for one in row
            ),
        ]
        for place, (image, title) in enumerate(panels):
            axis = axes[place][column]
            axis.imshow(image)
            axis.set_title(title, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
    for place, name in enumerate(("image", f"{method} before", f"{method} after")):
        axes[place][0].set_ylabel(name, fontsize=10)
    return encode_png(figure)


def _row(explainers: Sequence[Explainer], path: Path, method: Method) -> list[Explanation] | None:
    try:
        return [explainer.explain(path, method=method) for explainer in explainers]
    except ImageError:
        return None
