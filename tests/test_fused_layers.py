"""Layer-CAM of several layers, fused in the graph as it was published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import SIZE, SMALL, mixed
from numpy.typing import NDArray

import whycam
from whycam.export import to_half, to_onnx, to_plan
from whycam.runtime import cam
from whycam.runtime.engines.plan import Range, read_plan
from whycam.runtime.errors import RequestError, TargetLayerError
from whycam.runtime.manifest_parts import FusedLayer
from whycam.runtime.onnxfile import read_manifest
from whycam.runtime.pipeline import prepare
from whycam.runtime.tft import Tft

EARLIER = ("relu", "hardswish")  # in any order
IMAGE = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return mixed()


@pytest.fixture(scope="module")
def file(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fused") / "fused.onnx"
    made = to_onnx(
        model,
        path,
        overrides=SMALL,
        outputs=["raw", "map", "tft"],
        fused_layers=EARLIER,
        tft=Tft(taus=(0.2, 0.5)),
    )
    assert made.verification.worst["earlier"] is not None
    assert made.verification.worst["earlier"] < 1e-4
    return path


def by_hand(model: torch.nn.Module, image: NDArray[np.float32], target: int) -> NDArray[np.float32]:
    """Layer-CAM of the three layers by autograd on the model itself, fused, [h, w]."""
    seen: list[torch.Tensor] = []
    x = torch.from_numpy(image)
    # The model's own steps, with the layers kept.
    x = torch.nn.functional.hardswish(model.stem(x)).requires_grad_(True)
    seen.append(x)
    y = model.deep(x) * torch.nn.functional.hardsigmoid(model.gate(x))
    x = torch.nn.functional.relu(model.norm(torch.cat([x, x + y], 1)))
    seen.append(x)
    x = model.last(x)
    seen.append(x)
    grown = torch.autograd.grad(model.head(x)[0, target], seen)
    fused = torch.zeros(1, 1, 16, 16)
    for activations, gradient in zip(seen, grown, strict=True):
        raw = (gradient.clamp(min=0) * activations).sum(1, keepdim=True).clamp(min=0)
        bent = torch.tanh(2 * raw / raw.max())
        resized = torch.nn.functional.interpolate(bent, (16, 16), mode="bilinear")
        fused = torch.maximum(fused, resized)
    return fused[0, 0].detach().numpy()


@pytest.mark.parametrize("rank", [-1, -3])
def test_fused_map_is_that_of_autograd_on_the_model(model, file, rank):
    explainer = whycam.load(file, threads=1)
    images = prepare([IMAGE], explainer.manifest).inputs
    found = explainer.explain(IMAGE, rank, method="layercam")
    expected = cam.finish(by_hand(model, images, found.index)[None, None], (SIZE, SIZE))[0, 0]
    assert expected.max() > 0.99
    np.testing.assert_allclose(found.original_map, expected, atol=1e-4)


@pytest.mark.slow
def test_fused_map_shows_finer_detail_than_the_target_layers_alone(model, file, tmp_path):
    alone = tmp_path / "alone.onnx"
    to_onnx(model, alone, overrides=SMALL, outputs=["map"], map_methods=["layercam"])
    maps = [whycam.load(path, threads=1).explain(IMAGE).map for path in (file, alone)]
    steps = [np.abs(np.diff(each, axis=0)).mean() for each in maps]
    assert steps[0] > steps[1]


def test_file_says_which_layers_it_fuses_in_the_networks_order(file):
    manifest = read_manifest(file)
    assert [layer.name for layer in manifest.fused_layers] == ["hardswish", "relu"]
    assert manifest.fused_layers[1].activations == (16, 16, 16)
    assert manifest.map_method == "layercam"
    assert manifest.map_shape == (16, 16)
    assert len(manifest.references[0].raw_map) == 16 * 16


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_several_classes_of_several_images_are_each_explained(file, engine):
    explainer = whycam.load(file, engine, threads=1)
    images = [IMAGE, IMAGE[::-1].copy()]
    together = explainer.explain(images, [[-1, 2, -2]] * 2)
    for image, row in zip(images, together, strict=True):
        for each in row:
            one = explainer.explain(image, each.index)
            np.testing.assert_allclose(each.map, one.map, atol=1e-3)


def test_sweep_inside_the_graph_cuts_the_fused_map(file):
    found = whycam.load(file, threads=1).explain(IMAGE, tft=True)
    assert found.threshold in (np.float32(0.2), np.float32(0.5))
    kept = found.map > 0
    np.testing.assert_array_equal(found.map[kept], found.original_map[kept])


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"outputs": ["raw"]}, RequestError, "outputs map or tft"),
        ({"map_methods": ["gradcam"]}, RequestError, "layercam"),
        ({"fused_layers": ["last.2"]}, TargetLayerError, "not before the target layer"),
        ({"fused_layers": ["nowhere"]}, TargetLayerError, "no layer 'nowhere'"),
        ({"fused_layers": ["gate"]}, TargetLayerError, "no spatial extent|goes around"),
        ({"fused_layers": ["relu", "relu"]}, TargetLayerError, "2 different ones"),
    ],
)
def test_layers_that_cannot_be_fused_are_refused(model, tmp_path, options, error, says):
    wanted = {"outputs": ["map"], "fused_layers": ["relu"], **options}
    with pytest.raises(error, match=says):
        to_onnx(model, tmp_path / "refused.onnx", overrides=SMALL, **wanted)
    assert not list(tmp_path.iterdir())


def test_fused_file_with_a_sweep_has_no_half_precision_form(file, tmp_path):
    with pytest.raises(RequestError, match="without the output tft"):
        to_half(file, tmp_path / "half.onnx")
    assert not list(tmp_path.iterdir())


def test_fused_file_without_a_sweep_is_halved(model, tmp_path):
    path = tmp_path / "fused.onnx"
    to_onnx(model, path, overrides=SMALL, outputs=["raw", "map"], fused_layers=["relu"])
    half = to_half(path, tmp_path / "half.onnx")
    maps = [whycam.load(each, threads=1).explain(IMAGE).map for each in (path, half.path)]
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("compute", [["7.5"], ["8.6", "8.9", "12.0"]])
def test_fused_file_is_built_for_rtx(file, tmp_path, compute):
    pytest.importorskip("tensorrt_rtx")
    built = to_plan(file, tmp_path / "fused.plan", compute=compute, batch=Range(1, 1, 2))
    assert read_plan(built.path).manifest.fused_layers == read_manifest(file).fused_layers


def test_fused_layer_without_activations_is_a_damaged_manifest():
    with pytest.raises(ValueError, match="no activations"):
        FusedLayer("layer3", (64, 0, 7))


def test_command_line_fuses_layers(tmp_path, capsys, monkeypatch):
    from whycam.cli import main

    factory = tmp_path / "net.py"
    factory.write_text("from networks import mixed\n")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    path = tmp_path / "net.onnx"
    arguments = f"export {factory}:mixed -o {path} --image-size {SIZE} --outputs map --fuse relu"
    arguments += " --preprocess imagenet"
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 0
    assert "layercam of relu and last.2 fused" in capsys.readouterr().out.replace("\n", " ")


maps = st.lists(st.floats(0, 1e6, width=32, allow_subnormal=False), min_size=16, max_size=16).map(
    lambda values: np.array(values, np.float32).reshape(1, 1, 4, 4)
)


@given(maps, maps)
def test_fusion_is_bounded_and_knows_no_order(a, b):
    small = b[..., ::2, ::2]
    fused = cam.fuse([a, small])
    assert fused.shape == (1, 1, 4, 4)
    assert np.isfinite(fused).all()
    assert 0 <= fused.min() <= fused.max() < 1
    np.testing.assert_array_equal(fused, cam.fuse([small, a]))


@given(maps, st.sampled_from([1e-3, 0.5, 7.0, 1e3]))
def test_scale_of_a_layers_gradients_does_not_matter(a, scale):
    np.testing.assert_allclose(cam.fuse([a]), cam.fuse([a * np.float32(scale)]), atol=1e-5)


def test_fusion_is_that_of_torchcam():
    torchcam = pytest.importorskip("torchcam.methods")
    rng = np.random.default_rng(0)
    raws = [rng.random((2, 1, side, side)).astype(np.float32) for side in (28, 14, 7)]
    peaks = [torch.from_numpy((raw / raw.max((-2, -1), keepdims=True))[:, 0]) for raw in raws]
    expected = torchcam.LayerCAM.fuse_cams(peaks).numpy()
    np.testing.assert_allclose(cam.fuse(raws)[:, 0], expected, atol=1e-6)
