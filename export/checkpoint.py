"""Weights from a file into a model, whatever training scripts wrapped around them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import ExportError, MissingExtraError

# Entries under which training scripts keep a state dict, in the order in which they are taken.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)
_PREFIXES = ("module.", "model.", "_orig_mod.")


def load_weights(model: torch.nn.Module, path: Path, key: str | None = None) -> tuple[str, ...]:
    """Load a state dict into a model; every tensor must fit.

    Args:
        model: changed in place.
        path: a .pth or .safetensors file; only tensors are read, never pickled code.
        key: which of several state dicts in the file; None: the plain one.

    Returns:
        What was decided on the way, for the user to read.

    Raises:
        ExportError: the file cannot be read, has no such key, or does not fit.
    """
    found = read_state(path)
    state, notes = _chosen(found, path, key)
    own = model.state_dict()
    state = _without_prefixes(state, own)
    _check_shapes(state, own, path)
    missing = [name for name in own if name not in state and "num_batches_tracked" not in name]
    surplus = [name for name in state if name not in own]
    if missing or surplus:
        raise ExportError(
            f"{path} does not fit the model: {_some(missing)} missing, {_some(surplus)} unknown"
        )
    model.load_state_dict(state, strict=False)
    return notes


def read_state(path: Path) -> dict[str, Any]:
    """The contents of a weight file.

    Raises:
        ExportError: there is none, or it holds something else than tensors.
        MissingExtraError: the package safetensors is needed and not installed.
    """
    if not os.path.isfile(path):
        raise ExportError(f"there is no weight file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise MissingExtraError("safetensors", "export", f"reading {path}") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"cannot read weights from {path}: {lines[0]} (only tensors are read, never pickled "
            "code)"
        ) from error
    if not isinstance(state, dict):
        raise ExportError(f"{path} holds a {type(state).__name__}, not a state dict of tensors")
    return state


def _chosen(
    found: dict[str, Any], path: Path, key: str | None
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """One state dict out of those in a file, and what was decided."""
    named = _state_dicts(found)
    if key is not None:
        if key not in named:
            there = ", ".join(repr(name) for name in named if name) or "none"
            raise ExportError(f"{path} holds no weights under '{key}'; there are: {there}")
        return named[key], ()
    for wrapper in ("", *_WRAPPERS):
        matches = [name for name in named if name.rpartition(".")[2] == wrapper]
        if not matches:
            continue
        others = [name for name in named if name and name != matches[0]]
        if not others:
            return named[matches[0]], ()
        note = (
            f"{path.name} holds several sets of weights: '{matches[0]}' was taken, not "
            f"{', '.join(map(repr, others))}; --weights-key chooses another"
        )
        return named[matches[0]], (note,)
    raise ExportError(f"{path} holds no state dict: its entries are {_some(list(found))}")


def _state_dicts(found: Mapping[str, Any], place: str = "") -> dict[str, dict[str, torch.Tensor]]:
    """Every state dict in a file by its place, the file itself being ''."""
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    inner: dict[str, dict[str, torch.Tensor]] = {}
    for wrapper in _WRAPPERS:
        if isinstance(found.get(wrapper), Mapping):
            name = f"{place}.{wrapper}" if place else wrapper
            inner |= _state_dicts(found[wrapper], name)
    if inner:
        return inner
    return {place: tensors} if tensors else {}


def _without_prefixes(
    state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Without what wrappers put before every name, in any order and number."""
    while state and not any(name in own for name in state):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            first = {name.partition(".")[0] for name in state}
            if len(first) != 1 or not all("." in name for name in state):
                return state
            prefix = f"{first.pop()}."
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _check_shapes(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], path: Path
) -> None:
    for name, tensor in state.items():
        if name in own and own[name].shape != tensor.shape:
            hint = ""
            if tensor.ndim and own[name].shape[1:] == tensor.shape[1:]:
                hint = f". If that is the classifier, pass --num-classes {tensor.shape[0]}"
            raise ExportError(
                f"{path} does not fit the model: {name} is {list(tensor.shape)} in the file and "
                f"{list(own[name].shape)} in the model{hint}"
            )


def _some(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
