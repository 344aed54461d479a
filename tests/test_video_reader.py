"""Video files: upright, with their own times, whatever they are called and however damaged."""

import os
import struct
import sys

import av
import cv2
import numpy as np
import pytest
from captures import image_of, number_of, read_video, write_video

from whycam.runtime.errors import MissingExtraError, SourceError
from whycam.runtime.live.reader import Reader
from whycam.runtime.live.source import find_source
from whycam.runtime.live.video import VideoFile
from whycam.runtime.live.video_reader import VideoReader


def read(path, events=None):
    """All frames that a stream would take of a file, and the reader's counts."""
    reader = Reader(find_source(path), drop=False, tell=(events or []).append)
    return list(reader.frames), reader.state


@pytest.fixture
def film(tmp_path):
    return write_video(tmp_path / "film.mp4", [image_of(i) for i in range(12)])


def rotated(path, degrees):
    """The file with the display matrix that phones write; degrees counter-clockwise."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0
    one = 65536
    struct.pack_into(
        ">9i", data, at, cos * one, -sin * one, 0, sin * one, cos * one, 0, 0, 0, 1 << 30
    )
    path.write_bytes(data)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotated_files_come_upright(film, degrees):
    upright = read(film)[0][3].image
    rotated(film, degrees)
    turned = read(film)[0][3].image
    assert np.array_equal(turned, np.rot90(upright, degrees // 90))
    assert turned.flags.c_contiguous
    by_opencv = read_video(film)[0][3]
    assert by_opencv.shape == turned.shape
    assert np.abs(by_opencv.astype(int) - turned).mean() < 3


def test_frames_of_a_variable_rate_keep_their_times(tmp_path):
    times = [0.0, 0.05, 0.06, 1.0, 1.02, 7.5]
    with VideoFile(tmp_path / "film.mp4", 25) as film:
        for number, seconds in enumerate(times):
            film.write(image_of(number), seconds)
    frames, counted = read(film.path)
    np.testing.assert_allclose([frame.seconds for frame in frames], times, atol=1e-4)
    assert [number_of(frame.image) for frame in frames] == list(range(6))
    assert counted.total == 6


@pytest.mark.parametrize("name", ["a:b.mp4", "-x.mp4", "ü 猫.mp4", os.fsdecode(b"f\xff.mp4")])
def test_a_file_may_have_any_name(tmp_path, film, name):
    path = film.rename(tmp_path / name)
    assert len(read(path)[0]) == 12
    with VideoFile(path, 25) as written:
        written.write(image_of(0))
    assert len(read(path)[0]) == 1


def test_of_a_file_that_lost_its_end_the_frames_before_are_given(tmp_path):
    path = tmp_path / "film.ts"  # which needs no index
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(image_of(number), format="rgb24")))
        film.mux(stream.encode(None))
    whole, _ = read(path)
    assert whole[0].seconds == 0  # a transport stream's clock begins anywhere
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, _ = read(path)
    assert 0 < len(found) < len(whole)
    for before, after in zip(whole, found[:-1], strict=False):
        assert np.array_equal(before.image, after.image)


def test_packets_that_cannot_be_decoded_are_counted(tmp_path):
    with VideoFile(tmp_path / "film.mp4", 25) as film:
        for number in range(12):
            film.write(image_of(number))
    with av.open(str(film.path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        at, size = packets[5].pos, packets[5].size
    data = bytearray(film.path.read_bytes())
    data[at : at + size] = b"\xff" * size
    film.path.write_bytes(data)
    events = []
    reader = Reader(find_source(film.path), drop=False, tell=events.append)
    frames = list(reader.frames)
    assert len(frames) == 11
    assert reader.state.corrupt == 1
    assert [event.kind for event in events] == ["corrupt"]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_an_mp4_without_its_index_is_refused(film, kept):
    film.write_bytes(film.read_bytes()[: int(kept * film.stat().st_size)])
    with pytest.raises(SourceError, match="no video that FFmpeg can read"):
        read(film)


def test_a_file_of_sound_alone_is_refused(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as song:
        stream = song.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate = 8000
        song.mux(stream.encode(samples))
        song.mux(stream.encode(None))
    with pytest.raises(SourceError, match="holds no video that FFmpeg can read"):
        read(path)


def test_files_give_what_opencv_gives(film):
    """Another reader of the same file: OpenCV's own."""
    frames, counted = read(film)
    capture = cv2.VideoCapture(str(film))
    assert counted.fps == capture.get(cv2.CAP_PROP_FPS)
    assert counted.total == capture.get(cv2.CAP_PROP_FRAME_COUNT)
    for frame, theirs in zip(frames, read_video(film)[0], strict=True):
        assert np.abs(frame.image.astype(int) - theirs).max() <= 3


def test_without_pyav_the_extra_is_named(film, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r'pip install "whycam\[video\]"'):
        VideoReader(str(film))
    with pytest.raises(MissingExtraError, match=r'pip install "whycam\[video\]"'):
        VideoFile(tmp_path / "why.mp4", 25)
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
