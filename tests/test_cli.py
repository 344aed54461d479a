"""The command line: exit codes, one red line, JSON, and what is written."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

import whycam as whycam_package
from whycam.cli import app, main
from whycam.cli import progress as progress_module

VERBS = (
    "calibrate thresholds",
    "calibrate int8",
    "compare",
    "export",
    "explain",
    "evaluate",
    "info",
    "prompts",
    "bench",
    "verify",
    "build",
    "half",
    "doctor",
    "stream",
    "train classifier",
    "train aft",
)


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self):
        return json.loads(self.out)


@pytest.fixture
def whycam(capsys):
    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(stop.value.code, captured.out, captured.err)

    return run


@pytest.mark.slow
def test_help_of_aft_names_the_defaults_that_it_uses(whycam):
    objective = pytest.importorskip("whycam.train.objective")
    said = " ".join(whycam("train", "aft", "--help").out.replace("│", " ").split())
    names = ("faithful", "cross-asked", "guided", "aligned", "tuner")
    weights = ", ".join(f"{name} {objective.WEIGHTS[name]:g}" for name in names)
    assert f"[default: {weights}]" in said
    assert f"original network [default: {objective.DISTILLATION:g}]" in said


def test_help_of_export_names_every_kind_of_model(whycam):
    said = " ".join(whycam("export", "--help").out.split())
    for kind in (
        "torchvision/NAME",
        "timm/NAME",
        "file.py:factory",
        "folder written by whycam train",
    ):
        assert kind in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(whycam, verb):
    result = whycam(*verb.split(), "--help")
    assert result.code == 0
    assert f"Example: whycam {verb}" in " ".join(result.out.split())
    assert "--json" in result.out


@pytest.mark.parametrize(
    ("arguments", "complaint", "command"),
    [
        (["explain"], "'model'", "whycam explain"),
        (["info", "x.onnx", "--nonsense"], "--nonsense", "whycam info"),
        (["train", "aft", "--epochs", "many"], "--epochs", "whycam train aft"),
        (["verify", "x.onnx", "--precision", "int4"], "'fp32', 'bf16'", "whycam verify"),
        (["no-such-verb"], "no-such-verb", "whycam"),
        (["help", "no-such-verb"], "explain, stream", None),
    ],
)
def test_wrong_usage_is_one_red_line_that_names_the_help(whycam, arguments, complaint, command):
    result = whycam(*arguments)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) == 1
    assert complaint in result.err
    assert command is None or result.err.endswith(f"see {command} --help\n")


@pytest.mark.parametrize("group", [[], ["calibrate"], ["train"]])
def test_a_bare_command_shows_its_help_as_laid_out(whycam, group):
    result = whycam(*group)
    assert result.code == 2
    assert result.out.rstrip() == whycam(*group, "--help").out.rstrip()
    assert not result.err


@pytest.mark.parametrize("group", [[], ["calibrate"], ["train"]])
def test_lists_of_verbs_are_not_cut_at_80_columns(whycam, group, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    listed = whycam(*group, "--help").out.partition("Commands:")[2]
    assert listed.strip()
    assert "..." not in listed


def test_a_misspelt_verb_is_asked_about(whycam):
    assert "Did you mean 'explain'? See whycam --help" in whycam("explian").err


@pytest.mark.parametrize("model", ["open_clip/RN50/openai", "transformers/clip"])
def test_prompts_without_torch_say_what_to_install(whycam, model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = whycam("prompts", "a cat", "--model", model, "-o", tmp_path / "it.npz")
    assert result.code == 2
    assert 'pip install "whycam[zero-shot]"' in result.err


def test_prompts_of_an_encoder_of_ones_own_need_no_torch(tmp_path):
    encoder = tmp_path / "texts.py"
    encoder.write_text("def load():\n    return lambda texts: [[len(t), 1.0] for t in texts]\n")
    code = "import sys; sys.modules['torch'] = None; from whycam.cli import main; main()"
    arguments = ("prompts", "a", "bcd", "--model", f"{encoder}:load", "-o", tmp_path / "it.npz")
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)
    with np.load(tmp_path / "it.npz") as made:
        assert made["names"].tolist() == ["a", "bcd"]
        lengths = np.array([1, 3])
        np.testing.assert_allclose(made["embeddings"][:, 0], lengths / np.hypot(lengths, 1))


def test_wrong_usage_is_json_too_when_asked_for(whycam):
    assert "'model'" in whycam("explain", "--json").json()["error"]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_shows_what_the_option_help_shows(whycam, verb):
    result = whycam("help", *verb.split())
    assert result.code == 0
    assert result.out.split() == whycam(*verb.split(), "--help").out.split()


def test_the_package_itself_runs_the_command_line():
    command = [sys.executable, "-m", "whycam", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("whycam ")


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ("explain --engine", "openv", ["openvino"]),
        ("explain --method", "gradcam,lay", ["gradcam,layercam"]),
        ("verify --precision", "", ["fp32", "bf16"]),
        ("stream --tft", "t", ["track"]),
        ("stream --quality", "", ["rate", "balanced", "full"]),
        ("compare --mask", "", ["binary", "soft"]),
        ("export --task", "s", ["softmax", "sigmoid"]),
    ],
)
def test_values_complete_in_the_shell(words, incomplete, expected):
    line = f"whycam {words} {incomplete}"
    asked = {"_WHYCAM_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}
    done = subprocess.run(
        [sys.executable, "-c", "from whycam.cli import app; app(prog_name='whycam')"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
    )
    found = re.findall(r'"([^"]+)"', done.stdout)
    assert [value.split('":')[0] for value in found] == expected, done.stdout + done.stderr


@pytest.mark.parametrize(("begun", "expected"), [("b", "bee"), ("bee,C", "bee,Cat"), ("x", None)])
def test_class_names_complete_from_the_model_on_the_command_line(
    manifest_of, tiny, tmp_path, begun, expected
):
    from tiny_file import write_tiny

    model = tmp_path / "tiny.onnx"
    write_tiny(model, manifest_of(methods=("gradcam",)), tiny.engine.mix, tiny.engine.linear)
    line = f"whycam explain {model} cat.jpg --target {begun}"
    asked = {"_WHYCAM_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}
    done = subprocess.run(
        [sys.executable, "-c", "from whycam.cli import app; app(prog_name='whycam')"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
    )
    assert re.findall(r'"([^"]+)"', done.stdout) == ([] if expected is None else [expected])


def test_an_int8_file_that_is_slower_here_says_so_before_work_begins(tiny, monkeypatch, capsys):
    import msgspec

    from whycam.cli import options
    from whycam.cli.options import EngineOptions
    from whycam.runtime import load

    def loaded(precision, engine):
        tiny.engine.name = engine
        manifest = msgspec.structs.replace(tiny.manifest, precision=precision)
        explainer = whycam_package.Explainer(tiny.engine, manifest)
        monkeypatch.setattr(options, "read_manifest", lambda _: manifest)
        monkeypatch.setattr(load, "load", lambda *_, **__: explainer)
        assert EngineOptions().load(Path("tiny.onnx")) is explainer
        return capsys.readouterr().err

    assert "slower than the float files" in " ".join(loaded("int8", "onnxruntime").split())
    assert loaded("int8", "openvino") == loaded("fp32", "onnxruntime") == ""


def options_of(command, path=()):
    for name, each in getattr(command, "commands", {}).items():
        yield from options_of(each, (*path, name))
    if not hasattr(command, "commands"):
        yield " ".join(path), {text for each in command.params for text in each.opts}


def test_verbs_share_their_words():
    verbs = dict(options_of(typer.main.get_command(app)))
    assert set(verbs) == {*VERBS, "help"}
    for verb, options in verbs.items():
        plural = {"--methods", "--engines", "--precisions", "--batches"}
        assert not options & plural, verb
        assert verb == "help" or "--json" in options
        assert ("--output" in options) == ("-o" in options)


def test_the_command_line_alone_knows_typer_and_rich():
    """Everything else must import on machines that only run a product's own code."""
    root = Path(whycam_package.__file__).parent
    for folder in ("runtime", "export", "calibrate", "train"):
        for path in (root / folder).rglob("*.py"):
            names = []
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names.append(node.module or "")
            assert not {name.split(".")[0] for name in names} & {"typer", "rich"}, path


def test_in_a_pipe_progress_is_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with progress_module.progress("evaluating", 1000, quiet=False) as advance:
        for _ in range(100):
            now[0] += 1
            advance("evaluating", 10)
    lines = capsys.readouterr().err.splitlines()
    assert 15 <= len(lines) <= 21  # the first after two seconds, then one every five
    assert lines[0] == "evaluating: 10 of 1000, about 3 min left"
    assert lines[9] == "evaluating: 460 of 1000, about 55 s left"
    with progress_module.progress("evaluating", 1000, quiet=True) as advance:
        now[0] += 100
        advance("evaluating", 10)
    assert capsys.readouterr().err == ""


def test_version_is_printed(whycam):
    from importlib.metadata import version

    assert whycam("--version").out.strip() == f"whycam {version('whycam')}"


def test_explain_json_has_one_row_an_image_and_method(whycam, lite0_onnx, sample_images):
    found = whycam(
        "explain", lite0_onnx, *sample_images[:2], "--method", "gradcam,layercam", "--tft",
        "--mask", "soft", "--thresholds", "rank", "--json",
    ).json()  # fmt: skip
    rows = found["explanations"]
    assert [(Path(row["file"]).name, row["method"]) for row in rows] == [
        (path.name, method) for path in sample_images[:2] for method in ("gradcam", "layercam")
    ]
    assert rows[0]["label"] == "tiger cat"
    assert (rows[0]["mask"], rows[0]["thresholds"]) == ("soft", "rank")
    assert len(rows[0]["rpi"]) == len(rows[0]["taus"]) == 10


def test_a_class_is_chosen_by_label(whycam, lite0_onnx, sample_images):
    command = ["explain", lite0_onnx, sample_images[0], "--target", "Egyptian cat", "--json"]
    assert whycam(*command).json()["explanations"][0]["index"] == 285


def test_images_of_the_same_name_do_not_overwrite_each_other(
    whycam, lite0_onnx, sample_images, tmp_path
):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(sample_images[0], tmp_path / folder)
    result = whycam("explain", lite0_onnx, tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_broken_image_among_good_ones_is_named_and_the_rest_explained(
    whycam, lite0_onnx, sample_images, tmp_path
):
    (tmp_path / "broken.jpg").write_bytes(b"")
    result = whycam(
        "explain", lite0_onnx, tmp_path / "broken.jpg", sample_images[0], "-o", tmp_path / "out"
    )
    assert result.code == 2
    assert "broken.jpg" in result.err
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--target", "tiger ct"], "tiger cat"),
        (["--target", "1000"], "999"),
        (["--method", "gradcamm"], "gradcam++"),
        (["--engine", "warp"], "onnxruntime"),
        (["--threads", "0"], "threads"),
        (["--mask", "soft"], "--tft"),
        (["--tft", "--naive"], "exclude"),
        (["--tft", "--mask", "hard"], "binary"),
        (["--save", "figure"], "-o"),
        (["--save", "overlays"], "mask, comparison, detections, csv"),
        (["--opacity", "1.5"], "[0, 1]"),
        (["--colormap", "rainbow"], "inferno"),
        (["-o", "maps", "--save", "mask"], "--tft or --naive"),
        (["-o", "map.npy", "--save", "overlay"], ".png"),
        (["-o", "both.png", "--method", "gradcam,layercam"], "name a folder"),
        (["-o", "table.csv", "--save", "coco"], "--save csv"),
    ],
)
def test_wrong_requests_are_one_red_line_and_exit_code_two(
    whycam, lite0_onnx, sample_images, arguments, complaint
):
    result = whycam("explain", lite0_onnx, sample_images[0], *arguments)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert complaint in result.err
    assert "Traceback" not in result.err


def test_an_error_is_json_too_when_asked_for(whycam, tmp_path):
    result = whycam("info", tmp_path / "missing.onnx", "--json")
    assert result.code == 2
    assert "missing.onnx" in result.json()["error"]


def test_debug_shows_the_traceback(whycam, tmp_path):
    assert "Traceback" in whycam("info", tmp_path / "missing.onnx", "--debug").err


def test_a_fault_of_ours_exits_with_one(whycam, monkeypatch, tmp_path):
    def broken(path):
        raise RuntimeError("a wire came loose")

    monkeypatch.setattr("whycam.runtime.onnxfile.read_manifest", broken)
    result = whycam("info", tmp_path)
    assert result.code == 1
    assert "a wire came loose" in result.err


def test_info_shows_layer_methods_and_preprocessing(whycam, lite0_onnx):
    text = whycam("info", lite0_onnx).out
    for part in ("bn2.act", "1280 x 7 x 7", "gradcam++", "bicubic", "0.5"):
        assert part in text
    assert whycam("info", lite0_onnx, "--json").json()["preprocess"]["size"] == [224, 224]


def test_verify_accepts_a_good_file(whycam, lite0_onnx):
    found = whycam("verify", lite0_onnx, "--json").json()
    assert found["ok"]
    assert len(found["references"]) == 2


def test_verify_refuses_a_file_whose_weights_changed(whycam, lite0_onnx, tmp_path):
    data = bytearray(lite0_onnx.read_bytes())
    data[len(data) // 2] ^= 0x40  # somewhere in the weights
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(data)
    result = whycam("verify", changed)
    assert result.code == 2
    assert "digest" in result.err


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("export torchvision/resnet18 -o x.onnx", "export"),
        ("train classifier torchvision/resnet18 . -o x", "train"),
        ("train aft torchvision/resnet18 . -o x", "train"),
    ],
)
def test_without_torch_a_verb_names_the_extra_that_brings_all_it_needs(
    whycam, monkeypatch, tmp_path, arguments, extra
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = whycam(*arguments.split())
    assert result.code == 2
    assert f'pip install "whycam[{extra}]"' in " ".join(result.err.split())
    assert not list(tmp_path.iterdir())


def test_export_needs_a_place_to_write(whycam):
    result = whycam("export", "torchvision/resnet18")
    assert result.code == 2
    assert "-o" in result.err


@pytest.mark.slow
def test_list_layers_marks_the_one_that_would_be_chosen(whycam):
    rows = whycam("export", "torchvision/squeezenet1_1", "--list-layers", "--json").json()
    assert [row["name"] for row in rows if row["chosen"]] == ["features.12"]


@pytest.mark.parametrize(
    "arguments",
    [["--image-size", "0"], ["--image-size", "axb"], ["--mean", "1,2"], ["--score", "loss"]],
)
def test_unusable_export_options_are_refused(whycam, tmp_path, arguments):
    target = tmp_path / "x.onnx"
    command = ["export", "torchvision/resnet18", "--weights", "none", "-o", target]
    assert whycam(*command, *arguments).code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_evaluate_prints_a_table_and_writes_a_report(whycam, lite0_onnx, sample_images, tmp_path):
    table = tmp_path / "photos.csv"
    labels = ("tabby", "espresso", "missile", "no such class")
    rows = zip(sample_images, labels, strict=True)
    table.write_text("".join(f"{path},{label}\n" for path, label in rows))
    given = ["--method", "gradcam", "-o", tmp_path / "report", "--threads", 2]
    result = whycam("evaluate", lite0_onnx, table, *given)
    assert result.code == 0
    for text in ("average increase", "average drop", "original", "tft", "3 labelled"):
        assert text in result.out
    again = whycam("evaluate", lite0_onnx, table, *given, "--json").json()
    assert again["images"] == 4
    assert again["labelled"] == 3
    row = again["results"][0]
    assert (row["method"], row["variant"], row["mask"]) == ("gradcam", "original", "binary")
    assert (tmp_path / "report" / "report.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no folder or file nowhere"),
        ([".", "--curves", "-1"], "--curves must be 0 or more"),
        ([".", "--method", "scorecam"], "scorecam cannot be evaluated"),
        ([".", "--variants", "best"], "--variants must be one or more of original"),
        ([".", "--target", "all"], "'predicted', 'label'"),
    ],
)
def test_evaluate_refuses_what_it_cannot_do(
    whycam, lite0_onnx, chelsea, tmp_path, monkeypatch, arguments, message
):
    shutil.copy(chelsea, tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    result = whycam("evaluate", lite0_onnx, *arguments)
    assert result.code == 2
    assert message in " ".join(result.err.split())


def test_evaluating_a_graph_without_raw_outputs_is_refused(whycam, pixels_onnx, chelsea):
    result = whycam("evaluate", pixels_onnx, chelsea.parent)
    assert result.code == 2
    assert "--outputs raw" in result.err


# Markup, a terminal's control characters, lines, bytes that are no UTF-8, names too long.
ODD = ["[/red].png", "a\\[/b].png", "\x1b[2J.png", "two\nlines.png", "\udcff.png", "x" * 300, "a\\"]


@pytest.mark.parametrize("name", ODD, ids=ascii)
@pytest.mark.parametrize(
    "command", [["info"], ["evaluate", "MODEL"], ["explain", "MODEL"], ["stream", "MODEL", "-s"]]
)
def test_any_file_name_can_be_complained_of(whycam, curved_onnx, command, name):
    given = [curved_onnx if word == "MODEL" else word for word in command]
    result = whycam(*given, name)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) == 1
    assert "a fault of whycam" not in result.err


@pytest.mark.parametrize(
    "name", ["[red].png", "a\\[b]", "\x1b[2J", "two\nlines", "\udcff", "a\\"], ids=ascii
)
def test_an_image_with_any_name_is_explained(whycam, curved_onnx, chelsea, tmp_path, name):
    image = tmp_path / f"{name}.png"
    shutil.copy(chelsea, image)
    result = whycam("explain", curved_onnx, image, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert len(list((tmp_path / "out").iterdir())) == 1
    row = whycam("explain", curved_onnx, image, "--json").json()["explanations"][0]
    assert row["file"] == str(image)


@pytest.mark.parametrize("text", ["[/b]", "\\[/b]", "[red]", "\\", "\u200f\U0001f431"], ids=ascii)
def test_what_a_file_says_of_itself_is_shown_as_it_stands(whycam, curved_onnx, tmp_path, text):
    import msgspec

    from whycam.runtime.onnxfile import read_manifest, with_manifest

    path = tmp_path / "named.onnx"
    own = read_manifest(curved_onnx)
    with_manifest(curved_onnx, path, msgspec.structs.replace(own, model=text))
    result = whycam("info", path)
    assert result.code == 0, result.err
    assert f"{text}, weights" in result.out
