"""Run an explaining graph that is not in a file yet, with all outputs that assembly made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.manifest import Manifest
from .assemble import Assembly
from .subgraph import session_of


class GraphRunner:
    """An explaining graph in ONNX Runtime, with all outputs that assembly made.

    Attributes:
        tensors: the outputs by contract name.
    """

    def __init__(self, model: ir.Model, made: Assembly, manifest: Manifest) -> None:
        self.tensors = dict(made.outputs)
        self._names = {name: made.names.get(name, name) for name in self.tensors}
        outputs = model.graph.outputs
        extra = None
        if manifest.embedded_preprocess and made.network_input is not None:
            extra = made.network_input.value
            self.tensors["network_input"] = made.network_input
            self._names["network_input"] = str(extra.name)
            outputs.append(extra)
        self._session = session_of(model)
        if extra is not None:
            outputs.remove(extra)
        self._image_type = manifest.image_type
        self._image = made.names.get("image", made.image)
        self._target = made.names.get("target", "target") if manifest.top is None else None
        self._own = made.own_outputs

    def run(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """See ``verify.Runner``."""
        named = self._feeds(feeds["image"], feeds["target"])
        found = self._session.run([self._names[name] for name in outputs], named)
        return dict(zip(outputs, found, strict=True))

    def own(self, image: NDArray[Any]) -> list[NDArray[Any]]:
        """See ``verify.Runner``."""
        target = np.full((len(image), 1), -1, np.int64)
        return list(self._session.run(list(self._own), self._feeds(image, target)))

    def _feeds(self, image: NDArray[Any], target: NDArray[Any]) -> dict[str, NDArray[Any]]:
        image = image.astype(self._image_type, copy=False)
        return {self._image: image} | ({} if self._target is None else {self._target: target})
