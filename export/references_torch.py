"""A PyTorch model as the reference of its own export: float64, and autograd at a module's hook."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.errors import ExportError, VerificationError
from .layers import Layer
from .references import Floats


class TorchReference:
    """The model itself; the target layer is the output of one of its modules.

    Args:
        model: in eval mode, float32.
        layer: named after the module.
        inner: (C, H, W) of the input.
        ends_in_activation: whether the model gives out probabilities, so that the scores are what
            its last softmax or sigmoid module takes in.

    Raises:
        LookupError: no module of that name gives out those activations once, or no module is that
            softmax or sigmoid.
    """

    description = "PyTorch in float64"
    is_exact = True

    def __init__(
        self,
        model: torch.nn.Module,
        layer: Layer,
        inner: tuple[int, int, int],
        ends_in_activation: bool = False,
    ) -> None:
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
        self._activation = _last_activation(model, inner) if ends_in_activation else None
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
            scores = self._scores(model, image)
        activations = outputs[0].permute(*self._order)
        return activations.double().numpy(), scores.double().numpy()

    def _scores(self, model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
        """What the model gives out, or what its last softmax or sigmoid takes in: [N, C]."""
        if self._activation is None:
            return model(image)  # type: ignore[no-any-return]
        taken: list[torch.Tensor] = []
        module = model.get_submodule(self._activation)
        handle = module.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
        try:
            model(image)
        finally:
            handle.remove()
        return taken[-1].flatten(1)

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
                    scores = self._scores(self._model, image)
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


_ACTIVATIONS = (torch.nn.Softmax, torch.nn.LogSoftmax, torch.nn.Sigmoid)


def _last_activation(model: torch.nn.Module, inner: tuple[int, int, int]) -> str:
    """The softmax or sigmoid module whose output the model gives out.

    Raises:
        LookupError: there is none.
    """
    found: list[tuple[str, torch.Tensor]] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: found.append((name, out)))
        for name, module in model.named_modules()
        if name and isinstance(module, _ACTIVATIONS)
    ]
    try:
        with torch.no_grad():
            scores = model(torch.zeros(2, *inner))
    finally:
        for handle in handles:
            handle.remove()
    for name, output in reversed(found):
        if output.numel() == scores.numel() and torch.equal(output.flatten(), scores.flatten()):
            return name
    raise LookupError("no module is the model's softmax or sigmoid")


def check_translation(module: torch.nn.Module, outputs: NDArray[Any], image: NDArray[Any]) -> None:
    """Hold the plain ONNX graph against the model, where gradients are held against that graph.

    Args:
        module: in eval mode, float32.
        outputs: of the graph.
        image: that it was fed.

    Raises:
        VerificationError: PyTorch's exporter wrote another computation.
    """
    with torch.no_grad():
        expected = module(torch.from_numpy(image)).numpy()
    scale = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(outputs.reshape(expected.shape) - expected).max()) / scale
    if not error <= _TRANSLATION:
        raise VerificationError(
            "the exported graph is wrong: PyTorch's exporter wrote a graph whose outputs differ "
            f"from the model's by {error:.1e} of their largest. No file was written"
        )


_TRANSLATION = 1e-3


def _to_double(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in float64; tensors that a module keeps outside its buffers as well."""
    made = copy.deepcopy(model).double()
    for module in made.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                setattr(module, name, value.double())
    return made
