"""Recognise a detector and the format of its outputs, by what the graph and its file prove."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ...runtime.errors import ExportError
from ...runtime.input_format import Preprocess
from ...runtime.manifest_parts import DetectorFormat
from ..plain_model import PlainModel
from . import detr, picodet, ssd, yolov5, yolov8, yolov10, yolox
from .format import Format
from .grids import find_strides, single_output
from .row_proof import find_objectness, open_head_end

FORMATS: dict[DetectorFormat, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (yolov8, yolov5, yolov10, yolox, picodet, detr, ssd)
}


_AFTER_CANDIDATES = {"NonMaxSuppression": "suppression", "RoiAlign": "a second stage"}


def choose_format(
    plain: PlainModel, metadata: Mapping[str, str], name: DetectorFormat | None, is_stated: bool
) -> Format | None:
    """Choose the format of a detector's outputs; None of a network that is no detector.

    Args:
        plain: the model.
        metadata: of its file.
        name: the format as the user states it.
        is_stated: whether the user says that it is a detector.

    Raises:
        ExportError: the outputs have not the format that was named, or several it could be.
    """
    if name is not None:
        why = FORMATS[name].refuse(plain)
        if why is not None:
            raise ExportError(f"the model is no detector of the format {name}: {why}")
        return FORMATS[name]
    found = _recognise(plain, metadata)
    if found is None:
        _refuse_suppressed(plain)
    if found is None and (is_stated or metadata.get("task") == "detect"):
        fitting = [other for other, each in FORMATS.items() if each.refuse(plain) is None]
        raise ExportError(
            "nothing proves the format of this detector's outputs: name it with --format, of: "
            f"{', '.join(fitting or FORMATS)}"
            + ("" if fitting else ". By their shapes its outputs have none of them")
        )
    return None if found is None else FORMATS[found]


def _refuse_suppressed(plain: PlainModel) -> None:
    """Refuse a detector whose outputs are no candidates, but what its graph keeps of them.

    Raises:
        ExportError: its outputs come after suppression, or after a second stage.
    """
    for node in plain.graph:
        after = _AFTER_CANDIDATES.get(node.op_type)
        if after is not None:
            raise ExportError(
                f"the model is a detector, and its outputs come after {after} (the node "
                f"'{node.name}', {node.op_type}), which cannot be explained: export it up to the "
                "scores and boxes of all candidates; whycam adds suppression itself"
            )


def _recognise(plain: PlainModel, metadata: Mapping[str, str]) -> DetectorFormat | None:
    names = {value.name for value in plain.graph.outputs}
    if {"logits", "pred_boxes"} <= names and FORMATS["detr"].refuse(plain) is None:
        return "detr"
    if FORMATS["picodet"].refuse(plain) is None:
        return "picodet"
    dims = single_output(plain)
    if dims is None:
        return None
    rows, columns = dims[1:]
    assert isinstance(rows, int)
    assert isinstance(columns, int)
    says_detector = metadata.get("task") == "detect"
    is_dense = any(find_strides(plain.size, rows, anchors) for anchors in (1, 3))
    if says_detector and columns == 6 and not is_dense:
        return "yolov10"
    if rows >= 5 and find_strides(plain.size, columns, 1) is not None:
        return "yolov8"
    of_anchors = find_strides(plain.size, rows, 3) is not None
    if columns < 5 or not (of_anchors or find_strides(plain.size, rows, 1)):
        return None
    end = open_head_end(plain, plain.graph.outputs[0], 2)
    if columns == 5 or (end is not None and find_objectness(end) == "class"):
        return "yolov8"
    return "yolov5" if of_anchors else "yolox"


def default_preprocess(found: Format, plain: PlainModel) -> Preprocess | None:
    """Describe how images are usually fitted in for a format; None where nothing is usual."""
    if found.letterbox is None or plain.channels != 3:
        return None
    takes_pixels = plain.image.dtype == ir.DataType.UINT8
    return Preprocess(
        plain.size,
        (),
        antialias=False,
        letterbox=found.letterbox,
        color=found.color,
        mean=(0.0,) * 3,
        std=(1 / 255 if takes_pixels else found.std,) * 3,
    )
