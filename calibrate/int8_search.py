"""Search how to quantise a graph: which ranges to use, and which layers to leave in float."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, log2
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime import pipeline
from ..runtime.cam import Method
from ..runtime.errors import DataError, ImageError, VerificationError
from ..runtime.explainer import Explainer
from ..runtime.load import load
from ..runtime.pipeline import prepare
from ..runtime.pixels import read_pixels
from ..runtime.similarity import pearson
from ..runtime.timing import Note, Tick, Total, format_duration
from .dataset import Sample
from .int8_file import write_candidate
from .int8_settings import LEAST_IMAGES, PERCENTILES, Recipe, Settings
from .quantise import Graph, Layer, observe, quantise
from .ranges import Calibrator, Histogram, magnitude, root_mean_square

if TYPE_CHECKING:
    import onnx

EVALUATED = 48  # images that every candidate is evaluated on
_RANKED = 16  # images on which layers are ranked
LOADING = 16  # loading a candidate takes as long as explaining about so many images


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A quantised candidate's agreement with the float file, on the calibration images.

    Attributes:
        calibrator: ``minmax``, ``percentile`` or ``entropy``.
        percentile: of the magnitudes; None for the other calibrators.
        weight_bits: 8 or 7.
        floating: number of layers left in float.
        top1: share of images with the same most probable class.
        pearson: median correlation of the maps, by method.
    """

    calibrator: Calibrator
    percentile: float | None
    weight_bits: int
    floating: int
    top1: float
    pearson: dict[str, float]

    @property
    def recipe(self) -> Recipe:
        """Return calibrator, percentile and weight bits together."""
        return Recipe(self.calibrator, self.percentile, self.weight_bits)

    def shortfall(self, floor: Mapping[str, float]) -> float:
        """Return by how much it misses the floor, summed over the measures; 0 if it holds."""
        missing = max(0.0, floor.get("top1", 0.0) - self.top1)
        lowest = floor.get("pearson", 0.0)
        return missing + sum(max(0.0, lowest - value) for value in self.pearson.values())

    @property
    def quality(self) -> float:
        """Return the mean of all agreements, which ranks candidates with the same shortfall."""
        return float(np.mean([self.top1, *self.pearson.values()]))


class FloatLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer that is left in float.

    Attributes:
        name, kind: see ``quantise.Layer``.
        gain: in ``Trial.quality``, when this layer alone is in float.
    """

    name: str
    kind: str
    gain: float


class Search:
    """Makes and evaluates quantised candidates of one graph, all on the same images.

    Attributes:
        graph: from ``read_graph``.
        methods: whose maps are compared.
        count: number of calibration images.

    Args:
        graph: from ``read_graph``.
        reference: an explainer of the float file.
        methods: whose maps are compared.
        settings: of the calibration.
        path: of the temporary file that candidates are written to.
        tick: called with what is done and the steps done since.
    """

    def __init__(
        self,
        graph: Graph,
        reference: Explainer,
        methods: tuple[Method, ...],
        settings: Settings,
        path: Path,
        tick: Tick,
    ) -> None:
        self.graph = graph
        self.methods = methods
        self.count = 0
        self._path = path
        self._tick = tick
        self._reference = reference
        self._settings = settings
        self._histograms: dict[str, Histogram] = {}
        # Of the first images: input, class, and the reference's maps by method.
        self._probes: list[tuple[NDArray[Any], int, dict[Method, NDArray[np.float32]]]] = []

    def take_ranges(self, samples: Sequence[Sample]) -> None:
        """Take ranges from images, and keep a few to evaluate candidates on.

        Raises:
            DataError: too few of them can be read.
        """
        unreadable = []

        def images() -> Iterator[NDArray[Any]]:
            for sample in samples:
                self._tick(f"ranges: {sample.name}", 1)
                try:
                    manifest = self._reference.manifest
                    pixels = read_pixels(sample.path, manifest.preprocess)
                    image = prepare([pixels], manifest).inputs
                except ImageError as error:
                    unreadable.append(str(error))
                    continue
                self.count += 1
                if len(self._probes) < EVALUATED:
                    _, index, maps = self._explain(self._reference, image)
                    self._probes.append((image, index, maps))
                yield image

        self._histograms = observe(self.graph, images(), self._settings.threads)
        if self.count < LEAST_IMAGES // 2:
            raise DataError(f"too few images can be read, as: {unreadable[0]}")

    def quantise(self, recipe: Recipe, floating: Sequence[str]) -> onnx.ModelProto:
        """Return the graph in INT8, with the named layers in float."""
        return quantise(self.graph, self._magnitudes(recipe), floating, recipe.weight_bits)

    def load(self, recipe: Recipe, floating: Sequence[str]) -> Explainer:
        """Write a candidate and load it."""
        write_candidate(self.quantise(recipe, floating), self._reference.manifest, self._path)
        settings = self._settings
        return load(self._path, settings.engine, settings.threads, gpu=settings.gpu, check=False)

    def evaluate(
        self, recipe: Recipe, floating: Sequence[str] = (), count: int = EVALUATED
    ) -> Trial:
        """Compare a candidate with the float file on ``count`` of the images."""
        explainer = self.load(recipe, floating)
        same = []
        correlations: dict[str, list[float]] = {method: [] for method in self.methods}
        for image, index, maps in self._probes[:count]:
            best, _, candidate_maps = self._explain(explainer, image, index)
            same.append(best == index)
            for method, values in candidate_maps.items():
                correlations[method].append(pearson(maps[method], values))
        return Trial(
            calibrator=recipe.calibrator,
            percentile=recipe.percentile,
            weight_bits=recipe.weight_bits,
            floating=len(floating),
            top1=float(np.mean(same)),
            pearson={method: float(np.median(values)) for method, values in correlations.items()},
        )

    def find_float_layers(
        self, trial: Trial, floor: Mapping[str, float], total: Total, note: Note
    ) -> tuple[tuple[FloatLayer, ...], list[Trial]]:
        """Find the fewest layers, most harmful first, to leave in float so that the floor holds.

        Args:
            trial: of every layer in INT8, which misses the floor.
            floor: least ``top1`` and ``pearson``.
            total: called with the number of further steps.
            note: called with an estimate of the time.

        Returns:
            The layers to leave in float, and the trials of the search.

        Raises:
            VerificationError: the floor is missed even with a single layer in INT8.
        """
        layers, recipe = self.graph.layers, trial.recipe
        gentlest = min(layers, key=self._rounding)
        others = [layer.name for layer in layers if layer is not gentlest]
        self._tick(f"trying {gentlest.name} alone in INT8", 0)
        started = time.perf_counter()
        gentle = self.evaluate(recipe, others)
        seconds = time.perf_counter() - started
        if gentle.shortfall(floor) > 0:
            raise VerificationError(
                f"the floor ({format_floor(floor)}) is missed even with {gentlest.name} in INT8 "
                f"and every other layer in float: {self._describe(gentle)}. Lower --floor"
            )
        number = min(len(self._probes), EVALUATED)
        ranked = min(number, _RANKED) + LOADING
        bisected = (number + LOADING) * 2 * ceil(log2(len(layers)))
        total((len(layers) + 1) * ranked + bisected)
        rate = seconds / (number + LOADING)
        note(
            f"the floor is missed with every layer in INT8 ({self._describe(trial)}); searching "
            f"which of {len(layers)} layers to leave in float takes about "
            f"{format_duration(rate * ((len(layers) + 1) * ranked + bisected))}"
        )
        base = self.evaluate(recipe, (), _RANKED).quality
        gains = []
        for layer in layers:
            self._tick(f"ranking layers: {layer.name}", ranked)
            quality = self.evaluate(recipe, [layer.name], _RANKED).quality
            gains.append(FloatLayer(name=layer.name, kind=layer.kind, gain=quality - base))
        # The gentlest layer is last: with all layers before it in float, the floor holds.
        gains.sort(key=lambda layer: (layer.name == gentlest.name, -layer.gain))
        trials: list[Trial] = []

        def holds(count: int) -> bool:
            self._tick(f"trying {count} layers in float", number + LOADING)
            trials.append(self.evaluate(recipe, [layer.name for layer in gains[:count]]))
            return trials[-1].shortfall(floor) == 0

        low, high = 0, 1
        while high < len(others) and not holds(high):
            low, high = high, min(2 * high, len(others))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return tuple(gains[:high]), [*trials, *([gentle] if high == len(others) else [])]

    def _magnitudes(self, recipe: Recipe) -> dict[str, float]:
        """Choose for each tensor the magnitude that 127 stands for."""
        return {
            name: magnitude(histogram, recipe.calibrator, recipe.percentile or PERCENTILES[0])
            for name, histogram in self._histograms.items()
        }

    def _rounding(self, layer: Layer) -> float:
        """Return the largest of a layer's input values by their root mean square."""
        histogram = self._histograms[layer.reads]
        return histogram.largest / max(root_mean_square(histogram), 1e-30)

    def _explain(
        self, explainer: Explainer, image: NDArray[Any], index: int = -1
    ) -> tuple[int, int, dict[Method, NDArray[np.float32]]]:
        """Return the most probable class, the class explained, and its maps by method."""
        # A graph without an input for the class explains the most probable one.
        target = index if explainer.manifest.top is None else -1
        plan = explainer.plan(self.methods)
        inference = pipeline.infer(explainer.model, image, [[target]], plan)
        maps = pipeline.map(explainer.model, inference, plan)
        by_method = {one.method: one.map for one in maps}
        return int(inference.probabilities[0].argmax()), maps[0].target, by_method

    def _describe(self, trial: Trial) -> str:
        lowest = min(trial.pearson, key=trial.pearson.__getitem__)
        count = len(self._probes)
        return (
            f"top1 {trial.top1:.3f} of {count} images, a step of {1 / count:.3f} each; pearson of "
            f"{lowest} {trial.pearson[lowest]:.4f}"
        )


def format_floor(floor: Mapping[str, float]) -> str:
    """Format a floor for people."""
    return ", ".join(f"{name} {value:g}" for name, value in floor.items())
