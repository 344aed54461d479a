"""The engine OpenVINO, on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, MissingExtraError, ModelFileError
from ..files import writable
from ..manifest import Manifest
from .engine import Arrays, EngineSettings
from .interface import (
    check_feeds,
    check_found,
    check_interface,
    first_parts,
    outputs_without,
    parts_needed,
)

# Networks compiled for one shape run up to twice as fast as for any (depthwise convolutions in
# bf16), but each compiled network holds its weights again. Further shapes share one that takes any;
# of a quantised file, which OpenVINO compiles wrongly for any shape on processors without VNNI
# (2026.4), the shape used longest ago makes room.
_SHAPES = 4
# A batch is filled up to a shape that is compiled already if at most this part of it is waste; more
# where no further shape may be compiled.
_WASTE, _WASTE_AT_LAST = 0.25, 0.5
_Shape = tuple[tuple[int, ...], tuple[int, ...]]


@cache
def core() -> Any:
    """OpenVINO's entrance, one for the process, as long as it lives.

    Its CPU plugin gives the thread that loads it a stack for signals, and frees it when the last
    core goes (2026.4). On another thread than that, the first is left with a stack that is gone,
    and the next signal, as Ctrl-C, would end the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoEngine:
    """See ``engine.Engine``.

    OpenVINO computes everything a model declares, wanted or not. So each part of the graph that
    is asked for alone, classification above all, is compiled by itself, when first needed.
    """

    name = "openvino"

    def __init__(self, path: str, manifest: Manifest, settings: EngineSettings) -> None:
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError("openvino", "openvino", "the engine 'openvino'") from error
        self._core = core()
        self._path = path
        self._manifest = manifest
        self._properties = self._of(settings)
        self._divides = settings.hint == "throughput"
        self._parts: dict[frozenset[str], _Part] = {}
        self._lock = threading.Lock()
        version = openvino.__version__.split("-")[0]
        # What a file does not quantise is computed as asked.
        quantised = "" if manifest.precision == "fp32" else f"{manifest.precision} and "
        precision = quantised + settings.precision
        self.description = f"OpenVINO {version} on the CPU, {precision}"
        self.reason = "asked for"
        # Compiled now: a file that cannot be loaded should be known at once.
        self._part(first_parts(manifest)).prepare()

    def _of(self, settings: EngineSettings) -> dict[str, Any]:
        """OpenVINO's names for what is asked for."""
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if settings.precision == "bf16" and "BF16" not in able:
            raise EngineError(
                "this processor has no bf16 arithmetic (OpenVINO would only imitate it, slowly); "
                "use fp32, or an INT8 file: whycam calibrate int8"
            )
        found: dict[str, Any] = {
            # Said always: where a processor has bf16, OpenVINO would take it unasked.
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[settings.precision],
            "PERFORMANCE_HINT": settings.hint.upper(),
        }
        if settings.threads is not None:
            found["INFERENCE_NUM_THREADS"] = settings.threads
        if settings.cache is not None:
            writable(settings.cache)
            found["CACHE_DIR"] = settings.cache
        return found

    def _part(self, parts: frozenset[str]) -> _Part:
        with self._lock:
            if parts not in self._parts:
                self._parts[parts] = _Part(
                    self._core, self._path, self._manifest, parts, self._properties
                )
            return self._parts[parts]

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``engine.Engine.run``."""
        check_feeds(feeds, self._manifest)
        part = self._part(parts_needed(outputs, self._manifest))
        image, target = feeds["image"], feeds["target"]
        size = -(-len(image) // part.streams) if self._divides else len(image)
        if size == len(image):
            found = part.run(image, target, outputs)
        else:
            slices = [slice(start, start + size) for start in range(0, len(image), size)]
            with ThreadPoolExecutor(len(slices)) as pool:
                runs = list(pool.map(lambda s: part.run(image[s], target[s], outputs), slices))
            found = {name: np.concatenate([each[name] for each in runs]) for name in outputs}
        check_found(found, feeds, self._manifest)
        return found


class _Part:
    """One part of a graph, compiled for the shapes that come."""

    def __init__(
        self,
        core: Any,
        path: str,
        manifest: Manifest,
        parts: frozenset[str],
        properties: dict[str, Any],
    ) -> None:
        self._core = core
        self._path = path
        self._manifest = manifest
        self._needed = parts
        self._properties = properties
        self._takes_any = manifest.precision == "fp32"
        self._compiled: dict[_Shape | None, _Compiled] = {}  # used longest ago first
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Compile for one picture; if they have no one size, for any."""
        shape = self._manifest.image_shape
        if None in shape and self._takes_any:
            self._for(None)
            return
        height, width = self._manifest.preprocess.size
        example = (height, width, 3) if None in shape else shape
        self._for(((1, *(side or 1 for side in example)), (1, 1)))

    @property
    def streams(self) -> int:
        """How many runs at once use the processor best."""
        with self._lock:
            return next((each.streams for each in self._compiled.values()), 1)

    def run(
        self, image: NDArray[Any], target: NDArray[Any], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """One batch."""
        count = len(image)
        shape = self._shape_for(image.shape, target.shape)
        if shape is not None and shape[0][0] > count:
            image, target = _filled(image, shape[0][0]), _filled(target, shape[0][0])
        found = self._for(shape).run({"image": image, "target": target}, outputs)
        return {name: values[:count] for name, values in found.items()}

    def _shape_for(self, image: tuple[int, ...], target: tuple[int, ...]) -> _Shape | None:
        """The compiled shape to use, possibly with a larger batch; None: any."""
        with self._lock:
            known = [shape for shape in self._compiled if shape is not None]
        larger = sorted(
            shape
            for shape in known
            if (shape[0][1:], shape[1][1:]) == (image[1:], target[1:]) and image[0] <= shape[0][0]
        )
        room = len(known) < _SHAPES
        if larger and image[0] >= larger[0][0][0] * (1 - (_WASTE if room else _WASTE_AT_LAST)):
            return larger[0]
        return (image, target) if room or not self._takes_any else None

    def _for(self, shape: _Shape | None) -> _Compiled:
        with self._lock:
            found = self._compiled.pop(shape, None)
            if found is None:
                if not self._takes_any and len(self._compiled) >= _SHAPES:
                    del self._compiled[next(iter(self._compiled))]
                found = self._compile(shape)
            self._compiled[shape] = found  # now the latest
            return found

    def _compile(self, shape: _Shape | None) -> _Compiled:
        try:
            # Read again each time: kept, it would hold the weights once more.
            model = self._core.read_model(self._path)
            self._check(model)
            surplus = set(outputs_without(self._needed, self._manifest))
            for result in list(model.get_results()):
                if surplus.intersection(result.output(0).get_names()):
                    model.remove_result(result)
            if shape is not None:
                model.reshape({"image": list(shape[0]), "target": list(shape[1])})
            return _Compiled(self._core.compile_model(model, "CPU", self._properties))
        except (RuntimeError, UnicodeDecodeError) as error:  # it quotes names that are no text
            raise ModelFileError(f"OpenVINO cannot load {self._path}: {_said(error)}") from error

    def _check(self, model: Any) -> None:
        inputs = {
            port.get_any_name(): (
                port.get_element_type().to_dtype().name,
                [None if side.is_dynamic else side.get_length() for side in port.partial_shape],
            )
            for port in model.inputs
        }
        names = {name for port in model.outputs for name in port.get_names()}
        check_interface(self._path, self._manifest, inputs, names, self._needed)


class _Compiled:
    """A compiled model with as many infer requests as callers at once."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._idle: list[Any] = []
        self.streams = int(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        try:
            try:
                request = self._idle.pop()
            except IndexError:
                request = self._model.create_infer_request()
            # Inputs and outputs are the request's own memory for the time of the run.
            request.infer(dict(feeds), share_inputs=True, share_outputs=True)
            found = {name: np.array(request.get_tensor(name).data) for name in outputs}
        except Exception as error:
            raise EngineError(f"OpenVINO failed: {_said(error)}") from error
        self._idle.append(request)
        return found


def _filled(values: NDArray[Any], count: int) -> NDArray[Any]:
    """A batch with its last entry repeated."""
    return np.concatenate([values, np.repeat(values[-1:], count - len(values), axis=0)])


def _said(error: Exception) -> str:
    """What went wrong, without the places in OpenVINO's source that its messages begin with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    return said[0] if said else str(error)
