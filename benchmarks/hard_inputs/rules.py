"""What every case must keep: a correct answer or a clear refusal, and no file half-written."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

import whycam
from whycam.runtime.manifest import METADATA_KEY
from whycam.runtime.onnxfile import read_manifest

ANSWERED, REFUSED = "answered", "refused"
LONGEST = 3000  # characters of an error that a person can still read
ENGINES = ("onnxruntime",) * 2 + ("openvino",)


class Fault(Exception):
    """A case did what none may do."""


class Material:
    """What cases are made of.

    Attributes:
        model: a file made by ``whycam export``.
    """

    def __init__(self, model: Path) -> None:
        self.model = model

    @cached_property
    def data(self) -> bytes:
        """The file."""
        return self.model.read_bytes()

    @cached_property
    def manifest(self) -> str:
        """Its manifest's text."""
        return read_manifest(self.model).to_json()

    @cached_property
    def bare(self) -> bytes:
        """The file without metadata."""
        proto = onnx.load(self.model)
        del proto.metadata_props[:]
        return bytes(proto.SerializeToString())

    def with_metadata(self, text: str | bytes) -> bytes:
        """The file with another text for a manifest."""
        value = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        return self.bare + _field(14, _field(1, METADATA_KEY.encode()) + _field(2, value))

    @cached_property
    def explainer(self) -> whycam.Explainer:
        """The file, loaded."""
        return whycam.load(self.model, "onnxruntime", threads=1)


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        chance: what varies, varies by this.
        folder: of its own; ``out`` in it takes what is written.
        material: real files.
    """

    chance: random.Random
    folder: Path
    material: Material

    @property
    def out(self) -> Path:
        """Where the case writes; whatever is there at the end must be whole."""
        return self.folder / "out"

    @property
    def numbers(self) -> np.random.Generator:
        """For arrays."""
        return np.random.default_rng(self.chance.getrandbits(64))

    def odds(self, share: float) -> bool:
        """True so often."""
        return self.chance.random() < share


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    size, length = len(payload), bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + payload


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing but the answer or the error reaches the caller: no warning of a library either."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    for warning in said:
        # NumPy's and Pillow's deprecations concern whoever wrote the code, not its user.
        if not issubclass(warning.category, DeprecationWarning | ImportWarning | ResourceWarning):
            raise Fault(f"warns: {warning.category.__name__}: {warning.message}")


def refusal(text: str) -> str:
    """An error's message is there, one paragraph, and readable."""
    if not text.strip():
        raise Fault("an error without a message")
    if "\n" in text.strip():
        raise Fault(f"an error of several lines: {text!r}")
    if len(text) > LONGEST:
        raise Fault(f"an error of {len(text)} characters: {text[:200]!r}...")
    return REFUSED


def answer(found: Any, size: tuple[int, int]) -> str:
    """An explanation, or lists of them: finite, of the right shapes, maps in [0, 1]."""
    if isinstance(found, list):
        for each in found:
            answer(each, size)
        return ANSWERED
    expected = size if found.geometry == "input" else found.image.shape[:2]
    for name in ("map", "original_map", "mask"):
        values = getattr(found, name)
        if values is None and name == "mask":
            continue
        if values.dtype != np.float32 or values.shape != expected:
            raise Fault(f"{name} is {values.dtype} {values.shape}, not float32 {expected}")
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise Fault(f"{name} does not lie in [0, 1]: {values.min()} to {values.max()}")
    if not 0 <= found.probability <= 1 + 1e-5:
        raise Fault(f"a probability of {found.probability}")
    if found.rpi is not None and np.isinf(found.rpi).any():
        raise Fault(f"an rpi of {found.rpi}")
    json.dumps(found.to_dict(), allow_nan=False)
    return ANSWERED


def whole(folder: Path) -> None:
    """Every file in a folder can be read to its end, and none is temporary."""
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_dir():
            continue
        if path.name.startswith(".") or "tmp" in path.suffix:
            raise Fault(f"a temporary file is left: {path.name}")
        try:
            _read(path)
        except Exception as error:
            raise Fault(f"{path.name} is not whole: {error!r}") from error


def _read(path: Path) -> None:
    ending = path.suffix.lower()
    if ending in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"):
        with Image.open(path) as image:
            image.load()
    elif ending == ".npy":
        np.load(path, allow_pickle=False)
    elif ending == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif ending == ".onnx":
        onnx.load(path)
    elif path.stat().st_size == 0:
        raise Fault(f"{path.name} is empty")
