"""INT8 calibration of an explaining graph: ranges, layers that stay in float, and the proof.

What the search decides is decided on the photographs that ranges are taken from; what is reported
is measured on others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime.cam import Method
from ..runtime.engines import selftest
from ..runtime.engines.interface import Arrays, renamed, run_graph
from ..runtime.errors import DataError, ImageError, RequestError, VerificationError
from ..runtime.explainer import Explainer, load
from ..runtime.files import replacing
from ..runtime.images import read_picture
from ..runtime.manifest import Manifest
from ..runtime.onnxfile import append_manifest, digest, read_manifest
from ..runtime.similarity import pearson
from ..runtime.timing import measure_seconds, run_interleaved
from .dataset import Dataset, Sample, in_fixed_order
from .fidelity import Fidelity, common_methods, compare
from .quantise import Graph, observe, quantised, read_graph
from .ranges import CALIBRATORS, Calibrator, Histogram, magnitude

if TYPE_CHECKING:
    import onnx

Tick = Callable[[str, int], None]
Total = Callable[[int], None]
PERCENTILES = (99.99, 99.9)
WEIGHT_BITS = (8, 7)
FLOOR = {"top1": 0.95, "pearson": 0.95}
_SEARCHED = 48  # photographs; each candidate explains all of them
_RANKED = 16  # photographs on which layers are ranked
_LEAST = 16
_ROUNDS = 10


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One way of calibrating, as seen on the photographs that the search may look at.

    Attributes:
        calibrator: ``minmax``, ``percentile`` or ``entropy``.
        percentile: of the magnitudes; None for the other calibrators.
        weight_bits: 8 or 7.
        floating: how many layers stayed in float.
        top1: agreement with the float file.
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
        """How it was made."""
        return Recipe(self.calibrator, self.percentile, self.weight_bits)

    def shortfall(self, floor: Mapping[str, float]) -> float:
        """By how much it misses a floor, summed; 0: it holds."""
        missing = max(0.0, floor.get("top1", 0.0) - self.top1)
        lowest = floor.get("pearson", 0.0)
        return missing + sum(max(0.0, lowest - value) for value in self.pearson.values())

    @property
    def quality(self) -> float:
        """To choose by where the floor decides nothing: the mean of all agreements."""
        return float(np.mean([self.top1, *self.pearson.values()]))


class FloatLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer that stays in float.

    Attributes:
        name, kind: of its node.
        gain: in ``Trial.quality``, of this layer alone in float.
    """

    name: str
    kind: str
    gain: float


class Int8(msgspec.Struct, frozen=True, kw_only=True):
    """What INT8 calibration made.

    Attributes:
        file: the INT8 file.
        calibrator, percentile, weight_bits: chosen.
        layers: that could be quantised.
        floating: of these, left in float.
        tried: every calibrator, and the search for float layers.
        floor: what was asked for.
        calibrated_on: photographs.
        proof: against the float file, on other photographs.
        bytes_before, bytes_after: of the files.
        milliseconds_before, milliseconds_after: median of one explanation's engine call, float
            file and INT8 file in turn, in the same engine.
        milliseconds_all_int8: the same without float layers; None where there are none.
    """

    file: str
    calibrator: Calibrator
    percentile: float | None
    weight_bits: int
    layers: int
    floating: tuple[FloatLayer, ...]
    tried: tuple[Trial, ...]
    floor: dict[str, float]
    calibrated_on: int
    proof: Fidelity
    bytes_before: int
    bytes_after: int
    milliseconds_before: float
    milliseconds_after: float
    milliseconds_all_int8: float | None = None

    @property
    def recipe(self) -> Recipe:
        """How it was made."""
        return Recipe(self.calibrator, self.percentile, self.weight_bits)


@dataclass(frozen=True)
class Recipe:
    """How ranges become integers."""

    calibrator: Calibrator
    percentile: float | None
    weight_bits: int

    def __str__(self) -> str:
        percentile = "" if self.percentile is None else f" {self.percentile:g}"
        weights = "" if self.weight_bits == 8 else f", {self.weight_bits}-bit weights"
        return f"{self.calibrator}{percentile}{weights}"


@dataclass(frozen=True)
class Settings:
    """How to calibrate.

    Attributes:
        calibrator: one, or ``auto``: the one whose maps agree best.
        percentile: for ``percentile``; None: the best of 99.99 and 99.9.
        weight_bits: see ``quantise.quantised``; None: 8, or 7 where the processor's 8 miss the
            floor.
        pictures: to take ranges from, at most.
        held_out: to prove it on, at most.
        floor: least ``top1`` and ``pearson`` (median, of each method).
        methods: whose maps; None: those of the paper that the file has.
        engine, threads, gpu: that candidates and proof run in.
    """

    calibrator: str = "auto"
    percentile: float | None = None
    weight_bits: int | None = None
    pictures: int = 128
    held_out: int = 200
    floor: Mapping[str, float] | None = None
    methods: Sequence[Method] | None = None
    engine: str = "auto"
    threads: int | None = None
    gpu: int = 0

    def __post_init__(self) -> None:
        if self.calibrator not in ("auto", *CALIBRATORS):
            raise RequestError(
                f"there is no calibrator '{self.calibrator}'; choose from: auto, "
                f"{', '.join(CALIBRATORS)}"
            )
        if self.percentile is not None and not 50 < self.percentile <= 100:
            raise RequestError(
                f"percentile must be above 50 and at most 100, not {self.percentile}"
            )
        if self.weight_bits not in (None, *WEIGHT_BITS):
            raise RequestError(f"weight_bits must be 8 or 7, not {self.weight_bits}")
        if min(self.pictures, self.held_out) < _LEAST // 2:
            raise RequestError(
                f"pictures and held_out must be {_LEAST // 2} or more, not {self.pictures} and "
                f"{self.held_out}"
            )
        for name, value in (self.floor or {}).items():
            if name not in FLOOR or not 0 <= value <= 1:
                raise RequestError(
                    f"a floor is {' or '.join(FLOOR)} with a number from 0 to 1, not {name}={value}"
                )

    def candidates(self, weight_bits: int) -> list[Recipe]:
        """What to try with weights of so many bits."""
        percentiles = PERCENTILES if self.percentile is None else (self.percentile,)
        of: dict[str, list[Recipe]] = {
            "minmax": [Recipe("minmax", None, weight_bits)],
            "percentile": [Recipe("percentile", value, weight_bits) for value in percentiles],
            "entropy": [Recipe("entropy", None, weight_bits)],
        }
        names = CALIBRATORS if self.calibrator == "auto" else (self.calibrator,)
        return [each for name in names for each in of[name]]


def calibrate_int8(
    model: str | os.PathLike[str],
    data: Dataset,
    path: str | os.PathLike[str],
    settings: Settings | None = None,
    tick: Tick | None = None,
    total: Total | None = None,
) -> Int8:
    """Make an INT8 file of an explaining graph, and prove that its maps survive.

    The trunk computes in 8 bits; head, gradients and map arithmetic stay in float. Layers that
    hurt labels or maps most stay in float, as few as the floor takes.

    Args:
        model: a file made by ``whycam export``.
        data: photographs like those the network will see; labels are not needed.
        path: the file to write.
        settings: how.
        tick: told what is done, and steps since.
        total: told how many steps there will be.

    Raises:
        RequestError: a wish that does not exist, or a file with nothing to quantise.
        DataError: too few photographs.
        VerificationError: the floor does not hold on the photographs held out; no file is left.
        OutputError: the file cannot be written.
        MissingExtraError: the package onnx is not installed.
    """
    settings = settings or Settings()
    floor = dict(FLOOR if settings.floor is None else settings.floor)
    told: Tick = tick or (lambda _name, _steps: None)
    manifest = read_manifest(model)
    if manifest.precision != "fp32":
        raise RequestError(f"{model} is {manifest.precision} already: calibrate the float file")
    seen, held_out = divided(data, settings)
    target = Path(path)
    if target.resolve() == Path(model).resolve():
        raise RequestError(f"{path} is the float file itself: write the INT8 file elsewhere")
    with replacing(target) as temporary, tempfile.TemporaryDirectory() as folder:
        reference = load(model, settings.engine, settings.threads, gpu=settings.gpu)
        search = _Search(
            read_graph(model),
            reference,
            common_methods(reference, reference, settings.methods),
            settings,
            Path(folder) / "candidate.onnx",
        )
        if total is not None:
            total(len(seen) + len(settings.candidates(8)) + len(held_out))
        search.see(seen, told)
        trials: list[Trial] = []
        for bits in WEIGHT_BITS if settings.weight_bits is None else (settings.weight_bits,):
            trials += [search.calibrated(each, told) for each in settings.candidates(bits)]
            trial = min(trials, key=lambda each: (each.shortfall(floor), -each.quality))
            if trial.shortfall(floor) == 0:
                break
        floating: tuple[FloatLayer, ...] = ()
        if trial.shortfall(floor) > 0:
            floating, searched = search.float_layers(trial, floor, told)
            trials += searched
        names = [each.name for each in floating]
        made = search.make(trial.recipe, names)
        write_int8(made, manifest, temporary)
        other = load(temporary, settings.engine, settings.threads, gpu=settings.gpu)
        told("proving", 0)
        proof = compare(reference, other, held_out, search.methods, manifest.tft, told)
        _check(proof, floor)
        whole = None
        if floating:
            search.write(search.make(trial.recipe, ()))
            whole = load(
                search.path, settings.engine, settings.threads, gpu=settings.gpu, check=False
            )
        times = _times([reference, other, *([] if whole is None else [whole])])
        size = temporary.stat().st_size
    return Int8(
        file=str(target),
        calibrator=trial.calibrator,
        percentile=trial.percentile,
        weight_bits=trial.weight_bits,
        layers=len(search.graph.layers),
        floating=floating,
        tried=tuple(trials),
        floor=floor,
        calibrated_on=search.count,
        proof=proof,
        bytes_before=Path(model).stat().st_size,
        bytes_after=size,
        milliseconds_before=times[0],
        milliseconds_after=times[1],
        milliseconds_all_int8=times[2] if floating else None,
    )


def divided(data: Dataset, settings: Settings) -> tuple[list[Sample], list[Sample]]:
    """Photographs to calibrate on and others to prove it on, the same each time.

    Raises:
        DataError: there are fewer than 16.
    """
    samples = in_fixed_order(data.samples)
    if len(samples) < _LEAST:
        raise DataError(
            f"INT8 calibration needs {_LEAST} photographs or more, better some hundred: "
            f"{data.path} has {len(samples)}"
        )
    count = min(settings.pictures, len(samples) // 2)
    return samples[:count], samples[count : count + settings.held_out]


class _Search:
    """Candidates for one graph, each tried on the same photographs."""

    def __init__(
        self,
        graph: Graph,
        reference: Explainer,
        methods: tuple[Method, ...],
        settings: Settings,
        path: Path,
    ) -> None:
        self.graph = graph
        self.methods = methods
        self.path = path
        self.count = 0
        self._reference = reference
        self._settings = settings
        self._histograms: dict[str, Histogram] = {}
        # Of the first photographs: input, class, and the reference's maps by method.
        self._probes: list[tuple[NDArray[Any], int, dict[Method, NDArray[np.float32]]]] = []

    def see(self, samples: Sequence[Sample], tick: Tick) -> None:
        """Take ranges from photographs, and keep a few to try candidates on."""
        unreadable = []

        def images() -> Any:
            for sample in samples:
                tick(f"ranges: {sample.name}", 1)
                try:
                    image, _ = self._reference.inputs([read_picture(sample.path)])
                except ImageError as error:
                    unreadable.append(str(error))
                    continue
                self.count += 1
                if len(self._probes) < _SEARCHED:
                    _, index, maps = self._explained(self._reference, image)
                    self._probes.append((image, index, maps))
                yield image

        self._histograms = observe(self.graph, images(), self._settings.threads)
        if self.count < _LEAST // 2:
            raise DataError(f"too few photographs can be read, as: {unreadable[0]}")

    def _explained(
        self, explainer: Explainer, image: NDArray[Any], index: int = -1
    ) -> tuple[int, int, dict[Method, NDArray[np.float32]]]:
        """(the most probable class, the class explained, its maps)."""
        # A graph without an input for the class explains the most probable one.
        wanted = index if explainer.manifest.top is None else -1
        target = np.full((1, 1), wanted, np.int64)
        probabilities, targets, maps = explainer.maps(image, target, self.methods)
        found = {method: values[0, 0] for method, values in maps.items()}
        return int(probabilities[0].argmax()), int(targets[0, 0]), found

    def make(self, recipe: Recipe, floating: Sequence[str]) -> onnx.ModelProto:
        """A candidate."""
        magnitudes = {
            name: magnitude(histogram, recipe.calibrator, recipe.percentile or PERCENTILES[0])
            for name, histogram in self._histograms.items()
        }
        return quantised(self.graph, magnitudes, floating, recipe.weight_bits)

    def write(self, made: onnx.ModelProto) -> None:
        """Where it can be loaded from."""
        write_int8(made, self._reference.manifest, self.path)

    def calibrated(self, recipe: Recipe, tick: Tick) -> Trial:
        """Try one way of calibrating, every layer in INT8."""
        tick(f"trying {recipe}", 1)
        return self.tried(recipe, ())

    def tried(self, recipe: Recipe, floating: Sequence[str], count: int = _SEARCHED) -> Trial:
        """Try a candidate on ``count`` of the photographs seen."""
        self.write(self.make(recipe, floating))
        own = self._settings
        explainer = load(self.path, own.engine, own.threads, gpu=own.gpu, check=False)
        same = []
        alike: dict[str, list[float]] = {method: [] for method in self.methods}
        for image, index, maps in self._probes[:count]:
            best, _, found = self._explained(explainer, image, index)
            same.append(best == index)
            for method, values in found.items():
                alike[method].append(pearson(maps[method], values))
        return Trial(
            calibrator=recipe.calibrator,
            percentile=recipe.percentile,
            weight_bits=recipe.weight_bits,
            floating=len(floating),
            top1=float(np.mean(same)),
            pearson={method: float(np.median(values)) for method, values in alike.items()},
        )

    def float_layers(
        self, trial: Trial, floor: Mapping[str, float], tick: Tick
    ) -> tuple[tuple[FloatLayer, ...], list[Trial]]:
        """The fewest layers, most harmful first, that hold the floor once they are in float.

        Raises:
            VerificationError: not even all of them do.
        """
        base = self.tried(trial.recipe, (), _RANKED).quality
        gains = []
        for layer in self.graph.layers:
            tick(f"which layers hurt: {layer.name}", 0)
            found = self.tried(trial.recipe, [layer.name], _RANKED)
            gains.append(FloatLayer(name=layer.name, kind=layer.kind, gain=found.quality - base))
        gains.sort(key=lambda each: -each.gain)
        trials: list[Trial] = []

        def holds(count: int) -> bool:
            tick(f"with {count} layers in float", 0)
            names = [each.name for each in gains[:count]]
            trials.append(self.tried(trial.recipe, names))
            return trials[-1].shortfall(floor) == 0

        high = 1
        while high < len(gains) and not holds(high):
            high *= 2
        high = min(high, len(gains))
        if high == len(gains):
            raise VerificationError(
                "even with every layer in float the floor is missed: the floor is too high for "
                "the photographs given"
            )
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return tuple(gains[:high]), trials


def write_int8(made: onnx.ModelProto, manifest: Manifest, path: Path) -> None:
    """Write a quantised graph with its manifest.

    The references to verify engines by are the file's own answers, computed step by step as the
    file says, where its outputs give them: float answers are not what it should reproduce, and
    kernels that overflow are what they should tell.
    """
    import onnx

    del made.metadata_props[:]
    onnx.save(made, str(path))
    own = msgspec.structs.replace(
        manifest,
        precision="int8",
        digest=digest(path),
        tools={**manifest.tools, "onnxruntime": _version("onnxruntime")},
    )
    size = path.stat().st_size
    append_manifest(path, own)
    references = selftest.answers(_Literal(path, own), own)
    if references:
        with path.open("r+b") as file:
            file.truncate(size)
        append_manifest(path, msgspec.structs.replace(own, references=references))


class _Literal:
    """A file as it is written, in ONNX Runtime: quantised numbers are unpacked, then computed with.

    No operations are fused, so none of the processor's integer arithmetic is used.
    """

    name = "onnxruntime"
    description = "ONNX Runtime without optimisation"
    reason = "to know what a quantised file means"

    def __init__(self, path: Path, manifest: Manifest) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._manifest = manifest

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``engine.Engine.run``."""
        return run_graph(renamed(self._run, self._manifest), feeds, outputs, self._manifest)

    def _run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        values = self._session.run(list(outputs), dict(feeds))
        return dict(zip(outputs, values, strict=True))


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _check(proof: Fidelity, floor: Mapping[str, float]) -> None:
    missed = []
    if proof.top1 < floor.get("top1", 0.0):
        missed.append(f"top1 {proof.top1:.3f}")
    missed += [
        f"pearson of {method} {found.pearson:.3f}"
        for method, found in proof.maps.items()
        if found.pearson < floor.get("pearson", 0.0)
    ]
    if missed:
        asked = ", ".join(f"{name} {value:g}" for name, value in floor.items())
        raise VerificationError(
            f"on {proof.pictures} photographs held out the INT8 file reaches {', '.join(missed)}, "
            f"below the floor ({asked}). No file was written: calibrate on more photographs, or "
            "lower --floor"
        )


def _times(explainers: Sequence[Explainer]) -> list[float]:
    """Median milliseconds of one picture's engine call, in turn."""
    contenders = {}
    for index, explainer in enumerate(explainers):
        manifest = explainer.manifest
        feeds = {"image": selftest.feed(manifest, 0), "target": np.full((1, 1), -1, np.int64)}
        outputs = [name for name in manifest.output_shapes if name != "ablation_weights"]
        contenders[index] = lambda e=explainer, f=feeds, o=outputs: measure_seconds(
            lambda: e.engine.run(f, o)
        )
    found = run_interleaved(contenders, _ROUNDS)
    return [1e3 * median(found[index]) for index in contenders]
