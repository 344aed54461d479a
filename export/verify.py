"""Hold an exported file against PyTorch in float64: names, then shapes, then values."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from ..runtime import cam
from ..runtime.cam import Score
from ..runtime.engines import selftest
from ..runtime.engines.engine import Engine
from ..runtime.errors import VerificationError
from ..runtime.manifest import Manifest, Preprocess, Reference
from ..runtime.preprocess import crop_resized, normalise
from ..runtime.search import begin, expected_improvement, features, logit, observe
from ..runtime.sweep import Classify, Request, choice_of, masked_probabilities
from ..runtime.tft import LEAST_PROBABILITY
from .ablation import Head, logit_drops
from .graph import ExplainingGraph, ablation_score, gradient_score

# A wrong graph is off by orders of magnitude more; float32 networks stay well below.
TOLERANCE = {
    "probabilities": 1e-4,
    "activations": 1e-3,
    "gradients": 1e-4,
    "ablation": 1e-3,
    "earlier": 1e-2,
    "pixels": 1.01,
    "maps": 1e-4,
    "tft": 1e-3,  # of PyTorch in float32 as well, on pictures mostly masked
}
_SAID = {
    "pixels": "its preprocessing differs from Pillow's",
    "earlier": "gradients at earlier layers differ from PyTorch in float64",
    "maps": "finished maps differ from the runtime's",
    "tft": "its sweep differs from the runtime's",
}
_SWEEP_BATCH = 16
_NEAR_TIE = 1e-3  # of expected improvements, in logits: float32 leaves as much of a logit
_CHANNELS_CHECKED = 4
# Float32 leaves an error of about 1e-7 in an Ablation-CAM weight however small the weight is;
# untrained networks, whose classes are all alike, have no larger ones.
_LEAST_WEIGHT = 1e-4
_LEAST_PROBABILITY = 1e-12
_FLAT = 1e-3  # below this part of its magnitude a map's differences hold no four digits
_DRAWS = 6


@dataclass(frozen=True)
class Verification:
    """Largest differences found, engine against float64 PyTorch, over all inputs tried.

    Attributes:
        probabilities: absolute.
        activations, gradients, ablation: relative to the largest value of the reference.
        earlier: of gradients at fused layers, relative, by their norms.
        pixels: of preprocessing inside the graph against Pillow, absolute, of 255; 99.9 % of all.
        maps: of the graph's finished maps, absolute, against the runtime's arithmetic.
        tft: of the masked probabilities in the graph's sweep, absolute, against the runtime's.
        inputs: how many batches were compared.
    """

    probabilities: float
    activations: float
    gradients: float
    ablation: float | None
    earlier: float | None
    pixels: float | None
    maps: float | None
    tft: float | None
    inputs: int


class Float64:
    """Trunk and head in float64, and autograd through the head: the reference.

    Raises:
        VerificationError: trunk and head together are not the model.
    """

    def __init__(
        self, model: torch.nn.Module, graph: ExplainingGraph, size: tuple[int, int]
    ) -> None:
        with torch.no_grad():
            image = torch.from_numpy(selftest.pattern(0, size))[None]
            whole, parts = model(image), graph.split.head(graph.split.trunk(image))
        if not torch.allclose(whole, parts, rtol=1e-4, atol=1e-4 * float(whole.abs().max())):
            raise VerificationError(
                "the recorded graph is not the model: logits differ by "
                f"{float((whole - parts).abs().max()):.1e}. Does it behave differently from call "
                "to call? No file was written"
            )
        self.trunk = _double(graph.split.trunk)
        self.head = _double(graph.split.head)
        self.earlier = len(graph.split.earlier)
        self.stem, self.tail = self.trunk, self.head
        if self.earlier:
            self.stem, self.tail = _double(graph.split.stem), _double(graph.split.tail)
        self.score = graph.score

    def score_of(self, logits: torch.Tensor, targets: torch.Tensor, score: Score) -> torch.Tensor:
        """The logit or probability of each row's target, [M]."""
        values = logits if score == "logit" else torch.softmax(logits, dim=-1)
        return values.gather(1, targets[:, None])[:, 0]

    def gradient(self, activations: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """d score / d A by plain autograd; activations [M, K, h, w], targets [M]."""
        a = activations.detach().requires_grad_(True)
        with torch.enable_grad():
            score = self.score_of(self.head(a), targets, gradient_score(self.score))
            (gradient,) = torch.autograd.grad(score.sum(), a)
        return gradient

    def layers(
        self, first: torch.Tensor, targets: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Activations and gradients [M, K, h, w] of every layer, from the first one's activations.

        Args:
            first: float64 [M, K, h, w], once for each explained class.
            targets: int64 [M].
        """
        a = first.detach().requires_grad_(True)
        with torch.enable_grad():
            found = self.tail(a)
            *later, logits = found if isinstance(found, tuple) else (found,)
            score = self.score_of(logits, targets, gradient_score(self.score))
            gradients = torch.autograd.grad(score.sum(), [a, *later])
        return [each.detach() for each in (a, *later)], list(gradients)

    def ablation(
        self, activations: torch.Tensor, targets: torch.Tensor, channel: int
    ) -> torch.Tensor:
        """(y - y_k) / y for one channel, by running the head without it."""
        without = activations.clone()
        without[:, channel] = 0
        both = [self.head(activations), self.head(without)]
        if ablation_score(self.score) == "logit":
            y, y_without = (self.score_of(logits, targets, "logit") for logits in both)
            return (y - y_without) / y
        # In logarithms, for a class may have probability 0 even in float64.
        y, y_without = (
            torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0] for logits in both
        )
        return -torch.expm1(y_without - y)


def _double(recorded: fx.GraphModule) -> fx.GraphModule:
    """A recorded graph in float64, with the float32 that is written into its operations."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(recorded.graph, {}))
    for node in graph.nodes:
        node.args = fx.node.map_aggregate(node.args, _wider)
        node.kwargs = fx.node.map_aggregate(node.kwargs, _wider)
    return fx.GraphModule(copy.deepcopy(recorded), graph).double()


def _wider(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


def references(exact: Float64, manifest: Manifest, head: Head) -> tuple[Reference, ...]:
    """What the float64 model answers for the built-in test patterns."""
    found = []
    method = selftest.method_of(manifest)
    for index in range(selftest.PATTERNS):
        image = torch.from_numpy(selftest.view(manifest, index)).double()
        activations = exact.trunk(image)
        logits = exact.head(activations)
        probabilities = torch.softmax(logits, dim=-1)
        target = probabilities.argmax(dim=-1)
        gradient = weights = None
        if method == "ablation":  # of float32 precision; ``verify`` holds samples against float64
            drops = logit_drops(head, activations.float(), logits.float())
            selected = torch.nn.functional.one_hot(target[:, None], logits.shape[1]).float()
            score = ablation_score(exact.score)
            weights = cam.ablation_weights(logits.float(), drops, selected, score).double()
        else:
            gradient = exact.gradient(activations, target)[:, None]
        if exact.earlier:
            raw = _fused(*exact.layers(exact.stem(image), target))
        else:
            raw = selftest.agreed_map(method, activations, gradient, weights)
        found.append(
            Reference(
                pattern=index,
                target=int(target),
                probability=float(probabilities[0, target]),
                raw_map=tuple(float(f"{value:.7g}") for value in raw.flatten()),
            )
        )
    return tuple(found)


def _fused(activations: list[torch.Tensor], gradients: list[torch.Tensor]) -> torch.Tensor:
    """Layer-CAM of several layers, [M, 1, h, w]."""
    pairs = zip(activations, gradients, strict=True)
    fused: torch.Tensor = cam.fuse([cam.raw_map("layercam", a, g[:, None]) for a, g in pairs])
    return fused


def verify(
    engine: Engine, graph: ExplainingGraph, exact: Float64, manifest: Manifest
) -> Verification:
    """Compare on two inputs of two batch sizes, with one and two classes an image.

    Args:
        engine: runs the file, which has all of the graph's outputs.
        graph: what was exported.
        exact: its reference.
        manifest: of the file.

    Raises:
        VerificationError: an output is missing, has another shape, or differs too much.
    """
    rng = np.random.default_rng(0)
    worst: dict[str, float] = {}
    compared = 0
    for batch, classes in ((1, 1), (3, 2)):
        for _ in range(_DRAWS):
            image = _photograph_like(rng, batch, manifest)
            target = rng.integers(0, graph.split.num_classes, (batch, classes))
            target[:, 0] = -1
            found = engine.run({"image": image, "target": target}, graph.output_names)
            _check_shapes(found, graph, batch, classes)
            view = found.get("network_input", image)
            with torch.no_grad():
                activations = exact.trunk(torch.from_numpy(view).double())
            rounding = _own_rounding(graph, exact, view, activations)
            if rounding <= 0.5 and not _at_a_kink(exact, found, rng):
                break
        if not rounding <= 1:
            raise VerificationError(
                f"the network magnifies rounding: of {_DRAWS} test images there was none on which "
                "PyTorch's own answers are defined; on the last, those in float32 and in float64 "
                f"differ by {rounding:.1g} times what a file's may. "
                "Statistics of batch normalisation that do not fit the images, as in an untrained "
                "network, do this. No file was written"
            )
        errors = _differences(exact, activations, target, found, rng)
        if graph.resample is not None:
            errors["pixels"] = _pixel_difference(image, view, manifest.preprocess)
        if graph.method is not None:
            errors["maps"] = _map_difference(graph, found)
        if graph.tft is not None:
            errors["tft"] = _sweep_difference(graph, view, found)
        if exact.earlier:
            errors["earlier"] = _earlier_difference(exact, found)
        for name, error in errors.items():
            worst[name] = max(worst.get(name, 0.0), error)
            if not error <= TOLERANCE[name]:
                said = _SAID.get(name, f"{name} differ from PyTorch in float64")
                raise VerificationError(
                    f"the exported graph is wrong: {said} by {error:.1e}, more "
                    f"than {TOLERANCE[name]:.0e} (batch {batch}, {classes} classes). No file was "
                    "written"
                )
        compared += 1
    return Verification(
        worst["probabilities"],
        worst["activations"],
        worst["gradients"],
        worst.get("ablation"),
        worst.get("earlier"),
        worst.get("pixels"),
        worst.get("maps"),
        worst.get("tft"),
        compared,
    )


def _map_difference(graph: ExplainingGraph, found: dict[str, NDArray[Any]]) -> float:
    """The file's own maps against the runtime's arithmetic on the file's raw outputs."""
    assert graph.method is not None
    weights = found.get("ablation_weights") if graph.method == "ablation" else None
    raw = cam.raw_map(graph.method, found["activations"], found["gradients"], weights)
    if not graph.split.earlier:
        # A map's rounding is a part of the terms of its sums, which may cancel: the gradient of a
        # head that ignores scale is at right angles to the mean. Stretched, it is all there is.
        terms = selftest.terms(graph.method, found["activations"], found["gradients"], weights)
    else:
        before = [
            cam.raw_map(graph.method, found[f"activations_{i}"], found[f"gradients_{i}"])
            for i in range(len(graph.split.earlier))
        ]
        raw = terms = cam.fuse([*before, raw])
    maps = found["maps" if graph.tft is None else "original_maps"]
    differences = np.abs(maps - cam.finish(raw, graph.size)).max((-2, -1))
    shows = np.ptp(raw, axis=(-2, -1)) > _FLAT * terms.max((-2, -1))
    return float(differences[shows].max(initial=0.0))


def _earlier_difference(exact: Float64, found: dict[str, NDArray[np.generic]]) -> float:
    """Of the gradients at earlier layers, relative, by their norms.

    Not of single elements: between such a layer and the logits lie so many ReLUs that one of them
    is always close enough to zero for float32 to take the other side.
    """
    targets = torch.from_numpy(np.asarray(found["targets"]))
    first = _tensor(found["activations_0"]).repeat_interleave(targets.shape[1], dim=0)
    _, expected = exact.layers(first, targets.flatten())
    worst = 0.0
    for index in range(exact.earlier):
        own = _tensor(found[f"gradients_{index}"]).flatten(0, 1)
        scale = float(expected[index].norm())
        difference = float((own - expected[index]).norm())
        worst = max(worst, difference / scale if scale > 0 else difference)
    return worst


def _sweep_difference(
    graph: ExplainingGraph, view: NDArray[np.float32], found: dict[str, NDArray[Any]]
) -> float:
    """The file's sweep against the runtime's with PyTorch behind it, on the file's own maps.

    The largest difference of the class's probability; infinite where thresholds, or the maps cut
    at them, do not follow from the file's own numbers.
    """
    assert graph.tft is not None
    classes = found["targets"]

    def classify(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            logits = graph.split.head(graph.trunk(torch.from_numpy(images)))
        return torch.softmax(logits, dim=-1).numpy()

    worst = 0.0
    for i, j in np.ndindex(*classes.shape):
        probability = float(found["probabilities"][i, classes[i, j]])
        request = Request(view[i], found["original_maps"][i, j], int(classes[i, j]), probability)
        rpi, masked = found["rpi"][i, j], found["masked_probabilities"][i, j]
        worst = max(worst, _probability_difference(classify, request, rpi, masked, graph))
        own = choice_of(request.map, rpi, masked, graph.tft)
        same = np.float32(own.threshold) == found["thresholds"][i, j]
        if not same or not np.array_equal(own.map, found["maps"][i, j]):
            return math.inf
    return worst


def _probability_difference(
    classify: Classify,
    request: Request,
    rpi: NDArray[np.float32],
    masked: NDArray[np.float32],
    graph: ExplainingGraph,
) -> float:
    """Of one map's masked probabilities; infinite where the graph tried other thresholds."""
    assert graph.tft is not None
    tried = ~np.isnan(rpi)
    (expected,) = masked_probabilities(classify, [request], graph.tft, _SWEEP_BATCH)
    if not np.array_equal(tried, ~np.isnan(masked)) or not _are_the_right_ones(
        tried, request, masked, expected, graph
    ):
        return math.inf
    increase = np.maximum(expected - np.float32(request.probability), 0)
    related = max(request.probability, LEAST_PROBABILITY)
    by_rpi = np.abs(rpi * related - increase)[tried].max()
    return float(max(by_rpi, np.abs(masked - expected)[tried].max()))


def _are_the_right_ones(
    tried: NDArray[np.bool_],
    request: Request,
    masked: NDArray[np.float32],
    expected: NDArray[np.float32],
    graph: ExplainingGraph,
) -> bool:
    """Whether a search by the graph's own answers tries these thresholds, but for near ties."""
    assert graph.tft is not None
    if graph.tft.again is not None:
        return _are_the_best(tried, masked, expected, graph.tft.again)
    if graph.prior is None:
        return bool(tried.all())
    assert graph.tft.forwards is not None
    if tried.sum() != min(graph.tft.forwards, len(tried)):
        return False
    whole = np.asarray(request.probability, np.float32)
    belief = begin(graph.prior, features(request.map, whole))
    for _ in range(int(tried.sum())):
        promised = expected_improvement(belief)
        step = int(np.where(tried, promised, -np.inf).argmax())
        if promised.max() - promised[step] > _NEAR_TIE * (1 + abs(promised.max())):
            return False
        one_hot = np.eye(len(tried), dtype=np.float32)[step]
        belief = observe(belief, one_hot, logit(masked[step]) - logit(whole))
    return True


def _are_the_best(
    tried: NDArray[np.bool_],
    masked: NDArray[np.float32],
    expected: NDArray[np.float32],
    again: int,
) -> bool:
    """Whether the thresholds tried again are the best of the sweep, but for near ties.

    Equal masks have equal probabilities and are tried once, so there may be fewer.
    """
    different = np.unique(expected)[::-1]
    wanted = min(again, len(different))
    enough = 1 <= tried.sum() <= again and (tried.sum() == wanted or len(different) <= again)
    least = different[wanted - 1] * (1 - _NEAR_TIE) - TOLERANCE["tft"]
    return bool(enough and masked[tried].min() >= least)


def random_fields(
    rng: np.random.Generator, batch: int, size: tuple[int, int]
) -> NDArray[np.float32]:
    """Coarse ones with fine noise on top, as normalised photographs: float32 [batch, 3, H, W]."""
    coarse = np.asarray(cam.resize(rng.standard_normal((batch, 3, 8, 8)), size))
    noise = rng.standard_normal((batch, 3, *size))
    return (1.2 * coarse + 0.3 * noise).astype(np.float32)


def _photograph_like(rng: np.random.Generator, batch: int, manifest: Manifest) -> NDArray[Any]:
    """Random fields as the graph takes its images."""
    size = selftest.feed(manifest, 0).shape[1:3]
    if not manifest.embedded_preprocess:
        size = manifest.preprocess.size
    image = random_fields(rng, batch, size)
    if not manifest.embedded_preprocess:
        return image
    return np.clip(np.moveaxis(128 + 50 * image, 1, -1), 0, 255).astype(np.uint8)


def _pixel_difference(
    pictures: NDArray[np.uint8], view: NDArray[np.float32], spec: Preprocess
) -> float:
    """The file's view of pictures against Pillow's, in steps of 1 of 255, but for 0.1 % of pixels.

    Those may lie half way between two values, or where Pillow resizes in the other order.
    """
    expected = normalise(np.stack([crop_resized(picture, spec)[0] for picture in pictures]), spec)
    step = np.asarray(spec.std, np.float32)[:, None, None] * 255
    return float(np.quantile(np.abs(view - expected) * step, 0.999))


def _check_shapes(
    found: dict[str, NDArray[np.generic]], graph: ExplainingGraph, batch: int, classes: int
) -> None:
    channels = graph.split.layer.shape
    expected = {
        "probabilities": (batch, graph.split.num_classes),
        "targets": (batch, classes),
        "activations": (batch, *channels),
        "gradients": (batch, classes, *channels),
        "ablation_weights": (batch, classes, channels[0]),
        "network_input": (batch, 3, *graph.size),
        "maps": (batch, classes, *graph.size),
        "original_maps": (batch, classes, *graph.size),
        "thresholds": (batch, classes),
    }
    for index, layer in enumerate(graph.split.earlier):
        expected[f"activations_{index}"] = (batch, *layer.shape)
        expected[f"gradients_{index}"] = (batch, classes, *layer.shape)
    if graph.tft is not None:
        steps = len(graph.tft.taus)
        expected |= dict.fromkeys(("rpi", "masked_probabilities"), (batch, classes, steps))
    for name in graph.output_names:
        if found[name].shape != expected[name]:
            raise VerificationError(
                f"the exported graph is wrong: output '{name}' has the shape {found[name].shape}, "
                f"not {expected[name]}. No file was written"
            )


def _repeated(found: dict[str, NDArray[np.generic]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The file's own activations in float64, once per explained class, and the classes."""
    activations = torch.from_numpy(np.asarray(found["activations"])).double()
    targets = torch.from_numpy(np.asarray(found["targets"]))
    return activations.repeat_interleave(targets.shape[1], dim=0), targets.flatten()


def _own_rounding(
    graph: ExplainingGraph, exact: Float64, view: NDArray[np.float32], activations: torch.Tensor
) -> float:
    """How far PyTorch's float32 is from its float64, over what the file may be."""
    with torch.no_grad():
        own = graph.trunk(torch.from_numpy(view))
        wide, narrow = (
            torch.softmax(h(a), -1) for h, a in ((exact.head, activations), (graph.split.head, own))
        )
    return max(
        _relative(own.double(), activations) / TOLERANCE["activations"],
        float((narrow.double() - wide).abs().max()) / TOLERANCE["probabilities"],
    )


def _at_a_kink(
    exact: Float64, found: dict[str, NDArray[np.generic]], rng: np.random.Generator
) -> bool:
    """Whether the true gradient itself jumps here when A changes by float32 rounding.

    At such a point (two activations of a max-pool tie, a ReLU sits at zero) no float32 engine
    has a defined answer, so another input is drawn.
    """
    activations, targets = _repeated(found)
    noise = torch.from_numpy(rng.standard_normal(activations.shape))
    gradient = exact.gradient(activations, targets)
    moved = exact.gradient(activations * (1 + 1e-6 * noise), targets)
    return _relative(moved, gradient) > TOLERANCE["gradients"] / 2


def _differences(
    exact: Float64,
    activations: torch.Tensor,
    target: NDArray[np.int64],
    found: dict[str, NDArray[np.generic]],
    rng: np.random.Generator,
) -> dict[str, float]:
    with torch.no_grad():
        probabilities = torch.softmax(exact.head(activations), dim=-1)
    # Gradients are compared at the file's own activations: what the trunk rounds is judged by
    # the activations, and must not be counted again through the kinks of the head.
    own, targets = _repeated(found)
    errors = {
        "probabilities": _absolute(found["probabilities"], probabilities),
        "activations": _relative(_tensor(found["activations"]), activations),
        "gradients": _relative(
            _tensor(found["gradients"]).flatten(0, 1), exact.gradient(own, targets)
        ),
    }
    top = probabilities.max(dim=-1).values
    chosen = probabilities.gather(1, torch.from_numpy(np.asarray(found["targets"]))[:, :1])[:, 0]
    if float((top - chosen).max()) > TOLERANCE["probabilities"] or not np.array_equal(
        found["targets"][:, 1:], target[:, 1:]
    ):
        raise VerificationError(
            "the exported graph is wrong: it explains other classes than asked for. No file was "
            "written"
        )
    if "ablation_weights" in found:
        weights = _tensor(found["ablation_weights"]).flatten(0, 1)
        channels = rng.choice(weights.shape[1], min(_CHANNELS_CHECKED, weights.shape[1]), False)
        with torch.no_grad():
            expected = torch.stack([exact.ablation(own, targets, k) for k in channels], dim=1)
        # A class that the network all but excludes says nothing: its ratios of rounded zeros.
        rows = probabilities.repeat_interleave(target.shape[1], dim=0).gather(1, targets[:, None])
        told = rows[:, 0] > _LEAST_PROBABILITY
        weights, expected = weights[told], expected[told]
        scale = max(float(weights.abs().max()), float(expected.abs().max()), _LEAST_WEIGHT)
        errors["ablation"] = float((weights[:, channels] - expected).abs().max()) / scale
    return errors


def _tensor(values: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values)).double()


def _absolute(values: NDArray[np.generic], expected: torch.Tensor) -> float:
    return float((_tensor(values) - expected).abs().max())


def _relative(values: torch.Tensor, expected: torch.Tensor) -> float:
    scale = float(expected.abs().max())
    difference = float((values - expected).abs().max())
    return difference / scale if scale > 0 else difference
