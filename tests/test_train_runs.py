"""Whole trainings of a small network through the command line: made, killed, resumed, shared."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

import whycam
from whycam.export import to_onnx

pytestmark = pytest.mark.slow

FACTORY = f"{Path(__file__).parent / 'networks.py'}:linear"
SHAPES = ("circle", "cross", "square")
SMALL = ["--image-size", "32", "--preprocess", "imagenet"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured shapes somewhere on noise: 3 x 50 to train on, 3 x 10 to judge by, two broken."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for part, count in (("train", 50), ("val", 10)):
        for name in SHAPES:
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(rng.integers(0, 120, (32, 32, 3), np.uint8))
                x, y = (int(v) for v in rng.integers(0, 16, 2))
                draw, box = ImageDraw.Draw(image), (x, y, x + 15, y + 15)
                if name == "circle":
                    draw.ellipse(box, fill="red")
                elif name == "square":
                    draw.rectangle(box, fill="lime")
                else:
                    draw.line(box, fill="cyan", width=4)
                    draw.line((x, y + 15, x + 15, y), fill="cyan", width=4)
                image.save(folder / part / name / f"{index}.png")
    (folder / "train" / "circle" / "broken.png").write_bytes(b"no image")
    whole = (folder / "train" / "cross" / "0.png").read_bytes()
    (folder / "train" / "cross" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "whycam", "train", *map(str, arguments)]


def train(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, timeout=400
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def classifier(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    arguments = [shapes, "-o", folder, *SMALL, "--epochs", 20, "--lr", 0.02]
    done = train("classifier", FACTORY, *arguments, "--json")
    document = json.loads(done.stdout)
    assert document["labels"] == list(SHAPES)
    assert document["accuracy"] >= 0.9
    assert document["trained_on"] == 150
    assert set(document["unreadable"]) == {"circle/broken.png", "cross/cut.png"}
    return folder


def tune(classifier: Path, shapes: Path, folder: Path, *more: object) -> dict:
    arguments = [shapes, "-o", folder, "--epochs", 2, "--lr", 0.01, *more, "--json"]
    return json.loads(train("aft", classifier, *arguments).stdout)


@pytest.fixture(scope="module")
def tuned(classifier: Path, shapes: Path) -> Path:
    folder = classifier.parent / "tuned"
    tune(classifier, shapes, folder, "--variant", "faithful,tuner")
    return folder


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> np.ndarray:
    with (folder / "losses.csv").open() as file:
        return np.array([[float(v) for v in row] for row in list(csv.reader(file))[1:]])


def test_trained_classifier_exports_and_explains(classifier, shapes, tmp_path):
    to_onnx(str(classifier), tmp_path / "a.onnx")
    explainer = whycam.load(tmp_path / "a.onnx")
    assert explainer.manifest.labels == SHAPES
    assert explainer.manifest.preprocess.size == (32, 32)
    right = [
        explainer.explain(file).label == name
        for name in SHAPES
        for file in (shapes / "val" / name).iterdir()
    ]
    assert np.mean(right) >= 0.9


def test_run_leaves_a_model_reports_and_images(tuned, shapes):
    names = {path.name for path in tuned.iterdir()}
    assert {"model.safetensors", "model.json", "before.onnx", "after.onnx", "aft.json"} <= names
    assert {"losses.csv", "tensorboard", "report.html", "before", "after"} <= names
    assert "cache" not in names
    document = json.loads((tuned / "aft.json").read_text())
    assert set(document["rows"]) == {"original", "tft", "aft"}
    assert document["trained_on"] == 150
    assert document["held_out"] == 30
    assert len(document["unreadable"]) == 2
    # What was trained, and nothing else, has changed.
    before = load_file(tuned.parent / "classifier" / "model.safetensors")
    changed = {name for name, value in weights(tuned).items() if (value != before[name]).any()}
    assert changed == {"2.weight", "2.bias", "6.weight", "6.bias"}
    # The exported file is the trained network.
    assert whycam.load(tuned / "after.onnx").manifest.labels == SHAPES


def test_history_says_how_the_weights_came_about(tuned):
    history = json.loads((tuned / "model.json").read_text())["history"]
    assert [entry["training"] for entry in history] == ["classifier", "aft"]


def test_finished_run_is_not_done_again(tuned, classifier, shapes):
    before = (tuned / "model.safetensors").stat().st_mtime_ns
    tune(classifier, shapes, tuned, "--variant", "faithful,tuner")
    assert (tuned / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_do_not_take_over_a_run(tuned, classifier, shapes):
    arguments = [shapes, "-o", tuned, "--epochs", 3]
    done = train("aft", classifier, *arguments, check=False)
    assert done.returncode == 2
    assert "holds another run" in done.stderr
    assert "epochs" in done.stderr
    assert "Traceback" not in done.stderr


def killed_when(path: Path, arguments: list[str], lines: int = 1) -> None:
    """Start a run, and kill -9 it as soon as a file has so many lines."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        there = path.is_dir() or (path.is_file() and path.read_bytes().count(b"\n") >= lines)
        if there:
            break
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    else:
        pytest.fail(f"{path} did not come")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_in_any_phase_and_resumed_it_ends_with_the_same_weights(
    tuned, classifier, shapes, tmp_path
):
    folder = tmp_path / "killed"
    more = ["--epochs", 2, "--lr", 0.01, "--variant", "faithful,tuner"]
    arguments = command("aft", classifier, shapes, "-o", folder, *more)
    arguments += ["--checkpoint-minutes", "0"]
    killed_when(folder / "settings.json", arguments)
    killed_when(folder / "before.onnx", arguments)
    killed_when(folder / "cache", arguments)
    killed_when(folder / "losses.csv", arguments, lines=5)
    killed_when(folder / "losses.csv", arguments, lines=12)
    killed_when(folder / "before" / "images.jsonl", arguments, lines=4)
    subprocess.run(arguments, check=True, capture_output=True, timeout=300)
    expected = weights(tuned)
    for name, value in weights(folder).items():
        np.testing.assert_array_equal(value, expected[name])
    np.testing.assert_array_equal(losses(folder), losses(tuned))
    reports = [json.loads((place / "aft.json").read_text()) for place in (folder, tuned)]
    for report in reports:
        assert Path(report.pop("report")).parent == Path(report.pop("folder"))
    assert reports[0] == reports[1]
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def test_two_processes_train_as_one(tuned, classifier, shapes, tmp_path):
    """Through gloo: the same masks, and up to float rounding the same losses and weights."""
    arguments = ["--variant", "faithful,tuner", "--cache"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    tune(classifier, shapes, alone, *arguments, tmp_path / "cache1")
    tune(classifier, shapes, shared, *arguments, tmp_path / "cache2", "--devices", 2)
    caches = [sorted((tmp_path / name).glob("*/*/mask.npy")) for name in ("cache1", "cache2")]
    assert len(caches[0]) == len(caches[1]) == 2  # two chunks, one of each process
    for a, b in zip(*caches, strict=True):
        np.testing.assert_array_equal(np.load(a), np.load(b))
    np.testing.assert_allclose(losses(alone), losses(shared), rtol=2e-3, atol=1e-4)
    ours, theirs = weights(alone), weights(shared)
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-2, atol=1e-3)


def test_torchrun_starts_the_processes(classifier, shapes, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    given = [shapes, "-o", tmp_path / "t", "--variant", "aligned", "--epochs", 1]
    given += ["--lr", 0.01, "--json"]
    arguments = [*launcher, *command("aft", classifier, *given)[2:]]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trained_on"] == 150  # the first process alone speaks
    alone = tmp_path / "alone"
    more = [shapes, "-o", alone, "--variant", "aligned", "--epochs", 1, "--lr", 0.01]
    train("aft", classifier, *more)
    np.testing.assert_allclose(losses(tmp_path / "t"), losses(alone), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("variant", ["tuner", "aligned", "faithful"])
@pytest.mark.parametrize("method", ["gradcam++", "ablation"])
def test_every_variant_trains_for_other_methods(classifier, shapes, tmp_path, variant, method):
    more = ["--variant", variant, "--method", method, "--epochs", 1]
    document = tune(classifier, shapes, tmp_path / "t", *more)
    assert document["rows"]["aft"]["method"] == method


def _object_of(image: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(image)).astype(int)
    return pixels.max(2) - pixels.min(2) > 130


def _energy(model: Path, shapes: Path) -> float:
    """Mean share of the maps of held-out images that lies on the shape."""
    explainer = whycam.load(model)
    found = []
    for name in SHAPES:
        for file in sorted((shapes / "val" / name).iterdir()):
            map_ = explainer.explain(file, name).map
            found.append((map_ * _object_of(file)).sum() / max(map_.sum(), 1e-6))
    return float(np.mean(found))


@pytest.mark.parametrize("option", ["--boxes", "--avoid"])
def test_regions_draw_maps_in_or_keep_them_out(classifier, shapes, tmp_path, option):
    masks = tmp_path / "masks"
    for name in SHAPES:
        (masks / name).mkdir(parents=True)
        for file in sorted((shapes / "train" / name).glob("[0-9]*.png"))[::2]:  # of some images
            Image.fromarray(_object_of(file)).convert("L").save(masks / name / file.name)
        (black,) = sorted((shapes / "train" / name).glob("[0-9]*.png"))[1:2]
        Image.new("L", (4, 4)).save(masks / name / black.name)  # marks nothing
    variant = ["--variant", "guided"] if option == "--boxes" else ["--variant", "avoiding"]
    more = [*variant, option, masks, "--epochs", 10, "--weight", 10]
    document = tune(classifier, shapes, tmp_path / "t", *more)
    assert any(note.startswith("75 of 152 images have regions") for note in document["notes"])
    before, after = (
        _energy(tmp_path / "t" / name, shapes) for name in ("before.onnx", "after.onnx")
    )
    assert (after > before + 0.05) if option == "--boxes" else (after < before - 0.05), (
        before,
        after,
    )
    assert document["rows"]["aft"]["cross_asked_increase"] is not None


def test_layers_are_tuned_together_for_their_fused_map(classifier, shapes, tmp_path):
    folder = tmp_path / "fused"
    tune(classifier, shapes, folder, "--method", "layercam", "--fuse", "1", "--variant", "aligned")
    explainer = whycam.load(folder / "after.onnx")
    assert [layer.name for layer in explainer.manifest.fused_layers] == ["1"]
    before, after = weights(classifier), weights(folder)
    assert all((before[name] != after[name]).any() for name in ("0.weight", "2.weight"))
    done = train("aft", classifier, shapes, "-o", tmp_path / "no", "--fuse", "1", check=False)
    assert done.returncode == 2
    assert "fused for the method layercam, not gradcam" in done.stderr
    assert not (tmp_path / "no").exists()


def test_deeper_layers_are_tuned_when_asked(classifier, shapes, tmp_path):
    folder = tmp_path / "deep"
    tune(classifier, shapes, folder, "--tuned-layers", 2, "--variant", "cross-asked")
    before, after = weights(classifier), weights(folder)
    assert (before["0.weight"] != after["0.weight"]).any()


def test_without_a_cache_and_with_mirrored_images_it_streams(classifier, shapes, tmp_path):
    for name, more in {"off": ["--cache", "off"], "flip": ["--flip"]}.items():
        document = tune(classifier, shapes, tmp_path / name, "--variant", "aligned", *more)
        assert document["rows"]["aft"]["images"] == 30
    cached = tune(classifier, shapes, tmp_path / "cached", "--variant", "aligned")
    # float16 features are all that differs.
    np.testing.assert_allclose(
        losses(tmp_path / "off"), losses(tmp_path / "cached"), rtol=2e-2, atol=1e-3
    )
    assert cached["rows"]["aft"]["images"] == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "best"], "--variant must be one or more of tuner"),
        (["--weight", "1,2"], "2 numbers for 1 variants"),
        (["--method", "scorecam"], "cannot tune for"),
        (["--lr", "0"], "lr must be above 0"),
        (["--precision", "8"], "'fp32', 'bf16', 'fp16'"),
        (["--devices", "many"], "cannot train on these devices"),
        (["nowhere"], "no folder or file nowhere"),
        (["--accelerator", "cuda"], "cannot train on these devices"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_wishes_end_in_one_line(classifier, shapes, tmp_path, arguments, message):
    given = [] if arguments == ["nowhere"] else [shapes]
    done = train("aft", classifier, "-o", tmp_path / "x", *given, *arguments, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x" / "model.safetensors").exists()


def test_one_class_is_not_enough_for_a_classifier(shapes, tmp_path):
    flat = shapes / "train" / "cross"
    done = train("classifier", FACTORY, flat, "-o", tmp_path / "a", check=False)
    assert done.returncode == 2
    assert "no images to train on" in " ".join(done.stderr.split())
    shutil.copytree(flat, tmp_path / "data" / "cross")
    single = [tmp_path / "data", "-o", tmp_path / "b"]
    done = train("classifier", FACTORY, *single, check=False)
    assert done.returncode == 2
    assert "needs two or more" in done.stderr


def test_a_folder_of_another_run_stops_every_process(tuned, classifier, shapes):
    """None waits for the one that found out."""
    arguments = [shapes, "-o", tuned, "--epochs", 3, "--devices", 2]
    done = train("aft", classifier, *arguments, check=False)
    assert done.returncode == 2
    assert "holds another run" in done.stderr


def test_other_preprocessing_is_another_run(tuned, classifier, shapes):
    arguments = [shapes, "-o", tuned, "--epochs", 2, "--lr", 0.01]
    arguments += ["--variant", "faithful,tuner", "--image-size", "48"]
    done = train("aft", classifier, *arguments, check=False)
    assert done.returncode == 2
    assert "preprocessing" in done.stderr
