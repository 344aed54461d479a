"""Run a model as it was before the export, to compare the explaining file with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..runtime.errors import ExportError
from .plain_model import PlainModel
from .subgraph import open_model_session, open_session, submodel

_LATEST_IR_VERSION = 10  # that every supported ONNX Runtime reads


class OriginalModel:
    """The user's file in ONNX Runtime; for a PyTorch model, the graph that PyTorch wrote.

    Attributes:
        names: of its outputs, in order.
        batch: the number of images that it takes; None: any.
    """

    def __init__(self, plain: PlainModel, file: Path | bytes | None) -> None:
        """Open it from the file, for ``plain`` is a conversion that is verified as well.

        Raises:
            ExportError: ONNX Runtime cannot run it.
        """
        self._file = file
        self._precision = plain.shapes.precision
        self.names = tuple(str(value.name) for value in plain.graph.outputs)
        self._image = str(plain.image.name)
        # Copied now, before the export adds to the graph.
        self._graph = (
            submodel(plain.graph, [plain.image], list(plain.graph.outputs), plain.shapes)
            if file is None
            else None
        )
        self._session = self._open(is_fused=True)
        self._unfused: Any = None
        shape = next(x.shape for x in self._session.get_inputs() if x.name == self._image)
        self.batch = shape[0] if isinstance(shape[0], int) else None

    def run(self, image: NDArray[Any]) -> list[NDArray[Any]]:
        """Compute its outputs for a batch of images as its input takes them."""
        return self._run_session(self._session, image)

    def run_unfused(self, image: NDArray[Any]) -> list[NDArray[Any]]:
        """Compute its outputs without operator fusion, to measure what fusion changes."""
        if self._unfused is None:
            self._unfused = self._open(is_fused=False)
        return self._run_session(self._unfused, image)

    def _open(self, is_fused: bool) -> Any:
        if self._graph is not None:
            return open_model_session(self._graph, self._precision, is_fused=is_fused)
        assert self._file is not None
        source = self._file if isinstance(self._file, bytes) else str(self._file)
        try:
            return open_session(source, self._precision, is_fused=is_fused)
        except ExportError:
            # A newer ONNX wrote the file than this ONNX Runtime reads; the operators may be older.
            if isinstance(source, bytes):
                proto = onnx.load_from_string(source)
            else:
                proto = onnx.load(source)
            if proto.ir_version <= _LATEST_IR_VERSION:
                raise
            proto.ir_version = _LATEST_IR_VERSION
            return open_session(proto.SerializeToString(), self._precision, is_fused=is_fused)

    def _run_session(self, session: Any, image: NDArray[Any]) -> list[NDArray[Any]]:
        names = list(self.names)
        if self.batch is None:
            return list(session.run(names, {self._image: image}))
        # A fixed batch size is filled up with the last image.
        starts = range(0, len(image), self.batch)
        rows = [np.arange(start, start + self.batch).clip(max=len(image) - 1) for start in starts]
        parts = [session.run(names, {self._image: image[row]}) for row in rows]
        return [np.concatenate(part)[: len(image)] for part in zip(*parts, strict=True)]
