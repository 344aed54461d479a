"""Prompts at their edges: unusable embeddings, names in any script, many of them, damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_zero_shot import IMAGES, LENGTH, prompts, zero_shot

import whycam
from whycam.cli import parse
from whycam.runtime.errors import DataError
from whycam.runtime.prompts import Prompts, read_prompts, write_prompts

SCRIPTS = ("猫", "قطة", "кошка", "बिल्ली", "🦊 fox", "é", "e\u0301", "a, b", "7", "-1", "a/b", "..")


def embeddings(first: Any) -> np.ndarray:
    rows = np.ones((2, LENGTH))
    rows[1] = first
    return rows


UNUSABLE = {
    "zero": (0.0, "class embedding 1 is zero or not finite"),
    "not a number": (np.nan, "class embedding 1 is zero or not finite"),
    "infinite": (np.inf, "class embedding 1 is zero or not finite"),
    "beyond float32": (1e300, "class embedding 1 is zero or not finite"),
    # Its square is 0 in float32, so its cosine would be 0 without a word.
    "tiny": (1e-25, "class embedding 1 has the length .*e-25, which float32 cannot normalise"),
    "huge": (1e25, "class embedding 1 has the length .*25, which float32 cannot normalise"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_embedding_without_a_direction_is_refused(case: str) -> None:
    value, message = UNUSABLE[case]
    with pytest.raises(DataError, match=message):
        Prompts(("a", "b"), embeddings(value))


@pytest.mark.parametrize("length", [1e-8, 1.0, 1e7])
def test_the_length_of_an_embedding_changes_nothing(length: float) -> None:
    unit = prompts(3)
    scaled = Prompts(unit.names, unit.embeddings * np.float32(length))
    found, expected = (
        whycam.load(zero_shot(), prompts=each).classify(IMAGES) for each in (scaled, unit)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_names_in_any_script_are_kept_and_are_targets(tmp_path: Path) -> None:
    many = Prompts(SCRIPTS, prompts(len(SCRIPTS)).embeddings)
    file = write_prompts(tmp_path / "x.npz", many)
    assert read_prompts(file).names == SCRIPTS
    explainer = whycam.load(zero_shot(), prompts=file)
    for index, name in enumerate(SCRIPTS):
        # A name that reads as a number or a list is a name first.
        (target,) = parse.targets(name, explainer.manifest.labels)
        assert explainer.explain(IMAGES[0], target).index == index


def test_maps_of_any_name_are_written_inside_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from whycam.cli import main

    names = ("a/b", "../../x", "猫")
    write_prompts(tmp_path / "p.npz", Prompts(names, prompts(3).embeddings))
    Image.fromarray(IMAGES[0]).save(tmp_path / "x.png")
    before = set(tmp_path.parent.iterdir())
    for name in names:
        with pytest.raises(SystemExit) as ended:
            main(
                ["explain", str(zero_shot()), str(tmp_path / "x.png"), "--prompts",
                 str(tmp_path / "p.npz"), "--target", name, "-o", str(tmp_path / "maps")]
            )  # fmt: skip
        assert ended.value.code == 0, capsys.readouterr().err
    assert set(tmp_path.parent.iterdir()) == before
    assert {each.name for each in tmp_path.iterdir()} == {"p.npz", "x.png", "maps"}


@pytest.mark.parametrize("name", ["a\0", "a\nb", "a\x1b[31m", "\u200b"])
def test_names_that_cannot_be_written_or_read_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="name"):
        Prompts(("a", name), prompts(2).embeddings)


def test_new_prompts_are_fed_to_the_same_session() -> None:
    first = whycam.load(zero_shot(), prompts=prompts(1000))
    again = first.with_prompts(prompts(1000, seed=2))
    assert again.engine.unprompted is first.engine.unprompted  # type: ignore[attr-defined]
    assert again.classify(IMAGES).shape == (3, 1000)
    alone = whycam.load(zero_shot(), prompts=prompts(1000, seed=2)).explain(IMAGES[0], 999)
    np.testing.assert_allclose(again.explain(IMAGES[0], 999).map, alone.map, atol=1e-5)


@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
def test_a_file_that_ends_early_is_refused(part: float, tmp_path: Path) -> None:
    file = write_prompts(tmp_path / "x.npz", prompts(40))
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match="no file of prompts"):
        read_prompts(file)


def test_a_damaged_compressed_file_is_refused(tmp_path: Path) -> None:
    some = prompts(40)
    file = tmp_path / "x.npz"
    np.savez_compressed(file, names=np.array(some.names), embeddings=some.embeddings)
    assert read_prompts(file).names == some.names
    content = bytearray(file.read_bytes())
    middle = content.index(b"embeddings.npy") + 200
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)
    with pytest.raises(DataError, match="no file of prompts"):
        read_prompts(file)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, OSError("no space left")])
def test_an_interrupted_write_keeps_the_file_before_it(
    ending: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_prompts(tmp_path / "x.npz", prompts(3))

    def fail(path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise ending

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises((KeyboardInterrupt, whycam.WhyCamError)):
        write_prompts(file, prompts(9))
    assert [each.name for each in tmp_path.iterdir()] == ["x.npz"]
    assert len(read_prompts(file).names) == 3
