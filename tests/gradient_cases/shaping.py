"""Operators that move, select or repeat elements."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from gradients import Case, node, numbers


def shaping() -> dict[str, list[Case]]:
    def of(text: str, shape: tuple[int, ...], function, *, constants=None, kind="", **rest) -> Case:
        name, _, inputs = text.partition(" ")
        held = {n: np.asarray(v) for n, v in (constants or {}).items()}
        return Case([node(name, inputs or "x", **rest)], {"x": shape}, held, function)

    tail = [
        node("Split", "x sizes", "a b c", axis=1),
        node("Mul", "b b", "y"),
    ]
    ends = [node("Split", "x sizes", "a b c", axis=-2), node("Sub", "a c", "y")]
    wide, both = {"sizes": numbers(1, 2, 2)}, {"sizes": numbers(2, 1, 2)}
    major = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("Reshape", "t flat", "f"),
        node("Tanh", "f", "g"),
        node("Mul", "g g", "h"),
        node("Reshape", "h apart", "u"),
        node("Transpose", "u", "y", perm=[1, 0, 2]),
    ]
    return {
        "Reshape": [
            of(
                "Reshape x s",
                (4, 6),
                lambda x: x.reshape(-1, 2, 12),
                constants={"s": numbers(-1, 2, 12)},
            ),
            of("Reshape x s", (4, 6), lambda x: x.reshape(-1, 6), constants={"s": numbers(-1, 6)}),
            of(
                "Reshape x s",
                (4, 6),
                lambda x: x.reshape(-1, 8, 3),
                constants={"s": numbers(0, -1, 3)},
            ),
            Case(
                major,
                {"x": (3, 4)},
                {"flat": numbers(-1, 4), "apart": numbers(3, -1, 4)},
                lambda x: torch.tanh(x) ** 2,
            ),
            Case(
                [*major[:3], node("Identity", "g", "y")],
                {"x": (3, 4)},
                {"flat": numbers(-1, 4)},
                lambda x: torch.tanh(x).transpose(0, 1).reshape(-1, 4),
                outer=3,
            ),
        ],
        "Flatten": [
            of(
                "Flatten",
                (4, 3, 2),
                lambda x, a=axis: (
                    x.reshape(rows, -1)
                    if (rows := {0: 1, 1: len(x), 2: 4 * len(x), -1: 12 * len(x)}[a])
                    else x
                ),
                axis=axis,
            )
            for axis in (0, 1, 2, -1)
        ],
        "Squeeze": [
            of(
                "Squeeze x axes",
                (1, 3, 1),
                lambda x: x[:, 0, :, 0],
                constants={"axes": numbers(1, -1)},
            ),
        ],
        "Unsqueeze": [
            of(
                "Unsqueeze x axes",
                (3, 4),
                lambda x: x[None, :, :, None],
                constants={"axes": numbers(-2, 0)},
            ),
        ],
        "Transpose": [
            of("Transpose", (3, 4, 2), lambda x: x.permute(0, 2, 3, 1), perm=[0, 2, 3, 1]),
            of("Transpose", (3, 4), lambda x: x.permute(2, 1, 0)),
            of("Transpose", (3, 4, 2), lambda x: x.permute(3, 0, 2, 1), perm=[3, 0, 2, 1]),
        ],
        "Concat": [
            Case(
                [node("Concat", "x x1 x", axis=axis)],
                {"x": (3, 4), "x1": (3, 4)},
                {},
                lambda x, x1, a=axis: torch.cat([x, x1, x], a),
            )
            for axis in (1, -1)
        ],
        "Split": [
            Case(tail, {"x": (5, 2)}, wide, lambda x: x[:, 1:3] ** 2),
            Case(ends, {"x": (5, 2)}, both, lambda x: x[:, :2] - x[:, 3:]),
        ],
        "Slice": [
            of(
                "Slice x a b axes steps",
                (7, 6, 5),
                lambda x: x[:, 1:6:2, :4, [4, 3, 2]],
                constants={
                    "a": numbers(1, -100, -1),
                    "b": numbers(-1, 4, -4),
                    "axes": numbers(1, -2, 3),
                    "steps": numbers(2, 1, -1),
                },
            ),
            of(
                "Slice x a b",
                (7, 6),
                lambda x: x[:, 2:],
                constants={"a": numbers(0, 2), "b": numbers(2**63 - 1, 2**63 - 1)},
            ),
            of(
                "Slice x a b axes steps",
                (7,),
                lambda x: x.flip(1),
                constants={
                    "a": numbers(-1),
                    "b": numbers(-(2**63) + 1),
                    "axes": numbers(-1),
                    "steps": numbers(-1),
                },
            ),
        ],
        "Gather": [
            of("Gather x i", (5, 3), lambda x: x[:, 2], constants={"i": np.array(2)}, axis=1),
            of(
                "Gather x i", (5, 3), lambda x: x[:, [1, 2]], constants={"i": numbers(1, 2)}, axis=1
            ),
            of(
                "Gather x i",
                (5, 3),
                lambda x: x[:, [4, 0]],
                constants={"i": numbers(-1, 0)},
                axis=-2,
            ),
            of(
                "Gather x i",
                (5, 3),
                lambda x: x[:, [1, 1, 4]],
                constants={"i": numbers(1, 1, 4)},
                axis=1,
            ),
            of(
                "Gather x i",
                (5, 3),
                lambda x: x[..., [0, 0, 1]],
                constants={"i": numbers(0, 0, 1)},
                axis=2,
            ),
            of(
                "Gather x i",
                (4, 3, 2),
                lambda x: x[:, [[1, 0], [3, 3]]],
                constants={"i": np.array([[1, 0], [3, 3]])},
                axis=1,
            ),
            of(
                "Gather x i",
                (4,),
                lambda x: x[:, [3, 1, 0, 2]],
                constants={"i": numbers(3, 1, 0, 2)},
                axis=1,
            ),
        ],
        "GatherND": [
            Case(
                [node("Transpose", "x", "t", perm=[1, 2, 0]), node("GatherND", "t i")],
                {"x": (4, 3)},
                {"i": np.array(indices)},
                function,
            )
            for indices, function in (
                ([[1, 2], [-1, 0], [1, 2]], lambda x: x[:, [1, 3, 1], [2, 0, 2]].T),
                ([[3], [0]], lambda x: x[:, [3, 0]].permute(1, 2, 0)),
            )
        ],
        "Pad": [
            of(
                "Pad x p",
                (2, 4, 5),
                lambda x: F.pad(x, (1, -1, 2, 0)),
                constants={"p": numbers(0, 0, 2, 1, 0, 0, 0, -1)},
            ),
            of(
                "Pad x p _ axes",
                (2, 4, 5),
                lambda x: F.pad(x, (0, 0, 1, 2)),
                constants={"p": numbers(1, 2), "axes": numbers(-2)},
            ),
            of(
                "Pad x p",
                (2, 4, 5),
                lambda x: F.pad(x, (1, 2, 2, 3), "reflect"),
                constants={"p": numbers(0, 0, 2, 1, 0, 0, 3, 2)},
                mode="reflect",
            ),
            of(
                "Pad x p",
                (2, 4, 5),
                lambda x: F.pad(x, (1, 2, 2, 0), "replicate"),
                constants={"p": numbers(0, 0, 2, 1, 0, 0, 0, 2)},
                mode="edge",
            ),
            of(
                "Pad x p",
                (2, 4, 5),
                lambda x: F.pad(x, (1, 2, 2, 0), "circular"),
                constants={"p": numbers(0, 0, 2, 1, 0, 0, 0, 2)},
                mode="wrap",
            ),
        ],
        "Expand": [
            of("Expand x s", (3, 1), lambda x: x.expand(-1, 3, 4), constants={"s": numbers(3, 4)}),
            of(
                "Expand x s",
                (3, 1),
                lambda x: x.expand(2, -1, 3, 4),
                constants={"s": numbers(2, 1, 3, 4)},
            ),
        ],
        "Tile": [
            of("Tile x r", (3, 2), lambda x: x.repeat(1, 2, 3), constants={"r": numbers(1, 2, 3)}),
            of("Tile x r", (3, 2), lambda x: x.repeat(1, 1, 1), constants={"r": numbers(1, 1, 1)}),
        ],
        "DepthToSpace": [
            of("DepthToSpace", (12, 2, 3), None, blocksize=2, mode=mode) for mode in ("DCR", "CRD")
        ],
        "SpaceToDepth": [of("SpaceToDepth", (3, 4, 6), None, blocksize=2)],
        "Resize": [
            of(
                "Resize x _ _ s",
                (2, 3, 4),
                lambda x: F.interpolate(x, (6, 7), mode="bilinear"),
                axes=[2, 3],
                constants={"s": numbers(6, 7)},
                mode="linear",
            ),
            of(
                "Resize x _ _ s",
                (2, 5, 4),
                lambda x: F.interpolate(x, (3, 9), mode="bilinear", align_corners=True),
                axes=[2, 3],
                constants={"s": numbers(3, 9)},
                mode="linear",
                coordinate_transformation_mode="align_corners",
            ),
            of(
                "Resize x _ f",
                (2, 3, 4),
                lambda x: F.interpolate(x, scale_factor=2),
                constants={"f": np.array([1, 1, 2, 2], np.float32)},
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            ),
            of(
                "Resize x _ f",
                (2, 5, 4),
                lambda x: F.interpolate(
                    x, scale_factor=(0.7, 1.0), mode="bilinear", recompute_scale_factor=False
                ),
                constants={"f": np.array([1.0, 0.7], np.float32)},
                mode="linear",
                axes=[3, 2],
            ),
            of(
                "Resize x _ _ s",
                (2, 3, 4),
                lambda x: F.interpolate(x, (6, 8), mode="bicubic"),
                axes=[2, 3],
                constants={"s": numbers(6, 8)},
                mode="cubic",
                cubic_coeff_a=-0.75,
            ),
        ],
        "Col2Im": [
            of(
                "Col2Im x size block",
                (2 * 6, 6),
                lambda x: F.fold(x, (4, 6), (2, 3), stride=(2, 2), padding=(1, 0)),
                constants={"size": numbers(4, 6), "block": numbers(2, 3)},
                strides=[2, 2],
                pads=[1, 0, 1, 0],
            ),
            of(
                "Col2Im x size block",
                (3 * 4, 8),
                lambda x: F.fold(x, (5, 6), 2, dilation=(3, 2)),
                constants={"size": numbers(5, 6), "block": numbers(2, 2)},
                dilations=[3, 2],
            ),
        ],
    }
