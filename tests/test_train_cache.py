"""The cache: chunks whole or absent, dealt out to processes, readable by any."""

from __future__ import annotations

import numpy as np
import pytest

from whycam.runtime.errors import OutputError
from whycam.train.cache import CHUNK, Cache

LAYOUT = {"a": ((2, 3), "float16"), "b": ((), "int64")}
COUNT = 2 * CHUNK + 5


def filled(folder, share=(0, 1)) -> Cache:
    cache = Cache(folder, COUNT, LAYOUT)
    for index, items in cache.missing(*share):
        rows = np.array(list(items))
        arrays = {"a": np.broadcast_to(rows[:, None, None] % 100, (len(rows), 2, 3)), "b": rows}
        cache.write(index, arrays, {items[1]: "bad"})
    return cache


def test_rows_come_back_in_the_order_asked_for(tmp_path):
    cache = filled(tmp_path / "c")
    items = [COUNT - 1, 0, CHUNK, 3]
    assert cache.rows("b", items).tolist() == items
    assert cache.rows("a", items)[:, 1, 2].tolist() == [item % 100 for item in items]
    assert cache.rows("a", items).dtype == np.float16
    assert cache.errors() == {1: "bad", CHUNK + 1: "bad", 2 * CHUNK + 1: "bad"}


def test_processes_share_the_chunks_and_read_all(tmp_path):
    shares = [
        {index for index, _ in Cache(tmp_path, COUNT, LAYOUT).missing(rank, 2)} for rank in (0, 1)
    ]
    assert shares == [{0, 2}, {1}]
    filled(tmp_path, (0, 2))
    other = filled(tmp_path, (1, 2))
    assert not list(other.missing())
    assert other.rows("b", range(COUNT)).tolist() == list(range(COUNT))


def test_chunk_that_was_not_finished_does_not_count(tmp_path):
    cache = Cache(tmp_path, COUNT, LAYOUT)
    with pytest.raises(KeyError):
        cache.write(0, {"a": np.zeros((CHUNK, 2, 3))}, {})  # "b" is missing: as if interrupted
    assert [index for index, _ in cache.missing()] == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_said_beforehand(tmp_path):
    with pytest.raises(OutputError, match=r"GiB are free.*--cache"):
        Cache(tmp_path, 10**5, {"a": ((10**5, 1000), "float64")}).check_space()


def test_place_that_is_no_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        filled(tmp_path / "file" / "cache")


def test_many_chunks_need_few_open_files(tmp_path, monkeypatch):
    import os

    from whycam.train import cache as module

    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(module, "OPEN_FILES", 5)
    cache = Cache(tmp_path, 60, {"b": ((), "int64")})
    for index, items in cache.missing():
        cache.write(index, {"b": np.array(list(items))}, {})
    before = len(os.listdir("/proc/self/fd"))
    assert cache.rows("b", range(60)).tolist() == list(range(60))
    assert cache.rows("b", [1, 59, 1]).tolist() == [1, 59, 1]
    assert len(os.listdir("/proc/self/fd")) - before <= 6
