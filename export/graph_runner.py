"""Run an explaining graph in memory, with all outputs that were added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.manifest import Manifest
from ..runtime.place_weights import REGION, example_region
from ..runtime.prompts import example_prompts
from .assemble import Assembly
from .subgraph import open_model_session


class GraphRunner:
    """An explaining graph in ONNX Runtime, with all outputs that were added.

    Attributes:
        tensors: the outputs by contract name.
    """

    def __init__(self, model: ir.Model, assembly: Assembly, manifest: Manifest) -> None:
        self.tensors = dict(assembly.outputs)
        self._names = {name: assembly.names.get(name, name) for name in self.tensors}
        outputs = model.graph.outputs
        extra = None
        if manifest.embedded_preprocess and assembly.network_input is not None:
            extra = assembly.network_input.value
            self.tensors["network_input"] = assembly.network_input
            self._names["network_input"] = str(extra.name)
            outputs.append(extra)
        self._session = open_model_session(model, manifest.precision)
        if extra is not None:
            outputs.remove(extra)
        self._image_type = manifest.image_type
        self._image = assembly.names.get("image", assembly.image)
        self._target = assembly.names.get("target", "target") if manifest.top is None else None
        self._pair = () if manifest.detector is None else (2,)
        self._own_outputs = assembly.own_outputs
        self._classes: dict[str, NDArray[Any]] = {}
        if manifest.class_embeddings is not None:
            name = assembly.names.get("class_embeddings", "class_embeddings")
            self._classes[name] = example_prompts(manifest).embeddings
        self._region: tuple[str, NDArray[np.float32]] | None = None
        if manifest.region is not None:
            self._region = assembly.names.get(REGION, REGION), example_region(manifest.region)

    def run(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Compute outputs by contract name, see ``verify_subject.Runner``."""
        inputs = self._inputs(feeds["image"], feeds["target"])
        arrays = self._session.run([self._names[name] for name in outputs], inputs)
        return dict(zip(outputs, arrays, strict=True))

    def run_original_outputs(self, image: NDArray[Any]) -> list[NDArray[Any]]:
        """Compute the outputs that the file had before, see ``verify_subject.Runner``."""
        target = np.full((len(image), 1, *self._pair), -1, np.int64)
        return list(self._session.run(list(self._own_outputs), self._inputs(image, target)))

    def _inputs(self, image: NDArray[Any], target: NDArray[Any]) -> dict[str, NDArray[Any]]:
        image = image.astype(self._image_type, copy=False)
        targets = {} if self._target is None else {self._target: target}
        regions = {}
        if self._region is not None:
            name, region = self._region
            regions[name] = np.repeat(region[None], len(image), axis=0)
        return {self._image: image, **targets, **self._classes, **regions}
