"""Load weights from a file into a model, through the wrappers of training scripts."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import ExportError, MissingExtraError, reason_of

# Entries under which training scripts keep a state dict, in order of preference.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_AVERAGED_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_PREFIXES = ("module.", "model.", "_orig_mod.")
_WRAPPER_MODULES = {"module", "_orig_mod"}
# How torch reports a class that is not a tensor.
_FOREIGN = re.compile(r"GLOBAL ([\w.]+) was not")
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel

StateDict = dict[str, torch.Tensor]


def load_weights(model: torch.nn.Module, path: Path, key: str | None = None) -> tuple[str, ...]:
    """Load a state dict into a model; all names and shapes must match.

    Names may carry the prefixes of ``DataParallel``, ``torch.compile`` and training frameworks, in
    any order and number; the state dict may be wrapped in others.

    Args:
        model: changed in place.
        path: a .pth or .safetensors file; only tensors are read, never pickled code.
        key: which of several state dicts in the file, as ``state_dict_ema``; None for the plain
            one, not a moving average.

    Returns:
        Notes on what was chosen, for the user to read.

    Raises:
        ExportError: the file cannot be read, has no such key, or does not fit.
        MissingExtraError: the package safetensors is needed and not installed.
    """
    state, notes = _choose_state_dict(read_state(path), path, key)
    expected = model.state_dict()
    state = _strip_wrappers(state, expected)
    _check_shapes(state, expected, path)
    missing = [name for name in expected if name not in state and "num_batches_tracked" not in name]
    surplus = [name for name in state if name not in expected]
    if missing or surplus:
        raise ExportError(
            f"{path} does not fit the model: {_some(missing)} missing, {_some(surplus)} unknown"
        )
    model.load_state_dict(state, strict=False)
    return notes


def read_state(path: Path) -> dict[str, Any]:
    """Read a weight file: its state dict, or a dict with state dicts in it.

    Raises:
        ExportError: there is no such file, or it holds more than tensors.
        MissingExtraError: the package safetensors is needed and not installed.
    """
    if not os.path.isfile(path):  # False, where pathlib raises
        raise ExportError(f"there is no weight file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of pickle protocols
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise MissingExtraError("safetensors", "export", f"reading {path}") from error
    except pickle.UnpicklingError as error:
        raise ExportError(_explain_refusal(path, error)) from error
    except OSError as error:
        raise ExportError(f"cannot read {path}: {reason_of(error)}") from error
    except Exception as error:
        kind = "a safetensors file" if path.suffix == ".safetensors" else "a PyTorch weight file"
        raise ExportError(f"{path} is damaged or not {kind} ({reason_of(error)})") from error
    if not isinstance(state, dict):
        raise ExportError(f"{path} holds a {type(state).__name__}, not a state dict of tensors")
    return state


def _explain_refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """Explain why a file with more than tensors is not read, and what to do."""
    named = _FOREIGN.search(str(error))
    if named is None:
        return f"{path} is damaged, or holds more than tensors, and only tensors are read"
    return (
        f"{path} holds a pickled {named[1]}, and reading it could run code: only tensors "
        "are read. Save them alone, where the model is at hand: "
        "torch.save(model.state_dict(), 'weights.pth')"
    )


def _choose_state_dict(
    contents: Mapping[str, Any], path: Path, key: str | None
) -> tuple[StateDict, tuple[str, ...]]:
    """Choose one state dict of a file; with notes on the choice."""
    named = _find_state_dicts(contents)
    usual = [place for place in named if _is_usual(place)]
    if key is not None:
        matches = [place for place in named if place == key] or [
            place for place in named if place.rpartition(".")[2] == key
        ]
        if len(matches) == 1:
            return named[matches[0]], ()
        raise ExportError(
            f"{path} holds {'several' if matches else 'no'} weights under '{key}'; there are: "
            f"{_quote(matches or list(named))}"
        )
    if not usual:
        advice = f"; --weights-key chooses one of {_quote(list(named))}" if named else ""
        entries = [str(name) for name in contents]
        raise ExportError(
            f"{path} holds no state dict in a usual place: its entries are {_some(entries)}{advice}"
        )
    taken = min(usual, key=_is_averaged)  # the first one of the plain ones
    others = [place for place in usual if place != taken]
    if not others:
        return named[taken], ()
    note = (
        f"{path.name} holds several sets of weights: '{taken}' was taken, not {_quote(others)}; "
        "--weights-key chooses another"
    )
    return named[taken], (note,)


def _find_state_dicts(contents: Mapping[str, Any], place: str = "") -> dict[str, StateDict]:
    """Find every state dict in a file by its path, as ``ema.state_dict``; '' is the file itself."""
    inner: dict[str, StateDict] = {}
    usual = (*_WRAPPERS, *_AVERAGED_WRAPPERS)
    for name in (*usual, *(name for name in contents if name not in usual)):
        value = contents.get(name)
        if isinstance(name, str) and isinstance(value, Mapping):
            inner |= _find_state_dicts(value, f"{place}.{name}" if place else name)
    if any(_is_usual(each) for each in inner):
        return inner
    tensors = {
        name: value
        for name, value in contents.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    return ({place: tensors} if tensors else {}) | inner


def _is_usual(place: str) -> bool:
    return not place or all(part in (*_WRAPPERS, *_AVERAGED_WRAPPERS) for part in place.split("."))


def _is_averaged(place: str) -> bool:
    return not set(_AVERAGED_WRAPPERS).isdisjoint(place.split("."))


def _strip_wrappers(state: StateDict, expected: Mapping[str, torch.Tensor]) -> StateDict:
    """Rename a state dict to the model's names, without the prefixes of wrappers."""
    if _COUNTER not in expected:
        state = {name: tensor for name, tensor in state.items() if name != _COUNTER}
    while state and not any(name in expected for name in state):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            first = {name.partition(".")[0] for name in state}
            if len(first) != 1 or not all("." in name for name in state):
                break
            prefix = f"{first.pop()}."
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    renamed: StateDict = {}
    for name, tensor in state.items():
        # Parts of a network may have been wrapped by themselves, as VGG's features.module.0.weight.
        inner = ".".join(part for part in name.split(".") if part not in _WRAPPER_MODULES)
        is_wrapped = name not in expected and inner in expected and inner not in state
        renamed[inner if is_wrapped else name] = tensor
    return renamed


def _check_shapes(state: StateDict, expected: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in state.items():
        if name in expected and expected[name].shape != tensor.shape:
            hint = ""
            if tensor.ndim and expected[name].shape[1:] == tensor.shape[1:]:
                hint = f". If that is the classifier, pass --num-classes {tensor.shape[0]}"
            raise ExportError(
                f"{path} does not fit the model: {name} is {list(tensor.shape)} in the file and "
                f"{list(expected[name].shape)} in the model{hint}"
            )


def _quote(places: Sequence[str]) -> str:
    return ", ".join(repr(place) for place in places if place) or "none"


def _some(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
