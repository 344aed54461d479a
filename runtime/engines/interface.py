"""Translate between a graph and the contract: names, batches, ranks, outputs to ask for.

A graph has the names, the layout, the element type and the batch that its file had before it was
explained. Engines know the graph; everybody else speaks the contract: ``image``, ``target``,
``probabilities`` and so on, any number of images, any ranks. ``run_graph`` and
``rename_to_contract`` lie between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, ModelFileError
from ..manifest import Manifest
from ..place_weights import REGION
from .chunks import Arrays, Outputs, run_in_chunks

# Runs a graph once: inputs by name and the outputs asked for to these outputs.
Run = Callable[[Arrays, Sequence[str]], Outputs]

# The parts of a graph beyond classification, and the outputs that need them. Engines compute every
# output that a loaded file declares, so a file is cut to the parts needed. Every further map method
# is a part too.
_PARTS: dict[str, tuple[str, ...]] = {
    "gradient": ("activations", "gradients"),
    "ablation": ("ablation_weights",),
    "places": ("place_scores",),
    "map": ("original_maps",),
    "sweep": ("maps", "thresholds", "rpi", "masked_probabilities"),
}


# Of a detector; these are always there, and yet need not run for another part.
_DETECTOR_PARTS: dict[str, tuple[str, ...]] = {
    "detection": ("detections", "scores", "boxes"),
    "candidates": ("candidate_scores", "candidate_boxes"),
}


def parts_needed(outputs: Collection[str], manifest: Manifest) -> frozenset[str]:
    """Name the parts of a graph that must run for some outputs, beyond classification."""
    return frozenset(part for part, names in _parts(manifest) if not set(names).isdisjoint(outputs))


def outputs_without(parts: Collection[str], manifest: Manifest) -> tuple[str, ...]:
    """List the outputs of all other parts, which a file cut for ``parts`` need not have.

    By their contract names; see ``surplus_outputs`` for what to cut from the file.
    """
    return tuple(
        name
        for part, names in _parts(manifest)
        if part not in parts
        for name in names
        if name in manifest.output_shapes
    )


def surplus_outputs(parts: Collection[str], manifest: Manifest) -> set[str]:
    """List the graph's outputs, by its own names, that a file cut for ``parts`` can lose.

    Those the file had before it was explained go as well; empty: nothing need be cut.
    """
    without = outputs_without(parts, manifest)
    if not without:
        return set()
    surplus = {graph_name(name, manifest) for name in without}
    return surplus.union(manifest.own_outputs) - needed_outputs(parts, manifest)


def needed_outputs(parts: Collection[str], manifest: Manifest) -> frozenset[str]:
    """List the graph's outputs, by its own names, that a file cut for ``parts`` must have."""
    names = set(manifest.output_shapes).difference(outputs_without(parts, manifest))
    return frozenset(graph_name(name, manifest) for name in names)


def graph_name(name: str, manifest: Manifest) -> str:
    """Translate a contract name of an input or output to the graph's own name."""
    return manifest.names.get(name, name)


def rename_to_contract(run: Run, manifest: Manifest) -> Run:
    """Wrap a run that uses the graph's own names, so that it uses the contract's."""
    if not manifest.names:
        return run

    def run_by_contract(feeds: Arrays, outputs: Sequence[str]) -> Outputs:
        own = [graph_name(name, manifest) for name in outputs]
        found = run({graph_name(name, manifest): feeds[name] for name in feeds}, own)
        return {name: found[key] for name, key in zip(outputs, own, strict=True)}

    return run_by_contract


def _parts(manifest: Manifest) -> Iterator[tuple[str, tuple[str, ...]]]:
    if manifest.detector is not None:
        yield from _DETECTOR_PARTS.items()
    for part, names in _PARTS.items():
        # Without a sweep ``maps`` is the plain map.
        if part == "map" and "tft" not in manifest.outputs:
            yield part, ("maps",)
        elif part == "sweep" and "tft" not in manifest.outputs:
            continue
        else:
            yield part, names
    for method in manifest.map_methods[1:]:
        yield f"map_{method}", (f"maps_{method}",)


def run_graph(run: Run, feeds: Arrays, outputs: Sequence[str], manifest: Manifest) -> Outputs:
    """Run a graph for any number of images and any ranks, and check what it returns.

    Args:
        run: runs the graph once. It is fed ``image`` in the graph's own layout and element type,
            of ``manifest.batch`` images where that is fixed; ``target`` only where the graph has
            this input.
        feeds: see ``engine.Engine.run``.
        outputs: the outputs wanted.
        manifest: of the graph.

    Raises:
        EngineError: feeds or answers that are not what the manifest promises.
    """
    image = feeds.get("image")
    if manifest.region is not None and isinstance(image, np.ndarray):
        feeds = {REGION: np.ones((len(image), *manifest.region), np.float32), **feeds}
    check_feeds(feeds, manifest)
    image = feeds["image"]
    manifest = manifest.at(manifest.size_of(image.shape))
    if manifest.image_type == "float16":
        image = image.astype(np.float16)
    return run_in_chunks(
        lambda part: _run_once(run, part, outputs, manifest),
        {**feeds, "image": image},
        manifest,
        manifest.batch or len(image),
    )


def _run_once(run: Run, feeds: Arrays, outputs: Sequence[str], manifest: Manifest) -> Outputs:
    image, target = feeds["image"], feeds["target"]
    count = len(image)
    size = manifest.batch or count
    fed = {"image": pad_batch(image, size)}
    if manifest.top is None:
        fed["target"] = pad_batch(target, size)
    if manifest.class_embeddings is not None:
        embeddings = fed["class_embeddings"] = feeds["class_embeddings"]
        manifest = msgspec.structs.replace(
            manifest, num_classes=len(embeddings), labels=(), references=()
        )
    if manifest.region is not None:
        fed[REGION] = pad_batch(feeds[REGION], size)
    found = run(fed, outputs)
    check_outputs(found, size, manifest.top or target.shape[1], manifest)
    if size > count:
        found = {name: values[:count] for name, values in found.items()}
    return found if manifest.top is None else _at_ranks(found, target, manifest)


def pad_batch(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Fill a batch up to ``count`` by repeating its last entry."""
    missing = count - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values


def _at_ranks(found: Outputs, target: NDArray[np.int64], manifest: Manifest) -> Outputs:
    """Select the columns of the ranks asked for, where a graph explains its top classes."""
    columns = -1 - target
    rows = np.arange(len(target))[:, None]
    shapes = manifest.output_shapes
    return {
        name: values[rows, columns] if shapes[name][0] is None else values
        for name, values in found.items()
    }


def check_interface(
    path: str,
    manifest: Manifest,
    inputs: Mapping[str, tuple[str, Sequence[int | None]]],
    outputs: Collection[str],
    parts: Collection[str],
) -> None:
    """Check that a graph, as an engine has read it, has what its manifest promises.

    Args:
        path: of the file, for the message.
        manifest: of the file.
        inputs: the graph's own name to element type (``float32``, ``float16``, ``uint8``,
            ``int64``) and shape; None is any.
        outputs: the graph's own names.
        parts: what the file was cut to, see ``parts_needed``.

    Raises:
        ModelFileError: it does not.
    """
    kind, shape = manifest.image_type, manifest.image_shape
    image, target = graph_name("image", manifest), graph_name("target", manifest)
    found, sides = inputs.get(image, ("", ()))
    fits = len(sides) == len(shape) + 1 and all(
        wanted in (None, side) for wanted, side in zip((manifest.batch, *shape), sides, strict=True)
    )
    length = manifest.class_embeddings
    named = inputs.get(graph_name("class_embeddings", manifest))
    takes_classes = (named is None) == (length is None) and named in (
        None,
        ("float32", [None, length]),
    )
    needs_target = manifest.top is None and target not in inputs
    named_region = inputs.get(graph_name(REGION, manifest))
    takes_region = (named_region is None) == (manifest.region is None) and named_region in (
        None,
        ("float32", [None, *(manifest.region or ())]),
    )
    if found != kind or not fits or needs_target or not (takes_classes and takes_region):
        promised = ", ".join("any" if side is None else str(side) for side in shape)
        also = "" if manifest.top is not None else f" and '{target}' int64 [N, k]"
        also += "" if length is None else f" and 'class_embeddings' float32 [C, {length}]"
        if manifest.region is not None:
            also += f" and '{REGION}' float32 [N, {manifest.region[0]}, {manifest.region[1]}]"
        has = ", ".join(
            f"'{name}' {element} [{', '.join('any' if d is None else str(d) for d in dims)}]"
            for name, (element, dims) in inputs.items()
        )
        raise ModelFileError(
            f"{path} does not match its manifest: it should take '{image}' {kind} "
            f"[{manifest.batch or 'N'}, {promised}]{also}, but takes {has}"
        )
    missing = needed_outputs(parts, manifest).difference(outputs)
    if missing:
        raise ModelFileError(f"{path} does not match its manifest: no output {sorted(missing)}")


def check_feeds(feeds: Arrays, manifest: Manifest) -> None:
    """Check that inputs have the types and shapes that the manifest states.

    Raises:
        EngineError: a missing input, another type or shape, batches that differ, or a class that
            a graph without the input ``target`` does not explain.
    """
    # Half precision is the graph's own affair: masks are multiplied in float32.
    kind = "uint8" if manifest.image_type == "uint8" else "float32"
    pair = () if manifest.detector is None else (2,)
    wanted: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "image": (kind, (None, *manifest.image_shape)),
        "target": ("int64", (None, None, *pair)),
    }
    if manifest.class_embeddings is not None:
        wanted["class_embeddings"] = ("float32", (None, manifest.class_embeddings))
    if manifest.region is not None:
        wanted[REGION] = ("float32", (None, *manifest.region))
    for name, (element, shape) in wanted.items():
        values = feeds.get(name)
        if not isinstance(values, np.ndarray):
            raise EngineError(f"the graph needs the input '{name}', an array")
        fits = len(values.shape) == len(shape) and all(
            side in (None, found) and found > 0
            for side, found in zip(shape, values.shape, strict=True)
        )
        if values.dtype != element or not fits:
            said = ", ".join("any" if side is None else str(side) for side in shape)
            raise EngineError(
                f"the input '{name}' must be {element} [{said}], not {values.dtype} "
                f"{list(values.shape)}"
            )
    size = manifest.size_of(feeds["image"].shape)
    if not manifest.takes(size):
        free = manifest.dynamic_size
        assert free is not None
        raise EngineError(
            f"this graph takes heights and widths from {free.least} to {free.most} pixels that are "
            f"multiples of {free.step}, not {size[0]} x {size[1]}"
        )
    target = feeds["target"]
    if len(feeds["image"]) != len(target):
        raise EngineError(f"{len(feeds['image'])} images, but targets for {len(target)}")
    if manifest.region is not None and len(feeds[REGION]) != len(target):
        raise EngineError(f"{len(feeds['image'])} images, but regions for {len(feeds[REGION])}")
    if manifest.top is not None and not -manifest.top <= target.min() <= target.max() < 0:
        raise EngineError(
            f"this graph explains the ranks -1 to -{manifest.top}, not the targets "
            f"{target.min()} to {target.max()}"
        )


def check_outputs(found: Arrays, count: int, classes: int, manifest: Manifest) -> None:
    """Check that outputs have the shapes that the manifest promises.

    Args:
        found: outputs by their contract names.
        count: N, images in this run.
        classes: k, classes explained in it.
        manifest: of the graph.

    Raises:
        EngineError: an output of another shape, or a class that there is not.
    """
    shapes = manifest.output_shapes
    # The export asks for more than it promises.
    for name in found.keys() & shapes.keys():
        values = found[name]
        wanted = (count, *(classes if side is None else side for side in shapes[name]))
        if values.shape != wanted:
            raise EngineError(
                f"the graph returned '{name}' as {list(values.shape)}, and its manifest says "
                f"{list(wanted)}: the file is not as whycam wrote it. Export it again"
            )
    chosen = found.get("targets")
    if manifest.detector is not None:
        _check_detections(found, manifest.num_classes, manifest.detector.candidates)
    if chosen is not None and not 0 <= chosen.min() <= chosen.max() < manifest.num_classes:
        raise EngineError(
            f"the graph chose the classes {chosen.min()} to {chosen.max()} of "
            f"{manifest.num_classes}: the file is not as whycam wrote it. Export it again"
        )


def _check_detections(found: Arrays, classes: int, candidates: int) -> None:
    """Check that the graph chose candidates and classes that there are, or none (-1)."""
    chosen = found.get("detections")
    if chosen is None:
        return
    rows = chosen.reshape(-1, 2)
    if rows.min() < -1 or (rows >= (candidates, classes)).any():
        raise EngineError(
            f"the graph chose candidate and class {rows.max(0).tolist()} of {candidates} and "
            f"{classes}: the file is not as whycam wrote it. Export it again"
        )


def first_parts(manifest: Manifest) -> frozenset[str]:
    """Name the parts to load at once: those of most requests, so that a broken file is noticed."""
    method = manifest.map_method
    first = None if method is None else manifest.map_output(method)
    always = [] if manifest.detector is None else ["detections"]
    return parts_needed([first or "gradients", *always], manifest)
