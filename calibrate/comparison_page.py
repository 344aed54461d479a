"""Write the page of a comparison: how well maps agree, and each image with both maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..runtime.explainer import Explainer
from ..runtime.report.document import About, Report
from ..runtime.report.entry import encode_explanations
from ..runtime.report.facts import describe_time, describe_unreadable
from ..runtime.tft import Tft
from .dataset import Classes, Sample
from .fidelity import Compared, Fidelity


def add_compared(
    report: Report, classes: Classes, labels: Sequence[str], sample: Sample, compared: Compared
) -> None:
    """Add an image with the maps of both.

    Args:
        report: being written.
        classes: map the data's labels to the networks' classes.
        labels: of the networks.
        sample: the image.
        compared: its explanations.
    """
    index = classes.index(sample.label)
    stated = None if index is None else (index, labels[index] if labels else str(index))
    both = [
        [explanation for listed in one.values() for explanation in listed]
        for one in (compared.ours, compared.theirs)
    ]
    similarity = {str(method): value for method, value in compared.similarity.items()}
    report.add(encode_explanations(sample.name, both, stated, similarity=similarity))


def describe_comparison(
    reference: Explainer,
    names: tuple[str, str],
    data: str,
    fidelity: Fidelity,
    tft: Tft | None,
    notes: Sequence[str] = (),
) -> About:
    """Describe what the page is of.

    Args:
        reference: the explainer that was compared with.
        names: of both, told apart.
        data: the images.
        fidelity: the figures.
        tft: the reading of TFT; None: thresholds were not compared.
        notes: more sentences for the reader.
    """
    facts = [
        ("compared", f"{names[0]} and {names[1]}"),
        ("data", data),
        ("images", f"{fidelity.images:,}"),
        ("same most probable class", f"{fidelity.top1:.1%}"),
        ("mean difference of its probability", f"{fidelity.probability:.4f}"),
        ("engines", f"{fidelity.reference}; {fidelity.other}"),
        ("written", describe_time()),
    ]
    sentences = [f"Maps are of the most probable class of {names[0]}.", *notes]
    sentences += describe_unreadable(len(fidelity.unreadable), fidelity.unreadable.values())
    reading: dict[str, str] = {}
    if tft is not None:
        facts.insert(3, ("TFT", tft.reading))
        reading = {"mask": tft.mask, "thresholds": tft.thresholds}
    sections: dict[str, Any] = {"fidelity": msgspec.to_builtins(fidelity)}
    return About(
        kind="compare",
        title=f"{names[0]} and {names[1]}: {fidelity.images:,} images compared",
        sources=names,
        facts=tuple(facts),
        notes=tuple(sentences),
        task=reference.manifest.task,
        taus=() if tft is None else tft.taus,
        reading=reading,
        sections=sections,
    )
