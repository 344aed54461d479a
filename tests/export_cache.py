"""Exports that tests share: one file for what it was made of, across tests, workers and runs."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".pytest_cache" / "exports"
# What an export is computed by, besides the code of the package.
LIBRARIES = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "timm",
    "torch",
    "torchvision",
)
UNUSED_DAYS = 3


@dataclass
class Spent:
    """CPU time of this process for exports that others will find ready."""

    seconds: float = 0.0


SPENT = Spent()


def exported(source: str | Callable[[], Any], **options: Any) -> Path:
    """Return an exported file, made by the first who asks for it.

    The file belongs to everyone: read it, or copy it before changing it.

    Args:
        source: a model specification, or a function without arguments that returns a module; it
            must return the same module each time.
        options: of `whycam.export.to_onnx`; their ``repr`` must tell all of them apart.
    """
    from whycam.export import to_onnx

    path = FOLDER / f"{cache_key(source, options)}.onnx"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), timeout=500):
        if path.exists():
            os.utime(path)
        else:
            remove_unused()
            before = time.process_time()
            to_onnx(source if isinstance(source, str) else source(), path, **options)
            SPENT.seconds += time.process_time() - before
    return path


def cache_key(source: str | Callable[[], Any], options: dict[str, Any]) -> str:
    """Name an export by everything that decides what is in it."""
    if isinstance(source, str):
        name, _, _ = source.partition(":")
        parts = [source, Path(name).read_text() if name.endswith(".py") else ""]
    else:
        file = inspect.getsourcefile(source)
        assert file is not None
        assert "<locals>" not in source.__qualname__, "a local function depends on what it closes"
        parts = [source.__qualname__, Path(file).read_text()]
    parts += [repr(sorted(options.items())), code_digest()]
    assert " at 0x" not in parts[2], f"options that do not tell what they are: {options}"
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@cache
def code_digest() -> str:
    """Digest of the code that exports and of the versions of what it calls."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("export/**/*.py"), *ROOT.glob("runtime/**/*.py")]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    versions = [f"{name} {version(name)}" for name in LIBRARIES]
    digest.update(repr([*versions, platform.python_version(), platform.machine()]).encode())
    return digest.hexdigest()


def remove_unused() -> None:
    """Delete exports that no run of the last days asked for."""
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for path in FOLDER.iterdir():
        with contextlib.suppress(FileNotFoundError):  # where another worker was faster
            if path.stat().st_mtime < oldest:
                path.unlink()
