"""A PyTorch model as the reference of its own export: float64, and autograd at a module's hook."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.errors import ExportError
from .layers import Layer
from .references import Floats

Hook = Callable[[torch.Tensor], torch.Tensor | None]


class TorchReference:
    """The model itself; the target layer is the output of one of its modules.

    Args:
        model: in eval mode, float32.
        layer: named after the module.
        inner: (C, H, W) of the input.

    Raises:
        LookupError: no module of that name gives out those activations once.
    """

    description = "PyTorch in float64"
    is_exact = True

    def __init__(self, model: torch.nn.Module, layer: Layer, inner: tuple[int, int, int]) -> None:
        self._own = model
        self._name = layer.name
        self._inner = inner
        self._order = layer.order
        self._inverse = [layer.order.index(axis) for axis in range(4)]
        if layer.name not in dict(model.named_modules()):
            raise LookupError(layer.name)
        channels, height, width = layer.shape
        wanted = [2, channels, height, width]
        outputs: list[torch.Tensor] = []
        with torch.no_grad(), self._hooked(model, lambda out: outputs.append(out)):
            model(torch.zeros(2, *inner))
        if len(outputs) != 1 or [outputs[0].shape[axis] for axis in layer.order] != wanted:
            raise LookupError(layer.name)
        self._model = _to_double(model)
        self._last: tuple[NDArray[Any], tuple[Floats, Floats]] | None = None

    @contextlib.contextmanager
    def _hooked(
        self, model: torch.nn.Module, hook: Callable[[torch.Tensor], Any]
    ) -> Iterator[None]:
        def called(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            found = hook(output)
            return found if isinstance(found, torch.Tensor) else None

        handle = model.get_submodule(self._name).register_forward_hook(called)
        try:
            yield
        finally:
            handle.remove()

    def _forward(self, model: torch.nn.Module, image: torch.Tensor) -> tuple[Floats, Floats]:
        outputs: list[torch.Tensor] = []
        with torch.no_grad(), self._hooked(model, lambda out: outputs.append(out)):
            scores = model(image)
        activations = outputs[0].permute(*self._order)
        return activations.double().numpy(), scores.double().numpy()

    def forward(self, image: NDArray[Any]) -> tuple[Floats | None, Floats]:
        """See ``Reference``; the last answer is kept."""
        if self._last is None or self._last[0] is not image:
            self._last = image, self._forward(self._model, torch.from_numpy(image).double())
        return self._last[1]

    def forward32(self, image: NDArray[Any]) -> tuple[Floats | None, Floats]:
        """See ``Reference``."""
        return self._forward(self._own, torch.from_numpy(image))

    def _head(self, activations: torch.Tensor) -> torch.Tensor:
        """The model with the module's output replaced; what comes before it does not matter.

        One image is enough for that, where the model does not ask the image how many there are.
        """
        replaced = activations.permute(*self._inverse)
        for count in dict.fromkeys((1, len(activations))):
            image = torch.zeros(count, *self._inner, dtype=torch.float64)
            with self._hooked(self._model, lambda _: replaced):
                try:
                    scores: torch.Tensor = self._model(image)
                except RuntimeError:
                    if count == len(activations):
                        raise
                    continue
            if len(scores) == len(activations):
                return scores
        raise ExportError("the model's scores do not follow from the activations of its layer")

    def head(self, activations: Floats) -> Floats:
        """See ``Reference``."""
        with torch.no_grad():
            scores: Floats = self._head(torch.from_numpy(activations)).numpy()
        return scores

    def gradient(self, activations: Floats, seed: Floats) -> Floats | None:
        """See ``Reference``."""
        leaf = torch.from_numpy(activations).clone().requires_grad_(True)
        with torch.enable_grad():
            scores = self._head(leaf)
            (found,) = torch.autograd.grad((scores * torch.from_numpy(seed)).sum(), leaf)
        return np.asarray(found.numpy(), np.float64)


def _to_double(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in float64; tensors that a module keeps outside its buffers as well."""
    made = copy.deepcopy(model).double()
    for module in made.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                setattr(module, name, value.double())
    return made
