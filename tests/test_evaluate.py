"""Evaluation of a tiny network: figures as by hand, stopped and resumed, bad images named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import whycam
from whycam.calibrate import evaluate, open_dataset
from whycam.calibrate.report import write_report
from whycam.cli.evaluate import results_table, summary_lines
from whycam.runtime.errors import DataError, RequestError
from whycam.runtime.pipeline import classify, prepare
from whycam.runtime.tft import NAIVE, Tft

SOFT = Tft(mask="soft", thresholds="rank")


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    for index in range(12):
        place = folder / ("ant", "bee", "cat")[index % 3] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(place)
    return folder


def by_hand(explainer: whycam.Explainer, files: list[Path], method: str) -> dict[str, list[float]]:
    """Average increase and drop of each variant, one image and one pass at a time."""
    found: dict[str, list[tuple[float, float]]] = {"original": [], "naive": [], "tft": []}
    for file in files:
        e = explainer.explain(file, method=method, tft=SOFT)
        naive = np.sort(e.original_map.reshape(-1))[int(e.original_map.size * NAIVE[method])]
        maps = {
            "original": e.original_map,
            "naive": np.where(e.original_map >= naive, e.original_map, 0),
            "tft": e.map,
        }
        images = prepare([np.asarray(Image.open(file))], explainer.manifest).inputs
        for variant, values in maps.items():
            masked = classify(explainer.model, images * values[None, None])[0, e.index]
            p = e.probability
            found[variant].append((masked > p, max(p - masked, 0) / p))
    return {name: list(np.mean(rows, axis=0)) for name, rows in found.items()}


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_figures_are_those_of_one_image_at_a_time(tiny, image_folder, method):
    data = open_dataset(image_folder)
    found = evaluate(tiny, data, methods=[method], tft=SOFT)
    expected = by_hand(tiny, [sample.path for sample in data.samples], method)
    for variant, (increase, drop) in expected.items():
        own = found.result(method, variant)
        assert own.average_increase == pytest.approx(increase)
        assert own.average_drop == pytest.approx(drop, rel=1e-4)
    predicted = tiny.classify([sample.path for sample in data.samples]).argmax(1)
    truth = [["ant", "bee", "cat"].index(sample.label or "") for sample in data.samples]
    assert found.accuracy == pytest.approx(np.mean(predicted == truth))
    error = np.std(predicted == truth, ddof=1) / np.sqrt(12)
    assert found.accuracy_standard_error == pytest.approx(error)
    assert sum(found.chosen[method]) == found.images == 12


def test_tft_never_lowers_quality(tiny, image_folder):
    found = evaluate(tiny, open_dataset(image_folder), methods=["gradcam"])
    before, after = found.result("gradcam", "original"), found.result("gradcam", "tft")
    assert after.average_increase >= before.average_increase
    assert after.average_drop <= before.average_drop


def test_label_can_be_explained_instead_of_the_prediction(tiny, image_folder, tmp_path):
    data = open_dataset(image_folder)
    evaluate(tiny, data, methods=["gradcam"], target="label", folder=tmp_path / "r")
    rows = [json.loads(line) for line in (tmp_path / "r" / "images.jsonl").open()][1:]
    assert all([one["target"] for one in row["explained"]] == [row["label"]] for row in rows)


def test_stopped_evaluation_goes_on_and_ends_the_same(tiny, image_folder, tmp_path):
    data = open_dataset(image_folder)
    whole = evaluate(tiny, data, methods=["gradcam"])

    def stop(name: str, _: int) -> None:
        if name == data.samples[6].name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny, data, methods=["gradcam"], folder=tmp_path / "r", tick=stop)
    rows = tmp_path / "r" / "images.jsonl"
    rows.write_bytes(rows.read_bytes()[:-7])  # as if killed while writing
    before = len(tiny.engine.batches)
    again = evaluate(tiny, data, methods=["gradcam"], folder=tmp_path / "r")
    half = len(tiny.engine.batches) - before
    assert again == whole
    tiny.engine.batches.clear()
    evaluate(tiny, data, methods=["gradcam"])
    assert half < 0.7 * len(tiny.engine.batches)  # 6 of 12 were there


def test_rows_of_other_settings_are_not_mixed_in(tiny, image_folder, tmp_path):
    data = open_dataset(image_folder)
    evaluate(tiny, data, methods=["gradcam"], folder=tmp_path)
    other = evaluate(tiny, data, methods=["gradcam"], tft=SOFT, folder=tmp_path)
    assert other == evaluate(tiny, data, methods=["gradcam"], tft=SOFT)


def test_unreadable_images_are_named_and_counted(tiny, image_folder):
    (image_folder / "ant" / "broken.jpg").write_bytes(b"no image")
    (image_folder / "bee" / "empty.png").write_bytes(b"")
    found = evaluate(tiny, open_dataset(image_folder), methods=["gradcam"])
    assert found.images == 12
    assert found.unreadable_count == 2
    assert set(found.unreadable) == {"ant/broken.jpg", "bee/empty.png"}
    assert "2 images left out" in summary_lines(found)


def test_nothing_readable_is_an_error(tiny, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 1 images"):
        evaluate(tiny, open_dataset(tmp_path))


def test_labels_the_network_does_not_know_are_said(tiny, image_folder):
    (image_folder / "ant").rename(image_folder / "anteater")
    found = evaluate(tiny, open_dataset(image_folder), methods=["gradcam"])
    assert found.labelled == 8
    assert any("anteater" in note for note in found.notes)


def test_boxes_give_pointing_game_and_energy(tiny, tmp_path):
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(1)
    for index in range(4):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "JPEGImages" / f"{index}.png")
        (tmp_path / "Annotations" / f"{index}.xml").write_text(
            "<a><object><name>thing</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax>"
            "<ymax>8</ymax></bndbox></object></a>"
        )
    found = evaluate(tiny, open_dataset(tmp_path), methods=["gradcam"])
    own = found.result("gradcam", "original")
    assert own.pointing_game == 1  # the box is the whole image
    assert own.energy_in_box == pytest.approx(1)


def test_curves_are_measured_when_asked_for(tiny, image_folder):
    data = open_dataset(image_folder)
    own = evaluate(tiny, data, methods=["gradcam"], curve_steps=4).result("gradcam", "original")
    assert own.insertion is not None
    assert own.deletion is not None
    assert 0 <= own.deletion <= 1
    without = evaluate(tiny, data, methods=["gradcam"]).result("gradcam", "original")
    assert without.insertion is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"methods": ["nonsense"]},
        {"methods": ["scorecam"]},
        {"variants": ["best"]},
        {"variants": []},
    ],
    ids=str,
)
def test_unknown_wishes_are_refused(tiny, image_folder, wrong):
    with pytest.raises(RequestError):
        evaluate(tiny, open_dataset(image_folder), **wrong)


def test_figures_are_table_json_and_csv(tiny, image_folder, tmp_path):
    found = evaluate(tiny, open_dataset(image_folder), methods=["gradcam", "layercam"])
    written = write_report(found, tmp_path)
    assert {path.name for path in written} == {"report.json", "report.csv"}
    document = json.loads((tmp_path / "report.json").read_text())
    keys = {"method", "variant", "mask", "thresholds", "average_increase", "average_drop"}
    keys |= {"accuracy", "average_increase_standard_error", "average_drop_standard_error"}
    assert all(keys <= set(row) for row in document["results"])
    assert len(document["results"]) == 6
    with (tmp_path / "report.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert results_table(found).row_count == 2 * 4
