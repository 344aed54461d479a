"""Whole trainings of networks whose classes do not exclude each other, or that end in softmax."""

from __future__ import annotations

from pathlib import Path

import networks
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import whycam
from whycam.runtime.errors import DataError
from whycam.train.aft import train_aft
from whycam.train.loop import Plan
from whycam.train.objective import Objective

pytestmark = pytest.mark.slow

FACTORIES = f"{Path(__file__).parent / 'networks.py'}"
NAMES = [f"label{index}" for index in range(networks.CLASSES)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of noise, of which each has none to three labels, and a list of the labels."""
    folder = tmp_path_factory.mktemp("several")
    rng = np.random.default_rng(0)
    lines = []
    for index in range(24):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{index}.png")
        present = rng.permutation(NAMES[:5])[: index % 4]
        lines.append(f"{index}.png,{';'.join(present)}")
    (folder / "list.csv").write_text("\n".join(lines))
    (folder / "names.txt").write_text("\n".join(NAMES))
    return folder


def tune(factory: str, data: Path, folder: Path, **settings):
    return train_aft(
        f"{FACTORIES}:{factory}",
        data,
        folder,
        overrides=networks.SMALL,
        plan=Plan(epochs=2, batch=6, lr=0.01),
        checkpoint_minutes=0,
        **settings,
    )


def test_independent_labels_are_trained_and_an_interrupted_run_ends_with_the_same_bits(
    images, tmp_path
):
    settings = {"labels": str(images / "names.txt")}
    settings["objective"] = Objective(terms={"faithful": 1.0, "aligned": 1.0})
    tuned = tune("independent", images / "list.csv", tmp_path / "whole", **settings)
    assert tuned is not None
    assert tuned.after.mean_average_precision is not None
    assert {one.label for one in tuned.after.labels} <= set(NAMES[:5])
    assert whycam.load(tmp_path / "whole" / "after.onnx").manifest.task == "sigmoid"

    class Stop(Exception):
        pass

    def stop(text: str, _: int) -> None:
        if text.startswith("training, loss") and len(list((tmp_path / "cut").glob("losses.csv"))):
            rows = (tmp_path / "cut" / "losses.csv").read_text().splitlines()
            if len(rows) == 5:
                raise Stop

    with pytest.raises(Stop):
        tune("independent", images / "list.csv", tmp_path / "cut", tick=stop, **settings)
    tune("independent", images / "list.csv", tmp_path / "cut", **settings)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    before = networks.independent().state_dict()
    assert any((value != before[name].numpy()).any() for name, value in whole.items())
    for name, value in whole.items():
        np.testing.assert_array_equal(cut[name], value)
    both = [(tmp_path / name / "losses.csv").read_text() for name in ("whole", "cut")]
    assert both[0].splitlines() == both[1].splitlines()


def test_bare_logits_are_independent_labels_if_the_user_says_so(images, tmp_path):
    settings = {"labels": str(images / "names.txt")}
    with pytest.raises(DataError, match=r"several labels .*--task sigmoid"):
        tune("linear", images / "list.csv", tmp_path / "no", **settings)
    assert not (tmp_path / "no").exists()
    tuned = tune("linear", images / "list.csv", tmp_path / "yes", task="sigmoid", **settings)
    assert tuned is not None
    assert whycam.load(tmp_path / "yes" / "after.onnx").manifest.task == "sigmoid"


def test_one_logit_is_trained_with_two_classes(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("not hot", "hot"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    (tmp_path / "names.txt").write_text("hot")
    labels = str(tmp_path / "names.txt")
    tuned = tune("one_logit", tmp_path / "data", tmp_path / "run", labels=labels)
    assert tuned is not None
    assert tuned.after.labelled == 2
    manifest = whycam.load(tmp_path / "run" / "after.onnx").manifest
    assert (manifest.task, manifest.labels) == ("binary", ("not hot", "hot"))
