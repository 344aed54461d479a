"""Sources: files, folders, cameras that die, stall, stutter and come back."""

import threading
import time

import cv2
import numpy as np
import pytest
from captures import CORRUPT, FakeCapture, image_of, new_threads, number_of, source_of, write_video

from whycam.runtime.errors import SourceError
from whycam.runtime.live import reader as reading
from whycam.runtime.live.reader import Reader
from whycam.runtime.live.source import find_source


@pytest.fixture
def events():
    return []


@pytest.fixture
def read(events):
    opened = []

    def open_reader(source, **settings):
        settings = {"drop": False, "tell": events.append} | settings
        opened.append(Reader(source, **settings))
        return opened[-1]

    yield open_reader
    for each in opened:
        each.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(reading, "_FIRST_DELAY", 0.02)
    monkeypatch.setattr(reading, "_TICK", 0.005)


def test_a_file_gives_every_frame_in_order_with_its_time(read, tmp_path):
    path = write_video(tmp_path / "film.mp4", [image_of(i) for i in range(12)], fps=20)
    reader = read(find_source(path))
    frames = list(reader.frames)
    assert (reader.state.fps, reader.state.total) == (20, 12)
    assert [frame.index for frame in frames] == list(range(12))
    assert [number_of(frame.image) for frame in frames] == list(range(12))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(12) / 20, atol=1e-6)


def test_colours_arrive_in_rgb(read):
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 2] = 255  # OpenCV's order
    (frame,) = read(source_of(FakeCapture([red]), live=False)).frames
    assert frame.image[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (6, 4, 4)])
def test_grey_and_transparent_frames_become_three_channels(read, shape):
    (frame,) = read(source_of(FakeCapture([np.full(shape, 7, np.uint8)]), live=False)).frames
    assert frame.image.shape == (6, 4, 3)


def test_a_live_source_drops_old_frames_and_counts_them(read):
    items = [*(image_of(i) for i in range(10)), threading.Event()]
    reader = read(source_of(FakeCapture(items)), drop=True, stall=60)
    while reader.state.read < 10 or reader.frames.dropped < 9:
        time.sleep(0.01)
    assert next(reader.frames).index == 9  # the newest
    assert reader.frames.dropped == 9


def test_a_file_waits_for_whoever_is_slow(read):
    reader = read(source_of(FakeCapture([image_of(i) for i in range(10)]), live=False))
    taken = []
    for frame in reader.frames:
        time.sleep(0.01)
        taken.append(frame.index)
    assert taken == list(range(10))
    assert reader.frames.dropped == 0


def test_a_lost_camera_is_opened_again_ever_more_slowly(read, events):
    gone = SourceError("nobody there")
    reader = read(
        source_of(
            FakeCapture([image_of(0)]),
            gone,
            gone,
            gone,
            FakeCapture([image_of(1), threading.Event()]),
        )
    )
    frames = [next(reader.frames), next(reader.frames)]
    assert [frame.index for frame in frames] == [0, 1]
    assert frames[1].seconds > 0.02 + 0.04 + 0.08 + 0.16
    assert reader.state.reconnects == 1
    assert [event.kind for event in events] == ["lost"] * 4 + ["back"]
    delays = [event.text.split("again in ")[1] for event in events[:4]]
    assert delays == ["0.02 s", "0.04 s", "0.08 s", "0.16 s"]
    assert "camera 9 sends no more frames" in events[0].text


def test_the_delay_begins_anew_once_frames_came(read, events):
    reader = read(source_of(*(FakeCapture([image_of(i)]) for i in range(3)), RuntimeError()))
    with pytest.raises(RuntimeError):
        list(reader.frames)
    delays = [event.text.split("again in ")[1] for event in events if event.kind == "lost"]
    assert delays == ["0.02 s"] * 3


def test_retries_run_out(read):
    gone = SourceError("nobody there")
    reader = read(source_of(FakeCapture([image_of(0)]), gone, gone), retries=2)
    with pytest.raises(SourceError, match="nobody there; it did not come back in 2 attempts"):
        list(reader.frames)


def test_a_silent_camera_is_left_behind_and_opened_again(read, events):
    hanging = threading.Event()
    stuck = FakeCapture([image_of(0), hanging])
    reader = read(
        source_of(stuck, FakeCapture([image_of(1), threading.Event()])), stall=0.1, drop=False
    )
    assert [next(reader.frames).index for _ in range(2)] == [0, 1]
    assert "camera 9 has sent no frame for 0.1 s" in events[0].text
    assert not stuck.released.is_set()
    hanging.set()
    assert stuck.released.wait(5)  # the thread left behind tidies up once it can


def test_closing_does_not_wait_for_a_hanging_driver(read):
    hanging = threading.Event()
    reader = read(source_of(FakeCapture([image_of(0), hanging])), stall=60)
    next(reader.frames)
    begun = time.monotonic()
    reader.close()
    assert time.monotonic() - begun < 3
    hanging.set()


def test_corrupt_frames_are_left_out_and_counted(read, events):
    items = [
        image_of(0),
        CORRUPT,
        cv2.error("broken"),
        np.zeros((3, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        image_of(5),
    ]
    reader = read(source_of(FakeCapture(items), live=False))
    assert [frame.index for frame in reader.frames] == [0, 5]
    assert reader.state.corrupt == 4
    assert [event.kind for event in events] == ["corrupt"]  # said once


def test_a_source_of_nothing_but_corrupt_frames_ends_with_an_error(read):
    def forever():
        while True:
            yield CORRUPT

    reader = read(source_of(FakeCapture(forever()), live=False))
    with pytest.raises(SourceError, match="300 frames of camera 9 in a row could not be decoded"):
        list(reader.frames)


def test_a_file_that_ends_before_its_time_says_so(read, events):
    source = source_of(FakeCapture([image_of(0)] * 10, 25, 100), live=False, name="film.mp4")
    assert len(list(read(source).frames)) == 10
    assert events[0].text == "film.mp4 ended after 10 of 100 frames"


def test_a_file_without_frames_is_an_error(read):
    with pytest.raises(SourceError, match=r"no frame could be read from film\.mp4"):
        list(read(source_of(FakeCapture([]), live=False, name="film.mp4")).frames)


def test_fewer_frames_a_second_are_spread_evenly(read, tmp_path):
    path = write_video(tmp_path / "film.mp4", [image_of(i) for i in range(12)], fps=30)
    reader = read(find_source(path), fps=10)
    assert [frame.index for frame in reader.frames] == [0, 3, 6, 9]
    assert reader.pace == 10


def test_a_file_that_may_be_dropped_from_plays_at_its_own_pace(read, tmp_path):
    path = write_video(tmp_path / "film.mp4", [image_of(i) for i in range(10)], fps=50)
    begun = time.monotonic()
    frames = list(read(find_source(path), drop=True).frames)
    assert time.monotonic() - begun > 0.17
    assert frames[-1].index == 9


def test_a_looped_file_counts_on(read, tmp_path):
    path = write_video(tmp_path / "film.mp4", [image_of(i) for i in range(5)], fps=25)
    reader = read(find_source(path), loop=True)
    frames = [next(reader.frames) for _ in range(12)]
    assert [frame.index for frame in frames] == list(range(12))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(12) / 25, atol=1e-6)


def test_a_folder_is_read_in_the_order_of_names_without_its_broken_images(read, tmp_path):
    for name, number in (("b.png", 1), ("a.png", 0), ("d.png", 3)):
        cv2.imwrite(str(tmp_path / name), image_of(number))
    (tmp_path / "c.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("left alone")
    reader = read(find_source(tmp_path, fps=10))
    frames = list(reader.frames)
    assert [number_of(frame.image) for frame in frames] == [0, 1, 3]
    assert [frame.index for frame in frames] == [0, 1, 3]
    assert (reader.state.corrupt, reader.state.total, reader.pace) == (1, 4, 10)


def test_images_and_captures_of_ones_own_can_be_passed(read, tmp_path):
    frames = list(read(find_source(image_of(i) for i in range(3))).frames)
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2]
    path = write_video(tmp_path / "film.mp4", [image_of(i) for i in range(4)])
    assert len(list(read(find_source(cv2.VideoCapture(str(path)))).frames)) == 4


def test_a_camera_of_ones_own_that_ends_is_no_error(read):
    capture = FakeCapture([image_of(0), image_of(1)])
    source = find_source(capture)
    assert source.live
    assert len(list(read(source).frames)) == 2
    assert capture.released.is_set()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/film.mp4", "there is no file, folder or camera no/such/film.mp4"),
        ("empty.mp4", "is empty"),
        ("noise.mp4", "is no video that FFmpeg can read"),
        (".", "there are no images in the folder"),
        (97, "cannot open camera 97"),
        ("rtsp://user:secret@127.0.0.1:9/x", "cannot open rtsp://127.0.0.1:9/x within"),
        ("videotestsrc ! appsink", "built without GStreamer|cannot start the GStreamer"),
        (True, "not True"),
        (3.5, "cannot read a stream from float"),
    ],
)
def test_a_source_that_is_none_says_why(read, tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(source, str) and source.endswith(".mp4") and "/" not in source:
        (tmp_path / source).write_bytes(b"noise" * 500 if source == "noise.mp4" else b"")
    with pytest.raises(SourceError, match=message):
        read(find_source(source))


def test_no_thread_is_left(read):
    before = set(threading.enumerate())
    reader = read(source_of(FakeCapture([image_of(i) for i in range(50)]), live=False))
    next(reader.frames)
    reader.close()
    assert new_threads(before) == set()
