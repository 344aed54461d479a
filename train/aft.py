"""Tune a network so that its plain maps need no clean-up (AFT, paper section 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from ..calibrate.dataset import Classes
from ..calibrate.evaluation_page import MOST_IMAGES
from ..export.onnx import to_onnx
from ..export.preprocessing import Overrides
from ..export.resolve import resolve
from ..export.saved_model import save_model
from ..export.source import Source
from ..runtime.errors import DataError, RequestError
from ..runtime.manifest_parts import Task
from ..runtime.timing import Tick, Total
from .aft_cache import batch_columns, count_guided, open_cache
from .aft_evaluation import evaluate_both
from .aft_result import (
    AFTER,
    BEFORE,
    REPORT,
    AftResult,
    note_labels,
    read_result,
)
from .data import Batches, check_exclusive, split_data
from .engine import explain_cpu, open_explainer
from .guides import open_guides
from .labels import list_present, tabulate_labels
from .loop import Plan, count_steps, fit
from .network import TunableNetwork
from .objective import AftLosses, Objective, check_batch
from .prepare import RowComputer
from .run import Machines, claim_folder, describe_model, fingerprint


def train_aft(
    model: str,
    data: str | Path,
    folder: str | Path,
    *,
    objective: Objective | None = None,
    held_out: str | Path | None = None,
    classes: str | Path | None = None,
    weights: str = "default",
    labels: str | None = None,
    num_classes: int | None = None,
    overrides: Overrides | None = None,
    target_layer: str | None = None,
    fused_layers: Sequence[str] = (),
    tuned_layers: int = 1,
    task: Task | None = None,
    plan: Plan | None = None,
    machines: Machines | None = None,
    cache: str = "auto",
    flip: bool = False,
    boxes: str | Path = "auto",
    avoid: str | Path | None = None,
    checkpoint_minutes: float = 5.0,
    tick: Tick | None = None,
    total: Total | None = None,
) -> AftResult | None:
    """Tune the target layer and the head so that one method's plain maps explain better.

    An interrupted run resumes when started again with the same arguments, and ends with the same
    weights (on one process, with the same number of threads, on a CPU).

    Args:
        model: as ``whycam export`` takes it; a trained classifier.
        data: images; labels, where there are any, hold the classifier's accuracy.
        folder: of the run; on storage that all processes see.
        objective: what is minimised.
        held_out: images to evaluate on; else those in ``data``'s ``val``, or a tenth.
        classes: a CSV file that says which class a label of the data means, see ``Classes``.
        weights, labels, num_classes, overrides, target_layer: as ``to_onnx`` takes them.
        fused_layers: earlier layers that are tuned together with the target layer, for Layer-CAM's
            fused map; see ``to_onnx``.
        tuned_layers: how many convolutions and linear layers up to the target layer are trained (to
            the first layer, where maps are fused); a residual block is trained as a whole.
        task: what the model's output means; by default what its last operator says. ``sigmoid``:
            independent labels, of which an image of ``data`` may have several.
        plan: of the training.
        machines: where to train.
        cache: ``auto`` keeps the frozen layers' outputs on disk if they fit; ``off`` computes
            them in every step; else a folder for them, kept afterwards.
        boxes: where objects are, for the term ``guided``: ``auto``, a COCO JSON file or a folder of
            masks, see ``open_guides``. Images without any keep the other terms.
        avoid: regions that must not matter, the same way, for ``avoiding`` and ``swapping``.
        flip: mirror half of the images in each step; nothing is cached then but masks.
        checkpoint_minutes: between checkpoints.
        tick: called with (text, steps done).
        total: called with the number of steps.

    Returns:
        What was made; None on all processes but the first.

    Raises:
        ExportError: the model cannot be loaded or taken apart.
        DataError: no images, no regions for a term that needs them, several labels of an image
            where classes exclude each other, or no label that is a class of the network.
        RequestError: ``avoiding`` or ``swapping`` without regions to avoid, or these without a
            term, or ``swapping`` with one image a process; layers to fuse and another method than
            ``layercam``; no layer to train.
        TrainingError: the folder holds another run, or the loss is no longer a number.
    """
    place, plan = Path(folder), plan or Plan()
    objective = objective or Objective()
    if ("avoid" in objective.guides) != (avoid is not None):
        raise RequestError("the terms avoiding and swapping go together with the regions to avoid")
    if fused_layers and objective.method != "layercam":
        raise RequestError(
            f"maps of several layers are fused for the method layercam, not {objective.method}"
        )
    if tuned_layers < 1:
        raise RequestError(f"the layers that are trained are 1 or more, not {tuned_layers}")
    parts = split_data(data, held_out, plan.seed)
    fabric = (machines or Machines()).launch()
    check_batch(objective, plan, len(parts.train.samples), fabric.world_size)
    source = resolve(
        model,
        weights,
        labels,
        num_classes,
        overrides,
        example=f"whycam train aft {model} ... --preprocess imagenet",
    )
    settings = {
        "training": "aft",
        "model": model,
        "weights": weights,
        "target_layer": target_layer,
        "fused_layers": list(fused_layers),
        "tuned_layers": tuned_layers,
        "task": task,
        "flip": flip,
        "boxes": str(boxes) if "guided" in objective.terms else None,
        "avoid": None if avoid is None else str(avoid),
        **msgspec.to_builtins(objective),
        **msgspec.to_builtins(plan),
    }
    spec = source.preprocess
    tunable = TunableNetwork(
        source.model, spec.size, target_layer, spec.channels, fused_layers, tuned_layers, task
    )
    _check_method(objective, tunable)
    if tunable.task != "sigmoid":
        check_exclusive(parts)
    both = {"train": parts.train, "held out": parts.held_out}
    key = fingerprint(source, both, settings, classes)
    claim_folder(place, key, settings, fabric)
    if (place / REPORT).is_file():
        return read_result(place) if fabric.is_global_zero else None
    samples = parts.train.samples
    if total is not None:
        an_epoch, _ = count_steps(plan, len(samples), fabric.world_size)
        total(
            len(samples) // fabric.world_size
            + an_epoch * plan.epochs
            + 2 * len(parts.held_out.samples)
            + min(MOST_IMAGES, len(parts.held_out.samples))
        )

    def export_once(name: str) -> Path:
        """Export the network as it is now; one process writes, all read."""
        if fabric.is_global_zero and not (place / name).is_file():
            if tick is not None:
                tick(f"exporting {name}", 0)
            _export(source, place / name, objective, target_layer, fused_layers, task)
        fabric.barrier()
        return place / name

    before = export_once(BEFORE)
    original = open_explainer(before, fabric.device)
    lookup = Classes(original.manifest.labels, tunable.num_classes, classes)
    known = [lookup.index(sample.label) for sample in samples]
    present = None
    if tunable.task == "sigmoid":
        present = tabulate_labels(parts.train, lookup, tunable.num_classes)
        known = [None if (row < 0).all() else 0 for row in present]
    of_items = [-1 if index is None or present is not None else index for index in known]
    guides = {
        name: open_guides(boxes if name == "inside" else avoid or "", parts.train, lookup)
        for name in objective.guides
    }
    tunable.to(fabric.device)
    maker = RowComputer(
        tunable,
        spec,
        fabric.device,
        objective.method,
        objective.tft,
        original if objective.needs_masks else None,
        guides,
        of_items,
        () if present is None else list_present(present),
    )
    store, notes = open_cache(
        place, key, cache, flip, len(samples), tunable, spec, objective, fabric
    )
    maker.fill(store, [s.path for s in samples], (fabric.global_rank, fabric.world_size), tick)
    fabric.barrier()
    errors = store.errors()
    items = [i for i in range(len(samples)) if i not in errors]
    if not items:
        raise DataError(f"no image of {data} can be read: {next(iter(errors.values()))}")
    on_cpu = explain_cpu(fabric.device)
    if on_cpu is not None:
        notes.append(f"masks and evaluations are computed on the CPU: {on_cpu}")
    notes += [
        f"{count_guided(store, name, items)} of {len(samples)} images have regions ({name}), from "
        f"{each.source}"
        for name, each in guides.items()
    ]
    notes += note_labels(known, [sample.label for sample in samples])
    batches = Batches(
        store,
        maker,
        [sample.path for sample in samples],
        of_items,
        batch_columns(store, objective),
        plan.seed if flip else None,
        present,
    )
    torch.manual_seed(plan.seed)
    fit(
        AftLosses(tunable, objective),
        batches,
        items,
        plan,
        fabric,
        place,
        key,
        checkpoint_minutes,
        tick,
    )
    tunable.cpu()
    entry: dict[str, object] = {**settings, "images": len(items)}
    if fabric.is_global_zero:
        description = describe_model(model, source, num_classes, source.labels, entry)
        save_model(place, description, source.model.state_dict())
    after = export_once(AFTER)
    unreadable = {samples[i].name: why for i, why in errors.items()}
    if not fabric.is_global_zero:
        return None
    tuned = evaluate_both(
        place,
        (before, after),
        fabric.device,
        parts,
        objective,
        classes,
        unreadable,
        len(items),
        notes,
        tick,
    )
    if cache in ("auto", "off"):
        store.remove()
    return tuned


def _check_method(objective: Objective, tunable: TunableNetwork) -> None:
    if objective.method == "cam" and not tunable.pooled_linear:
        raise RequestError(
            "'cam' needs a head of global average pooling and one linear layer; tune 'gradcam'"
        )
    if objective.method == "ablation" and not tunable.has_ablation:
        raise RequestError(
            f"'ablation' needs a feature map that all of the network passes through, and the "
            f"target layer ({tunable.target.name}) is none; tune 'gradcam'"
        )


def _export(
    source: Source,
    path: Path,
    objective: Objective,
    target_layer: str | None,
    fused_layers: Sequence[str],
    task: Task | None,
) -> None:
    frozen = copy.deepcopy(source.model).requires_grad_(False)
    to_onnx(
        replace(source, model=frozen),
        path,
        target_layer=target_layer,
        fused_layers=fused_layers,
        methods=[objective.method],
        score=objective.score,
        task=task,
        tft=objective.tft,
    )
