"""The C++ example: built against OpenVINO's wheel, and held against Python's answer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agreement import assert_python_answers_so, overlap
from PIL import Image

import whycam

SOURCE = Path(__file__).parent.parent / "examples" / "cpp"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(needs, tmp_path_factory) -> Path:
    needs("cmake", "c++", "/usr/include/stb/stb_image.h", "/usr/include/nlohmann/json.hpp")
    openvino = pytest.importorskip("openvino")
    build = tmp_path_factory.mktemp("cpp") / "build"
    configure = [
        "cmake", "-S", SOURCE, "-B", build, "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_CXX_FLAGS=-Werror",
        f"-DOpenVINO_DIR={Path(openvino.__file__).parent / 'cmake'}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "explain"


@pytest.fixture(scope="module")
def explain(program: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    return run


@pytest.mark.parametrize(("index", "target"), [(0, -1), (3, -1), (0, 285)])
def test_answer_is_pythons(explain, pixels_onnx, sample_images, tmp_path, index, target):
    sample = tmp_path / "sample.png"  # PNG: JPEG decoders differ
    Image.open(sample_images[index]).convert("RGB").save(sample)
    done = explain(
        pixels_onnx, sample, "--class", target, "--json", tmp_path / "a.json",
        "-o", tmp_path / "why.png",
    )  # fmt: skip
    assert_python_answers_so(done, pixels_onnx, sample, target, tmp_path)


def test_overlay_colours_what_the_map_marks_and_nothing_else(
    explain, pixels_onnx, chelsea, tmp_path
):
    assert explain(pixels_onnx, chelsea, "-o", tmp_path / "why.png").returncode == 0
    image = np.asarray(Image.open(chelsea).convert("RGB"), int)
    drawn = np.asarray(Image.open(tmp_path / "why.png"), int)
    expected = whycam.load(pixels_onnx).explain(chelsea, tft=True, geometry="image").map
    changed = (drawn != image).any(-1)
    assert overlap(changed, expected > 0.02) > 0.95
    assert not changed[expected == 0].mean() > 0.01


@pytest.mark.parametrize(
    ("model", "image", "options", "complaint"),
    [
        ("missing.onnx", None, [], "missing.onnx"),
        ("text.jpg", None, [], "text.jpg"),
        (None, "missing.png", [], "missing.png"),
        (None, "empty.png", [], "empty.png"),
        (None, "text.jpg", [], "text.jpg"),
        (None, "cut.png", [], "cut.png"),
        (None, None, ["--class", "1000"], "0 to 999"),
        (None, None, ["--class", "-6"], "-5"),
        (None, None, ["--class", "cat"], "number"),
        (None, None, ["--colour", "red"], "--colour"),
        (None, None, ["-o", "/no/such/folder/x.png"], "cannot write"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_two(
    explain, pixels_onnx, chelsea, tmp_path, model, image, options, complaint
):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(chelsea.read_bytes()[:5000])
    done = explain(
        tmp_path / model if model else pixels_onnx,
        tmp_path / image if image else chelsea,
        *options,
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert complaint in line


def test_graph_with_other_outputs_is_refused_with_the_options_it_needs(
    explain, lite0_onnx, chelsea
):
    done = explain(lite0_onnx, chelsea)
    assert done.returncode == 2
    assert "--outputs tft --embed-preprocess" in done.stderr
