"""Recorded gradients in the other engines: OpenVINO computes the same, TensorRT-RTX takes them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import pytest
from gradient_cases import CASES
from gradients import Case, Recorded, node, record, run, weights

from whycam.export.dims import Size
from whycam.export.turing import replace_matrix_products

# The forward operator itself is refused there: a free batch; p = 3.
NOT_IN_OPENVINO = {("GlobalLpPool", 1), ("GlobalLpPool", 2)}
NOT_IN_TENSORRT = {("LpPool", 2)}
NUMBERED = [(name, i) for name in sorted(CASES) for i in range(min(3, len(CASES[name])))]


def gradients_only(recorded: Recorded) -> onnx.ModelProto:
    model = ir.from_proto(recorded.proto)
    wanted = {gradient.value.name for gradient in recorded.gradients}
    for value in [value for value in model.graph.outputs if value.name not in wanted]:
        model.graph.outputs.remove(value)
    passes.RemoveUnusedNodesPass()(model)
    return ir.to_proto(model)


def feeds(case: Case, recorded: Recorded, n: int, k: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = {name: case.draw(rng, (n, *shape)) for name, shape in case.inputs.items()}
    place = next(axis for axis, side in enumerate(recorded.y) if isinstance(side, Size))
    sides = [side if isinstance(side, int) else side.factor * n for side in recorded.y]
    sides[place] *= k
    images["seed"] = rng.normal(size=sides)
    return {name: each.astype(np.float32) for name, each in images.items()} | {"k": np.array([k])}


@pytest.mark.parametrize(
    ("kind", "attributes", "inner", "weight"),
    [
        ("MatMul", {}, (5, 6), (6, 6)),
        ("Gemm", {}, (6,), (6, 6)),
        ("Gemm", {"transB": 1, "alpha": 0.5}, (6,), (6, 6)),
        ("Conv", {"pads": [1] * 4}, (6, 5, 5), (6, 6, 3, 3)),
        ("Conv", {}, (6, 5, 5), (6, 6, 1, 1)),
        ("Conv", {"pads": [1] * 4, "strides": [2, 2]}, (6, 6, 6), (6, 6, 3, 3)),
        ("Conv", {"pads": [1] * 4, "group": 2}, (6, 5, 5), (6, 3, 3, 3)),
        ("Conv", {"pads": [1] * 4, "group": 6}, (6, 5, 5), (6, 1, 3, 3)),
        ("ConvTranspose", {"strides": [2, 2]}, (6, 4, 4), (6, 6, 2, 2)),
        ("ConvTranspose", {"strides": [2, 2], "group": 2}, (6, 4, 4), (6, 3, 2, 2)),
    ],
)
def test_openvino_does_not_take_a_square_weight_for_its_transpose(kind, attributes, inner, weight):
    """It keeps packed weights by their sizes, so the forward product is in the graph as well."""
    case = Case([node(kind, "x w", **attributes)], {"x": inner}, {"w": weights(*weight)})
    recorded = record(case)
    given = feeds(case, recorded, 3, 2)
    expected = run(recorded.proto, given)
    assert {"y"} < set(expected)
    core = pytest.importorskip("openvino").Core()
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(recorded.proto.SerializeToString()), "CPU", precise)
    names = {name for each in model.inputs for name in each.names}
    found = model({name: each for name, each in given.items() if name in names})
    for value in recorded.proto.graph.output:
        np.testing.assert_allclose(
            found[value.name], expected[value.name], rtol=1e-4, atol=1e-5, err_msg=value.name
        )


@pytest.mark.parametrize(("operator", "index"), NUMBERED)
def test_openvino_computes_the_same_gradient(operator, index):
    if (operator, index) in NOT_IN_OPENVINO:
        pytest.skip("OpenVINO does not read the operator itself")
    case = CASES[operator][index]
    recorded = record(case)
    given = feeds(case, recorded, 3, 2)
    expected = run(recorded.proto, given)
    proto = gradients_only(recorded)
    core = pytest.importorskip("openvino").Core()
    model = core.compile_model(
        core.read_model(proto.SerializeToString()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1},
    )
    names = {name for each in model.inputs for name in each.names}
    found = model({name: each for name, each in given.items() if name in names})
    for value, output in zip(proto.graph.output, model.outputs, strict=True):
        reference = expected[value.name]
        scale = 1 + np.abs(reference).max()
        assert np.abs(found[output] - reference).max() < 10 * case.tolerance * scale


def parsed(model: onnx.ModelProto):
    """The builder and network of TensorRT-RTX, or its complaints."""
    trt = pytest.importorskip("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
    if not parser.parse(model.SerializeToString()):
        return None, [str(parser.get_error(i)) for i in range(parser.num_errors)]
    return (trt, builder, network, parser), []


@pytest.mark.parametrize(("operator", "index"), NUMBERED)
def test_tensorrt_reads_the_gradient(operator, index):
    if (operator, index) in NOT_IN_TENSORRT:
        pytest.skip("TensorRT does not read the operator itself")
    assert parsed(gradients_only(record(CASES[operator][index])))[1] == []


@pytest.mark.parametrize(
    ("operator", "index"),
    [
        ("Attention", 0), ("AveragePool", 0), ("Conv", 0), ("ConvTranspose", 0), ("Einsum", 1),
        ("Gather", 3), ("Gemm", 0), ("LRN", 0), ("LayerNormalization", 0), ("MatMul", 2),
        ("MaxPool", 0), ("MaxPool", 2), ("Reshape", 3), ("Resize", 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("capabilities", [["SM75"], ["SM86", "SM120"]])
def test_tensorrt_builds_the_gradient(operator, index, capabilities):
    model = gradients_only(record(CASES[operator][index]))
    if capabilities == ["SM75"]:
        model = onnx.shape_inference.infer_shapes(model)
        replace_matrix_products(model)
    (trt, builder, network, _), errors = parsed(model)
    assert errors == []
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for i in range(network.num_inputs):
        value = network.get_input(i)
        if value.is_shape_tensor:
            profile.set_shape_input(value.name, [1], [1], [3])
            continue
        most = 12 if value.name == "seed" else 4
        least, largest = ([s if s >= 0 else free for s in value.shape] for free in (1, most))
        profile.set_shape(value.name, least, least, largest)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(capabilities)
    for i, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    assert builder.build_serialized_network(network, config) is not None
