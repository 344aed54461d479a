"""Networks that move the image before they look at it: maps lie on the image, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign import AS_IS, CHANNELS, SIDE, File, explain, saved

from whycam.export import Layer, list_layers
from whycam.runtime.errors import ExportError, TargetLayerError

CLASSES = {"y": ["N", 5]}
Move = Callable[[File], str]


def integers(file: File, *numbers: int) -> str:
    return file.constant(numbers, np.int64)


def crop(file: File) -> str:
    ends = integers(file, 8, 8)
    return file.add("Slice", "x", integers(file, 0, 0), ends, integers(file, 2, 3))


def letterbox(file: File) -> str:
    return file.add("Pad", "x", integers(file, 0, 0, 8, 0, 0, 0, 8, 0))


def mirrored_border(file: File) -> str:
    return file.add("Pad", "x", integers(file, 0, 0, 8, 8, 0, 0, 0, 0), mode="reflect")


def mirror(file: File) -> str:
    backwards = np.arange(SIDE)[::-1]
    return file.add("Gather", "x", file.constant(backwards, np.int64), axis=3)


def with_mirror_image(file: File) -> str:
    both = file.add("Concat", "x", mirror(file), axis=1)
    return file.add("Conv", both, file.weight(3, 6, 3, 3), pads=[1, 1, 1, 1])


def shuffled_pixels(file: File) -> str:
    order = file.constant(np.random.default_rng(0).permutation(SIDE * SIDE), np.int64)
    line = file.add("Reshape", "x", integers(file, 0, 3, -1))
    return file.add(
        "Reshape", file.add("Gather", line, order, axis=2), integers(file, 0, 3, SIDE, SIDE)
    )


def frequencies(file: File) -> str:
    """A cosine transform of the columns."""
    return file.add("MatMul", file.weight(SIDE, SIDE, scale=0.3), "x")


def resampled(file: File) -> str:
    """What a spatial transformer does: the positions that are read depend on the image."""
    mean = file.add("GlobalAveragePool", "x")
    shift = file.add("Tanh", file.add("Slice", mean, *(integers(file, i) for i in (0, 2, 1))))
    shift = file.add("Reshape", shift, integers(file, 0, 1, 1, 2))
    return file.add("GridSample", "x", file.add("Add", shift, file.weight(1, SIDE, SIDE, 2)))


def dense(file: File) -> str:
    """Nothing of the arrangement is left: each element depends on all of the image."""
    line = file.add("Reshape", "x", integers(file, 0, 3 * SIDE * SIDE))
    line = file.add("MatMul", line, file.weight(3 * SIDE * SIDE, 3 * 64, scale=0.02))
    return file.add("Reshape", line, integers(file, 0, 3, 8, 8))


def picked_by_score(file: File) -> str:
    """The rows that score highest, in the order of their scores."""
    scores = file.add("ReduceMean", "x", integers(file, 1, 3), keepdims=0)
    file.add("TopK", scores, integers(file, 8), to="best")
    file.nodes[-1].output.append("rows")
    index = file.add("Reshape", "rows", integers(file, 0, 1, 8, 1))
    index = file.add("Expand", index, integers(file, 1, 3, 8, SIDE))
    return file.add("GatherElements", "x", index, axis=2)


MOVES: list[Move] = [
    crop, letterbox, mirrored_border, mirror, with_mirror_image, shuffled_pixels, frequencies,
    resampled, dense, picked_by_score,
]  # fmt: skip


def convolve(file: File, image: str, **attributes: list[int]) -> Path | str:
    first = file.add("Relu", file.add("Conv", image, file.weight(6, 3, 3, 3), **attributes))
    return file.add("Relu", file.add("Conv", first, file.weight(CHANNELS, 6, 3, 3), pads=[1] * 4))


def chosen(file: File, features: str, folder: Path) -> Layer | None:
    file.linear(file.pooled(features), to="y")
    chosen = list_layers(saved(file.model(CLASSES, 20), folder), overrides=AS_IS)[1]
    return chosen[0] if chosen else None


@pytest.mark.parametrize("move", MOVES)
def test_convolution_of_what_lies_elsewhere_is_no_target_layer(move: Move, tmp_path: Path) -> None:
    file = File()
    layer = chosen(file, convolve(file, move(file), strides=[2, 2]), tmp_path)
    assert layer is None or layer.op != "Relu"


def one_row_less(file: File) -> str:
    return file.add("Slice", "x", integers(file, 1), integers(file, SIDE), integers(file, 2))


def border(file: File) -> str:
    return file.add("Pad", "x", integers(file, 0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")


def transposed(file: File) -> str:
    return file.add("Transpose", "x", perm=[0, 1, 3, 2])


def smaller(file: File) -> str:
    scales = file.constant([1, 1, 0.75, 0.5], np.float32)
    return file.add("Resize", "x", "", scales, mode="linear")


@pytest.mark.parametrize("move", [one_row_less, border, transposed, smaller])
def test_convolution_of_what_lies_as_the_image_does_is_the_target_layer(
    move: Move, tmp_path: Path
) -> None:
    file = File()
    layer = chosen(file, convolve(file, move(file)), tmp_path)
    assert layer is not None
    assert layer.op == "Relu"
    axes = (0, 1, 3, 2) if move is transposed else (0, 1, 2, 3)
    assert layer.arrangement.order == axes


def deformable(file: File, features: str) -> str:
    """Each position reads where a convolution of the same features says."""
    offsets = file.add("Conv", features, file.weight(18, CHANNELS, 3, 3), pads=[1] * 4)
    weight = file.weight(CHANNELS, CHANNELS, 3, 3)
    return file.add("DeformConv", features, weight, offsets, pads=[1] * 4, kernel_shape=[3, 3])


def test_deformable_convolution_belongs_to_the_positions_that_it_computes(tmp_path: Path) -> None:
    file = File()
    features = file.add("Relu", deformable(file, file.features()))
    last = file.add("Relu", file.add("Conv", features, file.weight(6, CHANNELS, 2, 2)))
    file.linear(file.pooled(last), inner=6, to="y")
    (layer,) = list_layers(saved(file.model(CLASSES, 19), tmp_path), overrides=AS_IS)[1]
    assert (layer.op, layer.shape) == ("Relu", (6, 3, 3))


def test_operator_of_a_later_opset_is_refused_with_that_opset(tmp_path: Path) -> None:
    file = File()
    file.linear(file.pooled(deformable(file, file.features())), to="y")
    onnx.save(file.model(CLASSES, 18), tmp_path / "early.onnx")
    with pytest.raises(ExportError, match=r"DeformConv.* not part of ONNX opset 18, but of 19"):
        explain(tmp_path / "early.onnx")


def test_tokens_that_a_kernel_of_one_mixes_are_of_no_place(tmp_path: Path) -> None:
    """Places lie along the channels of that convolution, and each result is of all of them."""
    file = File()
    tokens = file.add("Conv", "x", file.weight(CHANNELS, 3, 4, 4), strides=[4, 4])
    tokens = file.add("Reshape", tokens, integers(file, 0, CHANNELS, 16, 1))
    tokens = file.add("Relu", file.add("Transpose", tokens, perm=[0, 2, 1, 3]), to="tokens")
    mixed = file.add("Relu", file.add("Conv", tokens, file.weight(16, 16, 1, 1)), to="mixed")
    pooled = file.add("ReduceMean", mixed, integers(file, 1, 3), keepdims=0)
    file.linear(pooled, to="y")
    path = saved(file.model(CLASSES), tmp_path)
    with pytest.raises(TargetLayerError, match="'mixed' cannot be the target layer"):
        explain(path, target_layer="mixed")
    layers, _ = list_layers(path, overrides=AS_IS)
    assert "tokens" in [layer.name for layer in layers]


def test_tokens_that_indexing_reorders_are_put_back(tmp_path: Path) -> None:
    """Column by column, as PyTorch writes x[:, order]."""
    columns = np.arange(16).reshape(4, 4).T.reshape(-1)
    file = File()
    tokens = file.add("Conv", "x", file.weight(CHANNELS, 3, 4, 4), strides=[4, 4])
    tokens = file.add("Reshape", tokens, integers(file, 0, CHANNELS, 16))
    tokens = file.add("Transpose", tokens, perm=[2, 0, 1])
    tokens = file.add("GatherND", tokens, file.constant(columns[:, None], np.int64))
    tokens = file.add("Relu", file.add("Transpose", tokens, perm=[1, 0, 2]), to="tokens")
    file.linear(file.add("ReduceMean", tokens, integers(file, 1), keepdims=0), to="y")
    path = saved(file.model(CLASSES), tmp_path)
    layer = next(each for each in list_layers(path, overrides=AS_IS)[0] if each.name == "tokens")
    assert layer.shape == (CHANNELS, 4, 4)
    assert layer.arrangement.tokens == tuple(np.argsort(columns))


def test_layer_whose_places_no_score_reads_is_refused(tmp_path: Path) -> None:
    """A class token is picked by a product with zeros and a one, which the graph does not show."""
    file = File()
    tokens = file.add("Conv", "x", file.weight(CHANNELS, 3, 4, 4), strides=[4, 4])
    tokens = file.add("Reshape", tokens, integers(file, 0, CHANNELS, 16))
    own = file.add("ReduceMean", tokens, integers(file, 2), keepdims=1)
    tokens = file.add("Concat", own, tokens, axis=2)
    tokens = file.add("Sigmoid", file.add("Transpose", tokens, perm=[0, 2, 1]), to="tokens")
    token = file.add("MatMul", file.constant(np.eye(17)[:1]), tokens)
    file.linear(file.add("Flatten", token), to="y")
    path = saved(file.model(CLASSES), tmp_path)
    with pytest.raises(TargetLayerError, match="gradients there, are zero"):
        explain(path, target_layer="tokens")


@pytest.mark.parametrize("is_reversed", [False, True])
def test_blocks_that_are_added_up_have_places_where_they_lie_in_order(
    is_reversed: bool, tmp_path: Path
) -> None:
    file = File()
    blocks = file.add("Conv", "x", file.weight(8 * 9, 3, 3, 3), strides=[2, 2], pads=[1] * 4)
    blocks = file.add("Reshape", blocks, integers(file, 0, 8 * 9, 64))
    if is_reversed:
        blocks = file.add("Gather", blocks, integers(file, *range(63, -1, -1)), axis=2)
    sizes = integers(file, SIDE, SIDE), integers(file, 3, 3)
    whole = file.add("Col2Im", blocks, *sizes, strides=[2, 2], pads=[1] * 4)
    file.linear(file.pooled(file.add("Relu", whole, to="whole")), to="y")
    layers, _ = list_layers(saved(file.model(CLASSES), tmp_path), overrides=AS_IS)
    assert ("whole" in [layer.name for layer in layers]) is not is_reversed
