"""Create the user's model by calling a function in a file or a package."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..runtime.errors import ExportError

if TYPE_CHECKING:  # a function that returns a text encoder may do without torch
    import torch


def call_factory(spec: str) -> torch.nn.Module:
    """Call ``file.py:factory`` or ``package.module:factory``, which returns the model.

    Args:
        spec: the file or module, a colon, and the name of a function without arguments.

    Raises:
        ExportError: there is no such function, it fails, or it returns something else.
    """
    import torch

    model = call_function(spec)
    if not isinstance(model, torch.nn.Module):
        raise ExportError(f"{spec} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def call_function(spec: str) -> Any:
    """Call ``file.py:function`` or ``package.module:function`` without arguments.

    Raises:
        ExportError: there is no such function, or it fails.
    """
    place, _, name = spec.rpartition(":")
    module = _module_from_file(Path(place)) if place.endswith(".py") else _module(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ExportError(f"{place} has no function or class '{name}'")
    try:
        return call_seeded(factory)
    except Exception as error:
        raise ExportError(
            f"{spec} failed: {type(error).__name__}: {error} (it is called without arguments)"
        ) from error


def _module_from_file(path: Path) -> ModuleType:
    if not os.path.isfile(path):  # False, where pathlib raises: names too long, or with NUL
        raise ExportError(f"there is no file {path}")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    loader = specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # dataclasses and pickles look their module up by name

    def run() -> ModuleType:
        loader.exec_module(module)
        return module

    return _run_import(run, str(path))


def _module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: modules beside the user
    return _run_import(lambda: importlib.import_module(name), name)


def _run_import(run: Callable[[], ModuleType], name: str) -> ModuleType:
    try:
        return run()
    except Exception as error:
        raise ExportError(f"cannot import {name}: {type(error).__name__}: {error}") from error


def call_seeded(create: Callable[..., Any]) -> Any:
    """Call a function that creates a model, with the same random weights each time."""
    try:
        import torch
    except ImportError:  # then no random weights are torch's
        return create()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create()
