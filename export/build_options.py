"""Check and complete the options of a TensorRT build before anything is built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ..runtime.detection_plan import DETECTIONS
from ..runtime.engines import cuda
from ..runtime.engines.cuda import Device
from ..runtime.engines.interface import graph_name
from ..runtime.engines.plan import Library, Range
from ..runtime.engines.trt_load import import_library
from ..runtime.errors import EngineError, ModelFileError, OutputError, RequestError
from ..runtime.manifest import FilePrecision, Manifest
from ..runtime.onnxfile import digest, read_manifest
from ..runtime.place_weights import REGION
from .plan_builder import Shape, list_capabilities

LIBRARIES: tuple[Library, ...] = ("tensorrt-rtx", "tensorrt")
PRECISIONS: tuple[FilePrecision, ...] = ("fp32", "fp16", "bf16", "int8")
COMPUTE = ("8.6", "8.9", "12.0")  # Ampere, Ada and Blackwell GPUs of workstations
TURING = "7.5"
PROMPTS = Range(1, 8, 256)
SOURCE_SIZES = (Range(32, 480, 1088), Range(32, 640, 1920))


def read_checked_manifest(model: str | os.PathLike[str]) -> Manifest:
    """Read a file's manifest and check that its graph is still the one that was verified.

    Raises:
        ModelFileError: the file is missing, damaged, not made by whycam, or was changed.
    """
    manifest = read_manifest(model)
    actual = digest(model)
    if actual != manifest.digest:
        raise ModelFileError(
            f"{os.fspath(model)} was changed after its manifest was written ({actual[:19]}... is "
            f"not {manifest.digest[:19]}...), so it is no longer verified. Export it again"
        )
    return manifest


def choose_precision(
    model: str | os.PathLike[str], manifest: Manifest, requested: FilePrecision | None
) -> FilePrecision:
    """Choose the precision to build in: the file's, or one that it can be converted to.

    Raises:
        RequestError: the file cannot be built in that precision.
    """
    name, present = os.fspath(model), manifest.precision
    if requested is None or requested == present:
        return present
    if requested not in PRECISIONS:
        raise RequestError(f"precision must be {' or '.join(PRECISIONS)}, not '{requested}'")
    if requested == "int8":
        raise RequestError(
            f"{name} is {present}, and INT8 needs images to calibrate on. Calibrate it, and build "
            f"that file: whycam calibrate int8 {name if present == 'fp32' else 'FLOAT.onnx'} "
            "IMAGES -o INT8.onnx"
        )
    if present != "fp32":
        raise RequestError(
            f"{name} is {present}, so it cannot be built in {requested}: build it as it "
            "is, or from the float file"
        )
    return requested


def check_suppression(manifest: Manifest) -> None:
    """Refuse a detector's graph that suppresses duplicates itself.

    Raises:
        RequestError: it does, by an operator that TensorRT-RTX does not have.
    """
    if manifest.detector is not None and manifest.detector.ranks:
        raise RequestError(
            f"{manifest.model}'s graph chooses the best detections itself, by NonMaxSuppression, "
            "which no plan has: export the detector again with --explicit-targets, which leaves "
            "that to the runtime"
        )


def check_plan_path(target: Path, model: str | os.PathLike[str]) -> None:
    """Refuse a plan's path that is the model's, or has the suffix of another kind of file.

    Raises:
        RequestError: it is such a path.
    """
    if target.suffix.lower() in (".onnx", ".json"):
        raise RequestError(f"a plan is not a {target.suffix} file: name it FILE.plan, not {target}")
    if target.resolve() == Path(model).resolve():
        raise RequestError(f"{target} is the model file itself: write the plan elsewhere")


@dataclass(frozen=True)
class Sizes:
    """The ranges of a graph's dynamic sizes; None where a size is fixed."""

    batch: Range
    classes: Range
    height: Range | None
    width: Range | None
    prompts: Range | None = None

    def shapes(self, manifest: Manifest) -> dict[str, tuple[Shape, Shape, Shape]]:
        """List the least, the optimal and the largest shape of each input."""
        n, k = self.batch, self.classes
        sides = [manifest.image_shape] * 3
        if self.height is not None and self.width is not None:
            h, w = self.height, self.width
            extremes = (h.least, w.least), (h.best, w.best), (h.most, w.most)
            if manifest.embedded_preprocess:
                sides = [(*size, 3) for size in extremes]
            else:
                sides = [manifest.at(size).image_shape for size in extremes]
        least, best, most = cast(list[Shape], sides)
        shapes = {
            graph_name("image", manifest): ((n.least, *least), (n.best, *best), (n.most, *most))
        }
        if manifest.top is None:
            pair = () if manifest.detector is None else (2,)
            shapes[graph_name("target", manifest)] = (
                (n.least, k.least, *pair),
                (n.best, k.best, *pair),
                (n.most, k.most, *pair),
            )
        if manifest.region is not None:
            places = manifest.region
            of_region = (n.least, *places), (n.best, *places), (n.most, *places)
            shapes[graph_name(REGION, manifest)] = of_region
        if self.prompts is not None and manifest.class_embeddings is not None:
            length, c = manifest.class_embeddings, self.prompts
            ranges = (c.least, length), (c.best, length), (c.most, length)
            shapes[graph_name("class_embeddings", manifest)] = ranges
        return shapes


def choose_sizes(
    manifest: Manifest,
    batch: Range | None,
    classes: Range | None,
    source_size: tuple[Range, Range] | None,
    prompts: Range | None = None,
) -> Sizes:
    """Choose the ranges of dynamic sizes: those requested, else the defaults.

    Raises:
        RequestError: the model does not take such sizes.
    """
    # A threshold sweep runs each image ten more times for each class.
    sweeps = "tft" in manifest.outputs
    n = batch or Range(1, 1, 4 if sweeps else 16)
    k = classes or Range(1, 1, 1 if sweeps else min(5, manifest.num_classes))
    if manifest.detector is not None and classes is None:
        k = Range(1, 1, min(DETECTIONS, manifest.detector.candidates))
    if manifest.class_embeddings is not None:
        prompts = prompts or PROMPTS
    elif prompts is not None:
        raise RequestError(
            f"a range of prompts is for files exported with --classes input; {manifest.model} has "
            f"{manifest.num_classes} classes of its own"
        )
    most = manifest.num_classes if prompts is None else prompts.most
    if manifest.detector is not None:
        most = manifest.detector.candidates
        if k.most > most:
            raise RequestError(f"{k.most} detections of {most} candidates cannot be explained")
    if k.most > most:
        raise RequestError(f"{k.most} classes cannot be explained at once: the model has {most}")
    free = manifest.dynamic_size
    if free is not None and source_size is None:
        height, width = (Range(free.least, usual, free.most) for usual in manifest.preprocess.size)
        return Sizes(n, k, height, width, prompts)
    if free is None and None in manifest.image_shape:
        return Sizes(n, k, *(source_size or SOURCE_SIZES), prompts)
    if source_size is not None and free is not None:
        for sides in source_size:
            if not free.allows((sides.least, sides.most)) or sides.best % free.step:
                raise RequestError(
                    f"this graph takes heights and widths from {free.least} to {free.most} pixels "
                    f"in multiples of {free.step}, not {sides.least} to {sides.most}, best "
                    f"{sides.best}"
                )
        return Sizes(n, k, *source_size, prompts)
    if source_size is not None:
        shape = "x".join(map(str, manifest.image_shape))
        raise RequestError(
            "a range of source sizes is for graphs that take images of any size (whycam export "
            f"--embed-preprocess or --dynamic-size); this one takes {shape} only"
        )
    return Sizes(n, k, None, None, prompts)


def choose_capabilities(
    library: Library, requested: Sequence[str] | None, precision: FilePrecision
) -> tuple[str, ...]:
    """Choose the compute capabilities to build for; none for a library that builds on its GPU.

    Raises:
        RequestError: the library cannot build for one of them.
        MissingExtraError: it is not installed.
    """
    if library not in LIBRARIES:
        raise RequestError(f"a plan is built by {' or '.join(LIBRARIES)}, not '{library}'")
    if library == "tensorrt":
        if requested:
            raise RequestError(
                "tensorrt builds for the GPU that it runs on, and for no other: leave out the "
                "compute capabilities, or build with tensorrt-rtx"
            )
        return ()
    capabilities = tuple(dict.fromkeys(COMPUTE if requested is None else requested))
    known = list_capabilities(import_library(library, "whycam build"))
    unknown = [capability for capability in capabilities if capability not in known]
    if unknown or not capabilities:
        raise RequestError(
            f"tensorrt-rtx has no target for {', '.join(unknown) or 'nothing'}; it builds for "
            f"{', '.join(known)}. For Jetson (8.7), servers (9.0) and others build with plain "
            "TensorRT, on the machine that runs the plan: whycam build --engine tensorrt"
        )
    if precision == "bf16" and TURING in capabilities:
        raise RequestError("GPUs of 7.5 (Turing) have no bf16: build for them in fp16")
    return capabilities


def find_build_device(library: Library) -> Device | None:
    """Find the GPU that a plan is built on; None for plans that are built ahead of time.

    Raises:
        EngineError: the library needs a GPU and there is none.
    """
    if library != "tensorrt":
        return None
    try:
        return cuda.find_device(0)
    except EngineError as error:
        raise EngineError(
            "tensorrt builds a plan on the GPU that will run it, and none can be used here "
            f"({error}). Build on that machine, or ahead of time for RTX GPUs: whycam build "
            "--engine tensorrt-rtx"
        ) from error


def read_timing_cache(library: Library, path: str | os.PathLike[str] | None) -> bytes | None:
    """Read a timing cache; empty if the file does not exist, None if no cache was requested.

    Raises:
        RequestError: the library has no timing cache.
        OutputError: it cannot be read.
    """
    if path is None:
        return None
    if library != "tensorrt":
        raise RequestError(
            "tensorrt-rtx has no timing cache, for it times no kernels while building: leave it out"
        )
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise OutputError(f"cannot read the timing cache {path}: {error.strerror}") from error
