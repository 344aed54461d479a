"""Thresholds learnt from images: the fit, the curve, what is stored, and the command."""

from __future__ import annotations

import csv
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from networks import SMALL, curved
from PIL import Image

import whycam
from whycam.calibrate import evaluate, open_dataset
from whycam.calibrate.thresholds import TAUS, learn_thresholds, store_priors
from whycam.calibrate.thresholds_report import write_learnt
from whycam.cli import main
from whycam.cli.calibrate_thresholds import curve_table, learnt_lines
from whycam.runtime import search
from whycam.runtime.errors import DataError, ModelFileError, RequestError
from whycam.runtime.onnxfile import digest, read_manifest
from whycam.runtime.pipeline import classify, prepare
from whycam.runtime.priors import read_priors
from whycam.runtime.tft import Tft

COUNT, TENTHS = 48, Tft().taus
RANK = [("binary", "rank")]


def write_images(folder: Path, count: int, side: int) -> Path:
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data", COUNT, 8)


def by_hand(explainer: whycam.Explainer, folder: Path) -> tuple[np.ndarray, ...]:
    """Features, p and p under every mask, one image and one pass at a time."""
    rows = []
    for file in sorted(folder.iterdir()):
        e = explainer.explain(file, method="gradcam")
        images = prepare([np.asarray(Image.open(file))], explainer.manifest).inputs
        ordered = np.sort(e.map.ravel())
        masked = []
        for tau in TAUS:
            cut = ordered[int(ordered.size * tau + 1e-6)]
            kept = ((e.map >= cut) & (e.map != 0)).astype(np.float32)
            masked.append(classify(explainer.model, images * kept)[0, e.index])
        f = search.features(e.map, np.float32(e.probability))
        rows.append((f, e.probability, masked))
    return tuple(np.array(column, np.float64) for column in zip(*rows, strict=True))


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(np.clip(p, 1e-6, 1 - 1e-6) / (1 - np.clip(p, 1e-6, 1 - 1e-6)))


def test_prior_is_a_ridge_regression_on_three_of_four_images(tiny, image_folder):
    (prior,) = learn_thresholds(
        tiny, open_dataset(image_folder), methods=["gradcam"], readings=RANK
    ).priors
    features, p, masked = by_hand(tiny, image_folder)
    train = np.arange(COUNT) % 4 != 3
    assert prior.images == train.sum() == 36
    x, y = features[train], (logit(masked) - logit(p)[:, None])[train]
    spread = x[:, 1:].std(0)
    x = np.hstack([np.ones((36, 1)), (x[:, 1:] - x[:, 1:].mean(0)) / np.where(spread, spread, 1)])
    # The penalty as so many further rows of data that ask for coefficients of 0.
    further = np.sqrt(100) * np.eye(x.shape[1])[1:]
    augmented = np.vstack([x, further])
    b = np.linalg.lstsq(augmented, np.vstack([y, np.zeros((len(further), 20))]), rcond=None)[0]
    np.testing.assert_allclose(prior.coefficients, b, atol=2e-3)
    expected = np.cov((y - x @ b).T, bias=True) + 1e-4 * np.eye(20)
    np.testing.assert_allclose(prior.covariance, expected, atol=2e-3)


def test_curve_is_what_searching_the_held_out_images_finds(tiny, image_folder):
    found = learn_thresholds(tiny, open_dataset(image_folder), methods=["gradcam"], readings=RANK)
    (prior,), (curve,) = found.priors, found.curves
    assert (curve.learnt_from, curve.held_out, found.images) == (36, 12, 48)
    tiny = whycam.Explainer(tiny.engine, msgspec.structs.replace(tiny.manifest, priors=(prior,)))
    _, p, masked = by_hand(tiny, image_folder)
    held_out = np.arange(COUNT) % 4 == 3
    files = [
        file for file, out in zip(sorted(image_folder.iterdir()), held_out, strict=True) if out
    ]
    original = (masked[:, 0] > p)[held_out]
    assert curve.original_average_increase == pytest.approx(original.mean())
    every = masked[held_out][:, [TAUS.index(tau) for tau in TENTHS]].max(1)
    gain = (every > p[held_out]).mean() - original.mean()
    assert gain > 0, "the images show nothing"
    for point in curve.search:
        explained = [
            tiny.explain(file, tft=Tft("binary", "rank", evaluations=point.evaluations))
            for file in files
        ]
        increase = np.array([e.improved for e in explained]) | original
        assert point.average_increase == pytest.approx(increase.mean())
        assert point.increase_kept == pytest.approx((increase.mean() - original.mean()) / gain)
        rpi = np.mean([np.nanmax(e.rpi) for e in explained])
        assert point.mean_rpi == pytest.approx(rpi, rel=1e-3)
        assert point.milliseconds > 0
    assert [point.evaluations for point in curve.search] == list(range(1, 9))
    assert curve.every.increase_kept == curve.every.rpi_kept == 1
    shares = [point.rpi_kept for point in curve.search]
    assert shares == sorted(shares), "more evaluations found less"


def test_fixed_thresholds_are_the_best_of_those_learnt_from(tiny, image_folder):
    found = learn_thresholds(tiny, open_dataset(image_folder), methods=["gradcam"], readings=RANK)
    _, p, masked = by_hand(tiny, image_folder)
    train = np.arange(COUNT) % 4 != 3
    above = masked[train] > p[train][:, None]
    for point, size in zip(found.curves[0].fixed, (3, 4), strict=True):
        assert point.evaluations == len(point.taus) == size
        own = above[:, [TAUS.index(tau) for tau in point.taus]].any(1) | above[:, 0]
        best = max(
            (above[:, list(places)].any(1) | above[:, 0]).mean()
            for places in combinations(range(20), size)
        )
        assert own.mean() == pytest.approx(best)


def test_every_method_and_reading_is_learnt_and_told_of(tiny, image_folder):
    told = []
    found = learn_thresholds(
        tiny,
        open_dataset(image_folder),
        methods=["layercam", "gradcam"],
        tick=lambda name, steps: told.append((name, steps)),
    )
    wanted = {
        (m, *r) for m in ("gradcam", "layercam") for r in (("binary", "value"), ("soft", "rank"))
    }
    assert {(p.method, p.mask, p.thresholds) for p in found.priors} == wanted
    kinds = [(p.method, p.mask, p.thresholds) for p in found.priors]
    assert [(c.method, c.mask, c.thresholds) for c in found.curves] == kinds
    assert told == [(f"{index:03d}.png", 1) for index in range(COUNT)]


def test_learning_twice_gives_the_same_prior(tiny, image_folder):
    data = open_dataset(image_folder)
    one, other = (
        learn_thresholds(tiny, data, methods=["gradcam"], readings=RANK) for _ in range(2)
    )
    assert one.priors == other.priors


@pytest.mark.parametrize("broken", [0, 9])
def test_too_few_usable_images_are_refused_with_their_number(tiny, image_folder, broken):
    for file in sorted(image_folder.iterdir())[: COUNT - 39]:
        if broken:
            file.write_bytes(b"no image")
        else:
            file.unlink()
    with pytest.raises(DataError, match=r"39 usable images.* 40 or more"):
        learn_thresholds(tiny, open_dataset(image_folder), methods=["gradcam"], readings=RANK)


def test_unreadable_images_are_left_out_and_named(tiny, image_folder):
    (image_folder / "000.png").write_bytes(b"no image")
    found = learn_thresholds(tiny, open_dataset(image_folder), methods=["gradcam"], readings=RANK)
    assert found.images == COUNT - 1
    assert set(found.unreadable) == {"000.png"}
    assert "1 image left out" in learnt_lines(found)


@pytest.mark.parametrize("methods", [["scorecam"], ["smoothgrad"], []])
def test_methods_that_cannot_be_learnt_are_refused(tiny, image_folder, methods):
    with pytest.raises(RequestError):
        learn_thresholds(tiny, open_dataset(image_folder), methods=methods)


def test_file_without_raw_outputs_is_refused(tiny_engine, manifest_of, image_folder):
    finished = manifest_of(outputs=("map",), map_methods=("gradcam",), methods=("gradcam",))
    with pytest.raises(RequestError, match="--outputs raw"):
        learn_thresholds(whycam.Explainer(tiny_engine(), finished), open_dataset(image_folder))


def test_evaluation_with_a_search_is_refused(tiny, image_folder):
    with pytest.raises(RequestError, match="whycam calibrate thresholds"):
        evaluate(tiny, open_dataset(image_folder), methods=["gradcam"], tft=Tft(evaluations=3))


def test_report_holds_priors_curve_and_plot(tiny, image_folder, tmp_path):
    pytest.importorskip("matplotlib")
    found = learn_thresholds(tiny, open_dataset(image_folder), methods=["gradcam"])
    folder = tmp_path / "report"
    names = {path.name for path in write_learnt(found, folder)}
    assert names == {"thresholds.json", "thresholds.csv", "thresholds.png"}
    assert read_priors(folder / "thresholds.json") == found.priors
    with (folder / "thresholds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (8 + 2 + 1)
    assert {row["tried"] for row in rows} == {"search", "fixed", "every"}
    assert min(Image.open(folder / "thresholds.png").size) > 300
    assert curve_table(found.curves[0]).row_count == 1 + 8 + 2 + 1


@pytest.fixture(scope="module")
def exported(exports) -> Path:
    return exports(curved, overrides=SMALL, methods=["gradcam", "layercam"])


@pytest.fixture
def small(exported: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    path.write_bytes(exported.read_bytes())
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_what_is_learnt_is_stored_and_used_by_every_engine(small, tmp_path):
    data = write_images(tmp_path / "data", 40, 32)
    before = read_manifest(small)
    found = learn_thresholds(whycam.load(small, threads=1), open_dataset(data), methods=["gradcam"])
    store_priors(small, found.priors)
    manifest = read_manifest(small)
    assert manifest.priors == found.priors
    assert digest(small) == manifest.digest == before.digest
    for engine in ("onnxruntime", "openvino"):
        explainer = whycam.load(small, engine, threads=1)
        e = explainer.explain(data / "000.png", method="gradcam", tft=Tft(evaluations=3))
        assert np.isfinite(e.rpi).sum() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "small.onnx"]


def test_learning_again_replaces_what_it_learns_and_keeps_the_rest(small, tmp_path):
    data = write_images(tmp_path / "data", 44, 32)
    explainer = whycam.load(small, "onnxruntime", threads=1)
    store_priors(
        small,
        learn_thresholds(explainer, open_dataset(data), methods=["gradcam", "layercam"]).priors,
    )
    (data / "000.png").unlink()
    again = learn_thresholds(explainer, open_dataset(data), methods=["gradcam"]).priors[:1]
    store_priors(small, again)
    kept = read_manifest(small).priors
    kinds = [(p.method, p.mask, p.thresholds) for p in kept]
    assert len(kept) == len(set(kinds)) == 4
    assert again[0] in kept
    assert [p.images for p in kept if p not in again] == [33] * 3


def test_foreign_file_cannot_take_priors(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelFileError):
        store_priors(path, ())
    assert path.read_bytes() == b"nothing"


def test_command_learns_stores_and_reports(capsys, small, tmp_path):
    data = write_images(tmp_path / "data", 40, 32)
    calibrate = ["calibrate", "thresholds", small, data, "--method", "gradcam", "--threads", "1"]
    refused, _, said = run(capsys, *calibrate, "--no-write")
    assert refused == 2
    assert "-o DIR" in said
    code, out, err = run(capsys, *calibrate, "--no-write", "--json")
    assert code == 0, err
    assert json.loads(out)["written"] == []
    assert read_manifest(small).priors == ()
    code, out, err = run(capsys, *calibrate, "-o", tmp_path / "r", "--mask", "soft")
    assert code == 0, err
    assert [(p.mask, p.thresholds) for p in read_manifest(small).priors] == [("soft", "value")]
    assert "search of 4" in out
    assert "--evaluations 4" in out
    assert read_priors(tmp_path / "r" / "thresholds.json") == read_manifest(small).priors
    info = run(capsys, "info", small)[1]
    assert "threshold search" in info
    explain = ["explain", small, data / "000.png", "--method", "gradcam", "--mask", "soft"]
    code, out, err = run(capsys, *explain, "--tft", "--evaluations", "2", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["explanations"]
    assert sum(value is not None for value in row["rpi"]) == 2
    code, out, err = run(capsys, *explain, "--tft", "--evaluations", "2")
    assert code == 0, err
    code, _, err = run(capsys, *explain, "--tft", "--evaluations", "2", "--thresholds", "rank")
    assert code == 2
    assert "whycam calibrate thresholds" in err
    code, _, err = run(capsys, "explain", small, data / "000.png", "--evaluations", "2")
    assert code == 2
    assert "--tft" in err


NETWORK = f"{Path(__file__).parent / 'networks.py'}:curved"


def test_export_command_puts_the_search_into_the_graph(capsys, small, tmp_path):
    data = write_images(tmp_path / "data", 40, 32)
    learnt = learn_thresholds(
        whycam.load(small, threads=1), open_dataset(data), methods=["gradcam"]
    )
    store_priors(small, learnt.priors)
    write_learnt(learnt, tmp_path)
    export = ["export", NETWORK, "--image-size", "32", "--outputs", "tft", "--evaluations", "2"]
    export += ["--preprocess", "imagenet"]
    code, _, err = run(capsys, *export, "-o", tmp_path / "x.onnx")
    assert code == 2
    assert "--search" in err
    for source in (small, tmp_path / "thresholds.json"):
        target = tmp_path / "searching.onnx"
        code, _, err = run(capsys, *export, "-o", target, "--search", source)
        assert code == 0, err
        assert read_manifest(target).tft == Tft(taus=TAUS, evaluations=2)
        found = whycam.load(target, threads=1).explain(data / "000.png", tft=True)
        assert np.isfinite(found.rpi).sum() == 2
