"""Run other tools' Grad-CAM on the same PyTorch network and layer, as baselines."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.bench.bench import BASELINES, TORCH
from ..runtime.engines.registry import ENGINES
from ..runtime.errors import ExportError, RequestError
from ..runtime.manifest import Manifest
from .resolve import resolve

Run = Callable[[], Any]


def choose_device(engines: Collection[str]) -> str:
    """Choose where other tools run: ``cuda`` where every engine needs a GPU, else ``cpu``.

    Args:
        engines: in ``ENGINES``, that are timed beside them.

    Raises:
        RequestError: torch cannot use a GPU that the engines use.
    """
    if not engines or not all(ENGINES[name].gpu for name in engines):
        return "cpu"
    if not torch.cuda.is_available():
        raise RequestError(
            f"beside {', '.join(sorted(engines))} other tools must run on the GPU too, and this "
            f"torch ({torch.__version__}) cannot: install torch with CUDA, or leave out --against"
        )
    return "cuda"


def load_network(manifest: Manifest, model: str | None = None) -> torch.nn.Module:
    """Load the PyTorch network that a file was exported from.

    Weights of torchvision and timm are random, not downloaded: time does not depend on them.

    Args:
        manifest: of the file.
        model: as for ``whycam export``; by default as the manifest names it.

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
    """Check that tools are installed, by importing them.

    Raises:
        RequestError: a tool is unknown or not installed; the message says how to install it.
    """
    for name in names:
        _load_tool(name)


def prepare_baselines(
    model: torch.nn.Module,
    layer: str,
    image: NDArray[np.float32],
    names: Sequence[str] = tuple(BASELINES),
    threads: int | None = None,
    device: str = "cpu",
) -> dict[str, Run]:
    """Prepare other tools' Grad-CAM of the most probable class, and torch's classification.

    Args:
        model: in eval mode.
        layer: the module to explain, by its name in the model.
        image: float32 [N, 3, H, W], normalised.
        names: of ``bench.BASELINES``.
        threads: for torch, set at each call; None: as it is.
        device: ``cpu`` or ``cuda``; each call brings the image there and the answer back, as
            engines do.

    Raises:
        RequestError: a tool is unknown or not installed, or the model has no such module.
    """
    x = torch.from_numpy(image)
    model = copy.deepcopy(model).to(device) if device != "cpu" else model
    runs: dict[str, Run] = {TORCH: lambda: _classify(model, x.to(device))}
    for name in names:
        # Each tool gets a copy, for it leaves hooks on the model; parameters require gradients, as
        # in PyTorch by default.
        copied = copy.deepcopy(model).to(device).requires_grad_(True)
        module = dict(copied.named_modules()).get(layer)
        if module is None:
            raise RequestError(
                f"the network has no module '{layer}', the layer that is explained, so other "
                "tools cannot be pointed to it"
            )
        runs[name] = _load_tool(name)(copied, module, x, device)
    if threads is None:
        return runs
    return {name: partial(_run_with_threads, threads, run) for name, run in runs.items()}


def _run_with_threads(threads: int, run: Run) -> Any:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return run()


def _classify(model: torch.nn.Module, x: torch.Tensor) -> Any:
    with torch.no_grad():
        return model(x).cpu()


def _load_tool(name: str) -> Callable[[torch.nn.Module, torch.nn.Module, torch.Tensor, str], Run]:
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
    library: Any, model: torch.nn.Module, layer: torch.nn.Module, x: torch.Tensor, device: str
) -> Run:
    method = library.GradCAM(model=model, target_layers=[layer])
    return lambda: method(input_tensor=x.to(device), targets=None)  # returns a NumPy array


def _torchcam(
    library: Any, model: torch.nn.Module, layer: torch.nn.Module, x: torch.Tensor, device: str
) -> Run:
    extractor = library.GradCAM(model, target_layer=layer)

    def run() -> Any:
        scores = model(x.clone().to(device).requires_grad_(True))
        return [one.cpu() for one in extractor(scores.argmax(dim=-1).tolist(), scores)]

    return run


# Where each tool's methods are, and how it makes a map.
_TOOLS: dict[str, tuple[str, Callable[..., Run]]] = {
    "pytorch-grad-cam": ("pytorch_grad_cam", _pytorch_grad_cam),
    "torchcam": ("torchcam.methods", _torchcam),
}
