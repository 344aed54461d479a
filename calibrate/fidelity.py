"""Compare the explanations of two engines, precisions or files of the same network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from ..runtime.batches import Read, join_batches, run_batches
from ..runtime.cam import Method
from ..runtime.errors import DataError, ImageError, RequestError
from ..runtime.explainer import Explainer
from ..runtime.explanation import Explanation
from ..runtime.pipeline import Prepared, classify, prepare
from ..runtime.request import NOT_PROBABILITIES
from ..runtime.similarity import pearson, top_overlap
from ..runtime.tft import Tft
from ..runtime.timing import Tick
from .dataset import Sample
from .evaluate import PAPER, check_one_head
from .quality import drops, increases


class MapFidelity(msgspec.Struct, frozen=True, kw_only=True):
    """Agreement of one method's maps, over the images.

    Attributes:
        pearson, pearson_low: correlation of the maps' pixels, median and 5th percentile over
            images. Two maps that are both constant agree (1); one alone does not (0).
        iou, iou_low: of the top 20 % of the pixels (``similarity.top_overlap``), likewise.
        same_threshold: share of images with the same tau*; None where TFT was not run.
        increase_before, increase_after, drop_before, drop_after: average increase and drop (paper
            section 5.2) of TFT's maps, in the reference and in the other.
    """

    pearson: float
    pearson_low: float
    iou: float
    iou_low: float
    same_threshold: float | None = None
    increase_before: float | None = None
    increase_after: float | None = None
    drop_before: float | None = None
    drop_after: float | None = None


class Fidelity(msgspec.Struct, frozen=True, kw_only=True):
    """Agreement of two engines, precisions or files of the same network.

    Attributes:
        reference, other: engine and precision.
        images: images compared.
        top1: share with the same most probable class.
        probability: mean absolute difference of the probability of the reference's class.
        maps: by method.
        mask, thresholds: the reading of TFT; None where it was not run.
        unreadable: images left out, and why.
    """

    reference: str
    other: str
    images: int
    top1: float
    probability: float
    maps: dict[str, MapFidelity]
    mask: str | None = None
    thresholds: str | None = None
    unreadable: dict[str, str] = msgspec.field(default_factory=dict)


def compare(
    reference: Explainer,
    other: Explainer,
    samples: Iterable[Sample],
    methods: Sequence[Method] | None = None,
    tft: Tft | None = None,
    tick: Tick | None = None,
) -> Fidelity:
    """Explain the same class of the same images with both, and compare the maps.

    The class is the most probable one of the reference. Images are read as they are needed.

    Args:
        reference: the explainer to compare with.
        other: an explainer of the same network.
        samples: images.
        methods: by default those of the paper that both support.
        tft: the reading of TFT to compare thresholds in; None: compare whole maps only.
        tick: called with (name, images done).

    Raises:
        RequestError: the two are not of one network, or one does not support a method.
        DataError: no image can be read.
    """
    chosen = select_common_methods(reference, other, methods)
    if tft is not None and reference.manifest.task == "none":
        raise RequestError(
            f"TFT's thresholds are chosen by probabilities, and {NOT_PROBABILITIES}: compare maps "
            "alone, with --no-tft (tft=None)"
        )
    tally = _Tally(chosen)
    unreadable: dict[str, str] = {}
    work = partial(_compare_batch, reference, other, chosen, tft)
    for name, compared in run_batches(
        reference.model, reference.memory, samples, lambda sample: sample.path, work
    ):
        if isinstance(compared, ImageError):
            unreadable[name] = str(compared)
            continue
        tally.add(compared)
        if tick is not None:
            tick(name, 1)
    if not tally.same:
        why = next(iter(unreadable.values()), "there are none")
        raise DataError(f"no image to compare with can be read: {why}")
    return Fidelity(
        reference=reference.engine.description,
        other=other.engine.description,
        images=len(tally.same),
        top1=float(np.mean(tally.same)),
        probability=float(np.mean(tally.apart)),
        maps={method: tally.of(method) for method in chosen},
        mask=None if tft is None else tft.mask,
        thresholds=None if tft is None else tft.thresholds,
        unreadable=unreadable,
    )


def select_common_methods(
    reference: Explainer, other: Explainer, methods: Sequence[Method] | None
) -> tuple[Method, ...]:
    """Select the methods to compare, by default the paper's that both files support.

    Raises:
        RequestError: see ``compare``.
    """
    ours, theirs = reference.manifest, other.manifest
    check_one_head(ours)
    if (ours.num_classes, ours.preprocess) != (theirs.num_classes, theirs.preprocess):
        raise RequestError(
            f"{ours.model} and {theirs.model} cannot be compared: they have other classes or "
            "another preprocessing"
        )
    both = [m for m in ours.methods if m in theirs.methods and m != "scorecam"]
    chosen = tuple(methods) if methods is not None else tuple(m for m in PAPER if m in both)
    absent = [method for method in chosen if method not in both]
    if absent or not chosen:
        raise RequestError(
            f"cannot compare {', '.join(absent) or 'no'} maps; both files have: {', '.join(both)}"
        )
    return chosen


@dataclass(frozen=True)
class _Compared:
    """One image's explanations by both, and the most probable class of the other."""

    ours: dict[Method, Explanation]
    theirs: dict[Method, Explanation]
    predicted: int


def _compare_batch(
    reference: Explainer,
    other: Explainer,
    methods: Sequence[Method],
    tft: Tft | None,
    batch: Sequence[Read[Sample]],
) -> list[tuple[str, _Compared | ImageError]]:
    """Explain a batch with both; return each image's name with its explanations or its error."""
    readable = [read for _, read in batch if isinstance(read, Prepared)]
    compared: list[_Compared] = []
    if readable:
        prepared = join_batches(readable)
        first = methods[0]
        ours = reference.explain_prepared(
            prepared, [[-1]] * len(readable), reference.plan(methods, tft)
        )
        # A graph without an input for the class explains the most probable one.
        fixed = other.manifest.top is not None
        classes = [[-1 if fixed else explanations[first][0].index] for explanations in ours]
        inputs = prepare(prepared.images, other.manifest)
        theirs = other.explain_prepared(inputs, classes, other.plan(methods, tft))
        predicted = classify(other.model, inputs.inputs).argmax(1)
        compared = [
            _Compared(
                {method: explanations for method, (explanations,) in a.items()},
                {method: explanations for method, (explanations,) in b.items()},
                int(best),
            )
            for a, b, best in zip(ours, theirs, predicted, strict=True)
        ]
    rest = iter(compared)
    return [
        (sample.name, read if isinstance(read, ImageError) else next(rest))
        for sample, read in batch
    ]


class _Tally:
    """Collects the agreement of each image."""

    def __init__(self, methods: Sequence[Method]) -> None:
        self.same: list[bool] = []
        self.apart: list[float] = []
        self._maps: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
        self._sweeps: dict[str, list[list[float]]] = {method: [] for method in methods}

    def add(self, compared: _Compared) -> None:
        """Add one image."""
        first = next(iter(compared.ours))
        ours, theirs = compared.ours[first], compared.theirs[first]
        self.same.append(ours.index == compared.predicted)
        self.apart.append(abs(ours.probability - theirs.probability))
        for method, explanation in compared.ours.items():
            self._add_method(method, explanation, compared.theirs[method])

    def _add_method(self, method: Method, ours: Explanation, theirs: Explanation) -> None:
        a, b = ours.original_map, theirs.original_map
        self._maps[method].append((pearson(a, b), top_overlap(a, b)))
        if ours.tft is None:
            return
        numbers = [float(ours.threshold == theirs.threshold)]
        for one in (ours, theirs):
            # If no threshold improves and 0 was not evaluated, nothing is masked.
            masked = one.masked_probability
            masked = one.probability if masked is None else masked
            numbers.append(float(increases(masked, one.probability)))
            numbers.append(float(drops(masked, one.probability)))
        self._sweeps[method].append(numbers)

    def of(self, method: Method) -> MapFidelity:
        """Summarise one method over the images."""
        maps = np.array(self._maps[method])
        low = np.percentile(maps, 5, axis=0)
        middle = np.median(maps, axis=0)
        numbers = {
            "pearson": float(middle[0]),
            "pearson_low": float(low[0]),
            "iou": float(middle[1]),
            "iou_low": float(low[1]),
        }
        if self._sweeps[method]:
            means = np.mean(self._sweeps[method], axis=0)
            names = (
                "same_threshold",
                "increase_before",
                "drop_before",
                "increase_after",
                "drop_after",
            )
            numbers |= dict(zip(names, map(float, means), strict=True))
        return MapFidelity(**numbers)
