"""Write the page of an evaluation: its figures, its worst cases, and images with their maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..runtime import tft
from ..runtime.explainer import Explainer
from ..runtime.explanation import Explanation
from ..runtime.report.document import About, Report
from ..runtime.report.entry import encode_explanations, ranks_to_show
from ..runtime.report.facts import describe_time, describe_unreadable
from ..runtime.tft import Tft
from ..runtime.timing import Tick
from .class_figures import ClassTally, map_numbers
from .dataset import Dataset, Sample
from .rows import read_rows
from .summary import Evaluation

# What a browser shows without effort, and what people look at.
MOST_IMAGES = 1000
_WORST = 12
_CONFUSED = 30
_COUNTS = 2000
_BATCH = 16  # images explained at a time


@dataclass(frozen=True)
class _Case:
    """What decides whether and where an image is shown.

    Attributes:
        name: of the sample.
        place: in the order of the rows.
        wrong: whether its label is known and another class is predicted.
        probability: of the first class explained.
        drop, rpi: of its map.
    """

    name: str
    place: int
    wrong: bool
    probability: float
    drop: float
    rpi: float


def write_evaluation_page(
    explainer: Explainer,
    data: Dataset,
    evaluation: Evaluation,
    folder: Path,
    tick: Tick | None = None,
) -> Path:
    """Write ``report.html`` to the folder of a finished evaluation.

    Images are explained once more, without trying thresholds: these are in the folder's rows. Of
    more than 1,000 images, the worst of each kind are shown and others at even steps.

    Args:
        explainer: that was evaluated.
        data: on which.
        evaluation: the figures.
        folder: where ``evaluate`` wrote its rows.
        tick: called with (name, images done).

    Returns:
        Where the page is.

    Raises:
        OutputError: the folder cannot be read or written.
    """
    methods = list(dict.fromkeys(result.method for result in evaluation.results))
    variants = [one.variant for one in evaluation.results if one.method == methods[0]]
    variant = "tft" if "tft" in variants else variants[0]
    classes = ClassTally(methods[0], variant)
    cases: list[_Case] = []
    for row in read_rows(folder):
        if "explained" in row:
            classes.add(row)
            cases.append(_case(row, len(cases), methods[0], variant))
    worst = _worst(cases, evaluation)
    shown = _select(cases, [case for _, _, listed in worst for case in listed])
    number = {case.name: index for index, case in enumerate(shown)}
    samples = {sample.name: sample for sample in data.samples}
    with Report(folder / "report.html", len(shown)) as report:
        rows = (row for row in read_rows(folder) if row["name"] in number)
        for batch in _batches(rows):
            _add(report, explainer, evaluation, variant, batch, samples, methods)
            if tick is not None:
                tick(batch[-1]["name"], len(batch))
        figures = classes.figures()
        sections: dict[str, Any] = {
            "evaluation": msgspec.to_builtins(evaluation),
            "classes": [msgspec.to_builtins(one) for one in figures],
            "worst": [
                {"title": title, "text": text, "images": [number[case.name] for case in listed]}
                for title, text, listed in worst
                if listed
            ],
        }
        if len(figures) > 1:
            sections["matrix"] = select_confusion(classes.confusion)
        return report.write(
            _about(explainer, data, evaluation, methods, len(shown), len(cases), sections)
        )


def _case(row: Mapping[str, Any], place: int, method: str, variant: str) -> _Case:
    explained = row["explained"][0] if row["explained"] else {}
    numbers = map_numbers(explained, method, variant)
    return _Case(
        name=row["name"],
        place=place,
        wrong=row["label"] is not None and row["label"] != row["predicted"],
        probability=explained.get("probability", 1.0),
        drop=numbers.get("drop", 0.0),
        rpi=numbers.get("rpi", 0.0),
    )


def _worst(cases: Sequence[_Case], evaluation: Evaluation) -> list[tuple[str, str, list[_Case]]]:
    """List titles, explanations and images of the worst cases, the worst first."""
    by_label = evaluation.target == "label"
    wrong = [case for case in cases if case.wrong]
    if by_label:
        wrong_title = "Wrong, and its own class hardly considered"
        wrong_text = "Images of another class than predicted, by the probability of their own."
        wrong.sort(key=lambda case: case.probability)
    else:
        wrong_title = "Wrong and sure"
        wrong_text = "Another class is predicted than the data says, with a high probability."
        wrong.sort(key=lambda case: -case.probability)
    found = [(wrong_title, wrong_text, wrong[:_WORST])]
    dropped = sorted((case for case in cases if case.drop > 0), key=lambda case: -case.drop)
    found.append(
        (
            "The map misses what counts",
            "Shown only what the map marks, the network loses most of the class's probability.",
            dropped[:_WORST],
        )
    )
    if not by_label:
        unsure = sorted(cases, key=lambda case: case.probability)
        text = "The predicted class has a low probability."
        found.append(("Least sure", text, unsure[:_WORST]))
    helped = sorted((case for case in cases if case.rpi > 0), key=lambda case: -case.rpi)
    text = "The best threshold raises the class's probability most."
    found.append(("Most helped by TFT", text, helped[:_WORST]))
    return found


def _select(cases: Sequence[_Case], worst: Sequence[_Case]) -> list[_Case]:
    """Choose the images to show, in the order of the rows: all, or the worst and some others."""
    if len(cases) <= MOST_IMAGES:
        return list(cases)
    chosen = {case.place for case in worst}
    wrong = [case.place for case in cases if case.wrong and case.place not in chosen]
    room = MOST_IMAGES - len(chosen)
    chosen.update(choose_evenly(wrong, min(len(wrong), MOST_IMAGES // 2, room)))
    others = [case.place for case in cases if case.place not in chosen]
    chosen.update(choose_evenly(others, MOST_IMAGES - len(chosen)))
    return [cases[place] for place in sorted(chosen)]


def choose_evenly(places: Sequence[int], count: int) -> list[int]:
    """Choose so many places at even steps."""
    return [places[index * len(places) // count] for index in range(count)]


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _add(
    report: Report,
    explainer: Explainer,
    evaluation: Evaluation,
    variant: str,
    rows: Sequence[dict[str, Any]],
    samples: Mapping[str, Sample],
    methods: Sequence[Any],
) -> None:
    """Explain a batch of images, and add them with what was measured of them."""
    manifest = explainer.manifest
    ranks = ranks_to_show(manifest)
    # A file without an input for the class explains ranks alone, of which the first was measured.
    targets = [
        [*(one["target"] for one in row["explained"] if manifest.top is None), *ranks]
        for row in rows
    ]
    paths = [samples[row["name"]].path for row in rows]
    found = explainer.explain(paths, targets, methods)
    first = evaluation.results[0]
    settings = Tft(mask=first.mask, thresholds=first.thresholds, taus=evaluation.taus or Tft().taus)
    for place, row in enumerate(rows):
        measured = {one["target"]: one["methods"] for one in row["explained"]}
        listed = []
        quality = {}
        for method in methods:
            for explanation in found[method][place]:
                variants = measured.get(explanation.index, {}).get(method, {})
                if variant in variants:
                    numbers = variants[variant]
                    quality[method, explanation.index] = numbers["increase"], numbers["drop"]
                    explanation = _with_threshold(explanation, numbers, settings)
                listed.append(explanation)
        label = row["label"]
        stated = None if label is None else (label, manifest.label(label))
        report.add(encode_explanations(row["name"], [listed], stated, quality))


def _with_threshold(
    explanation: Explanation, numbers: Mapping[str, Any], settings: Tft
) -> Explanation:
    """Return the explanation with the threshold that the evaluation found for it."""
    if "rpi" not in numbers:
        return explanation
    cut = 0.0
    if numbers["improved"]:
        cuts = tft.cut_values(explanation.original_map, settings.taus, settings.thresholds)
        cut = float(cuts[settings.taus.index(numbers["threshold"])])
    return replace(
        explanation,
        threshold=numbers["threshold"] if numbers["improved"] else None,
        cut=cut,
        rpi=np.asarray(numbers["rpi"], np.float32),
        improved=numbers["improved"],
        masked_probability=numbers["masked"],
        tft=settings,
    )


def select_confusion(confusion: Counter[tuple[int, int]]) -> dict[str, Any]:
    """Return the matrix of the classes with most mistakes, and the most frequent mistakes.

    Args:
        confusion: how many images of a class are taken for a class, by (class, predicted).
    """
    mistakes = {label: 0 for label, _ in confusion}
    for (label, predicted), count in confusion.items():
        mistakes[label] += count if label != predicted else 0
    confused = sorted(mistakes, key=lambda index: (-mistakes[index], index))[:_CONFUSED]
    within = set(confused)
    counts = [
        [label, predicted, count]
        for (label, predicted), count in confusion.most_common()
        if label in within or label != predicted
    ]
    return {"classes": sorted(confused), "counts": counts[:_COUNTS], "total": len(mistakes)}


def _about(
    explainer: Explainer,
    data: Dataset,
    evaluation: Evaluation,
    methods: Sequence[str],
    shown: int,
    images: int,
    sections: dict[str, Any],
) -> About:
    first = evaluation.results[0]
    facts = [
        ("model", evaluation.model),
        ("data", f"{data.path.name} ({data.kind})"),
        ("images", f"{evaluation.images:,}"),
    ]
    if evaluation.accuracy is not None:
        accuracy = f"{evaluation.accuracy:.1%} of {evaluation.labelled:,} labelled"
        facts.append(("accuracy", accuracy))
    if evaluation.mean_average_precision is not None:
        facts.append(("mean average precision", f"{evaluation.mean_average_precision:.3f}"))
    facts += [
        ("explained class", "the data's label" if evaluation.target == "label" else "predicted"),
        ("method", ", ".join(methods)),
        ("TFT", Tft(mask=first.mask, thresholds=first.thresholds).reading),
        ("engine", evaluation.engine),
        ("written", describe_time()),
    ]
    notes = list(evaluation.notes)
    if shown < images:
        notes.append(
            f"{shown:,} of {images:,} images are shown below: the worst of each kind, up to "
            f"{MOST_IMAGES // 2} with a wrong class, and others at even steps. All figures are of "
            "all images."
        )
    notes += describe_unreadable(evaluation.unreadable_count, evaluation.unreadable.values())
    return About(
        kind="evaluate",
        title=f"{Path(evaluation.model).stem}: evaluation on {evaluation.images:,} images",
        sources=(evaluation.model,),
        facts=tuple(facts),
        notes=tuple(notes),
        task=explainer.manifest.task,
        taus=evaluation.taus,
        reading={"mask": first.mask, "thresholds": first.thresholds},
        sections=sections,
    )
