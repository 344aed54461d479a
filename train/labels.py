"""State which independent labels each image of a data set has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..calibrate.dataset import Classes, Dataset
from ..runtime.errors import DataError

UNKNOWN = -1.0


def tabulate_labels(data: Dataset, lookup: Classes, count: int) -> NDArray[np.float32]:
    """Tabulate the labels of each image.

    Args:
        data: images with any number of labels each, or none stated.
        lookup: which class of the network a label means.
        count: C, classes of the network.

    Returns:
        float32 [N, C]: 1 where the image has the label, 0 where not, -1 where that is not known: in
        images for which the data state nothing, and for classes that the data never name.

    Raises:
        DataError: the data name labels, and none of them is a class of the network.
    """
    named = data.all_labels()
    indices = {label: lookup.index(label) for label in named}
    known = sorted({index for index in indices.values() if index is not None})
    if named and not known:
        raise DataError(
            f"no label of {data.path} is a class of the network (as '{named[0]}'): map them with "
            "--classes FILE"
        )
    table = np.full((len(data.samples), count), UNKNOWN, np.float32)
    for row, sample in zip(table, data.samples, strict=True):
        if sample.labels is None:
            continue
        row[known] = 0
        row[[i for label in sample.labels if (i := indices[label]) is not None]] = 1
    return table


def list_present(table: NDArray[np.float32]) -> Sequence[Sequence[int]]:
    """List for each image the classes that it has, from ``tabulate_labels``."""
    return [[int(index) for index in np.flatnonzero(row > 0)] for row in table]
