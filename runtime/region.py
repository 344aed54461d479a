"""Describe a region of an image: its mask, polygons with holes, box and area."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Polygon:
    """A connected part of a region. Pixels that touch only at a corner are not connected.

    Attributes:
        exterior: int32 [n, 2], corners (x, y) in image pixels, from the image's top left corner;
            clockwise as seen, not closed.
        holes: the same for each hole, anticlockwise.
    """

    exterior: Points
    holes: tuple[Points, ...]


@dataclass(frozen=True, eq=False)
class Region:
    """A region of an image.

    Polygons run along the edges of pixels: filled, they are exactly ``mask``.

    Attributes:
        mask: bool [h, w], over the image's own pixels.

    Example:
        >>> mask = np.zeros((4, 6), bool)
        >>> mask[1:3, 2:5] = True
        >>> region = Region(mask)
        >>> region.box, region.area, region.share
        ((2, 1, 5, 3), 6, 0.25)
        >>> region.polygons[0].exterior.tolist()
        [[2, 1], [5, 1], [5, 3], [2, 3]]
    """

    mask: NDArray[np.bool_] = field(repr=False)

    @cached_property
    def area(self) -> int:
        """Count the pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def share(self) -> float:
        """Return the area as a share of the image, in [0, 1]."""
        return self.area / max(1, self.mask.size)

    @cached_property
    def box(self) -> tuple[int, int, int, int] | None:
        """Return (left, top, right, bottom) in pixels, the last two not in it; None if empty."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @cached_property
    def polygons(self) -> tuple[Polygon, ...]:
        """Return the connected parts, the largest first."""
        import cv2

        count, labels = cv2.connectedComponents(self.mask.astype(np.uint8), connectivity=4)
        exteriors: dict[int, Points] = {}
        holes: dict[int, list[Points]] = {part: [] for part in range(1, count)}
        for points, (row, column) in trace(self.mask):
            part = int(labels[row, column])
            if _signed_area(points) > 0:
                exteriors[part] = points
            else:
                holes[part].append(points)
        sizes = np.bincount(labels.ravel(), minlength=count)
        order = sorted(exteriors, key=lambda part: (-sizes[part], part))
        return tuple(Polygon(exteriors[part], tuple(holes[part])) for part in order)

    @cached_property
    def runs(self) -> list[int]:
        """Count the pixels of alternating runs outside and inside, column by column, as COCO does.

        The first run is outside, and may be 0.
        """
        pixels = self.mask.ravel(order="F")
        if not pixels.size:
            return [0]
        changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
        lengths = np.diff([0, *changes.tolist(), pixels.size]).tolist()
        return [0, *lengths] if pixels[0] else lengths


def trace(mask: NDArray[np.bool_]) -> list[tuple[Points, tuple[int, int]]]:
    """Follow the edges between a mask's pixels and the others, pixels inside on the right.

    Args:
        mask: bool [h, w].

    Returns:
        Closed loops: int32 [n, 2], their corners (x, y); and the (row, column) of a pixel inside
        the mask that touches the loop. Clockwise around parts, anticlockwise around holes. At a
        corner where two pixels touch diagonally, a loop stays with its pixel.
    """
    width = mask.shape[1]
    padded = np.pad(mask, 1).astype(np.int8)
    down = padded[1:, 1:-1] - padded[:-1, 1:-1]  # [h + 1, w]: across horizontal edges
    across = padded[1:-1, 1:] - padded[1:-1, :-1]  # [h, w + 1]: across vertical edges
    # Directions: 0 east, 1 south, 2 west, 3 north. Each edge: start (x, y) and its pixel.
    tops, bottoms = np.argwhere(down == 1), np.argwhere(down == -1)
    lefts, rights = np.argwhere(across == 1), np.argwhere(across == -1)
    right, below = np.array([0, 1]), np.array([1, 0])  # (y, x)
    starts = np.concatenate([tops, rights, bottoms + right, lefts + below])
    pixels = np.concatenate([tops, rights - right, bottoms - below, lefts])
    sizes = [len(tops), len(rights), len(bottoms), len(lefts)]
    direction = np.repeat(np.arange(4), sizes)
    ends = starts + np.array([right, below, -right, -below])[direction]
    corner = starts @ np.array([width + 1, 1])
    keys = corner * 4 + direction
    order = np.argsort(keys)
    ordered = keys[order]
    following = np.full(len(keys), -1)
    reached = ends @ np.array([width + 1, 1])
    for turn in (3, 0, 1):  # left, straight, right: what is found last counts
        wanted = reached * 4 + (direction + turn) % 4
        place = np.minimum(np.searchsorted(ordered, wanted), max(len(ordered) - 1, 0))
        exists = ordered[place] == wanted if len(ordered) else np.zeros(0, bool)
        following[exists] = order[place[exists]]
    return _loops(following.tolist(), direction.tolist(), starts[:, ::-1], pixels)


def _loops(
    following: list[int], direction: list[int], starts: NDArray[np.int64], pixels: NDArray[np.int64]
) -> list[tuple[Points, tuple[int, int]]]:
    unseen = bytearray(b"\1") * len(following)
    loops = []
    for first in range(len(following)):
        if not unseen[first]:
            continue
        corners, edge, before = [], first, -1
        while unseen[edge]:
            unseen[edge] = 0
            if direction[edge] != before:
                corners.append(edge)
            before = direction[edge]
            edge = following[edge]
        if direction[corners[0]] == before:  # the loop began within a straight side
            corners = corners[1:]
        row, column = pixels[first]
        loops.append((starts[corners].astype(np.int32), (int(row), int(column))))
    return loops


def _signed_area(points: Points) -> float:
    """Compute a polygon's area; positive where it runs clockwise as seen (y points down)."""
    x, y = points.astype(np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
