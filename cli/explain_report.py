"""Write the report of explain: a page with every image, its most probable classes and maps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..runtime.report.document import About, Report
from ..runtime.report.entry import encode_explanations
from ..runtime.report.facts import describe_time, describe_unreadable

if TYPE_CHECKING:
    from ..runtime.cam import Method
    from ..runtime.explainer import Explainer
    from ..runtime.explanation import Explanation
    from ..runtime.request import RequestPlan
    from ..runtime.tft import Tft


def add_to_report(
    report: Report, name: str, outcome: Mapping[Method, Sequence[Explanation]]
) -> None:
    """Add an image with the explanations of all methods."""
    listed = [explanation for explanations in outcome.values() for explanation in explanations]
    report.add(encode_explanations(name, [listed]))


def shorten_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name files from the folder on that all have in common, which tells them apart."""
    whole = [Path(os.path.abspath(file)) for file in files]
    try:
        common = os.path.commonpath([file.parent for file in whole])
    except ValueError:  # on several drives
        return {file: file.as_posix() for file in files}
    names = (file.relative_to(common).as_posix() for file in whole)
    return dict(zip(files, names, strict=True))


def describe_report(
    model: Path,
    explainer: Explainer,
    plan: RequestPlan,
    thresholding: Tft | Literal["naive"] | None,
    images: int,
    failed: Sequence[str],
) -> About:
    """Describe what the report of explain is of.

    Args:
        model: the file.
        explainer: that made the explanations.
        plan: how its maps were computed.
        thresholding: of the first class of each image.
        images: how many there are.
        failed: why each of the others could not be read.
    """
    manifest = explainer.manifest
    facts = [
        ("model", f"{model.name} ({manifest.model})"),
        ("images", f"{images:,}"),
        ("method", ", ".join(one.method for one in plan.methods)),
        ("threshold", describe_thresholding(thresholding)),
        ("engine", explainer.engine.description),
        ("written", describe_time()),
    ]
    taus: tuple[float, ...] = ()
    reading: dict[str, str] = {}
    if thresholding is not None and thresholding != "naive":
        taus = thresholding.taus
        reading = {"mask": thresholding.mask, "thresholds": thresholding.thresholds}
    return About(
        kind="explain",
        title=f"{model.stem}: {images:,} image{'s' * (images != 1)} explained",
        sources=(model.name,),
        facts=tuple(facts),
        notes=describe_unreadable(len(failed), failed),
        task=manifest.task,
        taus=taus,
        reading=reading,
    )


def describe_thresholding(thresholding: Tft | Literal["naive"] | None) -> str:
    """Name how maps are thresholded, with the reading of TFT."""
    if thresholding is None:
        return "none, whole maps"
    if thresholding == "naive":
        return "customary for the method"
    return f"TFT, {thresholding.reading}"
