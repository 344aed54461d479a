"""What engines share: a graph's inputs and outputs, checked, and which outputs a request needs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EngineError, ModelFileError
from ..manifest import Manifest

if TYPE_CHECKING:
    from .engine import Arrays

# Outputs that cost work of their own, by what has to be computed for them. Engines compute all that
# a loaded file declares, wanted or not.
_PARTS: dict[str, tuple[str, ...]] = {
    "gradient": ("activations", "gradients"),
    "ablation": ("ablation_weights",),
    "map": ("original_maps",),
    "sweep": ("maps", "thresholds", "rpi", "masked_probabilities"),
}


def parts_needed(outputs: Collection[str], manifest: Manifest) -> frozenset[str]:
    """The parts of a graph that have to run for some outputs, beyond classification."""
    return frozenset(part for part, names in _parts(manifest) if not set(names).isdisjoint(outputs))


def outputs_without(parts: Collection[str], manifest: Manifest) -> tuple[str, ...]:
    """The outputs of all other parts, which a file cut for ``parts`` need not have."""
    return tuple(
        name
        for part, names in _parts(manifest)
        if part not in parts
        for name in names
        if name in manifest.output_shapes
    )


def _parts(manifest: Manifest) -> Iterator[tuple[str, tuple[str, ...]]]:
    for part, names in _PARTS.items():
        # Without a sweep ``maps`` is the plain map.
        if part == "map" and "tft" not in manifest.outputs:
            yield part, ("maps",)
        elif part == "sweep" and "tft" not in manifest.outputs:
            continue
        else:
            yield part, names


def check_interface(
    path: str,
    manifest: Manifest,
    inputs: Mapping[str, tuple[str, Sequence[int | None]]],
    outputs: Collection[str],
    parts: Collection[str],
) -> None:
    """A graph, as an engine has read it, must have what its manifest promises.

    Args:
        path: of the file, for the message.
        manifest: of the file.
        inputs: name to element type (``float32``, ``uint8``, ``int64``) and shape; None is any.
        outputs: names.
        parts: what the file was cut to, see ``parts_needed``.

    Raises:
        ModelFileError: it does not.
    """
    kind = "uint8" if manifest.embedded_preprocess else "float32"
    shape = manifest.image_shape
    found, sides = inputs.get("image", ("", ()))
    fits = len(sides) == len(shape) + 1 and all(
        wanted in (None, side) for wanted, side in zip(shape, sides[1:], strict=True)
    )
    if found != kind or not fits or "target" not in inputs:
        promised = ", ".join("any" if side is None else str(side) for side in shape)
        has = ", ".join(
            f"'{name}' {element} [{', '.join('any' if d is None else str(d) for d in dims)}]"
            for name, (element, dims) in inputs.items()
        )
        raise ModelFileError(
            f"{path} does not match its manifest: it should take 'image' {kind} "
            f"[N, {promised}] and 'target' int64 [N, k], but takes {has}"
        )
    missing = set(manifest.output_shapes) - {*outputs, *outputs_without(parts, manifest)}
    if missing:
        raise ModelFileError(f"{path} does not match its manifest: no output {sorted(missing)}")


def check_feeds(feeds: Arrays, manifest: Manifest) -> None:
    """What a graph is fed must be what its manifest says.

    Raises:
        EngineError: a missing input, another type or shape, or batches that differ.
    """
    kind = "uint8" if manifest.embedded_preprocess else "float32"
    wanted = {"image": (kind, (None, *manifest.image_shape)), "target": ("int64", (None, None))}
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
    if len(feeds["image"]) != len(feeds["target"]):
        raise EngineError(f"{len(feeds['image'])} images, but targets for {len(feeds['target'])}")


def check_found(found: Arrays, feeds: Arrays, manifest: Manifest) -> None:
    """What a graph returned must be what its manifest promises, so that nobody reads past its end.

    Raises:
        EngineError: an output of another shape, or a class that there is not.
    """
    count, classes = feeds["target"].shape
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
    if chosen is not None and not 0 <= chosen.min() <= chosen.max() < manifest.num_classes:
        raise EngineError(
            f"the graph chose the classes {chosen.min()} to {chosen.max()} of "
            f"{manifest.num_classes}: the file is not as whycam wrote it. Export it again"
        )


def first_parts(manifest: Manifest) -> frozenset[str]:
    """The parts that most requests need: loaded at once, so that a broken file is known at once."""
    if manifest.map_method is None:
        return parts_needed(["gradients"], manifest)
    return parts_needed(["original_maps" if "tft" in manifest.outputs else "maps"], manifest)
