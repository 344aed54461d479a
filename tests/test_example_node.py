"""The Node.js example, held against Python's answer."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agreement import assert_python_answers_so, overlap
from PIL import Image

import whycam

SOURCE = Path(__file__).parent.parent / "examples" / "node"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(needs, tmp_path_factory) -> Path:
    """A copy of the example with its packages."""
    needs("node", "npm")
    folder = tmp_path_factory.mktemp("node") / "example"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def model(home, pixels_onnx) -> Path:
    """The graph with its manifest beside it, as the README has it."""
    from whycam.runtime.onnxfile import read_manifest

    path = home / "model.onnx"
    shutil.copy(pixels_onnx, path)
    (home / "model.json").write_text(read_manifest(path).to_json(), "utf-8")
    return path


@pytest.fixture(scope="module")
def explain(home) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = ["node", "explain.mjs", *map(str, words)]
        return subprocess.run(
            command, cwd=home, capture_output=True, text=True, check=False, timeout=120
        )

    return run


@pytest.mark.parametrize(("index", "target"), [(0, -1), (3, -1), (0, 285)])
def test_answer_is_pythons(explain, model, sample_images, tmp_path, index, target):
    sample = tmp_path / "sample.png"  # PNG: JPEG decoders differ
    Image.open(sample_images[index]).convert("RGB").save(sample)
    done = explain(
        model, sample, f"--class={target}", "--json", tmp_path / "a.json",
        "-o", tmp_path / "why.png",
    )  # fmt: skip
    assert_python_answers_so(done, model, sample, target, tmp_path)


def test_overlay_colours_what_the_map_marks_and_nothing_else(explain, model, chelsea, tmp_path):
    done = explain(model, chelsea, "-o", tmp_path / "why.png")
    assert done.returncode == 0, done.stderr
    image = np.asarray(Image.open(chelsea).convert("RGB"), int)
    drawn = np.asarray(Image.open(tmp_path / "why.png").convert("RGB"), int)
    expected = whycam.load(model).explain(chelsea, tft=True, geometry="image").map
    changed = np.abs(drawn - image).max(-1) > 3
    assert overlap(changed, expected > 0.02) > 0.9


@pytest.mark.parametrize("size", [(50, 40), (30, 500), (500, 30), (1, 1)])
def test_image_of_any_proportions_is_drawn_over(explain, model, tmp_path, size):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "odd.png")  # with alpha
    done = explain(model, tmp_path / "odd.png", "-o", tmp_path / "why.png")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "why.png").size == size


@pytest.mark.parametrize(
    ("graph", "image", "options", "complaint"),
    [
        ("missing.onnx", None, [], "missing.onnx"),
        ("text.jpg", None, [], "text.jpg"),
        (None, "missing.png", [], "missing.png"),
        (None, "empty.png", [], "empty.png"),
        (None, "text.jpg", [], "text.jpg"),
        (None, "cut.png", [], "cut.png"),
        (None, None, ["--class=1000"], "0 to 999"),
        (None, None, ["--class=-6"], "-5"),
        (None, None, ["--class=cat"], "number"),
        (None, None, ["--colour", "red"], "--colour"),
        (None, None, ["-o", "/no/such/folder/x.png"], "cannot write"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_two(
    explain, model, chelsea, tmp_path, graph, image, options, complaint
):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(chelsea.read_bytes()[:5000])
    done = explain(
        tmp_path / graph if graph else model,
        tmp_path / image if image else chelsea,
        *options,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert complaint in line


def test_graph_with_other_outputs_is_refused_with_the_options_it_needs(
    explain, lite0_onnx, chelsea
):
    done = explain(lite0_onnx, chelsea)
    assert done.returncode == 2
    assert "--outputs tft --embed-preprocess" in done.stderr
