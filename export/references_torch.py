"""Run a PyTorch model as the reference of its export: in float64, with autograd at a module."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.errors import ExportError, VerificationError
from .data_flow import Layer
from .model_outputs import list_tensors
from .references import Floats


class TorchReference:
    """The PyTorch model; the target layer is the output of one of its modules.

    Args:
        model: in eval mode, float32.
        layer: named like the module.
        inner: (C, H, W) of the input.
        places: which of the tensors that it returns hold class scores, see ``return_tensors``.
        ends_in_activation: whether it returns probabilities there, so that the scores are the
            input of its last softmax or sigmoid module; for one place alone.
        reduce: makes scores [N, R] of what it returns at the first of these places; None: they are
            the numbers at all of them.

    Raises:
        LookupError: no module of that name returns those activations once, or there is no such
            softmax or sigmoid module.
    """

    description = "PyTorch in float64"
    is_exact = True

    def __init__(
        self,
        model: torch.nn.Module,
        layer: Layer,
        inner: tuple[int, int, int],
        places: Sequence[int] = (0,),
        ends_in_activation: bool = False,
        reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._float32_model = model
        self._places = tuple(places)
        self._reduce = reduce
        self._name = layer.name
        self._inner = inner
        self._arrangement = layer.arrangement
        self._is_alone = layer.determines_scores
        if layer.name not in dict(model.named_modules()):
            raise LookupError(layer.name)
        outputs: list[torch.Tensor] = []
        with torch.no_grad(), self._hooked(model, lambda out: outputs.append(out)):
            model(torch.zeros(2, *inner))
        if len(outputs) != 1 or not self._fits(outputs[0], layer):
            raise LookupError(layer.name)
        self._activation = (
            _find_last_activation(model, inner, self._places) if ends_in_activation else None
        )
        self._model = _to_double(model)
        self._last: tuple[NDArray[Any], tuple[Floats, Floats]] | None = None

    def _fits(self, output: Any, layer: Layer) -> bool:
        """Tell whether a module's output for two images is arranged as the layer's tensor."""
        if not isinstance(output, torch.Tensor):
            return False
        if not self._arrangement.is_feature_map:
            return tuple(output.shape) == self._arrangement.array_shape(2)
        order = self._arrangement.order
        return output.ndim == 4 and [output.shape[axis] for axis in order] == [2, *layer.shape]

    @contextlib.contextmanager
    def _hooked(
        self, model: torch.nn.Module, hook: Callable[[torch.Tensor], Any]
    ) -> Iterator[None]:
        def called(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            replacement = hook(output)
            return replacement if isinstance(replacement, torch.Tensor) else None

        handle = model.get_submodule(self._name).register_forward_hook(called)
        try:
            yield
        finally:
            handle.remove()

    def _forward(self, model: torch.nn.Module, image: torch.Tensor) -> tuple[Floats, Floats]:
        outputs: list[torch.Tensor] = []
        with torch.no_grad(), self._hooked(model, lambda out: outputs.append(out)):
            scores = self._scores(model, image)
        activations = self._arrangement.take(outputs[0].double().numpy())
        return np.ascontiguousarray(activations), scores.double().numpy()

    def _scores(self, model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
        """Compute the model's scores, or the input of its last softmax or sigmoid: [N, R]."""
        if self._reduce is not None:
            return self._reduce(list_tensors(model(image))[self._places[0]])
        if self._activation is None:
            return _join_scores(model(image), self._places)
        taken: list[torch.Tensor] = []
        module = model.get_submodule(self._activation)
        handle = module.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
        try:
            model(image)
        finally:
            handle.remove()
        return taken[-1].flatten(1)

    def forward(self, image: NDArray[Any]) -> tuple[Floats | None, Floats]:
        """See ``Reference``; the last result is cached."""
        if self._last is None or self._last[0] is not image:
            self._last = image, self._forward(self._model, torch.from_numpy(image).double())
        return self._last[1]

    def forward32(self, image: NDArray[Any]) -> tuple[Floats | None, Floats]:
        """See ``Reference``."""
        return self._forward(self._float32_model, torch.from_numpy(image))

    def _head(self, activations: torch.Tensor, images: NDArray[Any]) -> torch.Tensor:
        """Run the model with the module's output replaced where it has places."""
        arrangement, rows = self._arrangement, len(activations)

        def replace(output: torch.Tensor) -> torch.Tensor:
            if arrangement.is_feature_map:
                return activations.permute(*arrangement.inverse)
            positions = torch.from_numpy(arrangement.positions(rows).reshape(-1))
            flat = output.reshape(-1).index_copy(0, positions, activations.reshape(-1))
            return flat.reshape(output.shape)

        if not self._is_alone:
            with self._hooked(self._model, replace):
                return self._scores(self._model, torch.from_numpy(images).double())
        if arrangement.is_feature_map:
            return self._head_alone(replace(activations), rows)
        shape = arrangement.array_shape(rows)
        return self._head_alone(replace(torch.zeros(shape, dtype=torch.float64)), rows)

    def _head_alone(self, activations: torch.Tensor, rows: int) -> torch.Tensor:
        """Run the model with the module's output for ``rows`` images replaced; the image is any.

        One image suffices, unless the model takes the batch size from its input.
        """
        for count in dict.fromkeys((1, rows)):
            image = torch.zeros(count, *self._inner, dtype=torch.float64)
            with self._hooked(self._model, lambda _: activations):
                try:
                    scores = self._scores(self._model, image)
                except RuntimeError:
                    if count == rows:
                        raise
                    continue
            if len(scores) == rows:
                return scores
        raise ExportError("the model's scores do not follow from the activations of its layer")

    def head(self, activations: Floats, images: NDArray[Any]) -> Floats:
        """See ``Reference``."""
        with torch.no_grad():
            scores: Floats = self._head(torch.from_numpy(activations), images).numpy()
        return scores

    def gradient(self, activations: Floats, seed: Floats, images: NDArray[Any]) -> Floats | None:
        """See ``Reference``."""
        leaf = torch.from_numpy(activations).clone().requires_grad_(True)
        with torch.enable_grad():
            scores = self._head(leaf, images)
            (gradient,) = torch.autograd.grad((scores * torch.from_numpy(seed)).sum(), leaf)
        return np.asarray(gradient.numpy(), np.float64)


_ACTIVATIONS = (torch.nn.Softmax, torch.nn.LogSoftmax, torch.nn.Sigmoid)


def _join_scores(returned: Any, places: Sequence[int]) -> torch.Tensor:
    """Put the class scores of all heads side by side, [N, R]."""
    tensors = list_tensors(returned)
    return torch.cat([tensors[place].flatten(1) for place in places], 1)


def _find_last_activation(
    model: torch.nn.Module, inner: tuple[int, int, int], places: Sequence[int]
) -> str:
    """Find the softmax or sigmoid module whose output the model returns.

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
            scores = _join_scores(model(torch.zeros(2, *inner)), places)
    finally:
        for handle in handles:
            handle.remove()
    for name, output in reversed(found):
        if output.numel() == scores.numel() and torch.equal(output.flatten(), scores.flatten()):
            return name
    raise LookupError("no module is the model's softmax or sigmoid")


def check_translation(
    module: torch.nn.Module, outputs: Sequence[NDArray[Any]], image: NDArray[Any]
) -> None:
    """Compare the plain ONNX graph with the model, where that graph is the reference.

    Args:
        module: in eval mode, float32; returns the graph's outputs.
        outputs: of the graph.
        image: the graph's input.

    Raises:
        VerificationError: PyTorch's exporter wrote another computation.
    """
    with torch.no_grad():
        returned = list_tensors(module(torch.from_numpy(image)))
    for actual, tensor in zip(outputs, returned, strict=True):
        expected = tensor.double().numpy()
        scale = float(np.abs(expected).max()) or 1.0
        error = float(np.abs(actual.reshape(expected.shape) - expected).max()) / scale
        if not error <= _TRANSLATION:
            raise VerificationError(
                "the exported graph is wrong: PyTorch's exporter wrote a graph whose outputs "
                f"differ from the model's by {error:.1e} of their largest. No file was written"
            )


_TRANSLATION = 1e-3


def _to_double(model: torch.nn.Module) -> torch.nn.Module:
    """Copy a model in float64, with tensors that modules keep outside their buffers."""
    double = copy.deepcopy(model).double()
    for module in double.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                setattr(module, name, value.double())
    return double
