"""Read class scores at every place, as segmentation networks give them, and average a region's.

The score of a class is the mean of its logits over a region. Maps are those of Vinogradova et al.
2020 ("Towards interpretable semantic segmentation via gradient-weighted class activation mapping"),
who take the sum: a factor that normalised maps do not show. What follows is that of a classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.errors import ExportError
from ..runtime.manifest_parts import Task
from ..runtime.place_weights import LEAST_WEIGHT, REGION
from .data_flow import DataFlow
from .dims import BATCH
from .graph_inputs import learn_shapes, lengths_of, new_input, tensor_of
from .heads import OutputMeaning, PlaceScores
from .output_meaning import FLOATS, HeadMeaning, find_output, list_outputs
from .place_coverage import count_uncovered
from .plain_model import PlainModel
from .recorder import Recorder

_SKIPPED = {"Identity", "Cast", "Squeeze", "Unsqueeze"}
_ACTIVATIONS = {"Softmax", "LogSoftmax", "Sigmoid"}
# What moves or resizes numbers, so that probabilities stay probabilities.
_KEEPS_PROBABILITIES = _SKIPPED | {"Transpose", "Reshape", "Flatten", "Slice", "Pad", "Resize"}


@dataclass(frozen=True)
class _Found:
    """An output with class scores at places.

    Attributes:
        output: of the graph.
        logits: class scores before any activation.
        activation: the operator between the two, or None.
        is_index: whether the output holds the numbers of the best classes.
        axes: of the classes, as activation and ArgMax say.
    """

    output: ir.Value
    logits: ir.Value
    activation: str | None
    is_index: bool
    axes: tuple[int, ...]


def find_place_scores(
    plain: PlainModel, task: Task | None, heads: Sequence[str] | None, has_labels: bool
) -> OutputMeaning | None:
    """Take a network for a segmentation network, if an output has class scores at every place.

    Args:
        plain: the network; its graph gets the input ``region`` and the mean over it.
        task: as the user states it; None: as the last operator says.
        heads: names or numbers of the outputs that the user chose; None: any.
        has_labels: whether class names are known.

    Returns:
        Its meaning, with ``places``; None where no output is of that kind.

    Raises:
        ExportError: there are several such outputs, or it is not proved what one holds.
    """
    shapes = plain.shapes
    outputs = list(plain.graph.outputs)
    if heads is not None:
        outputs = [find_output(outputs, name, shapes) for name in heads]
    found = [each for output in outputs if (each := _read(plain, output)) is not None]
    if not found or (heads is not None and len(found) < len(outputs)):
        return None
    if len({each.logits for each in found}) > 1:
        raise ExportError(
            "several outputs have class scores at every place: "
            f"{list_outputs([each.output for each in found], shapes)}. Choose one with --head NAME"
        )
    # Scores tell more than the numbers of the best classes.
    each = min(found, key=lambda one: one.is_index)
    if each.activation is None and not each.is_index and task != "none":
        _check_no_activation_before(each.output)
    if plain.sizes is not None:
        raise ExportError(
            "a segmentation network is explained at one size: leave out --dynamic-size"
        )
    flow = DataFlow(plain, each.logits)
    producer = each.logits.producer()
    layer = None if producer is None else flow.layer_at(producer)
    if layer is None or not layer.arrangement.is_feature_map:
        raise ExportError(
            f"the output '{each.output.name}' may have class scores at every place, but it is not "
            "proved which element belongs to which place of the image"
        )
    order = layer.arrangement.order
    if any(axis != order[1] for axis in each.axes):
        raise ExportError(
            f"the output '{each.output.name}' compares its numbers along the axis {each.axes[0]}, "
            f"and its channels are along axis {order[1]}: they are no scores of classes"
        )
    meaning = _state_task(each, task, layer.shape[0], has_labels, plain.channels)
    missing = count_uncovered(flow, each.logits)
    if any(missing):
        note = (
            f"{meaning.note}; its convolutions without padding leave out the borders of the image, "
            f"{missing[0]} rows and {missing[1]} columns of places in all, and regions are laid "
            "over the whole image evenly: pad the image, or resize the output, inside the network "
            "if the places cover its middle alone"
        )
        meaning = replace(meaning, note=note)
    return _append_mean(plain, meaning, order, layer.shape)


def note_place_scores(plain: PlainModel) -> str | None:
    """Say which output of a classifier has class scores at every place; None if none surely has."""
    for output in plain.graph.outputs:
        found = _read(plain, output)
        if found is not None and (found.activation is not None or found.is_index):
            return (
                f"the output '{output.name}' has class scores at every place: --head {output.name} "
                "explains that one"
            )
    return None


def refuse_place_scores(plain: PlainModel, heads: Sequence[str]) -> None:
    """Refuse several heads of which one has scores at every place.

    Raises:
        ExportError: one has.
    """
    for name in heads:
        output = find_output(list(plain.graph.outputs), name, plain.shapes)
        if _read(plain, output) is not None:
            raise ExportError(
                f"the output '{output.name}' has class scores at every place, and several heads of "
                "one file are of whole images: export a file of that output alone"
            )


def _read(plain: PlainModel, output: ir.Value) -> _Found | None:
    """Read an output as scores of classes at places, or as the numbers of the best classes."""
    shapes = plain.shapes
    value, node, activation, is_index = output, output.producer(), None, False
    has_logarithm = False
    axes: list[int] = []
    while node is not None:
        before = node.inputs[0] if node.inputs else None
        if before is None:
            break
        is_of_places = len(shapes.dims.get(before, ())) == 4
        if node.op_type == "ArgMax" and not is_index and is_of_places:
            value, is_index = before, True
            axes.append(_axis(node, 0))
        elif node.op_type in _ACTIVATIONS and is_of_places:
            if has_logarithm and node.op_type != "Softmax":
                break
            value, activation = before, "LogSoftmax" if has_logarithm else node.op_type
            if activation != "Sigmoid":
                axes.append(_axis(node, -1))
            break
        elif node.op_type == "Transpose":
            turn = node.attributes["perm"].as_ints()
            axes = [turn[axis] for axis in axes]
        elif node.op_type == "Log" and not has_logarithm:
            has_logarithm = True
        elif node.op_type not in _SKIPPED:
            break
        node = before.producer()
    dims = shapes.dims.get(value, ())
    sides = [side for side in dims[1:] if isinstance(side, int)]
    if len(dims) != 4 or dims[0] != BATCH or len(sides) < 3 or shapes.dtypes[value] not in FLOATS:
        return None
    if sum(side > 1 for side in sides) < 2:
        return None  # [N, C, 1, 1] is of the whole image
    return _Found(output, value, activation, is_index, tuple(axes))


def _axis(node: ir.Node, default: int) -> int:
    stated = node.attributes.get("axis")
    return (default if stated is None else stated.as_int()) % 4


def _check_no_activation_before(output: ir.Value) -> None:
    """Refuse probabilities that are resized or moved: their logits are not those of the output.

    Raises:
        ExportError: a softmax or sigmoid gives the numbers of the output.
    """
    node = output.producer()
    while node is not None and node.inputs and node.inputs[0] is not None:
        if node.op_type in _ACTIVATIONS:
            raise ExportError(
                f"the output '{output.name}' holds what '{node.name}' ({node.op_type}) gives, "
                "resized or rearranged, so that it has no logits at its places. Export the network "
                "with that operator as its last one, or without it, or pass --task none to "
                "explain the values as they are"
            )
        if node.op_type not in _KEEPS_PROBABILITIES:
            return
        node = node.inputs[0].producer()


def _state_task(
    each: _Found, task: Task | None, count: int, has_labels: bool, channels: int
) -> HeadMeaning:
    """Decide what the scores are: as stated, as the activation says, or of exclusive classes."""
    name = each.output.name
    # A sigmoid over as many channels as the image has may as well make an image.
    is_image = each.activation == "Sigmoid" and count == channels and not has_labels
    note = (
        f"the output '{name}' has class scores at every place, as a segmentation network's: the "
        "mean of a region's is explained"
    )
    if task is None:
        if each.activation == "Sigmoid" and not is_image:
            task = "sigmoid" if count > 1 else "binary"
        elif count > 1 and not is_image and (each.activation or each.is_index or has_labels):
            task = "softmax"
        else:
            raise ExportError(
                f"the output '{name}' has {count} numbers at every place, and nothing says that "
                "they are scores of classes: pass --task softmax if classes exclude each other at "
                "a place, --task sigmoid if they do not, --task binary for one logit, or --task "
                "none if they are values"
            )
        if each.activation is None and not each.is_index:
            note += "; classes were taken to exclude each other, else pass --task sigmoid"
    if (task == "binary") != (count == 1) and task != "none":
        raise ExportError(
            f"the output '{name}' has {count} numbers at every place, which task {task} does not "
            "fit: " + ("one number is binary or none" if count == 1 else "binary is of one number")
        )
    logits = each.output if task == "none" and each.activation is not None else each.logits
    classes = 2 if task == "binary" else count
    return HeadMeaning(task, each.output, logits, classes, each.activation, note)


def _append_mean(
    plain: PlainModel,
    head: HeadMeaning,
    order: tuple[int, ...],
    shape: tuple[int, int, int],
) -> OutputMeaning:
    """Record the mean logits of a region, [N, C], as nodes of the network."""
    graph, (channels, height, width) = plain.graph, shape
    recorder = Recorder(graph)
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}
    name = f"whycam_{REGION}" if REGION in taken else REGION
    region = new_input(recorder, name, (BATCH, height, width), ir.DataType.FLOAT)
    graph.inputs.append(region.value)
    with recorder.part("region"):
        recorder.symbols["N"] = lengths_of(tensor_of(plain.image, plain.shapes, recorder))[0:1]
        weights = region.reshape((BATCH, height * width, 1))
        total = recorder.xp.maximum(weights.sum(1, keepdims=True), LEAST_WEIGHT)
        scores = tensor_of(head.logits, plain.shapes, recorder).cast(ir.DataType.FLOAT)
        flat = scores.transpose(order).reshape((BATCH, channels, height * width))
        mean = (flat @ (weights / total)).reshape((BATCH, channels))
    plain.shapes.dims[region.value] = region.shape
    plain.shapes.dtypes[region.value] = region.dtype
    learn_shapes(plain, recorder)
    places = PlaceScores(head.logits, order, shape, region.value)
    return OutputMeaning((replace(head, logits=mean.value),), mean.value, places)


def fix_region(model: ir.Model, places: PlaceScores, weights: NDArray[np.float32]) -> None:
    """Put one region, [h, w], in the place of the input, for all images."""
    graph = model.graph
    value = next((each for each in graph.inputs if each.name == places.region.name), None)
    if value is None:
        return
    graph.inputs.remove(value)
    value.const_value = ir.tensor(weights[None], name=str(value.name))
    value.shape = ir.Shape((1, *weights.shape))
    graph.register_initializer(value)
