"""The page of an evaluation: its figures by class, worst cases, and what its images show."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_pages import data_of
from tiny_file import write_tiny

import whycam
from whycam.calibrate import evaluate, evaluation_page, open_dataset
from whycam.calibrate.evaluation_page import write_evaluation_page
from whycam.cli import main
from whycam.runtime.tft import Tft


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(18):
        place = tmp_path / "data" / ("ant", "bee", "cat")[index % 3] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100 + 50 * (index % 3), (12, 16, 3), np.uint8)
        Image.fromarray(pixels).save(place)
    (tmp_path / "data" / "ant" / "broken.png").write_bytes(b"no image")
    return tmp_path


def write(tiny: whycam.Explainer, folder: Path, **settings) -> dict:
    data = open_dataset(folder / "data")
    evaluation = evaluate(tiny, data, methods=["gradcam", "layercam"], folder=folder, **settings)
    return data_of(write_evaluation_page(tiny, data, evaluation, folder))


def test_classes_and_confusion_are_counted_as_by_hand(tiny, folder):
    sections = write(tiny, folder)["about"]["sections"]
    pairs = Counter()
    for index, name in enumerate(("ant", "bee", "cat")):
        for path in (folder / "data" / name).glob("[0-9]*.png"):
            pairs[index, int(tiny.classify(path).argmax())] += 1
    counts = {(label, predicted): n for label, predicted, n in sections["matrix"]["counts"]}
    assert counts == dict(pairs)
    for row in sections["classes"]:
        index = row["index"]
        taken = sum(n for (_, predicted), n in pairs.items() if predicted == index)
        assert row["images"] == 6
        assert row["accuracy"] == pytest.approx(pairs[index, index] / 6)
        assert row["predicted"] == taken
        assert row["precision"] == (pytest.approx(pairs[index, index] / taken) if taken else None)


def test_images_have_the_thresholds_that_were_measured(tiny, folder):
    """The rows of the evaluation, without trying the thresholds again, give the same regions."""
    reading = Tft(mask="soft", thresholds="rank")
    data = write(tiny, folder, tft=reading)
    assert len(data["images"]) == 18
    for image in data["images"]:
        path = folder / "data" / image["name"]
        for shown in (one for one in image["maps"] if "rpi" in one):
            one = tiny.explain(path, method=shown["method"], tft=reading)
            assert shown["index"] == one.index
            assert shown["rpi"] == pytest.approx(one.rpi, abs=1e-5)
            assert shown["improved"] == one.improved
            if one.improved:
                assert shown["threshold"] == one.threshold
                assert shown["cut"] == pytest.approx(one.cut)
                assert shown["share"] == pytest.approx(one.region.share)
                assert shown["masked"] == pytest.approx(one.masked_probability, rel=1e-5)
        label = {"ant": 0, "bee": 1, "cat": 2}[path.parent.name]
        assert image["label"] == label


def test_worst_cases_are_wrong_and_sure_and_lose_most(tiny, folder):
    data = write(tiny, folder)
    worst = {case["title"]: case["images"] for case in data["about"]["sections"]["worst"]}
    images = data["images"]
    wrong = [images[number] for number in worst["Wrong and sure"]]
    assert wrong
    assert all(image["top"][0][0][0] != image["label"] for image in wrong)
    sure = [image["top"][0][0][1] for image in wrong]
    assert sure == sorted(sure, reverse=True)
    drops = [images[number]["maps"][0]["drop"] for number in worst["The map misses what counts"]]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] == max(image["maps"][0]["drop"] for image in images)


def test_a_label_that_is_explained_comes_first(tiny, folder):
    for image in write(tiny, folder, target="label")["images"]:
        assert image["maps"][0]["index"] == image["label"]
        assert image["top"][0][0][1] == max(one["probability"] for one in image["maps"])


def test_of_many_images_the_worst_and_some_others_are_shown(tiny, folder, monkeypatch):
    monkeypatch.setattr(evaluation_page, "MOST_IMAGES", 9)
    monkeypatch.setattr(evaluation_page, "_WORST", 2)
    data = write(tiny, folder)
    assert len(data["images"]) == 9
    names = [image["name"] for image in data["images"]]
    assert names == sorted(names, key=[s.name for s in open_dataset(folder / "data").samples].index)
    assert any("9 of 18 images are shown" in note for note in data["about"]["notes"])
    assert sum(n for *_, n in data["about"]["sections"]["matrix"]["counts"]) == 18


def test_unreadable_images_are_named(tiny, folder):
    assert any("broken.png" in note for note in write(tiny, folder)["about"]["notes"])


def test_a_page_of_a_resumed_evaluation_has_every_image(tiny, folder):
    first = write(tiny, folder)
    again = write(tiny, folder)
    assert again["images"] == first["images"]


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.fixture
def model(tiny_engine, manifest_of, tmp_path):
    def write_model(**fields) -> Path:
        engine = tiny_engine()
        manifest = manifest_of(methods=("gradcam", "layercam"), **fields)
        write_tiny(tmp_path / "m.onnx", manifest, engine.mix, engine.linear)
        return tmp_path / "m.onnx"

    return write_model


def test_evaluate_writes_the_page_on_request(model, folder, capsys):
    out = folder / "out"
    code, said, _ = run(capsys, "evaluate", model(), folder / "data", "-o", out, "--report")
    assert code == 0
    assert "report.html" in said
    assert len(data_of(out / "report.html")["images"]) == 18
    assert not list(out.glob("*.png"))
    code, _, err = run(capsys, "evaluate", model(), folder / "data", "--report")
    assert code == 2
    assert "-o FOLDER" in err


def test_independent_labels_have_figures_and_every_label_its_map(model, folder, capsys):
    table = folder / "data.csv"
    table.write_text("data/ant/0.png,ant;bee\ndata/bee/1.png,bee\ndata/cat/2.png,\n")
    out = folder / "out"
    assert run(capsys, "evaluate", model(task="sigmoid"), table, "-o", out, "--report")[0] == 0
    data = data_of(out / "report.html")
    labels = data["about"]["sections"]["evaluation"]["labels"]
    assert {one["label"]: one["present"] for one in labels} == {"ant": 1, "bee": 2}
    first = next(image for image in data["images"] if image["name"] == "data/ant/0.png")
    measured = {one["index"] for one in first["maps"] if "drop" in one}
    assert measured == {0, 1}
    assert "matrix" not in data["about"]["sections"]
