"""Run a model as it was before anything was done to it, to hold its explaining file against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..runtime.errors import ExportError
from .plain_model import PlainModel
from .subgraph import open_session, session_of, submodel

_LATEST_IR_VERSION = 10  # that every supported ONNX Runtime reads


class OriginalModel:
    """The user's own file in ONNX Runtime; for a PyTorch model, the graph that PyTorch wrote.

    Attributes:
        names: its outputs, in order.
    """

    def __init__(self, plain: PlainModel, file: Path | None) -> None:
        """Open it. The file is read anew, for ``plain`` was converted and is judged as well.

        Raises:
            ExportError: ONNX Runtime cannot run it.
        """
        self._file = file
        self.names = tuple(str(value.name) for value in plain.graph.outputs)
        self._image = str(plain.image.name)
        # Taken now: later the graph holds what was added to it.
        self._graph = (
            submodel(plain.graph, [plain.image], list(plain.graph.outputs), plain.shapes)
            if file is None
            else None
        )
        self._session = self._open(is_fused=True)
        self._unfused: Any = None
        shape = next(x.shape for x in self._session.get_inputs() if x.name == self._image)
        self._batch = shape[0] if isinstance(shape[0], int) else None

    def outputs(self, image: NDArray[Any]) -> list[NDArray[Any]]:
        """What it gives out for a batch of images as its input takes them."""
        return self._run(self._session, image)

    def unfused(self, image: NDArray[Any]) -> list[NDArray[Any]]:
        """The same with every operator computed by itself: how much fusing changes in this file."""
        if self._unfused is None:
            self._unfused = self._open(is_fused=False)
        return self._run(self._unfused, image)

    def _open(self, is_fused: bool) -> Any:
        if self._graph is not None:
            return session_of(self._graph, is_fused=is_fused)
        assert self._file is not None
        try:
            return open_session(str(self._file), is_fused=is_fused)
        except ExportError:
            # Written by a newer ONNX than this ONNX Runtime knows; its operators may be older.
            proto = onnx.load(str(self._file))
            if proto.ir_version <= _LATEST_IR_VERSION:
                raise
            proto.ir_version = _LATEST_IR_VERSION
            return open_session(proto.SerializeToString(), is_fused=is_fused)

    def _run(self, session: Any, image: NDArray[Any]) -> list[NDArray[Any]]:
        names = list(self.names)
        if self._batch is None:
            return list(session.run(names, {self._image: image}))
        # A batch of fixed size is filled up with the last image.
        starts = range(0, len(image), self._batch)
        rows = [np.arange(start, start + self._batch).clip(max=len(image) - 1) for start in starts]
        parts = [session.run(names, {self._image: image[each]}) for each in rows]
        return [np.concatenate(each)[: len(image)] for each in zip(*parts, strict=True)]
