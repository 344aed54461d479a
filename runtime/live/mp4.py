"""The index of an MP4 file: how many frames it holds, and when each is shown.

OpenCV writes frames evenly spaced. A camera's are not, and neither are those that are left when
some were dropped; so the times are put into the index after the file was written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path

_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")
_TICKS = 90_000  # a second; as MPEG's own clock has
_LONGEST = 2**32 - 1  # ticks that the index can count


def frame_count(path: Path) -> int | None:
    """How many frames a file's index holds; None: it has none, and cannot be played."""
    found = _index(path)
    if found is None:
        return None
    for kind, payload in _leaves(found[1]):
        if kind == b"stsz" and len(payload) >= 12:
            return int.from_bytes(payload[8:12], "big")
    return None


def retime(path: Path, seconds: Sequence[float]) -> bool:
    """Say when each frame is shown.

    Args:
        path: a file with one video track and its index at the end, as OpenCV writes it.
        seconds: of each frame, increasing; the first is shown at once.

    Returns:
        Whether it could be done; else the file is as before.
    """
    found = _index(path)
    if found is None or len(seconds) < 2 or frame_count(path) != len(seconds):
        return False
    offset, index = found
    ticks = _TICKS if (seconds[-1] - seconds[0] + 60) * _TICKS < _LONGEST else 1000
    moments = [round((moment - seconds[0]) * ticks) for moment in seconds]
    steps = [max(1, after - before) for before, after in pairwise(moments)]
    steps.append(sorted(steps)[len(steps) // 2])  # how long the last is shown, nobody knows
    if sum(steps) >= _LONGEST:
        return False
    try:
        changed = _retimed(index, steps, ticks)
    except struct.error:
        return False
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(">I4s", len(changed) + 8, b"moov") + changed)
        file.truncate()
    return True


def _index(path: Path) -> tuple[int, bytes] | None:
    """Where the index begins and what it holds, if it is the file's last box."""
    size = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while offset + 8 <= size:
            file.seek(offset)
            length, kind = struct.unpack(">I4s", file.read(8))
            if length == 1:
                length = int.from_bytes(file.read(8), "big")
            elif length == 0:
                length = size - offset
            if length < 8 or offset + length > size:
                return None
            if kind == b"moov":
                return (offset, file.read(length - 8)) if offset + length == size else None
            offset += length
    return None


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and payload of each box in a container."""
    offset = 0
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if length < 8:
            return
        yield kind, data[offset + 8 : offset + length]
        offset += length


def _leaves(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for kind, payload in _boxes(data):
        if kind in _CONTAINERS:
            yield from _leaves(payload)
        else:
            yield kind, payload


def _retimed(data: bytes, steps: Sequence[int], ticks: int) -> bytes:
    """A container with the times in all its boxes changed."""
    parts = []
    for kind, payload in _boxes(data):
        if kind in _CONTAINERS:
            new = _retimed(payload, steps, ticks)
        else:
            new = _with_times(kind, payload, steps, ticks)
        parts.append(struct.pack(">I4s", len(new) + 8, kind) + new)
    return b"".join(parts)


# Where a box of version 0 holds its duration, and whether the file's clock counts it, at 1000 ticks
# a second in what OpenCV writes.
_DURATIONS = {b"mvhd": 16, b"tkhd": 20, b"elst": 8, b"mdhd": 16}


def _with_times(kind: bytes, payload: bytes, steps: Sequence[int], ticks: int) -> bytes:
    if kind == b"stts":
        runs = [(len(list(same)), step) for step, same in groupby(steps)]
        table = b"".join(struct.pack(">II", count, step) for count, step in runs)
        return payload[:4] + struct.pack(">I", len(runs)) + table
    if kind not in _DURATIONS:
        return payload
    if payload[0] != 0:
        raise struct.error("times of 64 bits, which only films of many days have")
    changed = bytearray(payload)
    own = kind == b"mdhd"
    duration = sum(steps) if own else round(sum(steps) * 1000 / ticks)
    struct.pack_into(">I", changed, _DURATIONS[kind], duration)
    if own or kind == b"mvhd":
        struct.pack_into(">I", changed, 12, ticks if own else 1000)
    return bytes(changed)
