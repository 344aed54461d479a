"""A Ray cluster of two workers on this machine: one killed, the run stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_file import write_tiny

import whycam
from whycam.distributed import Explain
from whycam.runtime.errors import EngineError, RequestError

ray = pytest.importorskip("ray", reason='not installed: pip install "whycam[ray]"')
pytestmark = pytest.mark.slow

IMAGES, PARTS = 640, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory, manifest_of, tiny_engine) -> Path:
    """model.onnx, and images/: many names of a few large files, so that a part takes a while."""
    folder = tmp_path_factory.mktemp("cluster")
    engine = tiny_engine()
    manifest = manifest_of(methods=("gradcam",), labels=("ant", "bee", "cat"))
    write_tiny(folder / "model.onnx", manifest, engine.mix, engine.linear)
    rng = np.random.default_rng(0)
    originals = []
    for place in range(6):
        originals.append(folder / f"{place}.png")
        small = rng.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(small).resize((700, 500)).save(originals[-1])
    for place in range(IMAGES):
        path = folder / "images" / manifest.labels[place % 3] / f"{place:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(originals[place % len(originals)], path)
    (folder / "images" / "bee" / "0100.png").unlink()
    (folder / "images" / "bee" / "0100.png").write_bytes(b"no image")
    return folder


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """The command line, with a cluster of two processors that ends with it."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    code = (
        "import sys, ray; init = ray.init;"
        "ray.init = lambda *a, **k: init(*a, **k, num_cpus=2);"
        "from whycam.cli import main; main(sys.argv[1:])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def descendants(process: int) -> dict[int, str]:
    """Processes that a process started, and those that they started, with their titles."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended in the meantime
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
    found: set[int] = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {one: titles.get(one, "") for one in found - {process}}


def wait_for(what: str, check: Any, process: subprocess.Popen[str], limit_s: float = 120) -> Any:
    end = time.monotonic() + limit_s
    while not (found := check()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {what} in {limit_s} s"
        time.sleep(0.02)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_when_a_worker_is_killed_its_part_is_done_by_another(folder, tmp_path):
    out = tmp_path / "out"
    run = start(folder, "explain", "model.onnx", "images", "--on", "ray", "-o", out, "--json")
    wait_for("part", lambda: finished(out), run)
    workers = [one for one, title in descendants(run.pid).items() if "MapWorker" in title]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert len(finished(out)) < PARTS - 1, "killed too late to show anything"
    printed, errors = run.communicate(timeout=240)
    assert run.returncode == 0, errors
    assert json.loads(printed)["unreadable"] == 1
    check_whole(out, folder, tft=False)


def test_a_stopped_run_keeps_its_parts_and_goes_on(folder, tmp_path):
    out = tmp_path / "out"
    command = ["explain", "model.onnx", "images", "--on", "ray", "-o", out, "--tft"]
    first = start(folder, *command)
    wait_for("part", lambda: len(finished(out)) >= 2, first)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130, errors
    assert "images are done and stay in" in errors
    times = {path: path.stat().st_mtime_ns for path in finished(out)}
    assert 2 <= len(times) < PARTS, "stopped too late to show anything"

    second = start(folder, *command, "--json")
    printed, errors = second.communicate(timeout=240)
    assert second.returncode == 0, errors
    assert f"going on: {IMAGES // PARTS * len(times)} of {IMAGES} images are done" in errors
    assert json.loads(printed)["images"] == IMAGES
    assert all(path.stat().st_mtime_ns == at for path, at in times.items()), "done again"
    check_whole(out, folder, tft=True)


def finished(out: Path) -> set[Path]:
    return set(out.glob("part-*.parquet"))


def check_whole(out: Path, folder: Path, tft: bool) -> None:
    """The folder holds every part, nothing else, and what one process explains."""
    parquet = pytest.importorskip("pyarrow.parquet")
    parts = [f"part-{part:05d}.parquet" for part in range(PARTS)]
    names = sorted(path.name for path in out.iterdir())
    assert names == ["_images.parquet", "_run.json", *parts]
    table = parquet.read_table(out)
    paths = [str(path) for path in sorted((folder / "images").rglob("*.png"))]
    assert table.column("path").to_pylist() == paths
    expected = Explain(folder / "model.onnx", tft=tft)({"path": np.array(paths)})
    for name in ("index", "label", "map", "box", "error"):
        assert table.column(name).to_pylist() == expected[name].tolist(), name
    for name in ("probability", "rpi", "threshold"):
        values = np.array(table.column(name).to_pylist(), np.float32)
        assert values == pytest.approx(expected[name], abs=1e-5, nan_ok=True), name


def test_an_evaluation_on_a_cluster_has_the_figures_of_one_process(folder, tmp_path, capsys):
    from whycam.calibrate import evaluate, open_dataset

    run = start(
        folder, "evaluate", "model.onnx", "images", "--on", "ray", "--workers", "2", "-o",
        tmp_path / "out", "--json",
    )  # fmt: skip
    printed, errors = run.communicate(timeout=240)
    assert run.returncode == 0, errors
    found = json.loads(printed)
    own = evaluate(whycam.load(folder / "model.onnx"), open_dataset(folder / "images"))
    assert (found["images"], found["unreadable_count"]) == (IMAGES - 1, 1)
    assert found["accuracy"] == own.accuracy
    assert found["chosen"] == {name: list(counts) for name, counts in own.chosen.items()}
    assert len(found["results"]) == len(own.results) == 3
    for result, expected in zip(found["results"], own.results, strict=True):
        for name in ("average_increase", "average_drop", "average_drop_standard_error", "coverage"):
            assert result[name] == pytest.approx(getattr(expected, name), rel=1e-5), name
    lines = (tmp_path / "out" / "images.jsonl").read_text().splitlines()[1:]
    names = [sample.name for sample in open_dataset(folder / "images").samples]
    assert [json.loads(line)["name"] for line in lines] == names


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray in this process: a processor for each of two workers, and one for what Ray Data reads."""
    from whycam.runtime.distributed.cluster import connect

    before = os.environ.get("RAY_ADDRESS")
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    with connect("ray") as connected:
        yield connected
    ray.shutdown()
    if before is not None:
        os.environ["RAY_ADDRESS"] = before


def test_ray_data_takes_the_class_as_it_is(cluster, folder):
    files = sorted((folder / "images" / "ant").iterdir())[:20]
    data = cluster.data.read_binary_files([str(file) for file in files], include_paths=True)
    explained = data.map_batches(
        Explain,
        fn_constructor_kwargs={"model": str(folder / "model.onnx"), "tft": True},
        batch_size=8,
        compute=cluster.data.ActorPoolStrategy(size=2),
    )
    rows = sorted(explained.take_all(), key=lambda row: row["path"])
    expected = Explain(folder / "model.onnx", tft=True)({"path": np.array(list(map(str, files)))})
    assert [row["path"] for row in rows] == expected["path"].tolist()
    assert [row["label"] for row in rows] == expected["label"].tolist()
    assert np.array_equal(np.stack([row["map"] for row in rows]), expected["map"])


def test_a_part_that_ends_every_worker_is_given_up_and_named(cluster, folder):
    from whycam.runtime.distributed.cluster import run_on_workers
    from whycam.runtime.distributed.coordinator import ClusterModel, Workers

    def work(explainer: whycam.Explainer, item: int) -> int:
        if item == 3:
            os._exit(1)  # as an image that crashes a decoder
        return item * item

    found: list[int] = []
    model = ClusterModel(folder / "model.onnx")
    with pytest.raises(EngineError, match=r"1 of 8 parts were given up.*number 3\."):
        found.extend(run_on_workers(cluster, model, work, range(8), Workers(2, 1, 0)))
    assert sorted(found) == [item * item for item in range(8) if item != 3]


def test_what_the_work_raises_ends_the_run_in_its_own_words(cluster, folder):
    from whycam.runtime.distributed.cluster import run_on_workers
    from whycam.runtime.distributed.coordinator import ClusterModel, Workers

    def work(explainer: whycam.Explainer, item: int) -> int:
        raise RequestError(f"item {item} cannot be")

    model = ClusterModel(folder / "model.onnx")
    with pytest.raises(EngineError, match="item 0 cannot be"):
        list(run_on_workers(cluster, model, work, [0], Workers(1, 1, 0)))
    broken = ClusterModel(folder / "model.onnx", options={"engine": "abacus"})
    with pytest.raises(EngineError, match="abacus"):
        list(run_on_workers(cluster, broken, work, [0], Workers(1, 1, 0)))


def test_workers_fill_the_cluster_and_more_are_refused(cluster, folder):
    from whycam.runtime.distributed.cluster import plan_workers
    from whycam.runtime.distributed.coordinator import Workers

    model = folder / "model.onnx"
    assert plan_workers(cluster, model, "auto", None, None) == Workers(3, 1, 0)
    assert plan_workers(cluster, model, "auto", None, 2) == Workers(1, 2, 0)
    with pytest.raises(RequestError, match="room for 3 workers of 1 processor each, and 4"):
        plan_workers(cluster, model, "auto", 4, None)
    with pytest.raises(RequestError, match="room for 0 workers of 1 processor and a GPU each"):
        plan_workers(cluster, model, "onnxruntime-cuda", None, None)
