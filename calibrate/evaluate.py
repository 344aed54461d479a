"""Evaluate explanations on a data set: the paper's tables 3 and 4 for any file and engine.

One line of JSON is written for each image as it is done, so a stopped evaluation
resumes. Memory does not grow with the data set, but for five bytes an image and independent label,
from which average precision is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ..runtime.cam import Method
from ..runtime.errors import DataError, RequestError
from ..runtime.explainer import Explainer
from ..runtime.manifest import Manifest
from ..runtime.request import NOT_PROBABILITIES, check_classifier, check_whole_image
from ..runtime.tft import Tft
from ..runtime.timing import Tick
from .cross_asked import check_asked
from .dataset import Classes, Dataset, Sample, check_one_label
from .measure import measure_samples
from .measure_detections import measure_detections
from .rows import Rows
from .settings import VARIANTS, Settings, Target, Variant
from .summary import Evaluation, Tally


def evaluate(
    explainer: Explainer,
    data: Dataset,
    *,
    methods: Sequence[Method] | None = None,
    variants: Sequence[Variant] = VARIANTS,
    tft: Tft | None = None,
    target: Target | None = None,
    curve_steps: int = 0,
    road: bool = False,
    stability: bool = False,
    classes: str | Path | None = None,
    folder: Path | None = None,
    tick: Tick | None = None,
    measure: MeasureSamples | None = None,
    asked: Explainer | None = None,
    most: int | None = None,
    min_score: float | None = None,
    iou: float | None = None,
) -> Evaluation:
    """Measure maps of a network on a data set.

    Args:
        explainer: of a file with raw outputs and without embedded preprocessing, in any engine.
        data: from ``open_dataset``.
        methods: by default those of the paper that the file supports.
        variants: see ``Settings``.
        tft: the reading; by default ``Tft()``, the paper's equations.
        target: the class to explain, ``predicted`` or ``label``, for independent labels each one
            that the image has; None: these, where the data and the network have them, else the
            predicted class.
        curve_steps: of insertion and deletion; 0: not measured.
        road, stability: whether these are measured, see ``Settings``.
        classes: a CSV file that says which class a label of the data means, see ``Classes``.
        folder: for a file with one line an image, from which a stopped evaluation of the same
            file, data and settings resumes.
        tick: called with (name, images done).
        measure: measures samples elsewhere, as ``on_cluster.measure_on_cluster``; None: here.
        asked: another network that is asked about the maps as well, see ``cross_asked``; as the
            same before AFT.
        most, min_score, iou: of a detector, which detections are explained, see
            ``Explainer.detect``; with the target ``label`` those alone that match an annotated box.

    Returns:
        Accuracy, for independent labels the figures of each label, and for each method and variant
        average increase, average drop and more.

    Raises:
        RequestError: the file does not support a method or variant, the asked network takes other
            images or has other classes, or a measure or setting is not for such a file.
        DataError: no image can be read, no label is a class of the network, or images have several
            labels and the network's classes exclude each other.
        OutputError: the folder cannot be written.
    """
    manifest = explainer.manifest
    if manifest.detector is not None:
        _check_detector(manifest, data, target, stability, asked is not None, measure is not None)
    else:
        check_measurable(manifest)
        if (most, min_score, iou) != (None, None, None):
            raise RequestError(
                "most, min_score and iou choose among a detector's boxes, and this file classifies "
                "whole images: leave them out"
            )
    if asked is not None:
        check_asked(manifest, asked.manifest)
        if measure is not None:
            raise RequestError("another network can be asked here alone, not on a cluster")
    if tft is not None and tft.evaluations is not None:
        raise RequestError(
            "every threshold is tried here: leave out evaluations. whycam calibrate thresholds "
            "measures what a search of fewer keeps"
        )
    if target == "label" and manifest.top is not None:
        raise RequestError(
            f"this file explains its {manifest.top} most probable classes alone, so the data's "
            "labels cannot be: export it without --top"
        )
    lookup = Classes(manifest.labels, manifest.num_classes, classes)
    labels = () if manifest.detector is not None else _select_labels(lookup, data, manifest)
    if target is None:
        explain_labels = manifest.top is None and _has_labels(lookup, data, labels)
        target = "label" if explain_labels else "predicted"
    settings = Settings(
        methods=select_methods(methods, manifest.methods),
        variants=_select_variants(variants),
        tft=tft or Settings(methods=()).tft,
        target=target,
        labels=labels,
        accuracy=manifest.detector is None
        and (not labels or not any(_is_several(sample) for sample in data.samples)),
        curve_steps=curve_steps,
        road=road,
        stability=stability,
        asked=None if asked is None else asked.manifest.digest,
        most=most,
        min_score=min_score,
        iou=iou,
    )
    if manifest.detector is None:
        notes = _note_unknown_labels(lookup, data, settings)
    else:
        notes = lookup.describe_unknown(data.all_labels(), "their boxes match no detection")
    tally = Tally(settings)
    with Rows(folder, _fingerprint(explainer, data, settings, classes)) as rows:
        for row in rows.done():
            tally.add(row)
            if tick is not None:
                tick(row["name"], 1)
        left = [sample for sample in data.samples if sample.name not in rows.names]
        here: MeasureSamples = partial(measure_samples, asked=asked)
        if manifest.detector is not None:
            here = measure_detections
        measured = (measure or here)(explainer, left, lookup, settings)
        for row in measured:
            rows.write(row)
            tally.add(row)
            if tick is not None:
                tick(row["name"], 1)
    if not tally.maps:
        why = "can be used" if manifest.detector is None else "has a detection that can be measured"
        raise DataError(f"none of the {len(data.samples)} images in {data.path} {why}")
    if asked is not None:
        notes.append(f"asked: {asked.manifest.model} ({asked.manifest.digest[:19]})")
    return tally.result(manifest, explainer.engine.description, data, notes)


# Takes an explainer, samples, the network's classes and settings; returns rows in order.
MeasureSamples = Callable[
    [Explainer, Sequence[Sample], Classes, Settings], Iterable[dict[str, Any]]
]


PAPER: tuple[Method, ...] = ("gradcam", "gradcam++", "ablation", "layercam")


def check_measurable(manifest: Manifest) -> None:
    """Refuse a file that cannot be evaluated: it must take masked images and return raw outputs.

    Raises:
        RequestError: it does not.
    """
    check_one_classifier(manifest)
    if manifest.image_type == "uint8" or "raw" not in manifest.outputs:
        raise RequestError(
            "this file cannot be evaluated with masked images: export it with --outputs raw, "
            "without --embed-preprocess, from a model that takes normalised images"
        )


def _check_detector(
    manifest: Manifest,
    data: Dataset,
    target: Target | None,
    stability: bool,
    is_asked: bool,
    is_elsewhere: bool,
) -> None:
    """Refuse what is not measured of detectors.

    Raises:
        RequestError: something of that is asked for.
    """
    assert manifest.detector is not None
    refused = {
        "stability compares the maps of one class": stability,
        "another network is asked about classes of whole images": is_asked,
        "clusters evaluate classifiers": is_elsewhere,
    }
    for reason, is_asked_for in refused.items():
        if is_asked_for:
            raise RequestError(f"{reason}, and {manifest.model} is a detector: leave it out")
    if manifest.detector.score != "class":
        raise RequestError(
            f"maps are measured by the score of the class, and this file explains the "
            f"{manifest.detector.score} edge of the box: export it with --score class"
        )
    if manifest.image_type == "uint8":
        raise RequestError(
            "this file cannot be evaluated with masked images: it takes pixels, and normalises "
            "them itself"
        )
    if target == "label" and not any(
        sample.boxes is not None or sample.annotation is not None for sample in data.samples
    ):
        raise RequestError(
            f"--target label explains the detections that match an annotated box, and {data.path} "
            "has none: pass a Pascal VOC folder, or COCO's file with --boxes"
        )


def check_one_classifier(manifest: Manifest) -> None:
    """Refuse a file without probabilities, or with several heads.

    Raises:
        RequestError: it is such a file.
    """
    if manifest.task == "none":
        raise RequestError(
            f"maps are measured by the probabilities of classes, and {NOT_PROBABILITIES} (task "
            "none). whycam explain makes their maps; if they are logits of classes, export the "
            "file with --task softmax or sigmoid"
        )
    check_one_head(manifest)


def check_one_head(manifest: Manifest) -> None:
    """Refuse a file of several heads, whose figures would be those of the first, or a detector.

    Raises:
        RequestError: it is such a file.
    """
    check_classifier(manifest)
    check_whole_image(manifest)
    if manifest.heads:
        names = [head.name for head in manifest.heads]
        raise RequestError(
            f"this file explains the heads {', '.join(names)}, and data are measured by one head's "
            f"classes: export a file of that head alone, as with --head {names[0]}"
        )


def select_methods(
    requested: Sequence[Method] | None, supported: Sequence[Method]
) -> tuple[Method, ...]:
    """Check the requested methods; by default select the paper's four, as far as supported.

    Raises:
        RequestError: one that it does not support, none at all, or Score-CAM.
    """
    if requested is None:
        return tuple(method for method in PAPER if method in supported)
    absent = [method for method in requested if method not in supported]
    if absent or not requested:
        raise RequestError(
            f"this file cannot make {', '.join(absent) or 'no'} maps; it has: "
            f"{', '.join(supported)} (see whycam export --method)"
        )
    if "scorecam" in requested:
        raise RequestError(
            "scorecam cannot be evaluated: it takes one evaluation of the network for each channel"
        )
    return tuple(dict.fromkeys(requested))


def _select_variants(requested: Sequence[Variant]) -> tuple[Variant, ...]:
    unknown = [name for name in requested if name not in VARIANTS]
    if unknown or not requested:
        raise RequestError(
            f"there is no variant {', '.join(map(repr, unknown))}; choose from: "
            f"{', '.join(VARIANTS)}"
        )
    return tuple(name for name in VARIANTS if name in requested)


def _select_labels(lookup: Classes, data: Dataset, manifest: Manifest) -> tuple[int, ...]:
    """List the classes to measure one by one: of independent labels, those that the data names.

    Raises:
        DataError: images have several labels, and the network's classes exclude each other.
    """
    if manifest.task == "sigmoid":
        indices = {lookup.index(label) for label in data.all_labels()}
        return tuple(sorted(index for index in indices if index is not None))
    check_one_label(
        data,
        f"the classes of {manifest.model} exclude each other (task {manifest.task}): keep one "
        "label an image, or, if its labels are independent, export it with --task sigmoid",
    )
    return ()


def _is_several(sample: Sample) -> bool:
    """Tell whether the data state something else than one label of an image."""
    return sample.labels is not None and len(sample.labels) != 1


def _has_labels(lookup: Classes, data: Dataset, labels: Sequence[int]) -> bool:
    """Tell whether some image has one of the labels that are measured."""
    return bool(labels) and any(
        lookup.index(label) is not None for sample in data.samples for label in sample.labels or ()
    )


def _note_unknown_labels(lookup: Classes, data: Dataset, settings: Settings) -> list[str]:
    independent = bool(settings.labels)
    labels = data.all_labels() if independent else data.labels()
    known = (
        _has_labels(lookup, data, settings.labels)
        if independent
        else len(lookup.unknown(labels)) < len(labels)
    )
    if settings.target == "label" and not known:
        raise DataError(
            "--target label needs labels that are classes of the network, and none of these is"
            + (f" (as '{labels[0]}')" if labels else "")
            + ": map them with --classes FILE"
        )
    result = "they are not measured" if independent else "their images do not count for accuracy"
    return lookup.describe_unknown(labels, result)


def _fingerprint(
    explainer: Explainer, data: Dataset, settings: Settings, classes: str | Path | None
) -> str:
    """Hash everything that rows of the same evaluation have in common."""
    what = hashlib.sha256()
    what.update(explainer.manifest.digest.encode())
    what.update(explainer.engine.description.encode())
    what.update(msgspec.json.encode(settings))
    what.update(str(data.path.resolve()).encode())
    for sample in data.samples:
        what.update(f"{sample.name}\0{sample.labels}\0{sample.boxes}\n".encode())
    if classes is not None:
        what.update(Path(classes).read_bytes())
    return what.hexdigest()[:16]
