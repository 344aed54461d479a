"""Streams: frames in, explained frames out, on threads that always end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import namedtuple
from itertools import islice
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from captures import FakeCapture, image_of, new_threads, number_of, read_video, write_video

import whycam
from whycam.cli import main
from whycam.runtime.errors import EngineError, RequestError, SourceError
from whycam.runtime.live import stream as stream_module
from whycam.runtime.live.controls import Look
from whycam.runtime.live.record import RecordFile
from whycam.runtime.live.schedule import TimeLimit
from whycam.runtime.live.video import VideoFile


@pytest.fixture
def film(tmp_path):
    return write_video(tmp_path / "film.mp4", [image_of(i) for i in range(12)], fps=20)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert new_threads(before) == set()


@pytest.mark.parametrize("tft", ["off", "every", "track"])
def test_frames_come_in_order_explained_as_images_are(tiny, film, tft):
    frames = list(whycam.stream(tiny, film, tft=tft))
    assert [frame.index for frame in frames] == list(range(12))
    np.testing.assert_allclose([f.seconds for f in frames], np.arange(12) / 20, atol=1e-6)
    for frame in frames:
        alone = tiny.explain(frame.original, tft=tft != "off")
        assert frame.explanation.index == alone.index
        assert np.array_equal(frame.explanation.original_map, alone.original_map)
        assert frame.image.shape == frame.original.shape
        assert frame.ranking[0] == (alone.index, alone.label, pytest.approx(alone.probability))
        assert frame.dropped == 0
        assert frame.look.tft == tft
    if tft == "every":
        tried = [frame.timing.evaluations for frame in frames]
        assert tried == [10] * 12
    if tft == "off":
        assert {frame.timing.evaluations for frame in frames} == {0}
    assert frames[-1].timing.fps > 0
    assert all(frame.timing.latency > 0 for frame in frames)


def test_controls_act_on_the_running_stream(tiny, film):
    with whycam.stream(tiny, film, loop=True, method="gradcam") as running:
        first = next(running)
        running.controls.change(method="layercam", target="cat", opacity=0.1, tft="every")
        later = list(islice(running, 6))[-1]
        with pytest.raises(RequestError):
            running.controls.change(method="layercam", target="dog")
        assert next(running).look == later.look
    assert (first.explanation.method, first.explanation.threshold) == ("gradcam", None)
    assert later.explanation.method == "layercam"
    assert later.explanation.label == "cat"
    assert later.explanation.rpi is not None
    assert later.look.opacity == 0.1


def test_view_and_colour_map_act_on_the_running_stream(tiny, film):
    with whycam.stream(tiny, film, loop=True, view="map", caption=False) as running:
        first = next(running)
        running.controls.change(view="side-by-side", colormap="jet")
        later = list(islice(running, 6))[-1]
    height, width = first.original.shape[:2]
    assert first.image.shape == (height, width, 3)
    assert later.image.shape == (height, 2 * width, 3)
    assert np.array_equal(later.image[:, :width], later.original)
    assert (later.look.view, later.look.colormap) == ("side-by-side", "jet")


def test_speed_is_written_over_the_frames_of_live_sources_alone(tiny, monkeypatch):
    notes = []

    def draw(self, image, explanation, note=""):
        notes.append(note)
        return image

    monkeypatch.setattr(whycam.Overlay, "draw", draw)
    images = [image_of(index) for index in range(4)]
    lively = {frame.live for frame in whycam.stream(tiny, images)}
    assert (lively, set(notes)) == ({False}, {""})
    notes.clear()
    lively = {frame.live for frame in whycam.stream(tiny, FakeCapture(images), drop=False, limit=4)}
    assert lively == {True}
    assert "fps" in notes[-1]


def test_an_error_of_the_network_reaches_whoever_takes_the_frames(manifest_of, tiny_engine, film):
    runs = []

    def break_at_the_fourth(found):
        runs.append(1)
        if len(runs) == 4:
            found["probabilities"][:] = np.nan

    broken = whycam.Explainer(tiny_engine(break_at_the_fourth), manifest_of())
    taken = []
    with pytest.raises(EngineError, match="NaN"):
        taken.extend(frame.index for frame in whycam.stream(broken, film))
    # What came before it was delivered. (extend keeps what it had.)
    assert taken == [0, 1, 2]


def test_an_error_of_the_source_reaches_whoever_takes_the_frames(tiny):
    def images():
        yield image_of(0)
        yield image_of(1)
        raise OSError("the disk is gone")

    taken = []
    with pytest.raises(OSError, match="the disk is gone"):
        taken.extend(frame.index for frame in whycam.stream(tiny, images()))
    assert taken == [0, 1]


def test_what_happens_in_the_loop_ends_the_threads(tiny, film):
    with pytest.raises(ZeroDivisionError), whycam.stream(tiny, film, loop=True) as running:  # noqa: PT012
        next(running)
        1 / 0  # noqa: B018


def test_a_stream_can_be_left_stopped_and_closed_twice(tiny, film):
    running = whycam.stream(tiny, film, loop=True)
    next(running)
    running.stop()
    assert list(running) == []
    running.close()
    running.close()
    assert list(running) == []


def test_leaving_the_loop_ends_the_threads(tiny, film):
    for frame in whycam.stream(tiny, film, loop=True):
        assert frame.index == 0
        break


def test_a_stream_that_waits_for_a_silent_camera_can_be_stopped(tiny):
    hanging = threading.Event()
    running = whycam.stream(tiny, FakeCapture([image_of(0), hanging]), stall=60)
    next(running)
    threading.Timer(0.2, running.stop).start()
    begun = time.monotonic()
    assert list(running) == []
    assert time.monotonic() - begun < 10
    hanging.set()
    running.close()


def test_limit_ends_it(tiny, film):
    running = whycam.stream(tiny, film, limit=5)
    assert len(list(running)) == 5
    assert running.total == 12


def test_a_camera_slower_explained_than_it_films_keeps_its_latency(manifest_of, tiny_engine):
    class Slow(tiny_engine):
        def run(self, feeds, outputs):
            time.sleep(0.03)
            return super().run(feeds, outputs)

    items = [part for i in range(120) for part in (image_of(i), 0.003)]
    explainer = whycam.Explainer(Slow(), manifest_of())
    frames = list(whycam.stream(explainer, FakeCapture(items)))
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert len(frames) < 80
    assert frames[-1].dropped > 20
    # One being explained and one waiting, at most, and not all that was filmed since.
    assert np.median([frame.timing.latency for frame in frames]) < 0.4


def test_frames_may_change_their_size(tiny, tmp_path):
    events = []
    sizes = [(48, 64)] * 3 + [(90, 40)] * 3 + [(8, 8)] * 2
    images = [image_of(i, size) for i, size in enumerate(sizes)]
    with VideoFile(tmp_path / "film.mp4", 25) as video:
        for frame in whycam.stream(tiny, iter(images), tell=events.append, tft="track"):
            assert frame.image.shape[:2] == sizes[frame.index]
            video.write(frame.image, frame.seconds)
    assert [event.kind for event in events] == ["resized", "resized"]
    assert events[0].text == "frames have 40 x 90 pixels from frame 3 on"
    assert {frame.shape for frame in read_video(video.path)[0]} == {(48, 64, 3)}


def test_a_long_stream_holds_on_to_no_frame_and_makes_no_threads(tiny, film):
    before = set(threading.enumerate())
    images = []
    with whycam.stream(tiny, film, loop=True, tft="track") as running:
        for frame in islice(running, 300):
            images.append(weakref.ref(frame.original))
            assert len(set(threading.enumerate()) - before) < 8
    del frame
    assert sum(each() is not None for each in images) < 4


@pytest.mark.parametrize(
    "settings",
    [
        {"fps": 0},
        {"fps": float("nan")},
        {"limit": 0},
        {"stall": 0},
        {"retries": -1},
        {"evaluations": 0},
        {"evaluations": 3, "quality": "full"},
        {"quality": "best"},
        {"tft": "sometimes"},
        {"opacity": 2},
        {"target": "dog"},
        {"method": "magic"},
    ],
)
def test_unusable_settings_are_refused_at_once(tiny, film, settings):
    with pytest.raises(RequestError):
        whycam.stream(tiny, film, **settings)


def test_only_files_can_be_looped(tiny):
    with pytest.raises(RequestError, match="cannot start again"):
        whycam.stream(tiny, iter([image_of(0)]), loop=True)


def test_tracking_needs_a_graph_that_takes_masked_images(manifest_of, tiny_engine, film):
    embedded = manifest_of(
        embedded_preprocess=True, outputs=("tft",), methods=("gradcam",), map_methods=("gradcam",)
    )
    explainer = whycam.Explainer(tiny_engine(), embedded)
    with pytest.raises(RequestError, match="tft=track shows the network masked images"):
        whycam.stream(explainer, film, tft="track")


def test_records_are_json_lines_with_the_numbers_of_each_frame(tiny, film, tmp_path):
    with RecordFile(tmp_path / "seen.jsonl") as records:
        frames = list(whycam.stream(tiny, film, tft="track"))
        for frame in frames:
            records.write(frame)
    lines = [json.loads(line) for line in records.path.read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(12))
    for line, frame in zip(lines, frames, strict=True):
        assert line["index"] == frame.explanation.index
        assert line["label"] == frame.explanation.label
        assert line["probability"] == pytest.approx(frame.explanation.probability)
        assert line["threshold"] == frame.explanation.threshold
        assert len(line["rpi"]) == 10
        assert line["ranking"][0]["label"] == frame.ranking[0][1]
        assert line["reused"] == frame.reused
        assert set(line["timing"]) == {"read", "explain", "draw", "latency", "fps", "evaluations"}


class NoTime:
    """A schedule that is late from its second frame on."""

    def __init__(self, _live):
        self.frames = 0

    def slack(self, *_):
        return -1.0 if self.frames else 1.0

    def is_late(self, seconds, _arrived):
        return seconds > 0

    def limit(self, *_):
        return TimeLimit(0.0, 0.0)

    def finish(self, *_):
        self.frames += 1


def test_without_time_thresholds_are_held_and_said_to_be(tiny, film, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "Schedule", NoTime)
    with RecordFile(tmp_path / "seen.jsonl") as records:
        frames = list(whycam.stream(tiny, film, tft="track"))
        for frame in frames:
            records.write(frame)
    assert [frame.reused for frame in frames] == [None] + ["threshold"] * 11
    assert [frame.timing.evaluations > 0 for frame in frames] == [True] + [False] * 11
    first = frames[0].explanation
    for frame in frames[1:]:
        alone = tiny.explain(frame.original)
        assert np.array_equal(frame.explanation.original_map, alone.original_map)
        assert frame.explanation.threshold == first.threshold
        assert np.isnan(frame.explanation.rpi).all()
    lines = [json.loads(line) for line in records.path.read_text().splitlines()]
    assert [line["reused"] for line in lines] == [None] + ["threshold"] * 11
    assert lines[1]["rpi"] == [None] * 10


@pytest.mark.parametrize("tft", ["off", "track"])
def test_rate_shows_late_frames_with_the_last_explanation(tiny, film, monkeypatch, tft):
    monkeypatch.setattr(stream_module, "Schedule", NoTime)
    frames = list(whycam.stream(tiny, film, tft=tft, quality="rate", smoothing=0))
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.reused for frame in frames] == [None] + ["explanation"] * 11
    for frame in frames[1:]:
        assert frame.explanation.original_map is frames[0].explanation.original_map
        assert np.array_equal(frame.explanation.image, frame.original)
        assert frame.ranking == frames[0].ranking


def test_a_late_frame_of_another_size_is_explained(tiny, monkeypatch):
    monkeypatch.setattr(stream_module, "Schedule", NoTime)
    images = [image_of(0), image_of(1), image_of(2, (90, 40)), image_of(3, (90, 40))]
    frames = whycam.stream(tiny, images, quality="rate", fps=25)
    assert [frame.reused for frame in frames] == [None, "explanation", None, "explanation"]


def test_a_fixed_number_of_evaluations_asks_no_clock(tiny, film, monkeypatch):
    monkeypatch.setattr(stream_module, "Schedule", NoTime)
    runs = [
        [
            (frame.timing.evaluations, frame.explanation.threshold, frame.reused)
            for frame in whycam.stream(tiny, film, tft="track", evaluations=2)
        ]
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert all(evaluations >= 1 for evaluations, _, _ in runs[0])


def test_images_without_a_rate_have_a_fixed_number_of_evaluations(tiny, monkeypatch):
    monkeypatch.setattr(stream_module, "Schedule", NoTime)
    frames = list(whycam.stream(tiny, (image_of(i) for i in range(6)), tft="track"))
    assert {frame.reused for frame in frames} == {None}


class Counting:
    """Counts the images that an engine classifies or explains."""

    def __init__(self, engine):
        self.engine, self.images = engine, 0

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def run(self, feeds, outputs):
        self.images += len(feeds["image"])
        return self.engine.run(feeds, outputs)


def test_unchanged_frames_cost_the_network_nothing(tiny_engine, manifest_of):
    engine = Counting(tiny_engine())
    explainer = whycam.Explainer(engine, manifest_of())
    order = [0, 0, 0, 0, 1, 1, 0, 0]
    frames = list(whycam.stream(explainer, (image_of(i) for i in order), smoothing=0))
    assert [f.reused == "unchanged" for f in frames] == [
        i > 0 and order[i] == order[i - 1] for i in range(8)
    ]
    assert engine.images == 3
    for i in range(1, 8):
        if frames[i].reused is not None:
            assert np.array_equal(frames[i].explanation.map, frames[i - 1].explanation.map)
            assert np.array_equal(frames[i].image, frames[i - 1].image)
    frames[2].image[:] = 0  # what a program draws on a frame is on no other
    assert frames[3].image.any()


def test_one_pixel_is_a_change_and_so_is_the_same_array_with_other_pixels(tiny):
    def one_array():
        image = image_of(0)
        yield image
        yield image
        image[-2, -3, 1] += 1
        yield image

    reused = [frame.reused for frame in whycam.stream(tiny, one_array())]
    assert reused == [None, "unchanged", None]


def test_a_frame_that_a_program_draws_on_is_compared_as_it_was(tiny):
    with whycam.stream(tiny, (image_of(0) for _ in range(4))) as running:
        for frame in running:
            if frame.index:
                assert frame.reused == "unchanged"
            frame.original[:] = 7


def test_smoothing_goes_on_over_unchanged_frames(tiny):
    images = [image_of(3), *[image_of(4)] * 12]
    drawn = [frame.image for frame in whycam.stream(tiny, images, smoothing=0.5)]
    alone = [frame.image for frame in whycam.stream(tiny, images, smoothing=0.0)]
    assert not np.array_equal(drawn[1], drawn[4])
    assert np.array_equal(drawn[12], alone[12])


def test_another_look_explains_unchanged_frames_anew(tiny):
    with whycam.stream(tiny, (image_of(0) for _ in range(60)), method="gradcam") as running:
        next(running)
        running.controls.change(method="layercam")
        later = list(islice(running, 8))
    assert later[-1].explanation.method == "layercam"
    assert [frame.reused for frame in later].count(None) <= 1


def test_a_held_threshold_of_an_unchanged_frame_is_completed_when_there_is_time(tiny, monkeypatch):
    class LittleTime(NoTime):
        def slack(self, *_):
            return -1.0 if self.frames in (1, 2) else 1.0

        def limit(self, *_):
            return TimeLimit(*[max(0.0, self.slack())] * 2)

    monkeypatch.setattr(stream_module, "Schedule", LittleTime)
    images = [image_of(0), *[image_of(1)] * 4]
    frames = list(whycam.stream(tiny, images, tft="track", fps=25))
    assert [f.reused for f in frames] == [None, "threshold", "unchanged", None, "unchanged"]
    assert frames[3].timing.evaluations > 0


def test_importing_whycam_reads_no_video_library(run_python):
    said = run_python("""
        import sys, whycam
        print(whycam.Stream.__name__, whycam.Overlay.__name__, callable(whycam.stream))
        print([name for name in ("cv2", "PIL", "torch", "rich") if name in sys.modules])
    """)
    assert said == "Stream Overlay True\n[]"


@pytest.fixture
def command(capsys, lite0_onnx):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["stream", str(lite0_onnx), *map(str, arguments)])
        said = capsys.readouterr()
        return stop.value.code, said.out, " ".join(said.err.split())

    return run


@pytest.mark.slow
def test_the_command_writes_video_and_records(command, film, tmp_path):
    code, said, err = command(
        "--source", film, "--tft", "track", "-o", tmp_path / "why.mp4",
        "--record", tmp_path / "why.jsonl", "--json",
        "--opacity", 0, "--no-contour", "--no-caption",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(said)
    assert report["frames"] == 12
    assert report["latency"]["median"] > 0
    assert report["written"] == [str(tmp_path / "why.mp4"), str(tmp_path / "why.jsonl")]
    before, times = read_video(film)
    after, shown = read_video(tmp_path / "why.mp4")
    assert len(after) == len(before)
    assert shown == pytest.approx(times, abs=1e-4)
    # Nothing is drawn at opacity 0: each still says which frame it is.
    assert [number_of(frame) for frame in after] == list(range(12))
    assert len((tmp_path / "why.jsonl").read_text().splitlines()) == 12


def test_what_was_written_before_an_error_is_kept_and_said(command, film, tmp_path, monkeypatch):
    free = iter([10**9, 0])
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(next(free)))
    video = tmp_path / "why.mp4"
    code, _, err = command("--source", film, "--loop", "-o", video)
    assert code == 2
    assert f"no space is left for {video}" in err
    assert f"kept: {video}, with the frames before this error" in err
    assert len(read_video(video)[0]) == 16


def test_the_command_sums_up_for_people(command, film):
    code, said, _ = command("--source", film, "--limit", "3", "--fps", "10")
    assert code == 0
    assert said.startswith("3 frames in ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nothing.mp4"], "there is no file, folder or camera nothing.mp4"),
        (["--source", "97"], "cannot open camera 97"),
        (["--source", "FILM", "-o", "why.avi"], "a video is written as .mp4"),
        (["--source", "FILM", "-o", "/proc/none/why.mp4"], "cannot write /proc/none/why.mp4"),
        (["--source", "FILM", "--record", "/proc/none/why"], "cannot write /proc/none/why"),
        (["--source", "FILM", "-o", "FILM"], "is the source itself"),
        (["--source", "FILM", "--tft", "perhaps"], "'off', 'every', 'track'"),
        (["--source", "FILM", "--target", "unicorn"], "no class is called 'unicorn'"),
        (["--source", "FILM", "--limit", "0"], "limit must be 1 or more"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(command, film, tmp_path, arguments, message):
    given = [str(film) if each == "FILM" else each for each in arguments]
    code, _, err = command(*given)
    assert code == 2
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_a_window_without_a_screen_says_what_to_do(command, film, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = command("--source", film, "--show")
    assert code == 2
    assert "pip install opencv-python" in err or "there is no screen here" in err
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:   GTK3")
    code, _, err = command("--source", film, "--show")
    assert code == 2
    assert "neither DISPLAY nor WAYLAND_DISPLAY is set" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_files(lite0_onnx, film, tmp_path, number):
    video, record = tmp_path / "why.mp4", tmp_path / "why.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "whycam", "stream", lite0_onnx, "--source", film, "--loop",
         "--drop", "-o", video, "--record", record],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until frames reach the file under its temporary name
        if any(path.stat().st_size > 0 for path in tmp_path.glob(".why*.mp4")):
            break
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    said, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    frames, _ = read_video(video)
    assert len(frames) == len(record.read_text().splitlines()) > 0
    assert f"{len(frames)} frames in" in said
    assert {path.name for path in tmp_path.iterdir()} == {"film.mp4", "why.mp4", "why.jsonl"}


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["cockatoo", "bikes"])
def test_real_videos_are_explained_and_written(lite0, shared_data, tmp_path, name):
    path = shared_data / "video" / f"{name}.mp4"
    settings = {"tft": "track", "limit": 6, "smoothing": 0, "contour": False, "caption": False}
    with VideoFile(tmp_path / "why.mp4", 25) as video, whycam.stream(lite0, path, **settings) as s:
        for frame in s:
            assert 0 < frame.explanation.probability <= 1
            video.write(frame.image, frame.seconds)
            values = frame.explanation.on_image(frame.explanation.original_map)
            near = cv2.dilate(values, np.ones((3, 3))) > 0
            assert (frame.image == frame.original).all(-1)[~near].all()
            assert (frame.image != frame.original).any()
    written, seconds = read_video(video.path)
    original, times = read_video(path)
    assert seconds == pytest.approx(times[:6], abs=1e-4)
    assert written[0].shape == original[0].shape


def test_the_look_says_what_it_cannot_be():
    for fields in ({"smoothing": 1.0}, {"threshold": -1.0}, {"tft": "no"}, {"view": "no"}):
        with pytest.raises(RequestError):
            Look(**fields)
    assert msgspec.to_builtins(Look())["tft"] == "off"


def test_the_example_loop_is_short_and_runs(lite0_onnx, film, tmp_path):
    example = Path(__file__).parent.parent / "examples" / "opencv_loop.py"
    code = [line for line in example.read_text().splitlines() if line.strip()]
    assert len(code) <= 15
    out = tmp_path / "out.avi"
    subprocess.run(
        [sys.executable, example, lite0_onnx, film, out], check=True, timeout=120, env=os.environ
    )
    assert len(read_video(out)[0]) == 12


def test_lost_files_are_an_error_of_the_source(tiny, tmp_path):
    with pytest.raises(SourceError):
        whycam.stream(tiny, tmp_path / "nothing.mp4")
