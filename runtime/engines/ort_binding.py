"""Runs an ONNX Runtime session with inputs and outputs in a device's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunks import Arrays

# Buffers are kept for so many batch sizes: an explanation has one, its sweep another.
_SHAPES = 4
_Shape = tuple[int, ...]


class BoundSession:
    """A session whose inputs and outputs are bound to memory of a device.

    Only the outputs asked for leave the device, and buffers stay for the next run of the same
    shape. Safe to call from several threads: each run has buffers of its own.

    Args:
        library: the module onnxruntime.
        session: its session.
        shapes: from the inputs to the outputs' shapes without the batch; None where it is the
            number of classes explained.
        classes: that number, or the input that has one column for each class.
        device: ``cuda``, or ``cpu``, as ONNX Runtime calls it.
        index: of the device.
    """

    def __init__(
        self,
        library: Any,
        session: Any,
        shapes: Callable[[Arrays], Mapping[str, tuple[int | None, ...]]],
        classes: int | str,
        device: str,
        index: int = 0,
    ) -> None:
        self._library = library
        self._session = session
        self._shapes = shapes
        self._classes = classes
        self._device, self._index = device, index
        self._types = {
            node.name: _TYPES[node.type]
            for node in (*session.get_inputs(), *session.get_outputs())
            if node.type in _TYPES  # outputs of the file's own may be of any type
        }
        self._idle: list[_Buffers] = []

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``engine.Engine.run``; shapes are not checked here."""
        try:
            buffers = self._idle.pop()
        except IndexError:
            buffers = _Buffers(self)
        count = len(next(iter(feeds.values())))
        explained = self._classes
        classes = explained if isinstance(explained, int) else feeds[explained].shape[1]
        shapes = self._shapes(feeds)
        binding = self._session.io_binding()
        for name, values in feeds.items():
            # Never a view of the caller's array, which the next run would overwrite.
            held = buffers.held(name, values.shape)
            held.update_inplace(np.ascontiguousarray(values))
            binding.bind_ortvalue_input(name, held)
        for name in outputs:
            sides = (classes if side is None else side for side in shapes[name])
            binding.bind_ortvalue_output(name, buffers.held(name, (count, *sides)))
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        found = {
            name: np.array(value.numpy())  # in the host's memory it is the buffer itself
            for name, value in zip(outputs, binding.get_outputs(), strict=True)
        }
        self._idle.append(buffers)  # after an error they are given up
        return found

    def allocate(self, name: str, shape: _Shape) -> Any:
        """Allocate a tensor for an input or output in the device's memory."""
        return self._library.OrtValue.ortvalue_from_shape_and_type(
            shape, self._types[name], self._device, self._index
        )


class _Buffers:
    """Tensors of one caller by name and shape; the least recently used go."""

    def __init__(self, session: BoundSession) -> None:
        self._session = session
        self._held: dict[str, dict[_Shape, Any]] = {}

    def held(self, name: str, shape: _Shape) -> Any:
        of_name = self._held.setdefault(name, {})
        found = of_name.pop(shape, None)
        if found is None:
            if len(of_name) >= _SHAPES:
                del of_name[next(iter(of_name))]
            found = self._session.allocate(name, shape)
        of_name[shape] = found  # now the latest
        return found


_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
}
