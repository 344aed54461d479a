"""Feed class embeddings of some prompts, or one region, to an engine in every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..manifest import Manifest
from ..place_weights import REGION, example_region
from ..prompts import Prompts, example_prompts
from .base import Engine
from .chunks import Arrays


class PromptedEngine:
    """See ``engine.Engine``; feeds are as for a file that has its classes inside.

    Attributes:
        unprompted: the engine, which takes ``class_embeddings`` as well.
    """

    def __init__(self, engine: Engine, prompts: Prompts) -> None:
        self.unprompted = engine
        self.reason = engine.reason
        self._embeddings = prompts.embeddings

    @property
    def name(self) -> str:
        """See ``engine.Engine``."""
        return self.unprompted.name

    @property
    def description(self) -> str:
        """See ``engine.Engine``."""
        return self.unprompted.description

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``engine.Engine.run``."""
        return self.unprompted.run({**feeds, "class_embeddings": self._embeddings}, outputs)


class RegionEngine:
    """See ``engine.Engine``; explains one region of every image."""

    def __init__(self, engine: Engine, region: NDArray[np.float32]) -> None:
        self._engine = engine
        self.reason = engine.reason
        self._region = region

    @property
    def name(self) -> str:
        """See ``engine.Engine``."""
        return self._engine.name

    @property
    def description(self) -> str:
        """See ``engine.Engine``."""
        return self._engine.description

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``engine.Engine.run``."""
        regions = np.repeat(self._region[None], len(feeds["image"]), axis=0)
        return self._engine.run({**feeds, REGION: regions}, outputs)


def with_examples(engine: Engine, manifest: Manifest) -> Engine:
    """Feed the example classes or region of the reference answers, where a file takes these."""
    if manifest.region is not None and not isinstance(engine, RegionEngine):
        return RegionEngine(engine, example_region(manifest.region))
    if manifest.class_embeddings is None or isinstance(engine, PromptedEngine):
        return engine
    return PromptedEngine(engine, example_prompts(manifest))
