"""Graphs that finish maps, sweep thresholds and preprocess answer as the runtime does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from agreement import assert_same, without_own_maps
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CLASSES, SMALL, curved, linear
from recorded import run_recorded
from torch import nn

import whycam
from whycam.export import assemble, sweep, to_onnx
from whycam.export.sweep import by_bisection
from whycam.runtime import cam
from whycam.runtime.errors import EngineError, ModelFileError, RequestError, VerificationError
from whycam.runtime.onnxfile import read_manifest
from whycam.runtime.search import FEATURES, Prior
from whycam.runtime.tft import Tft, by_sorting

OWN = [m for m in cam.ACTIVATION_METHODS if m != "scorecam"]
TAUS = tuple(step / 20 for step in range(20))
BINARY, SOFT = Tft("binary", "value"), Tft("soft", "rank")


def random_images(count: int, size: tuple[int, int] = (41, 47)) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (count, 5, 6, 3))
    return [np.ascontiguousarray(np.kron(c, np.ones((9, 9, 1)))[: size[0], : size[1]])
            .astype(np.uint8) for c in coarse]  # fmt: skip


@pytest.fixture(scope="module")
def made(exports: Callable[..., Path]) -> Callable[..., Path]:
    """Exports a small network, once for each set of options."""

    def export(head: Callable[[], Any] = curved, **options: Any) -> Path:
        return exports(head, overrides=SMALL, **options)

    return export


def test_class_that_is_all_but_impossible_does_not_make_an_export_wrong(tmp_path):
    """Masking the image brings a class of probability 1e-34 to life."""
    model = linear()
    with torch.no_grad():
        # Class 0 wins by some 75 where there is an image; where there is none, all are equal.
        for name, values in model.named_parameters():
            if name.endswith("bias"):
                values.zero_()
        seen = model[:-1](torch.randn(8, 3, 32, 32)).mean(0)
        model[-1].weight.zero_()
        model[-1].weight[0] = 120 * seen / (seen @ seen)
    made = to_onnx(
        model, tmp_path / "sure.onnx", overrides=SMALL, outputs=["raw", "tft"], tft=Tft(taus=(0.5,))
    )
    assert made.verification.worst["tft"] <= 1e-4


def test_map_that_is_all_but_constant_does_not_make_an_export_wrong(tmp_path):
    """Whether it counts as constant hangs on rounding, and so does all that it shows if not."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Hardtanh(1.0, 1.0 + 2e-6), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()  # fmt: skip
    made = to_onnx(model, tmp_path / "flat.onnx", overrides=SMALL, outputs=["raw", "map"])
    assert made.verification.worst["maps"] <= 1e-4


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_map_whose_sum_cancels_to_rounding_does_not_make_an_export_wrong(tmp_path, method):
    """A head that ignores scale, over activations that are all but the same everywhere."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Hardtanh(1.0, 1.0 + 1e-6), nn.Conv2d(4, 64, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 5),
    ).eval()  # fmt: skip
    path = tmp_path / "cancels.onnx"
    made = to_onnx(model, path, overrides=SMALL, outputs=["raw", "map"], map_methods=[method])
    assert made.verification.worst["maps"] <= 1e-4
    for engine in ("onnxruntime", "openvino"):
        assert whycam.load(path, engine).explain(random_images(1))[0].map.shape == (32, 32)


@pytest.mark.parametrize("method", OWN)
def test_finished_map_of_each_method_is_the_runtimes(made, method):
    head = linear if method == "cam" else curved
    path = made(head, outputs=("raw", "map"), map_methods=[method], methods=[method, "gradcam"])
    explainer = whycam.load(path, threads=1)
    assert explainer.manifest.output_shapes["maps"] == (None, 32, 32)
    for each, computed in zip(
        explainer.explain(random_images(3), [[-1, 2, -2]] * 3),
        without_own_maps(explainer).explain(random_images(3), [[-1, 2, -2]] * 3, method),
        strict=True,
    ):
        for a, b in zip(each, computed, strict=True):
            assert a.method == b.method == method
            assert a.index == b.index
            np.testing.assert_allclose(a.map, b.map, atol=1e-4)


@pytest.mark.parametrize("settings", [BINARY, SOFT, Tft("binary", "rank", (0.0, 0.5, 0.85))])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("k", [1, 3])
def test_sweep_in_the_graph_chooses_as_the_runtimes_sweep(made, settings, n, k):
    path = made(outputs=("raw", "tft"), tft=settings)
    explainer = whycam.load(path, threads=1)
    targets = [[-1, 3, -2][:k]] * n
    for start in range(0, 6, n):
        shown = random_images(6)[start : start + n]
        own = explainer.explain(shown, targets, tft=True)
        computed = without_own_maps(explainer).explain(shown, targets, tft=True)
        assert_same(own, computed)


@pytest.mark.parametrize("evaluations", [0, 1.5, True])
def test_settings_that_make_no_sense_are_refused(evaluations):
    with pytest.raises(RequestError, match="evaluations"):
        Tft(evaluations=evaluations)


def prior_of(settings: Tft) -> Prior:
    """Predicts other thresholds for other maps, and neighbouring ones alike."""
    rng = np.random.default_rng(3)
    apart = np.abs(np.subtract.outer(TAUS, TAUS))
    return Prior(
        method="gradcam",
        mask=settings.mask,
        thresholds=settings.thresholds,
        taus=TAUS,
        mean=(0.0,) * FEATURES,
        scale=(1.0,) * FEATURES,
        coefficients=tuple(map(tuple, (0.3 * rng.normal(size=(FEATURES, 20))).tolist())),
        covariance=tuple(map(tuple, (np.exp(-4 * apart) + 0.01 * np.eye(20)).tolist())),
        images=40,
    )


@pytest.fixture(scope="module")
def searching(made) -> Callable[[Tft], Path]:
    def export(settings: Tft) -> Path:
        wanted = msgspec.structs.replace(settings, evaluations=4)
        return made(outputs=("raw", "tft"), tft=wanted, priors=(prior_of(settings),))

    return export


@pytest.mark.parametrize("settings", [BINARY, SOFT], ids=["binary", "soft"])
@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)]
)
def test_search_in_the_graph_chooses_as_the_runtimes_search(searching, settings, engine):
    explainer = whycam.load(searching(settings), engine, threads=1)
    assert explainer.manifest.tft.taus == TAUS
    assert explainer.manifest.output_shapes["rpi"] == (None, 20)
    tried = set()
    for start, n in ((0, 1), (1, 2), (3, 3)):
        targets = [[-1, 3, -2]] * n
        shown = random_images(6)[start : start + n]
        own = explainer.explain(shown, targets, tft=True)
        computed = without_own_maps(explainer).explain(shown, targets, tft=True)
        assert_same(own, computed)
        for a, b in zip(chain(*own), chain(*computed), strict=True):
            np.testing.assert_array_equal(np.isnan(a.rpi), np.isnan(b.rpi))
            assert np.isfinite(a.rpi).sum() == 4
            tried.add(tuple(np.flatnonzero(np.isfinite(a.rpi))))
    assert len(tried) > 5, "the cases are all alike"


def test_searching_graph_takes_its_batches_by_its_evaluations(searching):
    whole = whycam.load(searching(BINARY), threads=1)
    small = whycam.load(searching(BINARY), threads=1)
    small.model = replace(
        small.model, batch=2
    )  # one masked image of each class at a time, not one of each threshold
    sizes = []
    run = small.engine.run
    small.engine.run = lambda feeds, outputs: (
        sizes.append(feeds["target"].shape),
        run(feeds, outputs),
    )[1]
    assert_same(
        small.explain(random_images(2), [[-1, 2]] * 2, tft=True),
        whole.explain(random_images(2), [[-1, 2]] * 2, tft=True),
    )
    assert sizes == [(1, 2), (1, 2)]


def test_other_searches_of_a_searching_file_run_in_the_runtime(searching):
    explainer = whycam.load(searching(BINARY), threads=1)
    found = explainer.explain(random_images(1)[0], tft=Tft(evaluations=2))
    assert np.isfinite(found.rpi).sum() == 2
    every = explainer.explain(random_images(1)[0], tft=Tft())
    assert np.isfinite(every.rpi).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"outputs": ("raw",)}, "add the output tft"),
        ({"outputs": ("tft",), "map_methods": ["layercam"]}, "whycam calibrate thresholds"),
        ({"outputs": ("tft",), "priors": ()}, "whycam calibrate thresholds"),
    ],
)
def test_search_without_what_it_needs_is_not_exported(tmp_path, options, told):
    wanted = {"tft": Tft(evaluations=4), "priors": (prior_of(BINARY),)} | options
    with pytest.raises(RequestError, match=told):
        to_onnx(curved(), tmp_path / "x.onnx", overrides=SMALL, **wanted)
    assert not list(tmp_path.iterdir())


def rolled(steps):
    xp = steps.recorder.xp
    return xp.concat([steps[..., 1:], steps[..., :1]], axis=-1)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("next_step", lambda f: lambda belief: rolled(f(belief))),
        ("observe", lambda f: lambda belief, step, gain: f(belief, step, -3 * gain)),
        ("features", lambda f: lambda maps, p: f(1 - maps, p)),
        ("mask_of", lambda f: lambda maps, mask: 1 - f(maps, mask)),
    ],
)
def test_graph_that_searches_otherwise_than_the_runtime_is_not_written(
    tmp_path, monkeypatch, name, spoil
):
    monkeypatch.setattr(sweep, name, spoil(getattr(sweep, name)))
    with pytest.raises(VerificationError, match="sweep"):
        to_onnx(
            curved(),
            tmp_path / "x.onnx",
            overrides=SMALL,
            outputs=("tft",),
            tft=Tft(evaluations=3),
            priors=(prior_of(BINARY),),
        )
    assert not list(tmp_path.iterdir())


def test_raw_graph_and_finishing_graph_of_one_network_agree(made):
    raw, own = (whycam.load(made(outputs=outputs), threads=1) for outputs in [("raw",), ("tft",)])
    targets = [[-1, -2]] * 4
    assert_same(
        own.explain(random_images(4), targets, tft=True),
        raw.explain(random_images(4), targets, tft=True),
    )


def test_sweep_larger_than_memory_is_run_in_parts(made):
    path = made(outputs=("tft",), tft=SOFT)
    targets = [[-1, 2, -2]] * 3
    whole = whycam.load(path, threads=1)
    small = whycam.load(path, threads=1)
    small.model = replace(small.model, batch=13)  # one class of one image at a time
    assert_same(
        small.explain(random_images(3), targets, tft=True),
        whole.explain(random_images(3), targets, tft=True),
    )


def test_other_settings_and_methods_fall_back_to_the_runtime(made):
    both = whycam.load(made(outputs=("raw", "tft")), threads=1)
    raw = whycam.load(made(outputs=("raw",)), threads=1)
    shown = random_images(1)[0]
    for method, wanted in [("gradcam", SOFT), ("layercam", True), ("scorecam", None)]:
        a, b = (each.explain(shown, [-1], method, wanted) for each in (both, raw))
        np.testing.assert_allclose(a[0].map, b[0].map, atol=1e-4)
        assert a[0].threshold == b[0].threshold
    naive = both.explain(shown, tft="naive")
    assert naive.threshold == 0.85


def test_plain_map_from_a_sweeping_graph_is_not_thresholded(made):
    explainer = whycam.load(made(outputs=("tft",), tft=SOFT), threads=1)
    shown = random_images(1)[0]
    plain, swept = explainer.explain(shown), explainer.explain(shown, tft=True)
    np.testing.assert_allclose(plain.map, swept.original_map, atol=1e-6)
    assert plain.threshold is None
    assert swept.rpi.shape == (10,)


@pytest.mark.parametrize(
    ("options", "request_", "told"),
    [
        ({"outputs": ("map",)}, {"method": "layercam"}, "outputs raw"),
        ({"outputs": ("map",)}, {"method": "scorecam"}, "gradcam"),
        ({"outputs": ("tft",), "embed_preprocess": True}, {"tft": SOFT}, "embed-preprocess"),
        ({"outputs": ("map",), "embed_preprocess": True}, {"tft": True}, "outputs tft"),
    ],
)
def test_what_a_file_cannot_do_is_refused_with_the_option_that_can(made, options, request_, told):
    explainer = whycam.load(made(**options), threads=1)
    with pytest.raises(RequestError, match=told):
        explainer.explain(random_images(1)[0], **request_)


@pytest.mark.parametrize("outputs", [("raw",), ("map",), ("tft",)])
def test_graph_that_takes_images_answers_as_the_one_that_takes_tensors(made, outputs):
    taking = whycam.load(made(outputs=outputs, embed_preprocess=True), threads=1)
    given = whycam.load(made(outputs=outputs), threads=1)
    assert taking.manifest.image_shape == (None, None, 3)
    mixed = [
        *random_images(2),
        *random_images(1, (33, 45)),
        *random_images(1),
        np.zeros((1, 1, 3), np.uint8),
    ]
    tft = outputs == ("tft",)
    for a, b in zip(taking.explain(mixed, tft=tft), given.explain(mixed, tft=tft), strict=True):
        assert a.index == b.index
        assert a.placement == b.placement
        assert abs(a.probability - b.probability) < 5e-3  # a pixel may differ by 1 of 255
        if b.original_map.any():
            assert np.corrcoef(a.original_map.ravel(), b.original_map.ravel())[0, 1] > 0.98
    np.testing.assert_allclose(taking.classify(mixed), given.classify(mixed), atol=5e-3)


def test_graph_for_one_source_size_takes_no_other(made):
    path = made(outputs=("map",), embed_preprocess=True, source_size=(41, 47))
    explainer = whycam.load(path, threads=1)
    assert explainer.manifest.image_shape == (41, 47, 3)
    assert explainer.explain(random_images(1)[0]).map.shape == (32, 32)
    with pytest.raises(RequestError, match=r"41 x 47 pixels .* not 33 x 45"):
        explainer.explain(random_images(1, (33, 45))[0])


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": ()},
        {"outputs": ("maps",)},
        {"outputs": ("raw",), "map_methods": ["gradcam"]},
        {"outputs": ("map",), "map_methods": ["smoothgrad"]},
        {"outputs": ("map",), "map_methods": ["scorecam"]},
        {"source_size": (10, 10)},
        {"embed_preprocess": True, "source_size": (0, 10)},
        {"embed_preprocess": True, "source_size": (10, 10**6)},
    ],
)
def test_unusable_options_are_refused_before_any_work(options, tmp_path):
    with pytest.raises(RequestError):
        to_onnx(curved(), tmp_path / "x.onnx", overrides=SMALL, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "feeds",
    [
        {"image": np.zeros((1, 3, 32, 32), np.float64), "target": np.zeros((1, 1), np.int64)},
        {"image": np.zeros((3, 32, 32), np.float32), "target": np.zeros((1, 1), np.int64)},
        {"image": np.zeros((1, 3, 31, 32), np.float32), "target": np.zeros((1, 1), np.int64)},
        {"image": np.zeros((1, 3, 32, 32), np.float32), "target": np.zeros((1, 1), np.int32)},
        {"image": np.zeros((1, 3, 32, 32), np.float32), "target": np.zeros(1, np.int64)},
        {"image": np.zeros((2, 3, 32, 32), np.float32), "target": np.zeros((3, 1), np.int64)},
        {"image": np.zeros((1, 3, 32, 32), np.float32)},
    ],
)
@pytest.mark.parametrize("outputs", [("raw",), ("map",), ("tft",)])
def test_wrong_inputs_end_in_an_engine_error(made, feeds, outputs):
    explainer = whycam.load(made(outputs=outputs), threads=1)
    with pytest.raises(EngineError):
        explainer.engine.run(feeds, list(explainer.manifest.output_shapes))


@pytest.mark.parametrize("target", [CLASSES, -6, 2**40, 1.5, "no such class"])
@pytest.mark.parametrize("outputs", [("map",), ("tft",)])
def test_class_that_does_not_exist_is_refused_and_not_mapped(made, target, outputs):
    explainer = whycam.load(made(outputs=outputs), threads=1)
    with pytest.raises(RequestError):
        explainer.explain(random_images(1)[0], target, tft=outputs == ("tft",))


def test_graph_whose_maps_are_not_numbers_is_an_error(made):
    explainer = whycam.load(made(outputs=("map",)), threads=1)
    plain = explainer.engine.run

    def broken(feeds: Any, outputs: Any) -> Any:
        found = plain(feeds, outputs)
        return {n: v * np.nan if n == "maps" else v for n, v in found.items()}

    explainer.engine.run = broken
    with pytest.raises(EngineError, match="NaN"):
        explainer.explain(random_images(1)[0])


def test_manifest_that_promises_other_outputs_than_the_file_has_is_refused(made, tmp_path):
    path = tmp_path / "lying.onnx"
    model = onnx.load(made(outputs=("map",)))
    manifest = msgspec.structs.replace(read_manifest(made(outputs=("map",))), outputs=("tft",))
    onnx.helper.set_model_props(model, {"whycam": manifest.to_json()})
    onnx.save(model, path)
    with pytest.raises(ModelFileError):
        whycam.load(path)


@pytest.mark.parametrize(
    ("name", "spoil", "told"),
    [
        ("finish", lambda f: lambda raw, size: f(raw, size) * 0.99, "maps are off"),
        ("best", lambda f: lambda rpi, cuts, taus: f(1 - rpi, cuts, taus), "sweep"),
        ("mask_of", lambda f: lambda maps, mask: 1 - f(maps, mask), "sweep"),
    ],
)
def test_graph_with_another_arithmetic_than_the_runtimes_is_not_written(
    tmp_path, monkeypatch, name, spoil, told
):
    home = assemble if name == "finish" else sweep
    monkeypatch.setattr(home, name, spoil(getattr(home, name)))
    with pytest.raises(VerificationError, match=told):
        to_onnx(curved(), tmp_path / "x.onnx", overrides=SMALL, outputs=("tft",))
    assert not list(tmp_path.iterdir())


def test_graph_that_sees_images_otherwise_than_pillow_is_not_written(tmp_path, monkeypatch):
    from whycam.export import resample

    monkeypatch.setattr(resample, "_start", lambda new, wanted: (new - wanted) // 2 + 2)
    with pytest.raises(VerificationError, match="preprocessing"):
        to_onnx(curved(), tmp_path / "x.onnx", overrides=SMALL, embed_preprocess=True)
    assert not list(tmp_path.iterdir())


@settings(max_examples=settings.default.max_examples // 8)  # each records some thirty steps
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            st.lists(
                st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.5, 1.0])),
                min_size=n, max_size=n,
            ),
            st.lists(st.integers(0, n - 1), min_size=1, max_size=5),
        )
    )
)  # fmt: skip
def test_bisection_finds_what_sorting_finds(case):
    values, positions = case
    array = np.array(values, np.float32)
    found = run_recorded(lambda x: by_bisection(x, positions), array)
    # Below 1/16 neighbouring float32 numbers lie closer than the last halving.
    np.testing.assert_allclose(found, by_sorting(array, positions), rtol=0, atol=2**-27)
