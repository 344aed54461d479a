"""Explain in data pipelines: columns as explain's own numbers, frames, parts that stay."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from test_cli import whycam as command  # noqa: F401
from tiny_file import write_tiny

import whycam
from whycam.distributed import Explain
from whycam.runtime.distributed import explain as explain_module
from whycam.runtime.distributed import run as run_module
from whycam.runtime.errors import EngineError, OutputError, RequestError

METHODS = ("gradcam", "layercam")


@pytest.fixture
def model(tmp_path, manifest_of, tiny_engine) -> Path:
    engine = tiny_engine()
    path = tmp_path / "model.onnx"
    write_tiny(path, manifest_of(methods=METHODS), engine.mix, engine.linear)
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    """Seven images of several sizes in two folders, and one that is none, the third by name."""
    rng = np.random.default_rng(0)
    for place in range(7):
        path = tmp_path / "images" / ("a", "b")[place % 2] / f"{place} #.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (9 + place, 12 - place // 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    (tmp_path / "images" / "a" / "3.png").write_bytes(b"no image")
    (tmp_path / "images" / "a" / "notes.txt").write_text("no image either")
    (tmp_path / "images" / "a" / ".hidden.png").write_bytes(b"of another program")
    return tmp_path / "images"


def paths_of(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("[0-9]*.png"))]


def test_columns_hold_the_numbers_of_explain_and_name_what_cannot_be_read(model, images):
    paths = paths_of(images)
    found = Explain(model, tft=True, map_size=4)({"path": np.array(paths)})
    explainer = whycam.load(model)
    assert found["path"].tolist() == paths
    (bad,) = np.flatnonzero(found["error"] != "")
    assert Path(paths[bad]).name == "3.png"
    assert "3.png is no image" in found["error"][bad]
    assert found["index"][bad] == -1
    assert np.isnan(found["probability"][bad])
    helped = 0
    for place, path in enumerate(paths):
        if place == bad:
            continue
        e = explainer.explain(path, tft=True)
        assert (found["index"][place], found["label"][place]) == (e.index, e.label)
        assert found["method"][place] == e.method
        assert (found["height"][place], found["width"][place]) == e.image.shape[:2]
        assert found["probability"][place] == pytest.approx(e.probability, abs=1e-6)
        assert found["rpi"][place] == pytest.approx(np.nanmax(e.rpi), abs=1e-5)
        tau = np.nan if e.threshold is None else e.threshold
        assert found["threshold"][place] == pytest.approx(tau, nan_ok=True)
        assert tuple(found["box"][place]) == e.region.box
        edges = e.placement.left, e.placement.top, e.placement.right, e.placement.bottom
        assert found["map_box"][place] == pytest.approx(edges)
        means = e.map.reshape(4, 2, 4, 2).mean((1, 3))
        assert found["map"][place] == pytest.approx(255 * means, abs=0.51)
        assert found["top_index"][place].tolist() == [one.index for one in e.top] + [-1, -1]
        assert np.isnan(found["top_probability"][place][3:]).all()
        helped += e.threshold is not None
    assert helped


def test_bytes_arrays_and_paths_are_the_same_images(model, images):
    paths = [path for path in paths_of(images) if not path.endswith("/3.png")]
    explain = Explain(model, map_size=8)
    data = np.array([Path(path).read_bytes() for path in paths], object)
    arrays = np.empty(len(paths), object)
    arrays[:] = [np.asarray(Image.open(io.BytesIO(one))) for one in data]
    expected = explain({"path": np.array(paths)})
    for batch in (
        {"bytes": data, "path": np.array(paths)},
        {"image": arrays, "path": np.array(paths)},
        {"path": np.array([f"file://{path}" for path in paths])},
    ):
        found = explain(batch)
        for name in found.keys() - {"path"}:
            assert np.array_equal(found[name], expected[name], found[name].dtype.kind == "f"), name
    assert explain({"bytes": data})["path"].tolist() == [""] * len(paths)


def test_several_methods_and_classes_are_rows_of_their_own(model, images):
    path = paths_of(images)[0]
    found = Explain(model, method=list(METHODS), target=[-1, 2])({"path": [path]})
    own = whycam.load(model).explain(path, targets=[-1, 2], method=list(METHODS))
    expected = [
        (method, index) for method in METHODS for index in {e.index: e for e in own[method]}
    ]
    assert list(zip(found["method"], found["index"], strict=True)) == expected


def test_a_batch_without_images_is_refused_and_an_empty_one_loads_no_model(model):
    with pytest.raises(RequestError, match="'path', 'bytes' or 'image'; it has: file"):
        Explain(model)({"file": np.array(["cat.jpg"])})
    found = Explain("missing.onnx")({"path": np.array([], object)})
    assert found["map"].shape == (0, 16, 16)
    assert found["top_index"].shape == (0, 5)


def test_a_pickled_explain_holds_its_arguments_and_loads_once_in_a_process(
    model, images, monkeypatch
):
    loaded = []
    monkeypatch.setattr(
        explain_module, "load", lambda *a, **k: loaded.append(a) or whycam.load(*a, **k)
    )
    explain = Explain(model, engine="onnxruntime", tft=True)
    data = pickle.dumps(explain)
    assert len(data) < 1000
    batch = {"path": np.array(paths_of(images)[:1])}
    assert pickle.loads(data)(batch)["label"] == explain(batch)["label"]
    assert len(loaded) == 1
    model.write_bytes(model.read_bytes())  # another file by the same name
    explain(batch)
    assert len(loaded) == 2


def test_the_engines_threads_follow_the_workers_share_of_processors(model, images, monkeypatch):
    threads = []
    monkeypatch.setattr(
        explain_module,
        "load",
        lambda path, engine, n, *a, **k: threads.append(n) or whycam.load(path, engine, n, *a, **k),
    )
    batch = {"path": np.array(paths_of(images)[:1])}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # set by Ray, Spark and Dask
    Explain(model)(batch)
    Explain(model, threads=2)(batch)
    monkeypatch.delenv("OMP_NUM_THREADS")
    Explain(model)(batch)
    assert threads == [3, 2, None]


def test_importing_it_brings_neither_torch_nor_a_data_engine(run_python):
    loaded = run_python(
        "import sys, whycam; whycam.distributed.Explain('model.onnx', tft=True);"
        "print([n for n in ('torch', 'ray', 'pyarrow', 'pandas', 'dask') if n in sys.modules])"
    )
    assert loaded == "[]"


def test_data_frames_give_data_frames_of_the_same_numbers(model, images):
    pandas = pytest.importorskip("pandas")
    explain, paths = Explain(model, tft=True), paths_of(images)
    found = explain(pandas.DataFrame({"path": paths}))
    expected = explain({"path": np.array(paths)})
    assert list(found.columns) == list(expected)
    for name, values in expected.items():
        if name == "map":
            assert found[name].tolist() == [row.tobytes() for row in values]
        elif values.dtype == object:
            assert found[name].tolist() == values.tolist()
        else:
            rows = np.array(found[name].tolist(), values.dtype)
            assert np.array_equal(rows, values, values.dtype.kind == "f"), name


def test_the_schema_names_every_column_in_order(model):
    for explain in (Explain(model), Explain(model, map_size=0)):
        names = [column.split()[0] for column in explain.schema.split(", ")]
        assert names == list(explain({"path": np.array([], object)}))
    assert "top_index array<int>" in explain.schema


def test_dask_calls_it_for_each_partition(model, images):
    pandas = pytest.importorskip("pandas")
    dataframe = pytest.importorskip("dask.dataframe")
    explain, frame = Explain(model), pandas.DataFrame({"path": paths_of(images)})
    lazy = dataframe.from_pandas(frame, npartitions=3)
    found = lazy.map_partitions(explain, meta=explain(frame[:0])).compute()
    expected = explain(frame)
    assert found["path"].tolist() == expected["path"].tolist()
    assert found["label"].tolist() == expected["label"].tolist()
    assert found["map"].tolist() == expected["map"].tolist()


# A run in parts.


@pytest.fixture
def storage():
    pytest.importorskip("pyarrow")
    from whycam.runtime.distributed.storage import open_storage

    return open_storage


def begun(storage, source, folder, **settings):
    run = run_module.Run(model="m", source=str(source), settings=settings)
    return run_module.begin_run(storage(str(folder)), storage(str(source)), run)


def test_images_are_listed_in_order_of_name_as_folders_are_elsewhere(storage, images):
    from whycam.runtime.images import list_images

    listed = [str(images / name) for name in storage(str(images)).image_names()]
    assert listed == [str(path) for path in list_images(images)]
    by_address = list(storage(f"file://{images}").image_names())
    assert by_address == [str(Path(one).relative_to(images)) for one in listed]


def test_a_run_of_parts_is_explain_in_order_and_goes_on_where_it_was(
    storage, model, images, tmp_path, monkeypatch
):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(run_module, "_BATCH", 3)
    source, folder = storage(str(images)), storage(str(tmp_path / "out"))
    paths = paths_of(images)
    run, done = begun(storage, images, tmp_path / "out")
    assert (run.images, run.size, run.parts, done) == (8, 3, 3, set())
    explainer, request = whycam.load(model), explain_module.Request(tft=True, map_size=4)
    for part in (2, 0):
        run_module.explain_part(explainer, part, folder, source, request)
    (images / "a" / "00.png").write_bytes(b"it came later")
    again, done = begun(storage, images, tmp_path / "out")
    assert (again, done, again.count(done)) == (run, {0, 2}, 5)
    run_module.explain_part(explainer, 1, folder, source, request)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    parts = [f"part-{part:05d}.parquet" for part in range(3)]
    assert names == ["_images.parquet", "_run.json", *parts]
    table = parquet.read_table(tmp_path / "out")  # as everybody reads a folder of Parquet
    expected = Explain(model, tft=True, map_size=4)({"path": np.array(paths)})
    assert table.column("path").to_pylist() == expected["path"].tolist()
    assert table.column("map").to_pylist() == expected["map"].tolist()
    assert table.column("box").to_pylist() == expected["box"].tolist()
    rpi = [np.nan if value is None else value for value in table.column("rpi").to_pylist()]
    assert rpi == pytest.approx(expected["rpi"].tolist(), nan_ok=True, abs=1e-5)
    count, reasons = run_module.read_unreadable(folder, 3)
    assert count == 1
    assert "3.png is no image" in reasons[0]


def test_a_run_of_other_settings_or_unknown_parts_is_refused(storage, images, tmp_path):
    begun(storage, images, tmp_path / "out", method="gradcam", TFT="None")
    with pytest.raises(RequestError, match=r"\(method: gradcam, now layercam\)") as refused:
        begun(storage, images, tmp_path / "out", method="layercam", TFT="None")
    assert "choose another folder" in str(refused.value)
    other = tmp_path / "other"
    other.mkdir()
    (other / "part-00000.parquet").touch()
    with pytest.raises(OutputError, match="parts of an unknown run"):
        begun(storage, images, other)
    with pytest.raises(RequestError, match="no images in"):
        begun(storage, other, tmp_path / "new")


def test_a_place_that_cannot_be_reached_stops_the_run_and_writes_no_part(
    storage, model, images, tmp_path
):
    run, _ = begun(storage, images, tmp_path / "out")
    elsewhere = images.rename(tmp_path / "moved")
    with pytest.raises(EngineError, match="every worker must reach them"):
        run_module.explain_part(
            whycam.load(model),
            0,
            storage(str(tmp_path / "out")),
            storage(str(images)),
            explain_module.Request(),
        )
    assert elsewhere.is_dir()
    assert run.parts == 1
    assert not list((tmp_path / "out").glob("*part*"))


def test_a_file_that_cannot_be_written_whole_leaves_the_older_one(storage, tmp_path, monkeypatch):
    target = storage(str(tmp_path / "a" / "b"))
    target.write(b"old")

    class Full:
        def __getattr__(self, name):
            return getattr(target.system, name)

        def move(self, *_):
            raise OSError("disk full")

    broken = type(target)(Full(), target.path, target.name)
    with pytest.raises(OutputError, match="disk full"):
        broken.write(b"new")
    assert (tmp_path / "a" / "b").read_bytes() == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_addresses_that_arrow_does_not_know_are_fsspecs_and_others_are_refused(storage):
    pytest.importorskip("fsspec")
    place = storage("memory://bucket/folder") / "cat #1.png"
    place.write(b"pixels")
    assert place.read() == b"pixels"
    assert list(storage("memory://bucket/folder").image_names()) == ["cat #1.png"]
    with pytest.raises(RequestError, match="nowhere://a cannot be opened"):
        storage("nowhere://a/b")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--workers", "2"], "--workers is a setting of --on"),
        (["--on", "ray", "--workers", "0"], "--workers must be 1 or more"),
        (["--on", "ray"], "--on needs a folder to write to"),
        (["--on", "ray", "-o", "out", "--save", "csv"], "the results are Parquet files"),
        (["--on", "ray", "-o", "out", "--opacity", "0.5"], "the results are Parquet files"),
        (["--on", "ray", "-o", "out", "--report"], "the results are Parquet files"),
        (["--on", "ray", "-o", "out", "--method", "scorecam"], "exported without 'scorecam'"),
        (["--on", "spark", "-o", "out"], "--on must be ray or ray://HOST:PORT, not 'spark'"),
    ],
)
def test_what_a_cluster_cannot_do_is_refused_before_it_starts(
    command,  # noqa: F811
    model,
    images,
    tmp_path,
    monkeypatch,
    options,
    problem,
):
    monkeypatch.chdir(tmp_path)
    result = command("explain", model, images, *options)
    assert result.code == 2
    assert problem in result.err
    assert not (tmp_path / "out").exists()


def test_bands_from_an_address_are_refused_as_bytes_cannot_hold_them(
    command,  # noqa: F811
    tmp_path,
    manifest_of,
    tiny_engine,
):
    from whycam.runtime.manifest import Preprocess

    bands = Preprocess(size=(8, 8), resize=(8,), color="bands", mean=(0.5,) * 3, std=(0.5,) * 3)
    engine = tiny_engine()
    manifest = manifest_of(methods=METHODS, preprocess=bands)
    write_tiny(tmp_path / "bands.onnx", manifest, engine.mix, engine.linear)
    address = f"file://{tmp_path}"
    result = command("explain", tmp_path / "bands.onnx", address, "--on", "ray", "-o", tmp_path)
    assert result.code == 2
    assert "pass a folder that every worker reaches" in result.err


def test_two_folders_are_refused(command, model, images, tmp_path):  # noqa: F811
    result = command("explain", model, images, images, "--on", "ray", "-o", tmp_path / "out")
    assert result.code == 2
    assert "--on takes one folder" in result.err


def test_settings_name_all_that_results_depend_on(manifest_of):
    """One that is forgotten would let parts of different runs stand side by side."""
    request = explain_module.Request(tft=whycam.Tft(mask="soft"))
    settings = run_module.describe_settings(
        manifest_of(digest="sha256:1"), request, "openvino", "bf16", "abc", "9.9"
    )
    text = msgspec.json.encode(settings).decode()
    for told in ("sha256:1", "-1", "soft", "16", "openvino", "bf16", "abc", "9.9"):
        assert told in text
