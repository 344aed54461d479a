"""Evaluate explanations on a data set: the paper's tables 3 and 4 for any file and engine.

One line of JSON is written for each image as it is done, so a stopped evaluation
resumes, and memory does not grow with the data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime import pipeline, tft
from ..runtime.batches import Read, join_batches, run_batches
from ..runtime.cam import Method
from ..runtime.errors import DataError, ImageError, RequestError
from ..runtime.explainer import Explainer
from ..runtime.manifest import Manifest
from ..runtime.pipeline import ClassMap, Prepared
from ..runtime.preprocess import Placement, to_image
from ..runtime.request import NOT_PROBABILITIES
from ..runtime.sweep import Choice, Request, masked_image, mute_lowest, sweep
from ..runtime.tft import Tft
from .dataset import Box, Classes, Dataset, Sample, read_boxes
from .quality import drops, energy_inside, increases, insertion_deletion, pointing
from .rows import Rows
from .settings import VARIANTS, Settings, Target, Variant
from .summary import Evaluation, Tally

Tick = Callable[[str, int], None]
Floats = NDArray[np.float32]


def evaluate(
    explainer: Explainer,
    data: Dataset,
    *,
    methods: Sequence[Method] | None = None,
    variants: Sequence[Variant] = VARIANTS,
    tft: Tft | None = None,
    target: Target = "predicted",
    curve_steps: int = 0,
    classes: str | Path | None = None,
    folder: Path | None = None,
    tick: Tick | None = None,
) -> Evaluation:
    """Measure maps of a network on a data set.

    Args:
        explainer: of a file with raw outputs and without embedded preprocessing, in any engine.
        data: from ``open_dataset``.
        methods: by default those of the paper that the file supports.
        variants: see ``Settings``.
        tft: the reading; by default soft masks and thresholds by rank, as the paper's figures.
        target: the class to explain, ``predicted`` or ``label``.
        curve_steps: of insertion and deletion; 0: not measured.
        classes: a CSV file that says which class a label of the data means, see ``Classes``.
        folder: for a file with one line an image, from which a stopped evaluation of the same
            file, data and settings resumes.
        tick: called with (name, images done).

    Returns:
        Accuracy, and for each method and variant average increase, average drop and more.

    Raises:
        RequestError: the file does not support a method or variant.
        DataError: no image can be read, or no label is a class of the network.
        OutputError: the folder cannot be written.
    """
    manifest = explainer.manifest
    check_measurable(manifest)
    if tft is not None and tft.forwards is not None:
        raise RequestError(
            "an evaluation tries every threshold: leave forwards out. whycam calibrate thresholds "
            "measures what a search of fewer keeps"
        )
    settings = Settings(
        methods=select_methods(methods, manifest.methods),
        variants=_select_variants(variants),
        tft=tft or Settings(methods=()).tft,
        target=target,
        curve_steps=curve_steps,
    )
    if target == "label" and manifest.top is not None:
        raise RequestError(
            f"this file explains its {manifest.top} most probable classes alone, so the data's "
            "labels cannot be: export it without --top"
        )
    lookup = Classes(manifest.labels, manifest.num_classes, classes)
    notes = _note_unknown_labels(lookup, data, settings)
    tally = Tally(settings)
    with Rows(folder, _fingerprint(explainer, data, settings, classes)) as rows:
        for row in rows.done():
            tally.add(row)
            if tick is not None:
                tick(row["name"], 1)
        left = [sample for sample in data.samples if sample.name not in rows.names]
        measure = partial(_measure_batch, explainer, classes=lookup, settings=settings)
        for row in run_batches(
            explainer.model, explainer.memory, left, lambda sample: sample.path, measure
        ):
            rows.write(row)
            tally.add(row)
            if tick is not None:
                tick(row["name"], 1)
    if not tally.count:
        raise DataError(f"none of the {len(data.samples)} images in {data.path} can be used")
    return tally.result(manifest, explainer.engine.description, data, notes)


PAPER: tuple[Method, ...] = ("gradcam", "gradcam++", "ablation", "layercam")


def check_measurable(manifest: Manifest) -> None:
    """Refuse a file that cannot be evaluated: it must take masked images and return raw outputs.

    Raises:
        RequestError: it does not.
    """
    if manifest.task == "none":
        raise RequestError(f"masks are judged by probabilities, and {NOT_PROBABILITIES}")
    check_one_head(manifest)
    if manifest.image_type == "uint8" or "raw" not in manifest.outputs:
        raise RequestError(
            "this file cannot be evaluated with masked images: export it with --outputs raw, "
            "without --embed-preprocess, from a model that takes normalised images"
        )


def check_one_head(manifest: Manifest) -> None:
    """Refuse a file that explains several heads, whose figures would be those of the first alone.

    Raises:
        RequestError: it does.
    """
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


def _note_unknown_labels(classes: Classes, data: Dataset, settings: Settings) -> list[str]:
    labels = data.labels()
    unknown = classes.unknown(labels)
    if settings.target == "label" and len(unknown) == len(labels):
        raise DataError(
            "--target label needs labels that are classes of the network, and none of these is"
            + (f" (as '{labels[0]}')" if labels else "")
            + ": map them with --classes FILE"
        )
    if not unknown:
        return []
    examples = ", ".join(unknown[:3]) + (" ..." if len(unknown) > 3 else "")
    return [
        f"{len(unknown)} of {len(labels)} labels are no class of the network ({examples}), and "
        "their images do not count for accuracy: map them with --classes FILE"
    ]


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
        what.update(f"{sample.name}\0{sample.label}\n".encode())
    if classes is not None:
        what.update(Path(classes).read_bytes())
    return what.hexdigest()[:16]


def _measure_batch(
    explainer: Explainer, batch: Sequence[Read[Sample]], classes: Classes, settings: Settings
) -> list[dict[str, Any]]:
    """Measure a batch of images; return one row for each, ready for JSON."""
    rows: list[dict[str, Any]] = [
        {"name": sample.name, "error": str(read)}
        if isinstance(read, ImageError)
        else _begin_row(sample, classes, settings)
        for sample, read in batch
    ]
    # Of those that can be measured: their row, annotated boxes and prepared image.
    measured = [
        (row, row.pop("boxes"), read)
        for row, (_, read) in zip(rows, batch, strict=True)
        if "boxes" in row and isinstance(read, Prepared)
    ]
    if not measured:
        return rows
    model, plan = explainer.model, explainer.plan(settings.methods)
    prepared = join_batches(read for _, _, read in measured)
    predicted = settings.target == "predicted"
    targets = [[-1 if predicted else row["label"]] for row, _, _ in measured]
    inference = pipeline.infer(model, prepared.inputs, targets, plan)
    maps = pipeline.map(model, inference, plan)
    for one, variants in zip(maps, _mask_variants(explainer, maps, settings), strict=True):
        row, boxes, _ = measured[one.row]
        row |= {
            "predicted": int(inference.probabilities[one.row].argmax()),
            "target": one.target,
            "probability": one.probability,
        }
        relevant, place = _select_boxes(boxes, classes, one.target), prepared.placements[one.row]
        row.setdefault("methods", {})[one.method] = {
            name: _measure_map(explainer, one, values, numbers, relevant, place, settings)
            for name, (values, numbers) in variants.items()
        }
    return rows


def _begin_row(sample: Sample, classes: Classes, settings: Settings) -> dict[str, Any]:
    """Return the label and boxes of an image, or the reason to leave it out."""
    label = classes.index(sample.label)
    try:
        boxes = read_boxes(sample.annotation) if sample.annotation is not None else ()
    except DataError as error:
        return {"name": sample.name, "error": str(error)}
    if settings.target == "label" and label is None:
        return {"name": sample.name, "skipped": "its label is no class of the network"}
    return {"name": sample.name, "label": label, "boxes": boxes}


# By variant: its map, and the numbers measured so far.
_Variants = dict[str, tuple[Floats, dict[str, Any]]]


def _mask_variants(
    explainer: Explainer, maps: Sequence[ClassMap], settings: Settings
) -> list[_Variants]:
    """Make each variant of each map, with the class's probability for the masked image."""
    model = explainer.model
    by_map: list[_Variants] = [{} for _ in maps]
    pending: list[tuple[_Variants, Variant, ClassMap, Floats]] = []
    choices: Sequence[Choice | None] = [None] * len(maps)
    if "tft" in settings.variants:
        choices = sweep(partial(pipeline.classify, model), maps, settings.tft, model.batch)
    for one, into, choice in zip(maps, by_map, choices, strict=True):
        if "original" in settings.variants or (choice is not None and not choice.improved):
            pending.append((into, "original", one, one.map))
        if "naive" in settings.variants and one.method in tft.NAIVE:
            pending.append((into, "naive", one, mute_lowest(one, tft.NAIVE[one.method]).map))
    if pending:
        images = np.stack(
            [
                masked_image(one.image, tft.mask_of(values, settings.tft.mask), one.layout)
                for _, _, one, values in pending
            ]
        )
        for (into, variant, one, values), row in zip(
            pending, pipeline.classify(model, images), strict=True
        ):
            into[variant] = values, {"masked": float(row[one.target])}
    for into, choice in zip(by_map, choices, strict=True):
        if choice is not None:
            masked = choice.masked_probability if choice.improved else into["original"][1]["masked"]
            into["tft"] = (
                choice.map,
                {
                    "masked": masked,
                    "threshold": choice.threshold,
                    "improved": choice.improved,
                    "rpi": [float(value) for value in choice.rpi],
                },
            )
        if "original" not in settings.variants:
            into.pop("original", None)
    return by_map


def _select_boxes(boxes: Sequence[Box], classes: Classes, index: int) -> list[Box]:
    """Return the boxes of the explained class; all, if the network knows none of the names."""
    known = {box.name: classes.index(box.name) for box in boxes}
    if any(value is not None for value in known.values()):
        return [box for box in boxes if known[box.name] == index]
    return list(boxes)


def _measure_map(
    explainer: Explainer,
    request: Request,
    values: Floats,
    numbers: dict[str, Any],
    boxes: Sequence[Box],
    place: Placement,
    settings: Settings,
) -> dict[str, Any]:
    masked = numbers["masked"]
    measures = {
        **numbers,
        "increase": bool(increases(masked, request.probability)),
        "drop": float(drops(masked, request.probability)),
        "coverage": float(tft.mask_of(values, settings.tft.mask).mean()),
    }
    if boxes:
        edges = [(box.left, box.top, box.right, box.bottom) for box in boxes]
        over = to_image(values, place)
        measures |= {"pointing": pointing(over, edges), "energy": energy_inside(over, edges)}
    if settings.curve_steps:
        insertion, deletion = insertion_deletion(
            partial(pipeline.classify, explainer.model),
            request.image,
            values,
            request.target,
            settings.curve_steps,
            request.layout,
        )
        measures |= {"insertion": insertion, "deletion": deletion}
    return measures
