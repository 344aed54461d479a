"""The page of a training: its curve, accuracies and images are those of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_pages import data_of

import whycam
from whycam.calibrate import evaluate, open_dataset
from whycam.runtime.errors import TrainingError
from whycam.train import training_page
from whycam.train.aft_result import AftResult
from whycam.train.class_accuracy import Prediction, compare_accuracy
from whycam.train.classifier_result import ClassifierResult
from whycam.train.learning_curve import read_learning_curve
from whycam.train.objective import Objective
from whycam.train.training_page import write_aft_page, write_classifier_page


def write_losses(folder: Path, steps: int = 10, an_epoch: int = 4) -> None:
    lines = [f"{step + 1},{step // an_epoch},0.001,{step},{2 * step}" for step in range(steps)]
    (folder / "losses.csv").write_text("\r\n".join(["step,epoch,lr,loss,faithful", *lines, ""]))


def test_a_curve_is_the_mean_of_equally_many_steps(tmp_path):
    write_losses(tmp_path)
    curve = read_learning_curve(tmp_path, most=4)
    assert curve.span == 3
    assert curve.steps == (3, 6, 9, 10)
    assert curve.terms["loss"] == (1.0, 4.0, 7.0, 9.0)
    assert curve.terms["faithful"] == (2.0, 8.0, 14.0, 18.0)
    assert curve.epochs == (5, 9)


def test_a_short_training_is_shown_step_by_step(tmp_path):
    write_losses(tmp_path)
    assert read_learning_curve(tmp_path).terms["loss"] == tuple(range(10))


def test_losses_that_cannot_be_read_are_an_error(tmp_path):
    with pytest.raises(TrainingError, match=r"losses\.csv"):
        read_learning_curve(tmp_path)


def test_accuracies_and_their_errors_are_those_of_numpy():
    rng = np.random.default_rng(0)
    labels, before, after = rng.integers(0, 3, (3, 200))
    figures = compare_accuracy(
        Prediction(int(label), int(now), int(was))
        for label, was, now in zip(labels, before, after, strict=True)
    )
    assert [one.index for one in figures] == [None, 0, 1, 2]
    for one in figures:
        chosen = labels == one.index if one.index is not None else labels >= 0
        right = (after == labels)[chosen].astype(float)
        was = (before == labels)[chosen].astype(float)
        root = chosen.sum() ** 0.5
        assert one.images == chosen.sum()
        assert one.after == pytest.approx(right.mean())
        assert one.after_error == pytest.approx(right.std(ddof=1) / root)
        assert one.before == pytest.approx(was.mean())
        assert one.change == pytest.approx((right - was).mean())
        assert one.change_error == pytest.approx((right - was).std(ddof=1) / root)


@pytest.fixture
def run(tmp_path, tiny, tiny_engine, manifest_of) -> tuple[AftResult, tuple, Path]:
    """A finished run, whose network after is the one before with other weights."""
    changed = tiny_engine()
    changed.linear = changed.linear + np.random.default_rng(1).normal(size=changed.linear.shape)
    other = whycam.Explainer(changed, manifest_of())
    rng = np.random.default_rng(0)
    for index in range(9):
        place = tmp_path / "data" / ("ant", "bee", "cat")[index % 3] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 24, 3), np.uint8)).save(place)
    (tmp_path / "data" / "ant" / "broken.png").write_bytes(b"no image")
    write_losses(tmp_path)
    data = open_dataset(tmp_path / "data")
    both = [
        evaluate(
            one,
            data,
            methods=["gradcam"],
            variants=("original", "tft"),
            folder=tmp_path / name,
            asked=tiny,
        )
        for one, name in ((tiny, "before"), (other, "after"))
    ]
    return AftResult(tmp_path, both[0], both[1], 9, {}, ("a note",)), (tiny, other), tmp_path


def write(run) -> dict:
    tuned, explainers, folder = run
    data = open_dataset(folder / "data")
    return data_of(write_aft_page(tuned, explainers, data, Objective(), None))


def test_each_image_has_the_same_classes_map_before_and_after(run):
    page = write(run)
    assert page["about"]["sources"] == ["before", "after"]
    assert len(page["images"]) == 9
    for image in page["images"]:
        path = run[2] / "data" / image["name"]
        before, after = (next(m for m in image["maps"] if m.get("source", 0) == s) for s in (0, 1))
        assert before["index"] == after["index"] == int(run[1][0].classify(path).argmax())
        for one, explainer in zip((before, after), run[1], strict=True):
            expected = explainer.explain(path, before["index"], "gradcam").probability
            assert one["probability"] == pytest.approx(expected, abs=1e-6)
        assert -1 <= image["similarity"]["gradcam"] < 1
        assert ("ant", "bee", "cat")[image["label"]] == path.parent.name


def test_accuracy_and_measures_are_those_of_the_evaluations(run):
    tuned = run[0]
    training = write(run)["about"]["sections"]["training"]
    assert training["classes"][0]["before"] == pytest.approx(tuned.before.accuracy)
    assert training["classes"][0]["after"] == pytest.approx(tuned.after.accuracy)
    rows = training["rows"]
    assert list(rows) == ["original", "tft", "aft"]
    after = tuned.after.result("gradcam", "original")
    assert rows["aft"]["cross_asked_increase"] == pytest.approx(after.cross_asked_increase)
    assert training["weights"]["faithful"] == 2.0
    assert training["curve"]["steps"][-1] == 10


def test_of_many_images_those_that_changed_most_are_shown(run, monkeypatch):
    everything = write(run)["images"]
    monkeypatch.setattr(training_page, "MOST_IMAGES", 4)
    page = write(run)
    assert len(page["images"]) == 4
    assert any("4 of 9 images are shown" in note for note in page["about"]["notes"])

    def change(image: dict) -> float:
        before, after = (next(m for m in image["maps"] if m.get("source", 0) == s) for s in (0, 1))
        tops = {listed[0][0] for listed in image["top"]}
        return 2 * (len(tops) > 1) + abs(before["probability"] - after["probability"])

    most = sorted(everything, key=change)[-2:]
    assert {image["name"] for image in most} <= {image["name"] for image in page["images"]}


def test_a_classifiers_page_has_accuracy_and_confusion_and_no_images(tmp_path):
    write_losses(tmp_path)
    done = ClassifierResult(tmp_path, ("ant", "bee"), 0.75, 0.2, 10, 4, {})
    predictions = [Prediction(0, 0), Prediction(0, 1), Prediction(1, 1), Prediction(1, 1)]
    page = data_of(write_classifier_page(done, "timm/any", predictions))
    assert page["images"] == []
    assert page["labels"] == {"0": "ant", "1": "bee"}
    sections = page["about"]["sections"]
    assert [one["after"] for one in sections["training"]["classes"]] == [0.75, 0.5, 1.0]
    assert {tuple(one) for one in sections["matrix"]["counts"]} == {(0, 0, 1), (0, 1, 1), (1, 1, 2)}
