"""Grad-CAM by other tools, on the same PyTorch network at the same layer, to compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.bench.bench import BASELINES, TORCH
from ..runtime.errors import ExportError, RequestError
from ..runtime.manifest import Manifest
from .source import resolve

Run = Callable[[], Any]


def load_network(manifest: Manifest, model: str | None = None) -> torch.nn.Module:
    """The PyTorch network that a file was exported from.

    Weights of torchvision and timm are random, not downloaded: time does not depend on them.

    Args:
        manifest: of the file.
        model: as for ``whycam export``, where the file no longer knows it.

    Raises:
        RequestError: the network cannot be found.
        MissingExtraError: torchvision or timm is needed and not installed.
    """
    spec = model if model is not None else manifest.model
    by_name = spec.startswith(("torchvision/", "timm/"))
    try:
        count = manifest.num_classes if by_name else None
        return resolve(spec, "none", num_classes=count, needs_preprocess=False).model
    except ExportError as error:
        raise RequestError(
            f"other tools need the PyTorch network: {error}. Say where it is with --torch-model, "
            "written as for whycam export"
        ) from error


def check_installed(names: Sequence[str]) -> None:
    """Whether these tools are here; they are imported for that.

    Raises:
        RequestError: a tool that does not exist or is not installed; the message says how to
            install it.
    """
    for name in names:
        _tool(name)


def prepare_baselines(
    model: torch.nn.Module,
    layer: str,
    image: NDArray[np.float32],
    names: Sequence[str] = tuple(BASELINES),
    threads: int | None = None,
) -> dict[str, Run]:
    """Other tools' Grad-CAM of the most probable class, and torch's plain classification.

    Args:
        model: in eval mode.
        layer: the module to explain, by its name in the model.
        image: float32 [N, 3, H, W], normalised.
        names: of ``bench.BASELINES``.
        threads: for torch, set at each call; None: as it is.

    Raises:
        RequestError: a tool that does not exist or is not installed, or the model has no module
            of that name.
    """
    x = torch.from_numpy(image)
    found: dict[str, Run] = {TORCH: lambda: _classified(model, x)}
    for name in names:
        # A copy for each: the tools leave hooks on a model, which would run for the others too.
        # Their users' parameters want gradients, as PyTorch makes them.
        own = copy.deepcopy(model).requires_grad_(True)
        module = dict(own.named_modules()).get(layer)
        if module is None:
            raise RequestError(
                f"the network has no module '{layer}', the layer that is explained, so other "
                "tools cannot be pointed to it"
            )
        found[name] = _tool(name)(own, module, x)
    if threads is None:
        return found
    return {name: partial(_with_threads, threads, run) for name, run in found.items()}


def _with_threads(threads: int, run: Run) -> Any:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return run()


def _classified(model: torch.nn.Module, x: torch.Tensor) -> Any:
    with torch.no_grad():
        return model(x)


def _tool(name: str) -> Callable[[torch.nn.Module, torch.nn.Module, torch.Tensor], Run]:
    if name not in _TOOLS:
        raise RequestError(f"there is no other tool '{name}'; choose from: {', '.join(_TOOLS)}")
    place, contender = _TOOLS[name]
    try:
        return partial(contender, import_module(place))
    except ImportError as error:
        raise RequestError(
            f"comparing with {name} needs the package '{BASELINES[name]}', which is not installed. "
            f"Install it with: pip install {BASELINES[name]}"
        ) from error


def _pytorch_grad_cam(
    library: Any, model: torch.nn.Module, layer: torch.nn.Module, x: torch.Tensor
) -> Run:
    method = library.GradCAM(model=model, target_layers=[layer])
    return lambda: method(input_tensor=x, targets=None)


def _torchcam(library: Any, model: torch.nn.Module, layer: torch.nn.Module, x: torch.Tensor) -> Run:
    extractor = library.GradCAM(model, target_layer=layer)

    def run() -> Any:
        scores = model(x.clone().requires_grad_(True))
        return extractor(scores.argmax(dim=-1).tolist(), scores)

    return run


# Where each tool's methods are, and how it makes a map.
_TOOLS: dict[str, tuple[str, Callable[..., Run]]] = {
    "pytorch-grad-cam": ("pytorch_grad_cam", _pytorch_grad_cam),
    "torchcam": ("torchcam.methods", _torchcam),
}
