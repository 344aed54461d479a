"""The explaining graph: trunk, head, gradient and Ablation-CAM weights as one torch module."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..runtime.cam import Method, Score, ablation_weights, finish, fuse, raw_map
from ..runtime.search import Prior, begin, features, logit, next_step, observe
from ..runtime.tft import (
    Tft,
    best,
    best_steps,
    cut_values,
    mask_of,
    rank_positions,
    relative_probability_increase,
    threshold_map,
)
from .ablation import Head, logit_drops
from .adjoint import trace_gradient
from .layer import Split
from .resample import Resample


class ExplainingGraph(torch.nn.Module):
    """(image, target int64 [N, k]) to the outputs of the graph contract.

    The image is float32 [N, 3, H, W], normalised, or uint8 [N, h, w, 3] with ``resample``. The
    trunk runs once an image, and once more for all masked images together if there is a
    ``tft``, or for each forward of its search; once more again for those that ``tft.again`` tries
    twice. The head runs on one copy of A per explained class,
    so that the recorded gradient needs no batching rules of its own; for one class there is no
    copy. With earlier layers that holds from the first of these on.

    Attributes:
        method: whose finished map is an output; None for none.
        tft: how maps are thresholded in the graph; None if they are not.
        prior: what the search starts from, if ``tft`` has ``forwards``.
    """

    def __init__(
        self,
        split: Split,
        head: Head,
        methods: Sequence[Method],
        score: Score | None,
        size: tuple[int, int],
        method: Method | None = None,
        tft: Tft | None = None,
        resample: Resample | None = None,
        prior: Prior | None = None,
    ) -> None:
        super().__init__()
        self.split = split
        self.trunk = split.trunk
        example = torch.zeros(2, *split.layers[0].shape)
        self.gradient = trace_gradient(
            split.tail, example, split.num_classes, gradient_score(score)
        )
        self.head = head if "ablation" in methods else None
        self.score = score
        self.size = size
        self.method = method
        self.tft = tft
        self.resample = resample
        self.prior = prior

    @property
    def output_names(self) -> list[str]:
        """The outputs' names, in the order in which ``forward`` returns them.

        All that verification asks for; a file may declare fewer.
        """
        names = ["probabilities", "targets", "activations", "gradients"]
        if self.head is not None:
            names.append("ablation_weights")
        if self.method is not None:
            names.append("maps" if self.tft is None else "original_maps")
        if self.tft is not None:
            names += ["maps", "thresholds", "rpi", "masked_probabilities"]
        for index in range(len(self.split.earlier)):
            names += [f"activations_{index}", f"gradients_{index}"]
        if self.resample is not None:
            names.append("network_input")
        return names

    def forward(self, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the outputs that ``output_names`` names."""
        if self.resample is not None:
            image = self.resample(image)
        first = self.split.stem(image)
        n, k = target.shape
        shapes = [layer.shape for layer in self.split.layers]
        repeated = first[:, None].expand(n, k, *shapes[0]).reshape(-1, *shapes[0])
        logits, targets, *found = self.gradient(repeated, target.reshape(-1))
        logits = logits.reshape(n, k, -1)[:, 0]
        targets = targets.reshape(n, k)
        # Of each layer, first to last; its activations are the same for all classes of an image.
        seen = [first] + [
            each.reshape(n, k, *shape)[:, 0]
            for each, shape in zip(found[: len(shapes) - 1], shapes[1:], strict=True)
        ]
        grown = [
            each.reshape(n, k, *shape)
            for each, shape in zip(found[len(shapes) - 1 :], shapes, strict=True)
        ]
        activations, gradients = seen[-1], grown[-1]
        probabilities = torch.softmax(logits, dim=-1)
        outputs = [probabilities, targets, activations, gradients]
        weights = None
        if self.head is not None:
            classes = torch.arange(self.split.num_classes, device=logits.device)
            selected = (classes == targets[..., None]).to(logits.dtype)
            drops = logit_drops(self.head, activations, logits)
            weights = ablation_weights(logits, drops, selected, ablation_score(self.score))
            outputs.append(weights)
        if self.method is not None:
            own_weights = weights if self.method == "ablation" else None
            pairs = zip(seen, grown, strict=True)
            raws = [raw_map(self.method, a, g, own_weights) for a, g in pairs]
            maps = finish(fuse(raws) if self.split.earlier else raws[0], self.size)
            outputs.append(maps)
            if self.tft is not None:
                own = torch.gather(probabilities, 1, targets)
                if self.prior is None:
                    outputs += self._sweep(image, maps, own, targets, self.tft)
                else:
                    outputs += self._search(image, maps, own, targets, self.tft, self.prior)
        for each in zip(seen[:-1], grown[:-1], strict=True):
            outputs += each
        if self.resample is not None:
            outputs.append(image)
        return tuple(outputs)

    def _sweep(
        self,
        image: torch.Tensor,
        maps: torch.Tensor,
        own: torch.Tensor,
        targets: torch.Tensor,
        tft: Tft,
    ) -> list[torch.Tensor]:
        """Algorithm 1 of the paper: thresholded maps, tau*, rpi, and p_c of all masked images."""
        cuts = cut_values(maps, tft.taus, tft.thresholds, by_bisection)
        cut_maps = threshold_map(maps[:, :, None], cuts)
        found = self._shown(image, mask_of(cut_maps, tft.mask), targets)
        if tft.again is not None:
            kept = (cut_maps != 0.0).to(maps.dtype).sum((-2, -1))
            chosen = torch.stack(best_steps(found, kept, tft.again), 2)  # one-hot [N, k, r, T]
            again = threshold_map(maps[:, :, None], (chosen * cuts[:, :, None]).sum(-1))
            seen = self._shown(image, mask_of(again, tft.mask), targets)
            found = (chosen * seen[..., None]).sum(2)
            return _of_tried(maps, cuts, found, own, chosen.sum(2) > 0.5, tft)
        rpi = relative_probability_increase(found, own)
        threshold, cut = best(rpi, cuts, tft.taus)
        return [threshold_map(maps, cut), threshold, rpi, found]

    def _shown(
        self, image: torch.Tensor, masks: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """p_c of masked images: masks [N, k, T, H, W], targets [N, k] to [N, k, T]."""
        n, k, steps = masks.shape[:3]
        masked = masks[:, :, :, None] * image[:, None, None]  # [N, k, T, 3, H, W]
        logits = self.split.head(self.trunk(masked.reshape(-1, 3, *self.size)))
        every = torch.softmax(logits, dim=-1).reshape(n, k, steps, -1)
        classes = targets[:, :, None, None].expand(n, k, steps, 1)
        return torch.gather(every, 3, classes)[..., 0]

    def _search(
        self,
        image: torch.Tensor,
        maps: torch.Tensor,
        own: torch.Tensor,
        targets: torch.Tensor,
        tft: Tft,
        prior: Prior,
    ) -> list[torch.Tensor]:
        """The same of the thresholds that a search tries, one after the other; NaN elsewhere."""
        steps = len(tft.taus)
        belief = begin(prior, features(maps, own))
        found, cuts = 0.0 * belief.mean, 0.0 * belief.mean
        for _ in range(min(tft.forwards or steps, steps)):
            step = next_step(belief)  # one-hot [N, k, T]
            cut = _cut_of(maps, step, tft)
            mask = mask_of(threshold_map(maps, cut), tft.mask)
            seen = self._shown(image, mask[:, :, None], targets)[..., 0]
            found, cuts = found + step * seen[..., None], cuts + step * cut[..., None]
            belief = observe(belief, step, logit(seen) - logit(own))
        return _of_tried(maps, cuts, found, own, belief.tried, tft)


def _of_tried(
    maps: torch.Tensor,
    cuts: torch.Tensor,
    found: torch.Tensor,
    own: torch.Tensor,
    tried: torch.Tensor,
    tft: Tft,
) -> list[torch.Tensor]:
    """The outputs of a sweep where only some thresholds count; NaN for the others."""
    rpi = torch.where(tried, relative_probability_increase(found, own), -1.0)
    threshold, cut = best(rpi, cuts, tft.taus)
    none = float("nan")
    untried = [torch.where(tried, values, none) for values in (rpi, found)]
    return [threshold_map(maps, cut), threshold, *untried]


def _cut_of(maps: torch.Tensor, step: torch.Tensor, tft: Tft) -> torch.Tensor:
    """Where one threshold of each map cuts it: maps [N, k, H, W], one-hot [N, k, T] to [N, k]."""
    if tft.thresholds == "value":
        return (step * torch.tensor(tft.taus, dtype=maps.dtype)).sum(-1)
    pixels = maps.shape[-2] * maps.shape[-1]
    positions = torch.tensor(rank_positions(tft.taus, pixels), dtype=maps.dtype)
    wanted = (step * positions).sum(-1, keepdim=True)
    return _order_statistics(maps.reshape(*maps.shape[:-2], pixels), wanted)[..., 0]


def by_bisection(values: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """As ``runtime.tft.by_sorting`` for values in [0, 1], without sorting."""
    return _order_statistics(values, torch.tensor(list(positions), dtype=values.dtype))


def _order_statistics(values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The values at some positions in increasing order: [..., P], positions [..., T] to [..., T].

    TensorRT sorts at most 3840 numbers. Here counting does it: halve the interval in which the
    wanted value lies until neighbouring numbers are all that is left, then take the smallest
    value in it.
    """
    low = torch.zeros_like(values[..., :1]) + 0.0 * wanted
    high = low + 2.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        below = (values[..., None, :] < middle[..., None]).to(values.dtype).sum(-1)
        enough = below <= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    within = torch.where(values[..., None, :] >= low[..., None], values[..., None, :], 2.0)
    return within.amin(-1)


_HALVINGS = 28  # 2 / 2^28 is less than what float32 tells apart above 1/16


def gradient_score(score: Score | None) -> Score:
    """What is differentiated: the logit, as Grad-CAM was published, unless told otherwise."""
    return score or "logit"


def ablation_score(score: Score | None) -> Score:
    """What Ablation-CAM compares: the probability, as the paper has it, unless told otherwise."""
    return score or "prob"
