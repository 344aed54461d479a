"""Files that ONNX Runtime's optimisers wrote: fused operators are written in ONNX's own again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from foreign import CHANNELS, File, check_answers, explain, linear_head, run_file, saved
from onnx import TensorProto, helper

from whycam.export.onnx_reading import read_onnx_file
from whycam.runtime.errors import ExportError

FUSED = "com.microsoft"
TOKENS, WIDTH = 6, 8
Fuse = Callable[[File], str]


def fuse(file: File, kind: str, *inputs: str, **attributes) -> str:
    return file.add(kind, *inputs, domain=FUSED, **attributes)


def convolution(file: File) -> str:
    kernel, bias = file.weight(3, 3, 3, 3), file.weight(3)
    return fuse(file, "FusedConv", "x", kernel, bias, "x", pads=[1] * 4,
                activation="LeakyRelu", activation_params=[0.3])  # fmt: skip


def clipped(file: File) -> str:
    kernel = file.weight(5, 3, 2, 2)
    return fuse(file, "FusedConv", "x", kernel, activation="Clip", activation_params=[-0.2, 0.4])


def linear(file: File) -> str:
    return fuse(file, "FusedGemm", file.add("Flatten", "x"), file.weight(4, 48), file.weight(4),
                transB=1, activation="LeakyRelu", activation_alpha=0.2)  # fmt: skip


def product(file: File) -> str:
    return fuse(file, "FusedMatMul", "x", file.weight(4, 4), transA=0, transB=1, alpha=0.3)


def product_of_two(file: File) -> str:
    return fuse(file, "FusedMatMul", "x", "x", transA=1, alpha=0.5)


def gelu(file: File) -> str:
    return fuse(file, "Gelu", "x")


def gelu_of_a_sum(file: File) -> str:
    return fuse(file, "BiasGelu", "x", file.weight(4))


def fast_gelu(file: File) -> str:
    return fuse(file, "FastGelu", "x", file.weight(4))


def quick_gelu(file: File) -> str:
    return fuse(file, "QuickGelu", "x", alpha=1.3)


def tokens(file: File) -> str:
    """[N, 6, 8] of an image."""
    shape = file.constant([0, TOKENS, WIDTH], np.int64)
    return file.add("Reshape", "x", shape)


def skip_normalisation(file: File) -> str:
    x = tokens(file)
    scale, shift, bias = (file.weight(WIDTH) for _ in range(3))
    node = helper.make_node(
        "SkipLayerNormalization", [x, x, scale, shift, bias], ["normal", "", "", "sum"],
        domain=FUSED, epsilon=1e-3,
    )  # fmt: skip
    file.nodes.append(node)
    return file.add("Mul", "normal", "sum")


def attention(file: File) -> str:
    weight, bias = file.weight(WIDTH, 3 * WIDTH), file.weight(3 * WIDTH)
    return fuse(file, "Attention", tokens(file), weight, bias, num_heads=2)


def scaled_attention(file: File) -> str:
    weight = file.weight(WIDTH, 3 * WIDTH)
    return fuse(file, "Attention", tokens(file), weight, num_heads=4, scale=0.7)


def heads(file: File) -> str:
    x = tokens(file)
    parts = [file.add("MatMul", x, file.weight(WIDTH, WIDTH)) for _ in range(3)]
    bias = file.weight(3 * WIDTH)
    return fuse(file, "MultiHeadAttention", *parts, bias, num_heads=2)


OPERATORS: list[Fuse] = [
    convolution, clipped, linear, product, product_of_two, gelu, gelu_of_a_sum, fast_gelu,
    quick_gelu, skip_normalisation, attention, scaled_attention, heads,
]  # fmt: skip


def run(proto: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    proto.ir_version = 10
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": image})[0]


@pytest.mark.parametrize("opset", [14, 18])
@pytest.mark.parametrize("operator", OPERATORS)
def test_fused_operator_is_written_in_onnxs_own(operator: Fuse, opset: int, tmp_path: Path) -> None:
    file = File(image=("N", 3, 4, 4))
    file.add("Identity", operator(file), to="y")
    model = file.model({"y": None}, opset, domains=[FUSED])
    onnx.save(model, tmp_path / "fused.onnx")
    plain = read_onnx_file(tmp_path / "fused.onnx")
    assert {node.domain for node in plain.graph} == {""}
    image = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    found = run(ir.to_proto(plain), image)
    np.testing.assert_allclose(found, run(model, image), atol=2e-6, rtol=2e-5)


def test_normalisation_of_an_opset_that_has_none_is_read(tmp_path: Path) -> None:
    """ONNX Runtime's optimiser for transformers writes it into files of any opset."""
    file = File(image=("N", 3, 4, 4))
    scale, shift = file.weight(4), file.weight(4)
    file.add("LayerNormalization", "x", scale, shift, to="y", epsilon=1e-2)
    model = file.model({"y": None}, 12)
    onnx.save(model, tmp_path / "old.onnx")
    plain = read_onnx_file(tmp_path / "old.onnx")
    image = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(ir.to_proto(plain), image), run(model, image), atol=1e-5)


def test_file_of_an_optimised_session_is_explained(tmp_path: Path) -> None:
    file = File()
    features = file.features()
    kernel = file.weight(CHANNELS, CHANNELS, 1, 1)
    features = fuse(file, "FusedConv", features, kernel, activation="Relu")
    logits = file.linear(file.pooled(features))
    head = linear_head(file)
    file.add("Softmax", logits, to="y", axis=1)
    path = tmp_path / "optimised.onnx"
    onnx.save(file.model({"y": ["N", 5]}, domains=[FUSED]), path)
    check_answers(path, explain(path), head)


def test_half_precision_between_casts_is_held_to_half_precisions_rounding(tmp_path: Path) -> None:
    """As converters write it that keep inputs and outputs in float32."""
    file = File(floats=np.float16)
    file.nodes.append(helper.make_node("Cast", ["x"], ["image"], to=TensorProto.FLOAT16))
    logits = file.linear(file.pooled(file.features("image")))
    large = file.add("Mul", logits, file.constant(40.0))
    file.nodes.append(helper.make_node("Cast", [large], ["scores"], to=TensorProto.FLOAT))
    file.add("Softmax", "scores", to="y", axis=1)
    path = saved(file.model({"y": ["N", 5]}), tmp_path)
    made = explain(path)
    image = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    (own,) = run_file(path, image, ["y"])
    (found,) = run_file(made.path, image, ["probabilities"])
    np.testing.assert_allclose(found, own, atol=2e-2)


@pytest.mark.parametrize(
    ("attributes", "given", "reason"),
    [
        ({"unidirectional": 1}, 3, "its attention is causal"),
        ({}, 4, "its input 3 is given"),
    ],
)
def test_attention_that_is_masked_is_refused(
    attributes: dict[str, int], given: int, reason: str, tmp_path: Path
) -> None:
    file = File(image=("N", 3, 4, 4))
    inputs = [tokens(file), file.weight(WIDTH, 3 * WIDTH), file.weight(3 * WIDTH)]
    inputs.append(file.constant([TOKENS], np.int32))
    fuse(file, "Attention", *inputs[:given], num_heads=2, to="y", **attributes)
    file.nodes[-1].name = "mixed"
    onnx.save(file.model({"y": None}, domains=[FUSED]), tmp_path / "masked.onnx")
    with pytest.raises(ExportError, match=rf"'mixed' is com.microsoft::Attention.*{reason}"):
        read_onnx_file(tmp_path / "masked.onnx")
