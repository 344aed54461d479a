"""What a build is asked for, checked before anything is built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ..runtime.engines import cuda
from ..runtime.engines.cuda import Device
from ..runtime.engines.interface import graph_name
from ..runtime.engines.plan import Library, Range
from ..runtime.engines.trt_load import import_library
from ..runtime.errors import EngineError, ModelFileError, OutputError, RequestError
from ..runtime.manifest import FilePrecision, Manifest
from ..runtime.onnxfile import digest, read_manifest
from .plan_builder import Shape, list_capabilities

LIBRARIES: tuple[Library, ...] = ("tensorrt-rtx", "tensorrt")
PRECISIONS: tuple[FilePrecision, ...] = ("fp32", "fp16", "bf16", "int8")
COMPUTE = ("8.6", "8.9", "12.0")  # Ampere, Ada and Blackwell as people have them
TURING = "7.5"
SOURCE_SIZES = (Range(32, 480, 1088), Range(32, 640, 1920))


def read_checked_manifest(model: str | os.PathLike[str]) -> Manifest:
    """The manifest of a file whose graph is still the one that was checked.

    Raises:
        ModelFileError: the file is missing, damaged, foreign, or was changed.
    """
    manifest = read_manifest(model)
    found = digest(model)
    if found != manifest.digest:
        raise ModelFileError(
            f"{os.fspath(model)} was changed after its manifest was written ({found[:19]}... is "
            f"not {manifest.digest[:19]}...): what it computes is not what was checked. Export it "
            "again"
        )
    return manifest


def choose_precision(
    model: str | os.PathLike[str], manifest: Manifest, wanted: FilePrecision | None
) -> FilePrecision:
    """The precision to build in, which the file has or can be converted to.

    Raises:
        RequestError: neither.
    """
    name, own = os.fspath(model), manifest.precision
    if wanted is None or wanted == own:
        return own
    if wanted not in PRECISIONS:
        raise RequestError(f"precision must be {' or '.join(PRECISIONS)}, not '{wanted}'")
    if wanted == "int8":
        raise RequestError(
            f"{name} is {own}: INT8 takes photographs to calibrate on. Make the INT8 file first, "
            f"and build that: whycam calibrate int8 {name if own == 'fp32' else 'FLOAT.onnx'} "
            "PHOTOGRAPHS -o INT8.onnx"
        )
    if own != "fp32":
        raise RequestError(
            f"{name} is {own}, so it cannot be built in {wanted}: build it as it "
            "is, or from the float file"
        )
    return wanted


def check_plan_path(target: Path, model: str | os.PathLike[str]) -> None:
    """A plan must have a place and a name of its own.

    Raises:
        RequestError: it has not.
    """
    if target.suffix.lower() in (".onnx", ".json"):
        raise RequestError(f"a plan is no {target.suffix} file: name it FILE.plan, not {target}")
    if target.resolve() == Path(model).resolve():
        raise RequestError(f"{target} is the model file itself: write the plan elsewhere")


@dataclass(frozen=True)
class Sizes:
    """What is free in a graph's inputs; heights and widths are None where the images' are fixed."""

    batch: Range
    classes: Range
    height: Range | None
    width: Range | None

    def shapes(self, manifest: Manifest) -> dict[str, tuple[Shape, Shape, Shape]]:
        """Of each input: the least, the best, the most."""
        n, k = self.batch, self.classes
        sides = cast(tuple[Shape, Shape, Shape], (manifest.image_shape,) * 3)
        if self.height is not None and self.width is not None:
            h, w = self.height, self.width
            sides = (h.least, w.least, 3), (h.best, w.best, 3), (h.most, w.most, 3)
        least, best, most = sides
        found = {
            graph_name("image", manifest): ((n.least, *least), (n.best, *best), (n.most, *most))
        }
        if manifest.top is None:
            classes = ((n.least, k.least), (n.best, k.best), (n.most, k.most))
            found[graph_name("target", manifest)] = classes
        return found


def choose_sizes(
    manifest: Manifest,
    batch: Range | None,
    classes: Range | None,
    source_size: tuple[Range, Range] | None,
) -> Sizes:
    """What is asked for, or the defaults.

    Raises:
        RequestError: the model does not have it.
    """
    # A graph that sweeps runs each image ten times more for each class.
    sweeps = "tft" in manifest.outputs
    n = batch or Range(1, 1, 4 if sweeps else 16)
    k = classes or Range(1, 1, 1 if sweeps else min(5, manifest.num_classes))
    if k.most > manifest.num_classes:
        raise RequestError(
            f"{k.most} classes cannot be explained at once: the model has {manifest.num_classes}"
        )
    if None in manifest.image_shape:
        return Sizes(n, k, *(source_size or SOURCE_SIZES))
    if source_size is not None:
        taken = "x".join(map(str, manifest.image_shape))
        raise RequestError(
            "a range of source sizes is for graphs that take images of any size (whycam export "
            f"--embed-preprocess); this one takes {taken} alone"
        )
    return Sizes(n, k, None, None)


def choose_capabilities(
    library: Library, wanted: Sequence[str] | None, precision: FilePrecision
) -> tuple[str, ...]:
    """The capabilities to build for; none for a library that builds on the spot.

    Raises:
        RequestError: the library has no such target.
        MissingExtraError: it is not installed.
    """
    if library not in LIBRARIES:
        raise RequestError(f"a plan is built by {' or '.join(LIBRARIES)}, not '{library}'")
    if library == "tensorrt":
        if wanted:
            raise RequestError(
                "tensorrt builds for the GPU that it runs on, and for no other: leave out the "
                "compute capabilities, or build with tensorrt-rtx"
            )
        return ()
    found = tuple(dict.fromkeys(COMPUTE if wanted is None else wanted))
    known = list_capabilities(import_library(library, "whycam build"))
    unknown = [each for each in found if each not in known]
    if unknown or not found:
        raise RequestError(
            f"tensorrt-rtx has no target for {', '.join(unknown) or 'nothing'}; it builds for "
            f"{', '.join(known)}. For Jetson (8.7), servers (9.0) and others build with plain "
            "TensorRT, on the machine that runs the plan: whycam build --engine tensorrt"
        )
    if precision == "bf16" and TURING in found:
        raise RequestError("GPUs of 7.5 (Turing) have no bf16: build for them in fp16")
    return found


def find_build_device(library: Library) -> Device | None:
    """The GPU that a plan is built on; None for one that is built ahead of time.

    Raises:
        EngineError: it takes one, and there is none.
    """
    if library != "tensorrt":
        return None
    try:
        return cuda.device(0)
    except EngineError as error:
        raise EngineError(
            "tensorrt builds a plan on the GPU that will run it, and none can be used here "
            f"({error}). Build on that machine, or ahead of time for RTX GPUs: whycam build "
            "--engine tensorrt-rtx"
        ) from error


def read_timing_cache(library: Library, path: str | os.PathLike[str] | None) -> bytes | None:
    """A timing cache to begin with, empty if there is none yet; None if none is wanted.

    Raises:
        RequestError: the library has no use for it.
        OutputError: it cannot be read.
    """
    if path is None:
        return None
    if library != "tensorrt":
        raise RequestError(
            "tensorrt-rtx times nothing while it builds, so it has no timing cache: leave it out"
        )
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise OutputError(f"cannot read the timing cache {path}: {error.strerror}") from error
