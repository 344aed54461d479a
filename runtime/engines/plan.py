"""Read and write the sidecar of a TensorRT plan: ``<plan>.json``, beside the plan.

trtexec and Triton read a plan as it is, so nothing may stand before or after its bytes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import ModelFileError
from ..files import write_json
from ..manifest import Manifest
from ..versioned import decode_versioned

VERSION = 1
Library = Literal["tensorrt", "tensorrt-rtx"]


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output, as read back from the network that was built.

    Attributes:
        name: as in the graph contract.
        dtype: ``float32``, ``int64`` or ``uint8``.
        shape: -1 where a side is free.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an optimisation profile allows of a free side, and what it is fastest at."""

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most:
            raise ValueError(f"{self.least}:{self.best}:{self.most} does not rise from 1 on")


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the runtime must know about a plan.

    Attributes:
        version: of this layout.
        manifest: of the ONNX file it was built from; ``manifest.digest`` is that file's, and
            ``manifest.precision`` that of the graph that was built.
        digest: ``sha256:`` of the plan.
        library: that built it and can run it.
        library_version: a plan runs in this version.
        compute: capabilities it was built for, as ``8.6``; for ``tensorrt`` that of the GPU it
            was built on.
        gpu: name of the GPU it was built on; None if it was built without one.
        batch, classes: N and k of the graph contract.
        height, width: of the images, where the graph takes images of any size; else None.
        prompts: C, where the graph takes class embeddings; else None.
        inputs, outputs: of the network.
    """

    version: int = VERSION
    manifest: Manifest
    digest: str
    library: Library
    library_version: str
    compute: tuple[str, ...]
    gpu: str | None = None
    batch: Range
    classes: Range
    height: Range | None = None
    width: Range | None = None
    prompts: Range | None = None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def sidecar_of(path: str | os.PathLike[str]) -> Path:
    """Return the path of a plan's sidecar."""
    return Path(f"{os.fspath(path)}.json")


def is_plan(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is a TensorRT plan, by its name or by the sidecar beside it."""
    name = os.fspath(path)
    if name.endswith(".onnx"):  # other tools keep settings in a .onnx.json
        return False
    return name.endswith((".plan", ".engine")) or os.path.isfile(sidecar_of(name))


def digest_of(path: str | os.PathLike[str]) -> str:
    """Compute ``sha256:`` of a file.

    Raises:
        ModelFileError: it cannot be read.
    """
    hasher = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                hasher.update(block)
    except OSError as error:
        raise ModelFileError(f"cannot read {os.fspath(path)!r}: {error.strerror}") from error
    return f"sha256:{hasher.hexdigest()}"


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Read the sidecar of a plan; the plan itself is not read.

    Raises:
        ModelFileError: plan or sidecar are missing, or the sidecar is damaged or of another
            version.
    """
    name = os.fspath(path)
    sidecar = sidecar_of(name)
    if not os.path.isfile(name):  # False, where pathlib raises: names too long, or with NUL
        raise ModelFileError(f"there is no file {name}")
    try:
        text = sidecar.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{name} has no readable sidecar {sidecar} ({error.strerror}): without it nobody "
            "knows what the plan computes. Keep the two together, or build again: whycam build"
        ) from error
    remedy = "Build the plan again: whycam build"
    return decode_versioned(text, Plan, VERSION, str(sidecar), remedy)


def write_sidecar(path: str | os.PathLike[str], plan: Plan) -> Path:
    """Write the sidecar of a plan, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    return write_json(sidecar_of(path), plan)
