"""Evaluation of independent labels: average precision and maps of each label, by hand."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_file import write_tiny

import whycam
from whycam.calibrate import evaluate, open_dataset
from whycam.calibrate.label_figures import LabelTally, average_precision
from whycam.calibrate.report import write_report
from whycam.cli.evaluate import labels_lines, labels_table, summary_lines
from whycam.runtime.errors import DataError
from whycam.runtime.pipeline import classify, prepare

NAMES = ("ant", "bee", "cat")
LABELS = ["ant;cat", "bee", "", "ant", "ant;bee;cat", "cat;yak", "bee;ant"]


def test_average_precision_by_hand():
    # Found at ranks 1, 3 and 5: precision 1/1, 2/3 and 3/5, each gaining a third of the recall.
    found = average_precision([1, 0, 1, 0, 1], [0.9, 0.8, 0.7, 0.6, 0.5])
    assert found == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert average_precision([0, 1], [0.2, 0.9]) == 1
    assert average_precision([1, 0], [0.2, 0.9]) == 1 / 2
    assert average_precision([0, 0], [0.2, 0.9]) is None


@pytest.mark.parametrize("present", [[1, 0, 0, 1], [0, 1, 1, 0]])
def test_equal_scores_share_a_cutoff_whatever_their_order(present):
    # 0.9 alone, then three at once: P = 1/1 or 0/1, then 2/4.
    expected = 1 / 2 * 1 + 1 / 2 * 1 / 2 if present[0] else 2 / 4
    assert average_precision(present, [0.9, 0.5, 0.5, 0.5]) == pytest.approx(expected)


def test_average_precision_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for count in (2, 5, 50, 400):
        present = rng.random(count) < 0.3
        present[0] = True
        scores = np.round(rng.random(count), 2)  # with ties
        expected = metrics.average_precision_score(present, scores)
        assert average_precision(present, scores) == pytest.approx(expected)


def test_accuracy_precision_and_recall_by_hand():
    tally = LabelTally([0, 2])
    for present, probabilities in [
        ([0], [0.9, 0.1]),  # right, right
        ([0, 2], [0.5, 0.4]),  # 0.5 is not above 0.5: missed, missed
        ([], [0.8, 0.2]),  # false, right
        ([0], [0.7, 0.3]),  # right, right
        (None, [0.0, 1.0]),  # not known: does not count
    ]:
        tally.add({"present": present, "probabilities": probabilities, "explained": []})
    first, last = tally.figures(NAMES)
    assert (first.label, first.images, first.present) == ("ant", 4, 3)
    assert (first.accuracy, first.precision, first.recall) == (2 / 4, 2 / 3, 2 / 3)
    # By probability 0.9 0.8 0.7 0.5: found at ranks 1, 3 and 4.
    assert first.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert (last.label, last.present, last.accuracy) == ("cat", 1, 3 / 4)
    assert (last.precision, last.recall, last.average_precision) == (None, 0, 1)
    assert LabelTally([1]).figures(NAMES) == ()


@pytest.fixture
def explainer_of(
    tmp_path: Path, manifest_of: Callable[..., Any], tiny_engine: type
) -> Callable[..., whycam.Explainer]:
    def load(task: str) -> whycam.Explainer:
        tiny = tiny_engine()
        path = tmp_path / f"{task}.onnx"
        manifest = manifest_of(methods=("gradcam", "layercam"), task=task)
        write_tiny(path, manifest, tiny.mix, tiny.linear)
        return whycam.load(path, threads=1)

    return load


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(len(LABELS)):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{index}.png")
    rows = [f"{index}.png,{labels}" for index, labels in enumerate(LABELS)]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    return tmp_path


def test_each_label_is_measured_on_the_images_that_have_it(explainer_of, images):
    explainer = explainer_of("sigmoid")
    soft = whycam.Tft(mask="soft", thresholds="rank")
    found = evaluate(explainer, open_dataset(images / "list.csv"), tft=soft)
    assert (found.target, found.accuracy) == ("label", None)
    assert (found.images, found.labelled, found.skipped) == (6, 6, 1)
    assert [label.label for label in found.labels] == list(NAMES)
    known = [index for index, labels in enumerate(LABELS) if labels]
    rows = explainer.classify([images / f"{index}.png" for index in known])
    precisions = []
    for index, label in enumerate(found.labels):
        present = np.array([label.label in LABELS[one].split(";") for one in known])
        assert label.present == present.sum()
        assert label.accuracy == np.mean((rows[:, index] > 0.5) == present)
        precisions.append(average_precision(present, rows[:, index]))
        assert label.average_precision == pytest.approx(precisions[-1])
        increases, falls = [], []
        for one in np.array(known)[present]:
            file = images / f"{one}.png"
            e = explainer.explain(file, label.label, method="layercam")
            inputs = prepare([np.asarray(Image.open(file))], explainer.manifest).inputs
            masked = classify(explainer.model, inputs * e.map[None, None])[0, index]
            increases.append(masked > e.probability)
            falls.append(max(e.probability - masked, 0) / e.probability)
        maps = _of(label, "layercam", "original")
        assert maps.maps == len(increases)
        assert maps.average_increase == pytest.approx(np.mean(increases))
        assert maps.average_drop == pytest.approx(np.mean(falls), rel=1e-4)
        error = np.std(falls, ddof=1) / np.sqrt(len(falls))
        assert maps.average_drop_standard_error == pytest.approx(error, rel=1e-4)
    assert found.mean_average_precision == pytest.approx(np.mean(precisions))
    pairs = sum(label.present for label in found.labels)
    whole = found.result("layercam", "original")
    assert (whole.images, whole.maps) == (6, pairs)
    drops = [_of(label, "layercam", "original") for label in found.labels]
    assert whole.average_drop == pytest.approx(
        sum(m.maps * m.average_drop for m in drops) / pairs, rel=1e-6
    )
    assert sum(found.chosen["layercam"]) == pairs
    assert any("yak" in note and "not measured" in note for note in found.notes)


def _of(label: Any, method: str, variant: str) -> Any:
    return {(m.method, m.variant): m for m in label.maps}[method, variant]


def test_columns_count_images_without_any_label_and_labels_without_any_image(explainer_of, images):
    explainer = explainer_of("sigmoid")
    table = images / "columns.csv"
    table.write_text("image,ant,cat\n0.png,1,0\n1.png,0,0\n2.png,1,0\n")
    found = evaluate(explainer, open_dataset(table), methods=["gradcam"])
    ant, cat = found.labels
    assert (found.images, found.skipped, found.accuracy) == (3, 0, None)
    assert (ant.images, ant.present) == (3, 2)
    rows = explainer.classify([images / f"{index}.png" for index in range(3)])
    assert ant.average_precision == pytest.approx(average_precision([1, 0, 1], rows[:, 0]))
    assert (cat.present, cat.average_precision, cat.recall, cat.maps) == (0, None, None, ())
    assert found.mean_average_precision == ant.average_precision


def test_predicted_label_can_be_explained_instead(explainer_of, images):
    data = open_dataset(images / "list.csv")
    found = evaluate(explainer_of("sigmoid"), data, methods=["gradcam"], target="predicted")
    assert found.images == found.result("gradcam", "original").maps == len(LABELS)
    assert {label.images for label in found.labels} == {len(LABELS) - 1}


def test_one_label_an_image_also_measures_accuracy(explainer_of, images):
    explainer = explainer_of("sigmoid")
    (images / "one.csv").write_text("0.png,cat\n1.png,bee\n3.png,ant\n4.png,ant\n")
    found = evaluate(explainer, open_dataset(images / "one.csv"), methods=["gradcam"])
    rows = explainer.classify([images / f"{index}.png" for index in (0, 1, 3, 4)])
    assert found.accuracy == np.mean(rows.argmax(1) == [2, 1, 0, 0])
    assert [label.present for label in found.labels] == [2, 1, 1]


def test_stopped_evaluation_of_labels_goes_on_and_ends_the_same(explainer_of, images):
    explainer, data = explainer_of("sigmoid"), open_dataset(images / "list.csv")
    whole = evaluate(explainer, data, methods=["gradcam"])

    def stop(name: str, _: int) -> None:
        if name == "3.png":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(explainer, data, methods=["gradcam"], folder=images / "r", tick=stop)
    assert evaluate(explainer, data, methods=["gradcam"], folder=images / "r") == whole


@pytest.mark.parametrize("target", [None, "predicted", "label"])
def test_several_labels_of_exclusive_classes_are_refused(explainer_of, images, target):
    explainer = explainer_of("softmax")
    with pytest.raises(DataError, match=r"'0\.png' several labels \(ant, cat\).*task softmax"):
        evaluate(explainer, open_dataset(images / "list.csv"), target=target, folder=images / "r")
    assert not (images / "r").exists()


def test_report_and_table_hold_every_label(explainer_of, images):
    found = evaluate(explainer_of("sigmoid"), open_dataset(images / "list.csv"))
    written = write_report(found, images / "r")
    assert "labels.csv" in {path.name for path in written}
    document = json.loads((images / "r" / "report.json").read_text())
    assert document["mean_average_precision"] == found.mean_average_precision
    assert [label["label"] for label in document["labels"]] == list(NAMES)
    rows = list(csv.DictReader((images / "r" / "labels.csv").open()))
    assert len(rows) == 3 * 2 * 3  # labels, methods, variants
    assert {row["variant"] for row in rows} == {"original", "naive", "tft"}
    text = io.StringIO()
    console = Console(file=text, width=80)
    console.print(labels_table(found))
    lines = text.getvalue().splitlines()
    assert len(lines) == 1 + len(NAMES)
    precisions = [float(line.split()[2]) for line in lines[1:]]
    assert precisions == sorted(precisions)  # the worst label first
    assert f"{found.mean_average_precision:.3f} over 3 labels, 6 images" in labels_lines(found)
    assert "each label that an image has" in summary_lines(found)
