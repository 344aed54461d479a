"""MP4 files: order, count and times of the frames, sizes, and what is left when writing fails."""

import shutil
from collections import namedtuple

import av
import numpy as np
import pytest
from captures import image_of, number_of, read_video

from whycam.runtime.errors import OutputError, RequestError
from whycam.runtime.live.video import VideoFile
from whycam.runtime.live.video_reader import VideoReader


def write(path, count=10, seconds=None, fps=25):
    with VideoFile(path, fps) as film:
        for number in range(count):
            film.write(image_of(number), None if seconds is None else float(seconds[number]))
    return film


@pytest.mark.parametrize("fps", [0.5, 10, 24000 / 1001, 25, 29.97, 60, 120000 / 1001, 999.9])
def test_evenly_spaced_frames_keep_order_count_and_time(tmp_path, fps):
    film = write(tmp_path / "film.mp4", 12, np.arange(12) / fps, fps)
    frames, seconds = read_video(film.path)
    assert [number_of(frame) for frame in frames] == list(range(12))
    np.testing.assert_allclose(seconds, np.arange(12) / fps, atol=1e-4)


def test_uneven_frames_keep_their_own_times(tmp_path):
    # As of a camera that stuttered, and then stood still for an hour.
    times = np.array([3.0, 3.04, 3.05, 3.3, 3.31, 3603.31, 3604.0])
    film = write(tmp_path / "film.mp4", len(times), times)
    frames, seconds = read_video(film.path)
    assert [number_of(frame) for frame in frames] == list(range(len(times)))
    np.testing.assert_allclose(seconds, times - 3.0, atol=1e-4)


def test_times_of_days_are_kept_to_the_millisecond(tmp_path):
    times = np.array([0.0, 1.0, 2.5, 3.7, 200_000.0])
    write(tmp_path / "film.mp4", len(times), times)
    np.testing.assert_allclose(read_video(tmp_path / "film.mp4")[1], times, atol=1e-3)


def test_frames_of_another_size_are_fitted_into_the_first(tmp_path):
    with VideoFile(tmp_path / "film.mp4", 25) as film:
        film.write(image_of(0, (48, 64)))
        film.write(np.full((96, 32, 3), 200, np.uint8))  # portrait
        film.write(np.full((10, 200, 3), 200, np.uint8))
    assert film.resized == 2
    frames, _ = read_video(film.path)
    portrait, wide = frames[1], frames[2]
    assert portrait.shape == (48, 64, 3)
    assert portrait[:, 28:36].min() > 150
    assert max(portrait[:, :20].max(), portrait[:, 44:].max()) < 40
    assert wide[23:25].min() > 150
    assert max(wide[:16].max(), wide[32:].max()) < 40


def test_odd_sizes_lose_one_row_or_column(tmp_path):
    with VideoFile(tmp_path / "film.mp4", 25) as film:
        for _ in range(3):
            film.write(image_of(1, (49, 65)))
    assert [frame.shape for frame in read_video(film.path)[0]] == [(48, 64, 3)] * 3


def test_nothing_is_left_without_frames_and_an_older_file_stays(tmp_path):
    path = tmp_path / "film.mp4"
    with VideoFile(path, 25):
        pass
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"older")
    with VideoFile(path, 25):
        pass
    assert path.read_bytes() == b"older"


def test_what_was_written_is_kept_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), VideoFile(tmp_path / "film.mp4", 25) as film:  # noqa: PT012
        for number in range(5):
            film.write(image_of(number))
        1 / 0  # noqa: B018
    assert len(read_video(film.path)[0]) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_a_disk_that_fills_up_ends_the_film_before_it_is_damaged(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    free = iter([10**9, 10**9, 1000])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, next(free)))
    film = VideoFile(tmp_path / "film.mp4", 25)
    with pytest.raises(OutputError, match=r"no space is left for .* it ends after 32 frames"):  # noqa: PT012
        for number in range(200):
            film.write(image_of(number % 20))
        film.close()
    with pytest.raises(OutputError, match="no space is left"):
        film.close()
    assert len(read_video(film.path)[0]) == 32


def test_frames_that_do_not_reach_the_disk_are_noticed(run_python, tmp_path):
    # The system refuses to let a file grow.
    said = run_python(f"""
        import resource
        import numpy as np
        from whycam.runtime.live.video import VideoFile
        from whycam.runtime.errors import OutputError
        film = VideoFile({str(tmp_path / "film.mp4")!r}, 25)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        rng = np.random.default_rng(0)
        try:
            for _ in range(60):
                film.write(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8))
            film.close()
        except OutputError as error:
            print(error)
    """)
    assert "is the disk full?" in said.lower()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_says_so_at_the_next_frame(tmp_path, monkeypatch):
    monkeypatch.setattr(VideoFile, "_open", lambda *_: 1 / 0)
    film = VideoFile(tmp_path / "film.mp4", 25)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for number in range(50):
            film.write(image_of(number))
    with pytest.raises(ZeroDivisionError):
        film.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "fps", "codec", "error"),
    [
        ("film.avi", 25, None, RequestError),
        ("film.mp4", 0, None, RequestError),
        ("film.mp4", float("nan"), None, RequestError),
        ("film.mp4", 25, "zzzz", RequestError),
        ("film.mp4", 25, "", RequestError),
        ("film.mp4", 25, "aac", RequestError),  # of sound
        ("film.mp4", 25, "vc1", RequestError),  # only read
        ("file/film.mp4", 25, None, OutputError),
    ],
)
def test_unusable_settings_are_refused_and_nothing_is_written(tmp_path, path, fps, codec, error):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(error):
        VideoFile(tmp_path / path, fps, codec)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_codec_that_cannot_write_these_frames_says_so(tmp_path):
    film = VideoFile(tmp_path / "film.mp4", 25, "wmv2")  # which MP4 does not hold
    film.write(image_of(0))
    with pytest.raises(OutputError, match="choose another codec, as mpeg4"):
        film.close()
    assert list(tmp_path.iterdir()) == []


def codec_of(path):
    with av.open(str(path)) as film:
        return film.streams.video[0].codec_context.name


def test_h264_is_written_where_ffmpeg_has_an_encoder_else_mpeg4(tmp_path, monkeypatch):
    assert codec_of(write(tmp_path / "film.mp4").path) == "h264"
    with VideoFile(tmp_path / "chosen.mp4", 25, "mpeg4") as chosen:
        chosen.write(image_of(0))
    assert codec_of(chosen.path) == "mpeg4"
    has = VideoFile._encodes
    monkeypatch.setattr(
        VideoFile, "_encodes", lambda self, name: "264" not in name and has(self, name)
    )
    film = write(tmp_path / "free.mp4", 12)
    assert codec_of(film.path) == "mpeg4"
    frames, seconds = read_video(film.path)
    assert [number_of(frame) for frame in frames] == list(range(12))
    np.testing.assert_allclose(seconds, np.arange(12) / 25, atol=1e-4)


def test_colours_survive(tmp_path):
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 128, 128)]
    with VideoFile(tmp_path / "film.mp4", 25) as film:
        for colour in colours:
            film.write(np.full((48, 64, 3), colour, np.uint8))
    reader = VideoReader(str(film.path))
    for (there, frame), opencv, colour in zip(
        iter(reader.read, (False, None)), read_video(film.path)[0], colours, strict=True
    ):
        assert there
        assert np.abs(frame.astype(int) - colour).max() < 8
        assert np.abs(opencv.astype(int) - colour).max() < 8
    reader.release()
