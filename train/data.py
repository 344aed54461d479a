"""Split a data set for training, and make batches of its images."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..calibrate.dataset import Dataset, Sample, check_one_label, open_dataset
from ..runtime.errors import DataError
from .cache import Cache
from .prepare import RowComputer, read_views, to_input

HELD_OUT = 0.1  # share of the images held out, if the data has no validation part


@dataclass(frozen=True)
class DataSplit:
    """Images to train on, and held-out images to evaluate on."""

    train: Dataset
    held_out: Dataset


def split_data(
    data: str | Path, held_out: str | Path | None = None, seed: int = 0, labelled: bool = False
) -> DataSplit:
    """Split a data set into images to train on and to evaluate on.

    Args:
        data: as ``open_dataset`` takes it; a folder with ``train`` and ``val`` inside is both.
        held_out: a data set to evaluate on; None: hold out a tenth of each class.
        seed: of the choice of these images.
        labelled: leave out images without a label.

    Raises:
        DataError: there is nothing to train on or to evaluate on.
    """
    place = Path(data)
    if held_out is None and (place / "train").is_dir() and (place / "val").is_dir():
        train, other = open_dataset(place / "train"), open_dataset(place / "val")
    elif held_out is not None:
        train, other = open_dataset(place), open_dataset(held_out)
    else:
        train, other = _hold_out(open_dataset(place), seed)
    parts = DataSplit(_drop_unlabelled(train, labelled), _drop_unlabelled(other, labelled))
    for part, what in ((parts.train, "train on"), (parts.held_out, "evaluate on")):
        if not part.samples:
            raise DataError(f"{part.path} leaves no images to {what}")
    return parts


def check_exclusive(parts: DataSplit) -> None:
    """Refuse CSV files that give an image several labels.

    Raises:
        DataError: one does.
    """
    for part in (parts.train, parts.held_out):
        check_one_label(
            part,
            "training takes one label an image where classes exclude each other: keep one, or "
            "none; or, if the network's labels are independent, train aft with --task sigmoid",
        )


def _drop_unlabelled(data: Dataset, labelled: bool) -> Dataset:
    if not labelled:
        return data
    return replace(data, samples=tuple(s for s in data.samples if s.label is not None))


def _hold_out(data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out a random tenth of each class; return the rest and these."""
    of_label: dict[str | None, list[Sample]] = {}
    for sample in data.samples:
        of_label.setdefault(sample.label, []).append(sample)
    chooser = random.Random(seed)
    chosen: set[str] = set()
    for samples in of_label.values():
        count = round(HELD_OUT * len(samples))
        chosen |= {sample.name for sample in chooser.sample(samples, max(count, len(samples) > 1))}
    train = tuple(sample for sample in data.samples if sample.name not in chosen)
    held_out = tuple(sample for sample in data.samples if sample.name in chosen)
    return replace(data, samples=train), replace(data, samples=held_out)


class Batches:
    """Makes batches from the cache, and from the image files if the cache holds no images.

    Args:
        cache: of the arrays that stay the same throughout training.
        maker: that filled the cache; has preprocessing and device.
        paths: of the images, one for each item.
        labels: classes of the items, -1 where unknown.
        names: of the arrays of a batch, in addition to ``label``.
        flip_seed: seed of the choice, in each step, of the half of the images to mirror; None:
            mirror none.
        present: of independent labels those of each item, see ``tabulate_labels``.
    """

    def __init__(
        self,
        cache: Cache,
        maker: RowComputer,
        paths: Sequence[Path],
        labels: Sequence[int],
        names: Sequence[str],
        flip_seed: int | None = None,
        present: NDArray[np.float32] | None = None,
    ) -> None:
        self._cache, self._maker, self._paths = cache, maker, paths
        self._labels, self._names, self._flip_seed = labels, tuple(names), flip_seed
        self._present = present

    def __call__(self, items: Sequence[int], step: int) -> Mapping[str, torch.Tensor]:
        """Make the batch of a step, on the device."""
        device = self._maker.device
        batch = {"label": torch.tensor([self._labels[item] for item in items], device=device)}
        if self._present is not None:
            batch["present"] = torch.from_numpy(self._present[list(items)]).to(device)
        for name in self._names:
            if name == "image":
                batch[name] = to_input(self._views(items), self._maker.spec, device)
                continue
            rows = torch.from_numpy(self._cache.rows(name, items)).to(device)
            batch[name] = rows.float() if rows.is_floating_point() else rows
        if self._flip_seed is not None:
            self._flip(batch, items, step)
        return batch

    def _views(self, items: Sequence[int]) -> np.ndarray:
        if "image" in self._cache.layout:
            return self._cache.rows("image", items)
        with ThreadPoolExecutor(4) as pool:
            spec = self._maker.spec
            views = pool.map(lambda item: read_views([self._paths[item]], spec).views, items)
            return np.concatenate(list(views))

    def _flip(self, batch: dict[str, torch.Tensor], items: Sequence[int], step: int) -> None:
        # Chosen by item, so that the choice does not depend on the process.
        chosen = [
            random.Random(f"{self._flip_seed} {step} {item}").random() < 0.5 for item in items
        ]
        which = torch.tensor(chosen, device=batch["label"].device)
        for name in {"image", "mask", "inside", "avoid"} & batch.keys():
            flipped = batch[name].flip(-1)
            shape = (-1, *[1] * (flipped.ndim - 1))
            batch[name] = torch.where(which.reshape(shape), flipped, batch[name])
