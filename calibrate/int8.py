"""Calibrate an explaining graph for INT8, and prove that its maps survive.

The search uses the images that ranges are taken from; the agreement that is reported is measured
on others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from ..runtime.engines import selftest
from ..runtime.errors import DataError, RequestError, VerificationError
from ..runtime.explainer import Explainer
from ..runtime.files import replacing
from ..runtime.load import load
from ..runtime.onnxfile import read_manifest
from ..runtime.timing import Note, Tick, Total, measure_seconds, run_interleaved
from .dataset import Dataset, Sample, shuffle_samples
from .evaluate import check_one_classifier
from .fidelity import Fidelity, compare, select_common_methods
from .int8_file import write_int8
from .int8_search import (
    EVALUATED,
    LOADING,
    FloatLayer,
    Search,
    Trial,
    format_floor,
)
from .int8_settings import FLOOR, LEAST_IMAGES, WEIGHT_BITS, Recipe, Settings
from .quantise import read_graph
from .ranges import Calibrator

_ROUNDS = 10


class Int8Result(msgspec.Struct, frozen=True, kw_only=True):
    """The INT8 file, how it was chosen, and its measured agreement with the float file.

    Attributes:
        file: path of the INT8 file.
        calibrator, percentile, weight_bits: the ones chosen.
        layers: number of layers that can be quantised.
        floating: of these, the layers left in float.
        tried: trials of every calibrator, and of the search for float layers.
        floor: least ``top1`` and ``pearson`` required.
        calibrated_on: number of images that ranges were taken from.
        proof: agreement with the float file on held-out images.
        bytes_before, bytes_after: sizes of the float file and the INT8 file.
        milliseconds_before, milliseconds_after: median time of one explanation in the same engine,
            float file and INT8 file in turn.
        milliseconds_all_int8: that with every layer in INT8; None if no layer was left in float.
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
        """Return calibrator, percentile and weight bits together."""
        return Recipe(self.calibrator, self.percentile, self.weight_bits)


def calibrate_int8(
    model: str | os.PathLike[str],
    data: Dataset,
    path: str | os.PathLike[str],
    settings: Settings | None = None,
    tick: Tick | None = None,
    total: Total | None = None,
    note: Note | None = None,
) -> Int8Result:
    """Make an INT8 file of an explaining graph, and prove that its maps survive.

    The backbone computes in 8 bits; head, gradients and map arithmetic stay in float. So do the
    layers that harm labels or maps most, as few as the floor allows.

    Args:
        model: a file made by ``whycam export``.
        data: images like those the network will see; labels are not needed.
        path: the file to write.
        settings: of the calibration.
        tick, total, note: see ``runtime.timing``; a step takes about as long as one image.

    Raises:
        RequestError: a setting is invalid, or the file has nothing to quantise, or takes images
            of many sizes.
        DataError: too few images.
        VerificationError: the floor does not hold on the images held out; no file is left.
        OutputError: the file cannot be written.
        MissingExtraError: the package onnx is not installed.
    """
    settings = settings or Settings()
    floor = dict(FLOOR if settings.floor is None else settings.floor)
    report: Tick = tick or (lambda _name, _steps: None)
    say: Note = note or (lambda _text: None)
    manifest = read_manifest(model)
    if manifest.precision != "fp32":
        raise RequestError(f"{model} is {manifest.precision} already: calibrate the float file")
    if manifest.dynamic_size is not None:
        raise RequestError(
            f"{model} takes images of many sizes, and INT8 is calibrated and verified at one; some "
            "processors also compute INT8 wrongly where sizes are free. Export a file without "
            "--dynamic-size, and calibrate that"
        )
    if manifest.class_embeddings is not None:
        raise RequestError(
            f"{model} takes its classes as an input, and whether labels and maps survive INT8 is "
            "measured for some classes: export with --classes FILE.npz, and calibrate that file"
        )
    check_one_classifier(manifest)
    calibration, held_out = split_samples(data, settings)
    target = Path(path)
    if target.resolve() == Path(model).resolve():
        raise RequestError(f"{path} is the float file itself: write the INT8 file elsewhere")
    _note_step(len(held_out), floor.get("top1", 0.0), say)
    steps = 0

    def extend(more: int) -> None:
        nonlocal steps
        steps += more
        if total is not None:
            total(steps)

    with replacing(target) as temporary, tempfile.TemporaryDirectory() as folder:
        reference = load(model, settings.engine, settings.threads, gpu=settings.gpu)
        methods = select_common_methods(reference, reference, settings.methods)
        graph = read_graph(model)
        candidate = Path(folder) / "candidate.onnx"
        search = Search(graph, reference, methods, settings, candidate, report)
        # Each held-out image is explained by both files, with every threshold.
        proving = 2 * len(methods) * (1 + len(manifest.tft.taus))
        extend(len(calibration) + proving * len(held_out))
        search.take_ranges(calibration)
        trials: list[Trial] = []
        for bits in WEIGHT_BITS if settings.weight_bits is None else (settings.weight_bits,):
            recipes = settings.recipes(bits)
            cost = min(search.count, EVALUATED) + LOADING
            extend(cost * len(recipes))
            for recipe in recipes:
                trials.append(search.evaluate(recipe))
                report(f"tried {recipe}", cost)
            trial = min(trials, key=lambda layer: (layer.shortfall(floor), -layer.quality))
            if trial.shortfall(floor) == 0:
                break
        floating: tuple[FloatLayer, ...] = ()
        if trial.shortfall(floor) > 0:
            floating, searched = search.find_float_layers(trial, floor, extend, say)
            trials += searched
        names = [layer.name for layer in floating]
        write_int8(search.quantise(trial.recipe, names), manifest, temporary)
        other = load(temporary, settings.engine, settings.threads, gpu=settings.gpu)
        report("proving", 0)
        proof = compare(
            reference,
            other,
            held_out,
            methods,
            manifest.tft,
            lambda name, done: report(f"proving: {name}", proving * done),
        )
        _check(proof, floor)
        timed = [reference, other, *([search.load(trial.recipe, ())] if floating else [])]
        times = _times(timed)
        size = temporary.stat().st_size
    return Int8Result(
        file=str(target),
        calibrator=trial.calibrator,
        percentile=trial.percentile,
        weight_bits=trial.weight_bits,
        layers=len(graph.layers),
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


def split_samples(data: Dataset, settings: Settings) -> tuple[list[Sample], list[Sample]]:
    """Split the images into those to calibrate on and those held out, the same way each time.

    Raises:
        DataError: there are fewer than 16.
    """
    samples = shuffle_samples(data.samples)
    if len(samples) < LEAST_IMAGES:
        raise DataError(
            f"INT8 calibration needs {LEAST_IMAGES} images or more, better some hundred: "
            f"{data.path} has {len(samples)}"
        )
    count = min(settings.images, len(samples) // 2)
    return samples[:count], samples[count : count + settings.held_out]


def _note_step(count: int, floor: float, note: Note) -> None:
    """Warn if so few images are held out that none of them may change its class."""
    if floor < 1 and (1 - floor) * count < 1 - 1e-9:
        note(
            f"only {count} images are held out, so one is a step of {1 / count:.3g} in top1: a "
            f"floor of {floor:g} means that all of them keep their class"
        )


def _check(proof: Fidelity, floor: Mapping[str, float]) -> None:
    missed = []
    if proof.top1 < floor.get("top1", 0.0):
        missed.append(f"top1 {proof.top1:.3f}")
    missed += [
        f"pearson of {method} {agreement.pearson:.3f}"
        for method, agreement in proof.maps.items()
        if agreement.pearson < floor.get("pearson", 0.0)
    ]
    if missed:
        raise VerificationError(
            f"on {proof.images} images held out (one is a step of {1 / proof.images:.3g} in "
            f"top1) the INT8 file reaches {', '.join(missed)}, below the floor "
            f"({format_floor(floor)}). No file was written: calibrate on more images, or lower "
            "--floor"
        )


def _times(explainers: Sequence[Explainer]) -> list[float]:
    """Measure the median milliseconds of one image's engine call, the explainers in turn."""
    contenders = {}
    for index, explainer in enumerate(explainers):
        manifest = explainer.manifest
        feeds = {"image": selftest.make_input(manifest, 0), "target": np.full((1, 1), -1, np.int64)}
        outputs = [name for name in manifest.output_shapes if name != "ablation_weights"]
        contenders[index] = lambda e=explainer, f=feeds, o=outputs: measure_seconds(
            lambda: e.engine.run(f, o)
        )
    seconds = run_interleaved(contenders, _ROUNDS)
    return [1e3 * median(seconds[index]) for index in contenders]
