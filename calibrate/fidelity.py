"""Compare the explanations of two files, engines or precisions on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import numpy as np

from ..runtime.batches import Read, join_batches, run_batches
from ..runtime.cam import Method
from ..runtime.errors import DataError, ImageError, RequestError
from ..runtime.explainer import Explainer
from ..runtime.explanation import Explanation
from ..runtime.manifest import Manifest
from ..runtime.pipeline import Prepared, classify, prepare
from ..runtime.request import NOT_PROBABILITIES
from ..runtime.similarity import pearson, top_overlap
from ..runtime.tft import Mask, Tft, Thresholds
from ..runtime.timing import Tick
from .common_view import common_maps
from .dataset import Sample
from .evaluate import PAPER, check_one_head
from .quality import drops, increases


class MapFidelity(msgspec.Struct, frozen=True, kw_only=True):
    """Agreement of one method's maps, over the images.

    Attributes:
        pearson, pearson_low: correlation of the maps' pixels, median and 5th percentile over
            images, see ``common_maps``. Two maps that are both constant agree (1); one alone does
            not (0).
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
    """Agreement of two files, engines or precisions.

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
    mask: Mask | None = None
    thresholds: Thresholds | None = None
    unreadable: dict[str, str] = msgspec.field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """One image's explanations by both.

    Attributes:
        ours, theirs: by method; the first is of the reference's most probable class.
        predicted: the most probable class of the other.
        similarity: correlation of the two maps, by method.
    """

    ours: dict[Method, list[Explanation]]
    theirs: dict[Method, list[Explanation]]
    predicted: int
    similarity: Mapping[Method, float]


def compare(
    reference: Explainer,
    other: Explainer,
    samples: Iterable[Sample],
    methods: Sequence[Method] | None = None,
    tft: Tft | None = None,
    tick: Tick | None = None,
    collect: Callable[[Sample, Compared], None] | None = None,
) -> Fidelity:
    """Explain the same class of the same images with both, and compare the maps.

    The class is the most probable one of the reference. Images are read as they are needed.

    Args:
        reference: the explainer to compare with.
        other: an explainer of the same classes: of another file, engine or precision.
        samples: images.
        methods: by default those of the paper that both support.
        tft: the reading of TFT to compare thresholds in; None: compare whole maps only.
        tick: called with (name, images done).
        collect: called with each image and its explanations; the most probable class of the other
            is then explained as well, without thresholds.

    Raises:
        RequestError: the two have other classes, or one does not support a method.
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
    fixed = any(one.manifest.top is not None for one in (reference, other))
    both_classes = collect is not None and not fixed
    work = partial(_compare_batch, reference, other, chosen, tft, both_classes)
    for sample, compared in run_batches(
        reference.model, reference.memory, samples, lambda sample: sample.path, work
    ):
        if isinstance(compared, ImageError):
            unreadable[sample.name] = str(compared)
            continue
        tally.add(compared)
        if collect is not None:
            collect(sample, compared)
        if tick is not None:
            tick(sample.name, 1)
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
    reason = find_difference(ours, theirs)
    if reason is not None:
        raise RequestError(f"{ours.model} and {theirs.model} cannot be compared: {reason}")
    both = [m for m in ours.methods if m in theirs.methods and m != "scorecam"]
    chosen = tuple(methods) if methods is not None else tuple(m for m in PAPER if m in both)
    absent = [method for method in chosen if method not in both]
    if absent or not chosen:
        raise RequestError(
            f"cannot compare {', '.join(absent) or 'no'} maps; both files have: {', '.join(both)}"
        )
    return chosen


def find_difference(ours: Manifest, theirs: Manifest) -> str | None:
    """Return why the classes or the images of two networks are not the same; None if they are."""
    if ours.num_classes != theirs.num_classes:
        return f"they have {ours.num_classes} and {theirs.num_classes} classes"
    if ours.task != theirs.task:
        return f"their outputs mean something else (task {ours.task} and {theirs.task})"
    for index, (one, other) in enumerate(zip(ours.labels, theirs.labels, strict=False)):
        if one != other:
            return f"class {index} is '{one}' in the one and '{other}' in the other"
    kinds = [
        (spec.color, spec.channels, spec.value_range)
        for spec in (ours.preprocess, theirs.preprocess)
    ]
    if kinds[0] != kinds[1] and {kinds[0][0], kinds[1][0]} != {"RGB", "BGR"}:
        return "they take other kinds of images (colours, bands or depth)"
    return None


def _compare_batch(
    reference: Explainer,
    other: Explainer,
    methods: Sequence[Method],
    tft: Tft | None,
    both_classes: bool,
    batch: Sequence[Read[Sample]],
) -> list[tuple[Sample, Compared | ImageError]]:
    """Explain a batch with both; return each image with its explanations or its error."""
    readable = [read for _, read in batch if isinstance(read, Prepared)]
    compared: list[Compared] = []
    if readable:
        prepared = join_batches(readable)
        inputs = _prepare_for(other, prepared)
        predicted = np.concatenate([classify(other.model, one.inputs) for one in inputs]).argmax(1)
        others = [[int(best)] if both_classes else [] for best in predicted]
        plans = [replace(one.plan(methods, tft), thresholded=1) for one in (reference, other)]
        ours = reference.explain_prepared(prepared, [[-1, *each] for each in others], plans[0])
        # A graph without an input for the class explains the most probable one.
        fixed = other.manifest.top is not None
        first = [-1 if fixed else explanations[methods[0]][0].index for explanations in ours]
        classes = iter([[index, *each] for index, each in zip(first, others, strict=True)])
        theirs = [
            explanations
            for one in inputs
            for explanations in other.explain_prepared(
                one, [next(classes) for _ in one.images], plans[1]
            )
        ]
        compared = [
            Compared(a, b, int(best), {m: pearson(*common_maps(a[m][0], b[m][0])) for m in methods})
            for a, b, best in zip(ours, theirs, predicted, strict=True)
        ]
    rest = iter(compared)
    return [
        (sample, read if isinstance(read, ImageError) else next(rest)) for sample, read in batch
    ]


def _prepare_for(other: Explainer, prepared: Prepared) -> list[Prepared]:
    """Prepare the images for the other network: in one batch, or one by one if sizes differ."""
    inputs = [prepare([image], other.manifest) for image in prepared.images]
    if len({one.inputs.shape for one in inputs}) == 1:
        return [join_batches(inputs)]
    return inputs


class _Tally:
    """Collects the agreement of each image."""

    def __init__(self, methods: Sequence[Method]) -> None:
        self.same: list[bool] = []
        self.apart: list[float] = []
        self._maps: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
        self._sweeps: dict[str, list[list[float]]] = {method: [] for method in methods}

    def add(self, compared: Compared) -> None:
        """Add one image."""
        first = next(iter(compared.ours))
        ours, theirs = compared.ours[first][0], compared.theirs[first][0]
        self.same.append(ours.index == compared.predicted)
        self.apart.append(abs(ours.probability - theirs.probability))
        for method, similarity in compared.similarity.items():
            ours, theirs = compared.ours[method][0], compared.theirs[method][0]
            overlap = top_overlap(*common_maps(ours, theirs))
            self._maps[method].append((similarity, overlap))
            self._add_sweep(method, ours, theirs)

    def _add_sweep(self, method: Method, ours: Explanation, theirs: Explanation) -> None:
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
