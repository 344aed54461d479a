"""Open the cache of a fine-tuning: which arrays it holds, and whether they fit on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.input_format import Preprocess
from .cache import Cache
from .network import TunableNetwork
from .objective import Objective
from .prepare import layout

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def open_cache(
    place: Path,
    key: str,
    cache: str,
    flip: bool,
    count: int,
    tunable: TunableNetwork,
    spec: Preprocess,
    objective: Objective,
    fabric: Fabric,
) -> tuple[Cache, list[str]]:
    """Open the cache of what stays the same in training, in full if the disk allows.

    Args:
        place: the run's folder.
        key: identifies the run.
        cache, flip: see ``train_aft``.
        count: of images.
        tunable, spec: the network and its preprocessing.
        objective: whose terms say which arrays are needed.
        fabric: all processes decide alike.

    Returns:
        The cache, and notes for people.
    """
    small = _small_columns(objective)
    large = ["features", *(["image"] if objective.needs_images else [])]
    home = place / "cache" if cache in ("auto", "off") else Path(cache)
    thin = Cache(home / f"{key}-small", count, layout(tunable, spec, small))
    if flip or cache == "off":
        return thin, []
    thick = Cache(home / key, count, layout(tunable, spec, [*small, *large]))
    if cache != "auto":
        thick.check_space()
        return thick, []
    # Half of what is free: a training is not alone on its disk.
    fits = thick.folder.is_dir() or thick.row_bytes * count < shutil.disk_usage(place).free / 2
    if bool(fabric.broadcast(fits)):  # every process must decide alike
        return thick, []
    note = (
        f"the frozen layers' outputs would take {thick.row_bytes * count / 2**30:.1f} GiB on disk, "
        "more than half of what is free: they are computed in every step instead"
    )
    return thin, [note]


def batch_columns(store: Cache, objective: Objective) -> list[str]:
    """Name the arrays of a batch, of which those that the cache does not hold are computed."""
    columns = _small_columns(objective)
    if "features" in store.layout:
        columns.append("features")
    if objective.needs_images or "features" not in store.layout:
        columns.append("image")
    return columns


def _small_columns(objective: Objective) -> list[str]:
    masks = ["mask"] if objective.needs_masks else []
    return ["target", "probabilities", *masks, *objective.guides]


def count_guided(store: Cache, name: str, items: Sequence[int]) -> int:
    """Count the images that have regions in the network's view; black masks mark nothing.

    Args:
        store: filled.
        name: of the regions, ``inside`` or ``avoid``.
        items: the images that could be read.
    """
    return sum(bool((store.rows(name, [item]) >= 0).any()) for item in items)
