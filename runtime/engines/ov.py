"""Run graphs in OpenVINO, on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, MissingExtraError, ModelFileError
from ..files import writable_folder
from ..manifest import INPUTS, Manifest
from ..place_weights import REGION
from ..prompts import EXAMPLES
from .base import EngineSettings
from .chunks import Arrays, Outputs, run_in_chunks
from .interface import (
    check_interface,
    first_parts,
    graph_name,
    needed_outputs,
    pad_batch,
    parts_needed,
    rename_to_contract,
    run_graph,
    surplus_outputs,
)

# Networks compiled for one shape run up to twice as fast as for any (depthwise convolutions in
# bf16), but each compiled network holds its weights again. Further shapes share one that takes any;
# of a quantised file, which OpenVINO compiles wrongly for any shape on processors without VNNI
# (2026.4), the shape used longest ago makes room.
_SHAPES = 4
# A batch is filled up to a shape that is compiled already if at most this part of it is waste; more
# where no further shape may be compiled.
_WASTE, _WASTE_AT_LAST = 0.25, 0.5
# Of image, target and class embeddings; () where it has none.
# The inputs whose shapes tell compiled models apart; a region has the batch of the image.
_SHAPED = ("image", "target", "class_embeddings")
_Shape = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@cache
def core() -> Any:
    """Create OpenVINO's core, one for the process.

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
        """Translate the settings to OpenVINO's properties."""
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
            writable_folder(settings.cache)
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
        return run_graph(self._run, feeds, outputs, self._manifest)

    def _run(self, feeds: Arrays, outputs: Sequence[str]) -> Outputs:
        part = self._part(parts_needed(outputs, self._manifest))
        count = len(feeds["image"])
        divides = self._divides and self._manifest.batch is None
        size = -(-count // part.streams) if divides else count
        if size == count:
            return part.run(feeds, outputs)
        with ThreadPoolExecutor(part.streams) as pool:
            return run_in_chunks(
                lambda each: part.run(each, outputs), feeds, self._manifest, size, mapper=pool.map
            )


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
        """Compile for one image of fixed size, or for any size."""
        shape = self._manifest.image_shape
        if None in shape and self._takes_any:
            self._for(None)
            return
        if None in shape:
            shape = self._manifest.at(None).image_shape
        height, width = self._manifest.preprocess.size
        example = (height, width, 3) if None in shape else shape
        batch = self._manifest.batch or 1
        pair = () if self._manifest.detector is None else (2,)
        target = (batch, 1, *pair) if self._manifest.top is None else ()
        length = self._manifest.class_embeddings
        embeddings = () if length is None else (EXAMPLES, length)
        self._for(((batch, *(side or 1 for side in example)), target, embeddings))

    @property
    def streams(self) -> int:
        """Choose how many runs at once use the processor best."""
        with self._lock:
            return next((each.streams for each in self._compiled.values()), 1)

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> Outputs:
        """Run one batch."""
        count = len(feeds["image"])
        target = feeds["target"].shape if "target" in feeds else ()
        embeddings = feeds["class_embeddings"].shape if "class_embeddings" in feeds else ()
        shape = self._shape_for((feeds["image"].shape, target, embeddings))
        size = count if shape is None else shape[0][0]
        fed = {
            name: values if name == "class_embeddings" else pad_batch(values, size)
            for name, values in feeds.items()
        }
        found = rename_to_contract(self._for(shape).run, self._manifest)(fed, outputs)
        return {name: values[:count] for name, values in found.items()}

    def _shape_for(self, wanted: _Shape) -> _Shape | None:
        """Choose the compiled shape to use, possibly with a larger batch; None: any shape."""
        image, target, embeddings = wanted
        with self._lock:
            known = [shape for shape in self._compiled if shape is not None]
        larger = sorted(
            shape
            for shape in known
            if (shape[0][1:], shape[1][1:], shape[2]) == (image[1:], target[1:], embeddings)
            and image[0] <= shape[0][0]
        )
        room = len(known) < _SHAPES
        if larger and image[0] >= larger[0][0][0] * (1 - (_WASTE if room else _WASTE_AT_LAST)):
            return larger[0]
        return wanted if room or not self._takes_any else None

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
            self._cut(model)
            if shape is not None:
                shapes = dict(zip(_SHAPED, shape, strict=True))
                if self._manifest.region is not None:
                    shapes[REGION] = (shape[0][0], *self._manifest.region)
                model.reshape(
                    {graph_name(name, self._manifest): list(s) for name, s in shapes.items() if s}
                )
            return _Compiled(self._core.compile_model(model, "CPU", self._properties))
        except (RuntimeError, UnicodeDecodeError) as error:  # it quotes names that are no text
            raise ModelFileError(f"OpenVINO cannot load {self._path}: {_said(error)}") from error

    def _cut(self, model: Any) -> None:
        """Remove the outputs that are not needed."""
        surplus = surplus_outputs(self._needed, self._manifest)
        needed = needed_outputs(self._needed, self._manifest)
        for result in list(model.get_results()):
            names = result.output(0).get_names()
            # One tensor may be an output of two names.
            if surplus.intersection(names) and needed.isdisjoint(names):
                model.remove_result(result)

    def _check(self, model: Any) -> None:
        inputs = {
            _input_name(port, self._manifest): (
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


def _input_name(port: Any, manifest: Manifest) -> str:
    """Return the name that the manifest uses for an input that has several."""
    names: set[str] = port.get_names()
    known = names.intersection(graph_name(name, manifest) for name in INPUTS)
    return known.pop() if known else str(port.get_any_name())


def _said(error: Exception) -> str:
    """Extract what went wrong, without the source lines that OpenVINO's messages begin with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    return said[0] if said else str(error)
