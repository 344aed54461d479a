"""YOLO 10 and 26, end to end: [N, A, 6], corners in pixels, score, class, unsuppressed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.errors import ExportError
from ...runtime.input_format import Letterbox
from ..plain_model import PlainModel
from .format import Candidates, Format
from .grids import single_output
from .reading import Reading

_CROSSED = 0.05  # share of boxes whose edges may be


def _refuse(plain: PlainModel) -> str | None:
    dims = single_output(plain)
    return None if dims is not None and dims[2] == 6 else "its first output is not [N, A, 6]"


def _read(reading: Reading) -> Candidates:
    if not reading.labels:
        raise ExportError(
            "the file gives each box one class by its number, and not how many there are: add "
            "--labels"
        )
    value = reading.plain.graph.outputs[0]
    _check_rows(reading.sample(value), len(reading.labels))
    output = reading.output(value)
    boxes, score = reading.take(output, 2, 0, 4), reading.take(output, 2, 4, 5)
    index = reading.take(output, 2, 5, 6).cast(ir.DataType.INT64)
    every = reading.recorder.xp.arange(len(reading.labels))
    scores = score * (index == every).cast(ir.DataType.FLOAT)
    return Candidates(scores, boxes, scores)


def _check_rows(rows: NDArray[Any], classes: int) -> None:
    """Refuse rows [N, A, 6] that are no corners, score and class number, on random images.

    Raises:
        ExportError: they are none, as those of other formats with six numbers.
    """
    scores, numbers = rows[..., 4], rows[..., 5]
    crossed = float((rows[..., 2:4] < rows[..., 0:2]).mean())
    if not np.array_equal(numbers, np.round(numbers)) or numbers.min() < 0:
        why = f"the sixth number of a row is no class, as {numbers.flat[0]:.4g}"
    elif numbers.max() >= classes:
        why = f"there are {classes} labels, and a class has the number {numbers.max():.0f}"
    elif scores.min() < 0 or scores.max() > 1:
        why = f"the fifth number of a row is no score from 0 to 1, as {scores.max():.4g}"
    elif crossed > _CROSSED:
        why = f"{crossed:.0%} of the boxes have edges that are crossed"
    else:
        return
    raise ExportError(
        f"the outputs are not those of the format yolov10 (corners, score, class): {why}. Name the "
        "right format with --format, or all classes with --labels"
    )


FORMAT = Format("yolov10", None, _refuse, _read, Letterbox())
