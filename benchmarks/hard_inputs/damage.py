"""What happens to bytes on disks and networks."""

from __future__ import annotations

import random


def bytes_of(chance: random.Random, data: bytes) -> bytes:
    """A damaged copy."""
    made = data
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        made = chance.choice(_WAYS)(chance, made)
    return made


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.choice([chance.randint(0, len(data)), max(0, len(data) - 1)])]


def _flip(chance: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    # Most of what a format means stands in its first bytes.
    reach = chance.choice([20, 200, 2000, len(data)])
    for _ in range(chance.choice([1, 2, 8, 50])):
        if made:
            made[chance.randrange(min(reach, len(made)))] ^= 1 << chance.randrange(8)
    return bytes(made)


def _extreme(chance: random.Random, data: bytes) -> bytes:
    """Sizes and offsets become the largest or smallest there are."""
    at, width = chance.randint(0, min(len(data), 400)), chance.choice([1, 2, 4, 8])
    value = chance.choice([b"\xff", b"\0", b"\x7f", b"\x80"]) * width
    return data[:at] + value + data[at + width :]


def _hole(chance: random.Random, data: bytes) -> bytes:
    """A block of a disk that was never written."""
    at, size = chance.randint(0, len(data)), chance.choice([1, 64, 512])
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def _lost(chance: random.Random, data: bytes) -> bytes:
    at, size = chance.randint(0, len(data)), chance.choice([1, 7, 512])
    return data[:at] + data[at + size :]


def _twice(chance: random.Random, data: bytes) -> bytes:
    at, size = chance.randint(0, len(data)), chance.choice([1, 7, 512, len(data)])
    return data[:at] + data[at : at + size] + data[at:]


def _longer(chance: random.Random, data: bytes) -> bytes:
    return data + bytes(chance.randrange(256) for _ in range(chance.choice([1, 100])))


_WAYS = (_cut, _cut, _flip, _flip, _flip, _extreme, _extreme, _hole, _lost, _twice, _longer)
