"""Interpret a classifier's outputs from the graph: logits, probabilities, task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from ..runtime.errors import ExportError
from ..runtime.manifest_parts import Task
from ..runtime.prompts import EXAMPLES
from .dims import Dims, Size
from .shapes import Shapes
from .zero_shot import Similarity, check_length

_RESHAPES = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Cast"}
_INDICES = {"ArgMax", "TopK"}
FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
LOGITS = "logits"  # what Hugging Face's models, and many others, call class scores


@dataclass(frozen=True)
class HeadMeaning:
    """What one output of a network means.

    Attributes:
        task: see the manifest.
        output: the graph output with the class scores.
        logits: the tensor to differentiate; one element per class and image, in any shape.
        num_classes: C; for ``binary`` 2, though there is one logit.
        activation: the operator between logits and output, or None.
        note: what was assumed, for the user; None where nothing was.
        similarity: how ``logits``, then an image embedding, becomes class scores; None where it
            holds class scores itself.
    """

    task: Task
    output: ir.Value
    logits: ir.Value
    num_classes: int
    activation: str | None
    note: str | None
    similarity: Similarity | None = None

    @property
    def name(self) -> str:
        """Return the output's name."""
        return str(self.output.name)


def interpret_embedding(
    outputs: Sequence[ir.Value], shapes: Shapes, similarity: Similarity, output: str | None = None
) -> HeadMeaning:
    """Decide which output is an image embedding, whose similarities with classes are explained.

    Args:
        outputs: of the graph.
        shapes: of its tensors.
        similarity: how it is scored.
        output: the name or number of the output; needed where there are several.

    Raises:
        ExportError: no output, or more than one, is an embedding, or classes have another length.
    """
    chosen = (
        find_output(outputs, output, shapes)
        if output is not None
        else _choose_output(outputs, shapes)[0]
    )
    length = _count_classes(shapes.dims.get(chosen, ()))
    activation, _ = _find_activation(chosen, shapes)
    if length is None or length == 1 or activation is not None:
        what = _shape_text(shapes.dims.get(chosen)) if activation is None else f"({activation})"
        raise ExportError(
            f"the output '{chosen.name}' {what} is no image embedding, which --classes needs: one "
            "vector an image, without softmax or sigmoid"
        )
    check_length(similarity, length, str(chosen.name))
    count = EXAMPLES if similarity.embeddings is None else len(similarity.embeddings)
    return HeadMeaning(similarity.task, chosen, chosen, count, None, None, similarity)


def interpret_outputs(
    outputs: Sequence[ir.Value],
    shapes: Shapes,
    task: Task | None = None,
    heads: Sequence[str] | None = None,
) -> tuple[HeadMeaning, ...]:
    """Decide which outputs hold class scores, and what they are.

    Args:
        outputs: of the graph.
        shapes: of its tensors.
        task: as the user states; by default inferred from the graph's last operator.
        heads: the names or numbers of the outputs to explain; needed where there are several.

    Returns:
        One head, or those asked for, in that order.

    Raises:
        ExportError: no output, or more than one, holds one number per class.
    """
    if heads is None:
        chosen, note = _choose_output(outputs, shapes)
        found = _interpret(chosen, shapes, task)
        return (replace(found, note=_join_notes(note, found.note)),)
    values = [find_output(outputs, name, shapes) for name in heads]
    if not values or len(set(values)) != len(values):
        raise ExportError(
            f"the heads to explain are {', '.join(heads) or 'none'}: name each output once, of: "
            f"{list_outputs(outputs, shapes)}"
        )
    meanings = tuple(_interpret(value, shapes, task) for value in values)
    if len(meanings) > 1 and task == "none":
        raise ExportError(
            "several heads of values cannot be explained by one file, for nothing says which value "
            "is meant where no target is named: export a file a head, each with one --head"
        )
    return meanings


def has_image_scores(
    outputs: Sequence[ir.Value], shapes: Shapes, heads: Sequence[str] | None
) -> bool:
    """Tell whether an output, of those that the user chose, has one number a class and image.

    Raises:
        ExportError: there is no output of that name.
    """
    chosen = outputs if heads is None else [find_output(outputs, name, shapes) for name in heads]
    return any(_count_classes(shapes.dims.get(value, ())) is not None for value in chosen)


def _join_notes(*notes: str | None) -> str | None:
    return "; ".join(note for note in notes if note is not None) or None


def _interpret(chosen: ir.Value, shapes: Shapes, task: Task | None) -> HeadMeaning:
    count = _count_classes(shapes.dims.get(chosen, ()))
    if count is None:
        raise ExportError(
            f"the output '{chosen.name}' {_shape_text(shapes.dims.get(chosen))} does not hold one "
            "number a class and image, nor scores of classes at every place, and a detector needs "
            "--task detect"
        )
    activation, before = _find_activation(chosen, shapes)
    if activation in _INDICES:
        raise ExportError(
            f"the output '{chosen.name}' holds class numbers ({activation}), not scores: export "
            "the network without that step, or name an earlier output with --head"
        )
    if shapes.dtypes.get(chosen) not in FLOATS:
        raise ExportError(
            f"the output '{chosen.name}' holds numbers of type {shapes.dtypes.get(chosen)}, and "
            "class scores are floats: name another output with --head"
        )
    if task is None:
        return _infer_meaning(chosen, before, activation, count)
    logits = chosen if activation is None or task == "none" else before
    if task == "binary" and count != 1:
        raise ExportError(f"task binary is for one logit; '{chosen.name}' has {count} numbers")
    if task != "binary" and task != "none" and count == 1:
        raise ExportError(
            f"the output '{chosen.name}' is one number: its task is binary (yes or no), or none "
            f"(the value itself), not {task}"
        )
    return HeadMeaning(task, chosen, logits, 2 if task == "binary" else count, activation, None)


def _infer_meaning(
    output: ir.Value, before: ir.Value, activation: str | None, count: int
) -> HeadMeaning:
    if count == 1:
        if activation not in (None, "Sigmoid"):
            raise ExportError(
                f"the output '{output.name}' is a {activation} of one number, which is always the "
                "same"
            )
        note = None
        if activation is None:
            note = (
                f"the output '{output.name}' is one number without a sigmoid: it was taken for a "
                "binary logit. If it is a value (regression), pass --task none"
            )
        logits = output if activation is None else before
        return HeadMeaning("binary", output, logits, 2, activation, note)
    if activation == "Sigmoid":
        return HeadMeaning("sigmoid", output, before, count, activation, None)
    if activation in ("Softmax", "LogSoftmax"):
        return HeadMeaning("softmax", output, before, count, activation, None)
    note = (
        f"the output '{output.name}' ends without softmax or sigmoid: its {count} numbers were "
        "taken for logits of exclusive classes. If labels are independent, pass --task sigmoid; if "
        "they are values, --task none"
    )
    return HeadMeaning("softmax", output, output, count, None, note)


def _find_activation(value: ir.Value, shapes: Shapes) -> tuple[str | None, ir.Value]:
    """Find the operator that turns logits into the output, and its input; reshapes are skipped."""
    node = value.producer()
    logarithm = False
    while node is not None:
        first = node.inputs[0]
        if first is None:
            break
        if node.op_type in _RESHAPES or (node.op_type == "Transpose" and _is_flat(first, shapes)):
            node = first.producer()
        elif node.op_type == "Log" and not logarithm:
            logarithm = True
            node = first.producer()
        elif node.op_type in ("Softmax", "LogSoftmax"):
            if not _is_over_classes(node, first, shapes):
                break
            return ("LogSoftmax" if logarithm else node.op_type), first
        elif node.op_type == "Sigmoid" and not logarithm:
            return "Sigmoid", first
        elif node.op_type in _INDICES:
            return node.op_type, first
        else:
            break
    return None, value


def _is_flat(value: ir.Value, shapes: Shapes) -> bool:
    """Tell whether only one axis besides the batch has more than one element."""
    dims = shapes.dims.get(value, ())
    return sum(isinstance(side, int) and side > 1 for side in dims) <= 1


def _is_over_classes(node: ir.Node, value: ir.Value, shapes: Shapes) -> bool:
    dims = shapes.dims.get(value, ())
    default = node.attributes.get("axis")
    axis = (default.as_int() if default is not None else -1) % max(1, len(dims))
    return bool(dims) and _count_classes(dims) == dims[axis]


def _count_classes(dims: Dims) -> int | None:
    """Return C of [N, C], [N, C, 1, 1] and the like; None for other shapes."""
    if not dims or dims[0] != Size(1, ("N",)):
        return None
    rest = dims[1:]
    if not all(isinstance(side, int) for side in rest):
        return None
    large = [side for side in rest if isinstance(side, int) and side != 1]
    if len(large) > 1:
        return None
    return large[0] if large else 1


def _choose_output(outputs: Sequence[ir.Value], shapes: Shapes) -> tuple[ir.Value, str | None]:
    """Choose the output with class scores; with a note where its name decides."""
    fitting = [
        value
        for value in outputs
        if _count_classes(shapes.dims.get(value, ())) is not None
        and shapes.dtypes.get(value) in FLOATS
    ]
    if not fitting:
        indices = [v for v in outputs if _find_activation(v, shapes)[0] in _INDICES]
        if indices:
            return indices[0], None
        raise ExportError(
            "no output holds one number a class and image (there are: "
            f"{list_outputs(outputs, shapes)}). whycam export also explains scores of classes at "
            "every place, [N, C, h, w], and detectors, with --task detect"
        )
    # Logits and their softmax may both be outputs.
    sources = {id(_find_activation(value, shapes)[1]) for value in fitting}
    if len(fitting) == 1 or len(sources) == 1:
        ended = [value for value in fitting if _find_activation(value, shapes)[0] is not None]
        return (ended or fitting)[0], None
    named = [value for value in fitting if value.name == LOGITS]
    if named:
        return named[0], (
            f"of several outputs ({list_outputs(fitting, shapes)}) the one called '{LOGITS}' is "
            "explained; --head chooses others"
        )
    raise ExportError(
        f"there are several outputs that could be class scores: {list_outputs(fitting, shapes)}. "
        "Choose one with --head NAME, or several heads with --head NAME,NAME"
    )


def find_output(outputs: Sequence[ir.Value], name: str, shapes: Shapes) -> ir.Value:
    """Find an output by its name or number.

    Raises:
        ExportError: there is none.
    """
    by_name = {str(value.name): value for value in outputs}
    if name in by_name:
        return by_name[name]
    if name.isdecimal() and int(name) < len(outputs):
        return outputs[int(name)]
    raise ExportError(f"there is no output '{name}'; there are: {list_outputs(outputs, shapes)}")


def list_outputs(outputs: Sequence[ir.Value], shapes: Shapes) -> str:
    """List outputs with their shapes in words."""
    return ", ".join(f"'{v.name}' {_shape_text(shapes.dims.get(v))}" for v in outputs)


def _shape_text(dims: Dims | None) -> str:
    if dims is None:
        return "of unknown shape"
    sides = [
        str(s) if isinstance(s, int) else ("N" if s.factor == 1 else f"{s.factor}N") for s in dims
    ]
    return f"[{', '.join(sides)}]"
