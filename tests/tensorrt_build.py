"""TensorRT-RTX builds graphs without a GPU: whether one would."""

from collections.abc import Sequence

import pytest

from whycam.runtime.manifest import Manifest


def build_errors(graph: bytes | str, manifest: Manifest) -> list[str]:
    """What TensorRT-RTX says while parsing and building for SM86, SM89 and SM120; no GPU needed."""
    trt = pytest.importorskip("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse_from_file(graph) if isinstance(graph, str) else parser.parse(graph)
    if not parsed:
        return [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()

    def image_shape(n: int, free: int) -> Sequence[int]:
        return (n, *(free if side is None else side for side in manifest.image_shape))

    image, pair = manifest.names.get("image", "image"), () if manifest.detector is None else (2,)
    profile.set_shape(image, image_shape(1, 64), image_shape(1, 480), image_shape(4, 1280))
    profile.set_shape("target", (1, 1, *pair), (1, 1, *pair), (4, 5, *pair))
    config.add_optimization_profile(profile)
    capabilities = [trt.ComputeCapability.SM86, trt.ComputeCapability.SM89]
    capabilities.append(trt.ComputeCapability.SM120)
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(capability, index)
    built = builder.build_serialized_network(network, config)
    return [] if built is not None and built.nbytes > 0 else ["no engine was built"]
