"""The loss of activation fine-tuning: the classifier's, plus one or more terms for the maps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import msgspec
import torch
import torch.nn.functional as F

from ..runtime.cam import ACTIVATION_METHODS, Method, Score
from ..runtime.errors import RequestError
from ..runtime.tft import Tft
from .loop import Losses, Plan, count_steps
from .network import TunableNetwork, Tuner, soften
from .task_losses import classification_loss, divergence, explained_class_loss

Variant = Literal["tuner", "aligned", "faithful", "cross-asked", "guided", "avoiding", "swapping"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

# docs/aft.md has the measurements that these follow from.
WEIGHTS: dict[Variant, float] = {
    "tuner": 10.0,
    "aligned": 10.0,
    "faithful": 2.0,
    "cross-asked": 2.0,
    "guided": 3.0,
    "avoiding": 3.0,
    "swapping": 1.0,
}
DISTILLATION = 4.0


class Objective(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The loss to minimise: a weighted sum of terms, each a mean over the images.

    Attributes:
        method: whose maps are tuned; any but ``scorecam`` and ``legrad``.
        terms: lambda of each term used. ``tuner``: ||tuner(A) - M*||^2 (paper equation 8).
            ``aligned``: mean squared difference between the class's own map at the activations'
            size and M*. ``faithful``: cross-entropy of the class explained for the image times
            its own map; needs no M*. ``cross-asked``: the same, but the network before tuning
            classifies the masked image. ``guided``: the share of the map of the image's label (of
            the class predicted before, where it has none) that lies outside the object (Rao et
            al. 2023, energy loss), of maps that are soft at 0 (``network.soften``).
            ``avoiding``: the share that lies in regions that must not matter. Both are means over
            the images that have such regions. ``swapping``: cross-entropy with the labels for
            images whose regions that must not matter are swapped, see ``swap_regions``.
        classification: weight of the cross-entropy with the labels (equation 8: 1).
        distillation: weight of KL(p before || p now), which holds probabilities where they were.
            Both are sums over the labels, where these are independent, see ``task_losses``.
        tft: the reading of TFT that M* is computed in.
        score: see ``whycam.export.to_onnx``.
    """

    method: Method = "gradcam"
    terms: dict[Variant, float] = msgspec.field(
        default_factory=lambda: {"faithful": WEIGHTS["faithful"]}
    )
    classification: float = 1.0
    distillation: float = DISTILLATION
    tft: Tft = Tft()
    score: Score | None = None

    def __post_init__(self) -> None:
        usable = [m for m in ACTIVATION_METHODS if m != "scorecam"]
        if self.method not in usable:
            raise RequestError(
                f"cannot tune for the method '{self.method}'; choose from: {', '.join(usable)}"
            )
        unknown = [name for name in self.terms if name not in VARIANTS]
        if unknown or not self.terms:
            raise RequestError(
                f"there is no variant {', '.join(map(repr, unknown)) or 'given'}; choose from: "
                f"{', '.join(VARIANTS)}"
            )
        weights = [*self.terms.values(), self.classification, self.distillation]
        if any(not 0 <= weight < float("inf") for weight in weights):
            raise RequestError(f"weights of a loss are numbers from 0, not {weights}")

    @property
    def needs_masks(self) -> bool:
        """Tell whether a term needs M*."""
        return "tuner" in self.terms or "aligned" in self.terms

    @property
    def guides(self) -> tuple[str, ...]:
        """Name the arrays of regions that terms need."""
        return tuple(dict.fromkeys(_GUIDES[name] for name in self.terms if name in _GUIDES))

    @property
    def needs_images(self) -> bool:
        """Tell whether images go through the frozen layers in every step."""
        return bool(self.terms.keys() & {*_MASKING, "swapping"})


# These classify masked images.
_LARGEST_MARK = 0.5  # of an image, that swapping takes for a mark on it
_MASKING = {"faithful", "cross-asked"}
_GUIDES: dict[Variant, str] = {"guided": "inside", "avoiding": "avoid", "swapping": "avoid"}


class AftLosses(Losses):
    """Computes the objective for a network; its parameters are everything that is trained.

    Attributes:
        names: of what ``forward`` returns, in order; the first is their weighted sum.
    """

    def __init__(self, tunable: TunableNetwork, objective: Objective) -> None:
        super().__init__()
        self.tunable = tunable
        self.objective = objective
        channels = tunable.target.shape[0]
        self.tuner = Tuner(channels) if "tuner" in objective.terms else None
        # What is trained, as it was; the frozen layers are the same.
        self.before = None
        if "cross-asked" in objective.terms:
            self.before = copy.deepcopy(tunable.above).requires_grad_(False)
        self.names = ("loss", "classification", "distillation", *objective.terms)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Return w1 and w2 under the model's own names, and the tuner's under ``tuner.``."""
        parameters = self.tunable.tuned()
        if self.tuner is not None:
            parameters |= {f"tuner.{name}": p for name, p in self.tuner.named_parameters()}
        return parameters

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the losses of a batch, [len(names)].

        Args:
            batch: ``target`` int64 [N]; ``label`` int64 [N], -1 where unknown, or ``present`` of
                independent labels, see ``classification_loss``; ``probabilities``
                [N, C] before training; ``features`` [N, K', h', w'] or else ``image`` [N, 3, H,
                W], which ``faithful`` needs as well; ``mask`` [N, h, w] where one is used;
                ``inside`` and ``avoid`` [N, h', w'] from ``Guides.row``.
        """
        objective = self.objective
        features = batch.get("features")
        if features is None:
            with torch.no_grad():
                features = self.tunable.below(batch["image"])
        activations, logits = self.tunable(features)
        task = self.tunable.task
        parts = [
            (objective.classification, classification_loss(task, logits, batch)),
            (objective.distillation, divergence(task, batch["probabilities"], logits)),
        ]
        raw = None
        if objective.terms.keys() & {"aligned", *_MASKING}:
            raw = self.tunable.raw_maps(
                objective.method, activations, logits, batch["target"], objective.score
            )
        guided = None
        if objective.terms.keys() & {"guided", "avoiding"}:
            guided = self._guided_maps(activations, logits, batch)
        for name, weight in objective.terms.items():
            if name == "swapping":
                found = self._swapped(batch)
            elif guided is not None and name in _GUIDES:
                inside = _share_inside(guided, batch[_GUIDES[name]])
                found = _mean_of_known(
                    1 - inside if name == "guided" else inside, batch[_GUIDES[name]]
                )
            else:
                found = self._term(name, activations, raw, batch)
            parts.append((weight, found))
        total = torch.stack([weight * value for weight, value in parts]).sum()
        return torch.stack([total, *(value for _, value in parts)])

    def _guided_maps(
        self,
        activations: Sequence[torch.Tensor],
        logits: torch.Tensor,
        batch: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Compute the maps, soft at 0, at the size of the guides."""
        objective = self.objective
        explained = torch.where(batch["label"] >= 0, batch["label"], batch["target"])
        raw = self.tunable.raw_maps(
            objective.method, activations, logits, explained, objective.score, signed=True
        )
        size = batch[objective.guides[0]].shape[-2:]
        return soften(raw, (int(size[0]), int(size[1])))

    def _swapped(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the cross-entropy of the labels for images whose regions were swapped."""
        images = swap_regions(batch["image"], batch["avoid"])
        return classification_loss(self.tunable.task, self.tunable.classify(images), batch)

    def _term(
        self,
        name: Variant,
        activations: Sequence[torch.Tensor],
        raw: torch.Tensor | None,
        batch: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        if name == "tuner":
            assert self.tuner is not None
            tuned: torch.Tensor = self.tuner(activations[-1])
            return (tuned - batch["mask"]).square().sum((-2, -1)).mean()
        assert raw is not None
        if name == "aligned":
            size = int(raw.shape[-2]), int(raw.shape[-1])
            return (self.tunable.maps(raw, size) - batch["mask"]).square().mean()
        masked = self.tunable.maps(raw)[:, None] * batch["image"]
        features = self.tunable.below(masked)
        asked = self.tunable.above
        if name == "cross-asked":
            assert self.before is not None
            asked = self.before
        *_, logits = asked(features)
        return explained_class_loss(self.tunable.task, logits, batch["target"])


def check_batch(objective: Objective, plan: Plan, count: int, world: int) -> None:
    """Refuse batches in which a term has nothing to compute with.

    Args:
        objective: of the training.
        plan: of the training.
        count: of images.
        world: of processes.

    Raises:
        RequestError: there is one image a process, and regions are to be swapped.
    """
    _, batch = count_steps(plan, count, world)
    if "swapping" in objective.terms and batch // world < 2:
        raise RequestError(
            f"swapping exchanges regions between the images of a batch, and each of {world} "
            f"processes has {batch // world} of a batch of {batch}: set --batch to {2 * world} or "
            "more"
        )


def swap_regions(images: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Replace the regions of images by parts of other images, and paste those of others.

    In the first half of the batch, an image's own regions show what another image has there; in the
    second half, the regions of a third image lie on it as well. So neither the regions nor their
    absence says anything of the class. Regions of more than half an image are no mark on it but the
    image itself, and stay. Which images these are follows from the order of the batch.
    Of two images the second shows the first one's region, after its own is replaced.

    Args:
        images: [N, channels, H, W], two or more.
        regions: [N, h, w]; a cell above 0 counts whole, negative ones do not.

    Returns:
        [N, channels, H, W].
    """
    size = int(images.shape[-2]), int(images.shape[-1])
    marked = F.interpolate((regions[:, None] > 0).float(), size) > 0
    marked &= marked.float().mean((1, 2, 3), keepdim=True) <= _LARGEST_MARK
    own = torch.where(marked, images.roll(1, 0), images)
    third = 2 if len(images) > 2 else 1
    pasted = torch.where(marked.roll(third, 0), images.roll(third, 0), own)
    half = len(images) // 2
    return torch.cat([own[:half], pasted[half:]])


def _share_inside(maps: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """The share of each map [N, h, w] that lies in a region, [N]; 0 for a map of zeros."""
    return (maps * regions).sum((-2, -1)) / maps.sum((-2, -1)).clamp(min=1e-6)


def _mean_of_known(values: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """The mean over the images that have regions; 0 without any."""
    known = regions[:, 0, 0] >= 0
    return torch.where(known, values, 0.0).sum() / known.sum().clamp(min=1)
