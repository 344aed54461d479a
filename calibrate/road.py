"""ROAD: remove pixels so that what takes their place tells nothing (Rong et al., ICML 2022).

Pixels set to a constant leave the outline of the map behind, which a network can read. Noisy linear
imputation replaces each by the weighted mean of its neighbours, those removed as well, so that the
image is smooth where it was cut, and adds a little noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import MissingExtraError
from ..runtime.input_format import Layout
from ..runtime.sweep import Classify

Floats = NDArray[np.float32]

SHARES = tuple(step / 10 for step in range(1, 10))  # of the pixels that are removed
_NOISE = 0.01  # standard deviation in the normalised image, as in the authors' code
_BESIDE, _DIAGONAL = 1 / 6, 1 / 12  # weights of neighbours


def road(
    classify: Classify,
    image: Floats,
    values: Floats,
    target: int,
    seed: int,
    layout: Layout = "NCHW",
) -> tuple[float, float]:
    """Follow a class's probability while pixels are removed in the order of a map.

    Args:
        classify: the network.
        image: normalised, [C, H, W] or [H, W, C], as ``layout`` says.
        values: the map, [H, W].
        target: the class.
        seed: of the noise.
        layout: of the image.

    Returns:
        The mean probability when 10, 20, ... 90 % of the pixels are removed, those of the highest
        values first, and those of the lowest first. The first should be low, the second high.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    rng = np.random.default_rng(seed)
    planes = image.transpose(2, 0, 1) if layout == "NHWC" else image
    order = np.argsort(-values.reshape(-1), kind="stable")
    cut = []
    for ranked in (order, order[::-1]):
        for share in SHARES:
            removed = np.zeros(order.size, bool)
            removed[ranked[: round(share * order.size)]] = True
            cut.append(impute(planes, removed.reshape(values.shape), rng))
    images = np.stack(cut)
    rows = classify(images.transpose(0, 2, 3, 1) if layout == "NHWC" else images)[:, target]
    return float(rows[: len(SHARES)].mean()), float(rows[len(SHARES) :].mean())


def impute(
    image: Floats, removed: NDArray[np.bool_], rng: np.random.Generator | None = None
) -> Floats:
    """Replace removed pixels by noisy linear imputation.

    Args:
        image: [C, H, W].
        removed: [H, W]; some pixel must be left.
        rng: of the noise; None: without.

    Returns:
        float32 [C, H, W].
    """
    try:
        from scipy.sparse import coo_matrix, diags
        from scipy.sparse.linalg import splu
    except ImportError as error:
        raise MissingExtraError("scipy", "road", "ROAD") from error
    places = np.argwhere(removed)
    count = len(places)
    number = np.full(removed.shape, -1)
    number[removed] = np.arange(count)
    total, known = np.zeros(count), np.zeros((count, len(image)))
    rows, columns, weights = [], [], []
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            if down == across == 0:
                continue
            weight = _BESIDE if 0 in (down, across) else _DIAGONAL
            beside = places + np.array((down, across))
            inside = ((beside >= 0) & (beside < removed.shape)).all(1)
            own, (y, x) = np.flatnonzero(inside), beside[inside].T
            total[own] += weight
            other = number[y, x]
            unknown = other >= 0
            rows.append(own[unknown])
            columns.append(other[unknown])
            weights.append(np.full(int(unknown.sum()), weight))
            known[own[~unknown]] += weight * image[:, y[~unknown], x[~unknown]].T
    links = coo_matrix(
        (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), (count, count)
    )
    solver = splu(
        (diags(total) - links).tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    found = np.array(image, np.float32)
    found[:, removed] = solver.solve(known).T
    if rng is not None:
        found[:, removed] += rng.normal(0, _NOISE, (len(image), count)).astype(np.float32)
    return found
