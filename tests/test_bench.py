"""whycam bench: what is measured, by which figures, and what is left out with which reason."""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.text import Text

import whycam
from whycam.cli import main
from whycam.cli.bench_tables import remarks, report
from whycam.runtime.bench import bench
from whycam.runtime.bench import plan as bench_plan
from whycam.runtime.bench.bench import Benchmark, measure
from whycam.runtime.bench.footprint import measure_footprint
from whycam.runtime.bench.plan import Configuration, plan
from whycam.runtime.bench.report import document, summary
from whycam.runtime.bench.stages import ANSWER, STAGES, WHOLE, explain_in_stages
from whycam.runtime.errors import EngineError, RequestError
from whycam.runtime.machine import describe_machine
from whycam.runtime.pipeline import prepare
from whycam.runtime.timing import run_interleaved

LITE0 = f"{Path(__file__).parent.parent / 'examples' / 'efficientnet_lite0.py'}:model"


@pytest.fixture
def run_cli(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture
def planned(monkeypatch, manifest_of):
    """A plan for a file of which only the manifest exists."""

    def build(fields=None, **wanted):
        monkeypatch.setattr(bench_plan, "read_manifest", lambda _: manifest_of(**(fields or {})))
        return plan(["tiny.onnx"], **wanted)

    return build


@pytest.fixture(scope="module")
def found(lite0_onnx) -> Benchmark:
    wanted = plan([str(lite0_onnx)], ["onnxruntime"], methods=["gradcam", "layercam"], threads=[2])
    return measure(wanted, rounds=2)


@pytest.mark.parametrize("tft", [False, True])
@pytest.mark.parametrize("method", ["gradcam", "ablation"])
def test_what_is_timed_in_stages_is_what_explain_answers(lite0, sample_images, method, tft):
    seconds, timed = explain_in_stages(lite0, sample_images[:2], lite0.plan(method, tft))
    wanted = lite0.explain(sample_images[:2], method=method, tft=tft)
    assert ("sweep" in seconds) == tft
    for ours, theirs in zip(timed, wanted, strict=True):
        assert (ours.index, ours.threshold) == (theirs.index, theirs.threshold)
        np.testing.assert_array_equal(ours.map, theirs.map)
        np.testing.assert_array_equal(ours.overlay(), theirs.overlay())


def test_a_sweep_inside_the_graph_is_timed_as_explain_runs_it(pixels_onnx, chelsea):
    loaded = whycam.load(pixels_onnx, "onnxruntime", threads=2)
    _, (timed,) = explain_in_stages(loaded, [chelsea], loaded.plan(tft=True))
    wanted = loaded.explain(chelsea, tft=True)
    assert timed.threshold == wanted.threshold
    np.testing.assert_array_equal(timed.overlay(), wanted.overlay())


def test_contenders_take_turns_and_every_counted_run_is_kept(monkeypatch):
    calls = []
    monkeypatch.setattr("time.sleep", lambda _: calls.append("pause"))

    def contender(name):
        def run():
            calls.append(name)
            return len(calls)

        return run

    kept = run_interleaved({"a": contender("a"), "b": contender("b")}, rounds=2, warm_up=1)
    assert "".join(each[0] for each in calls) == "ab" + "paapbb" * 2
    assert [calls[index - 1] for index in kept["a"] + kept["b"]] == ["a", "a", "b", "b"]
    assert len(kept["a"]) == len(kept["b"]) == 2


def test_each_configuration_is_measured_once_a_round_beside_plain_classification(found):
    named = [(row.configuration.method, row.configuration.tft) for row in found.rows]
    assert named == [
        (None, False),
        ("gradcam", False),
        ("gradcam", True),
        ("layercam", False),
        ("layercam", True),
    ]
    for row in found.rows:
        assert {len(samples) for samples in row.seconds.values()} == {2}


def test_stages_sum_to_the_whole_at_most(found):
    for row in found.rows:
        for turn in range(found.rounds):
            stages = [row.seconds[name][turn] for name in STAGES if name in row.seconds]
            answer = [
                row.seconds[name][turn]
                for name in ("engine", "map", "sweep")
                if name in row.seconds
            ]
            assert min(stages) >= 0
            assert sum(stages) <= row.seconds[WHOLE][turn] + 1e-9
            assert sum(answer) <= row.seconds[ANSWER][turn] + 1e-9


def test_figures_are_of_the_raw_samples_and_ratios_of_the_same_run(found):
    plain, *explained = found.rows
    for row in explained:
        numbers, samples = summary(found, row), row.seconds[ANSWER]
        middle = statistics.median(samples)
        assert numbers["median_ms"] == pytest.approx(middle * 1e3)
        assert numbers["p99_ms"] <= max(samples) * 1e3
        assert numbers["median_ms"] <= numbers["p90_ms"] <= numbers["p99_ms"]
        assert numbers["images_per_second"] == pytest.approx(1 / middle)
        wanted = middle / statistics.median(plain.seconds[ANSWER])
        assert numbers["ratio_to_plain"] == pytest.approx(wanted)
    assert summary(found, plain)["ratio_to_plain"] == 1


def test_a_row_without_its_plain_classification_has_no_ratio(found):
    alone = replace(found, rows=found.rows[1:])
    assert summary(alone, alone.rows[0])["ratio_to_plain"] is None


def test_start_up_is_measured_in_fresh_processes(found):
    (footprint,) = found.footprints
    assert footprint.configuration == found.rows[0].configuration
    parts = ("import", "load", "first map")
    for turn, total in enumerate(footprint.seconds["total"]):
        assert sum(footprint.seconds[name][turn] for name in parts) == pytest.approx(total)
    assert len(footprint.peak_bytes) == len(footprint.seconds["total"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count otherwise")
def test_peak_memory_is_not_that_of_the_measuring_process(lite0_onnx, chelsea):
    ballast = np.ones(500 * 2**20, np.uint8)
    what = Configuration(str(lite0_onnx), "onnxruntime", "fp32", 1, 2)
    (peak,) = measure_footprint(what, str(chelsea), 1).peak_bytes
    assert lite0_onnx.stat().st_size < peak < ballast.nbytes


def test_by_default_engines_that_auto_considers_with_and_without_tft(planned):
    made = planned()
    engines = {each.engine for each in made.configurations}
    known = bench_plan.ENGINES
    assert engines == {n for n, one in known.items() if one.installed and one.reserved is None}
    assert {(each.method, each.tft) for each in made.configurations} == {
        (None, False),
        ("gradcam", False),
        ("gradcam", True),
    }
    assert {(each.precision, each.batch) for each in made.configurations} == {("fp32", 1)}
    assert not made.left_out


def test_combinations_multiply(planned):
    made = planned(
        engines=["onnxruntime"], methods=["gradcam", "cam"], batches=[1, 8], threads=[1, 2]
    )
    assert len(made.configurations) == 4 * (1 + 2 * 2)


def test_an_engine_without_the_precision_is_left_out_with_the_reason(planned):
    made = planned(engines=["onnxruntime", "openvino"], precisions=["fp32", "bf16"])
    assert [each.what for each in made.left_out] == ["tiny.onnx, onnxruntime bf16"]
    assert "cannot compute in bf16" in made.left_out[0].reason
    assert ("openvino", "bf16") in {(c.engine, c.precision) for c in made.configurations}


def test_a_method_that_the_file_lacks_is_left_out_with_the_reason(planned):
    made = planned({"methods": ("gradcam",)}, methods=["gradcam", "ablation"], tft=[False])
    assert [each.what for each in made.left_out] == ["tiny.onnx, ablation"]
    assert "--method ablation" in made.left_out[0].reason
    assert {each.method for each in made.configurations} == {None, "gradcam"}


def test_tft_of_a_file_that_preprocesses_itself_is_left_out_with_the_reason(planned):
    made = planned({"embedded_preprocess": True})
    assert [each.what for each in made.left_out] == ["tiny.onnx, gradcam with TFT"]
    assert "--outputs tft" in made.left_out[0].reason


def test_an_engine_that_is_not_installed_is_left_out_with_the_install(planned, monkeypatch):
    absent = replace(bench_plan.ENGINES["openvino"], package="no_such_package")
    monkeypatch.setitem(bench_plan.ENGINES, "openvino", absent)
    made = planned(engines=["openvino", "onnxruntime"])
    assert 'pip install "whycam[openvino]"' in made.left_out[0].reason


def test_when_nothing_remains_the_reasons_are_the_error(planned):
    with pytest.raises(RequestError, match=r"onnxruntime bf16: .* cannot compute in bf16"):
        planned(engines=["onnxruntime"], precisions=["bf16"])


def test_an_engine_that_refuses_here_is_left_out(lite0_onnx, monkeypatch):
    real = bench.load

    def refusing(model, engine, *rest, **more):
        if engine == "openvino":
            raise EngineError("this processor is too old")
        return real(model, engine, *rest, **more)

    monkeypatch.setattr(bench, "load", refusing)
    wanted = plan([str(lite0_onnx)], ["openvino", "onnxruntime"], tft=[False], threads=[2])
    made = measure(wanted, rounds=1)
    assert {row.configuration.engine for row in made.rows} == {"onnxruntime"}
    assert [each.reason for each in made.left_out] == ["this processor is too old"]
    alone = replace(
        wanted,
        configurations=tuple(c for c in wanted.configurations if c.engine == "openvino"),
    )
    with pytest.raises(RequestError, match="too old"):
        measure(alone, rounds=1)


@pytest.mark.slow
def test_other_tools_take_turns_and_compare_with_torch(lite0_onnx, chelsea):
    given = []

    def baselines(what, image):
        given.append((what.threads, image.shape, image.dtype))
        return {"torch": lambda: None, "torchcam": lambda: None}

    wanted = plan([str(lite0_onnx)], ["onnxruntime"], tft=[False], batches=[1, 2], threads=[2])
    made = measure(wanted, str(chelsea), 2, baselines)
    assert given == [(2, (batch, 3, 224, 224), np.float32) for batch in (1, 2)]
    others = [row for row in made.rows if row.baseline]
    assert [(row.configuration.engine, row.configuration.method) for row in others] == [
        ("torch", None),
        ("torchcam", "gradcam"),
    ] * 2
    assert made.plain_of(others[1]) is others[0]
    assert made.plain_of(others[3]) is others[2]
    said = [line for line in remarks(made) if line.startswith("torchcam takes")]
    assert len(said) == 2


def test_other_tools_are_compared_with_the_fastest_of_whycams_in_their_precision(found):
    ours = found.rows[1].configuration

    def row(seconds, baseline=False, **changes):
        return bench.Row(replace(ours, **changes), {ANSWER: [seconds]}, baseline)

    rows = (
        row(4.0),
        row(2.0, engine="openvino"),
        row(1.0, engine="openvino", precision="bf16"),
        row(1.0, tft=True),
        row(6.0, baseline=True, engine="torchcam"),
    )
    (said,) = remarks(replace(found, rows=rows))
    assert said.startswith("torchcam takes 3.0 times as long as whycam in openvino fp32")


def test_the_document_is_json_with_raw_samples_and_the_machine(found):
    again = json.loads(json.dumps(document(found, describe_machine())))
    assert {"processor", "system", "packages", "date"} <= set(again["machine"])
    assert again["machine"]["whycam"] == whycam.__version__
    assert again["rows"][0]["threads"] == 2
    assert again["rows"][2]["seconds"] == found.rows[2].seconds
    assert again["footprints"][0]["peak_bytes"] == found.footprints[0].peak_bytes


def test_people_get_three_tables_and_what_was_left_out(found):
    left = (bench_plan.LeftOut("a.onnx, cam [1]", "it has none"),)
    parts = list(report(replace(found, left_out=left), describe_machine()))
    tables = [part for part in parts if not isinstance(part, str)]
    assert [table.row_count for table in tables] == [5, 5, 1]
    assert Text.from_markup(parts[-1]).plain == "left out: a.onnx, cam [1]: it has none"


@pytest.mark.slow
def test_the_command_prints_json_and_writes_its_folder(run_cli, lite0_onnx, chelsea, tmp_path):
    code, out, err = run_cli(
        lite0_onnx, "--engine", "onnxruntime", "--rounds", 2, "--batch", 2, "--threads", 2,
        "--image", chelsea, "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0, err
    printed = json.loads(out)
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert printed["rows"] == written["rows"]
    assert {row["batch"] for row in printed["rows"]} == {2}
    assert printed["image"] == str(chelsea)
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"bench.json", "bench.png"}


def test_without_matplotlib_the_figures_are_written_all_the_same(found, tmp_path, monkeypatch):
    from whycam.runtime.bench.save import write_bench

    monkeypatch.setitem(sys.modules, "whycam.runtime.bench.plot", None)
    assert write_bench(found, describe_machine(), tmp_path) == [tmp_path / "bench.json"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--engine", "warp"], "onnxruntime"),
        (["--method", "gradcamm"], "gradcam++"),
        (["--precision", "int8"], "whycam calibrate int8"),
        (["--tft", "maybe"], "off, on"),
        (["--batch", "0"], "--batch must be"),
        (["--threads", "two"], "--threads must be"),
        (["--rounds", "0"], "rounds must be 1 or more"),
        (["--against", "captum"], "pytorch-grad-cam, torchcam"),
        (["--image", "nowhere.jpg"], "no file nowhere.jpg"),
        (["--engine", "onnxruntime", "--precision", "bf16"], "nothing can be measured"),
    ],
)
def test_wrong_requests_are_one_red_line_and_exit_code_two(
    run_cli, lite0_onnx, arguments, complaint
):
    code, _, err = run_cli(lite0_onnx, *arguments)
    assert code == 2
    assert complaint in " ".join(err.split())
    assert "Traceback" not in err


def test_interrupting_leaves_nothing_half_written(run_cli, lite0_onnx, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_interleaved", interrupted)
    given = ["--engine", "onnxruntime", "--tft", "off", "--rounds", 1]
    code, _, _ = run_cli(lite0_onnx, *given, "-o", tmp_path / "out")
    assert code == 130
    assert not list((tmp_path / "out").iterdir())


def test_a_tool_that_is_not_installed_is_named_with_its_install(run_cli, lite0_onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    code, _, err = run_cli(lite0_onnx, "--against", "pytorch-grad-cam")
    assert code == 2
    assert "pip install grad-cam" in " ".join(err.split())


def test_without_torch_other_tools_are_refused_with_the_install(run_python, lite0_onnx):
    said = run_python(f"""
        import contextlib, io, sys
        sys.modules["torch"] = None
        from whycam.cli import main
        complaint = io.StringIO()
        with contextlib.redirect_stderr(complaint):
            try:
                main(["bench", {str(lite0_onnx)!r}, "--against", "torchcam"])
            except SystemExit as stop:
                print(stop.code, complaint.getvalue())
    """)
    assert said.startswith("2 ")
    assert 'pip install "whycam[export]"' in " ".join(said.split())


def test_a_network_that_is_not_found_asks_for_torch_model(run_cli, lite0_onnx, tmp_path):
    pytest.importorskip("torchcam")
    code, _, err = run_cli(
        lite0_onnx, "--against", "torchcam", "--torch-model", tmp_path / "moved.py:model"
    )
    assert code == 2
    assert "--torch-model" in err


def test_measuring_imports_no_torch(run_python, lite0_onnx):
    said = run_python(f"""
        import sys
        from whycam.runtime.bench.bench import measure
        from whycam.runtime.bench.plan import plan
        from whycam.cli.bench_tables import report
        from whycam.runtime.bench.report import document
        from whycam.runtime.machine import describe_machine
        given = plan([{str(lite0_onnx)!r}], ["onnxruntime"], tft=[False], threads=[2])
        found = measure(given, rounds=1)
        document(found, describe_machine()), list(report(found, describe_machine()))
        print("torch" in sys.modules)
    """)
    assert said == "False"


@pytest.mark.slow
def test_real_tools_run_on_the_same_network(run_cli, lite0_onnx):
    for package in ("torchcam", "pytorch_grad_cam"):
        pytest.importorskip(package)
    code, out, err = run_cli(
        lite0_onnx, "--engine", "onnxruntime", "--tft", "off", "--rounds", 2, "--threads", 2,
        "--against", "pytorch-grad-cam,torchcam", "--torch-model", LITE0, "--json",
    )  # fmt: skip
    assert code == 0, err
    rows = {row["engine"]: row for row in json.loads(out)["rows"] if row["baseline"]}
    assert set(rows) == {"torch", "pytorch-grad-cam", "torchcam"}
    assert rows["torch"]["ratio_to_plain"] == 1
    assert len(rows["torchcam"]["seconds"][ANSWER]) == 2


@pytest.mark.slow
def test_other_tools_agree_with_whycam_about_the_map(lite0, chelsea):
    """So the networks, layers and inputs that are compared are the same ones."""
    pytest.importorskip("pytorch_grad_cam")
    from whycam.export.baselines import load_network, prepare_baselines

    model = load_network(lite0.manifest, LITE0)
    images = prepare([whycam.runtime.images.read_image(chelsea)], lite0.manifest).inputs
    theirs = prepare_baselines(model, lite0.manifest.target_layer, images, ["pytorch-grad-cam"])
    ours = lite0.explain(chelsea, method="gradcam").map
    found = theirs["pytorch-grad-cam"]()[0]
    assert np.corrcoef(found.ravel(), ours.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    ("engines", "device"),
    [
        (["onnxruntime"], "cpu"),
        (["onnxruntime", "onnxruntime-cuda"], "cpu"),
        (["onnxruntime-cuda"], "cuda"),
        (["tensorrt", "onnxruntime-tensorrt"], "cuda"),
        ([], "cpu"),
    ],
)
def test_other_tools_run_on_the_gpu_where_all_engines_do(monkeypatch, engines, device):
    baselines = pytest.importorskip("whycam.export.baselines")
    monkeypatch.setattr(baselines.torch.cuda, "is_available", lambda: True)
    assert baselines.choose_device(engines) == device


def test_other_tools_without_a_gpu_are_not_compared_with_one(monkeypatch):
    baselines = pytest.importorskip("whycam.export.baselines")
    monkeypatch.setattr(baselines.torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="beside onnxruntime-cuda other tools must run on the"):
        baselines.choose_device(["onnxruntime-cuda"])


def test_the_command_explains_itself_with_an_example(run_cli):
    code, out, _ = run_cli("--help")
    assert code == 0
    assert "Example: whycam bench" in " ".join(out.split())
    for option in ("--engine", "--against", "--torch-model", "--image", "--json"):
        assert option in out
