"""Names on images: right in any script that this machine writes, and left out where it does not."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, features
from report_pages import write_images

from whycam import Overlay, draw_comparison
from whycam.runtime import fonts, text
from whycam.runtime.fonts import UNWRITABLE

# A word of each script; the letters of the first three are joined, moved or stacked.
WORDS = {
    "Devanagari": "बिल्ली",
    "Thai": "น้ำ",
    "Arabic": "قطة",
    "Hebrew": "חתול",
    "Cyrillic": "кошка",
    "Han": "猫",
}


def forget() -> None:
    for cached in (fonts.find_font, text._split, text._parts):
        cached.cache_clear()
    fonts._warned.clear()


@pytest.fixture(autouse=True)
def machine(monkeypatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine whose only font beside OpenCV's face is the one that matplotlib brings."""
    if fonts.opencv_face() is None:
        pytest.skip("OpenCV 4 has no face")
    monkeypatch.setattr(fonts, "_FONTS", ())
    load = fonts.load_font
    monkeypatch.setattr(
        fonts, "load_font", lambda name, size: None if "Noto" in name else load(name, size)
    )
    forget()
    yield monkeypatch
    forget()


def draw(word: str, size: int = 24) -> np.ndarray:
    image = np.zeros((48, 200, 3), np.uint8)
    text.write(image, word, 4, 4, size)
    return image[..., 0]


@pytest.mark.parametrize("script", ["Devanagari", "Thai"])
def test_a_script_without_a_font_is_left_out_with_one_warning(script):
    word = WORDS[script]
    with pytest.warns(fonts.FontWarning, match=f"no font on this machine writes {script}"):
        alone = draw(word)
    assert not alone.any()  # neither boxes nor question marks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(draw(f"{word} 0.89"), draw("0.89"))
        assert text.width_of(f"{word} 0.89", 24) == text.width_of("0.89", 24)
        assert text.name_class(word + word, 3) == "class 3"


@pytest.mark.parametrize("script", ["Cyrillic", "Han"])
def test_letters_of_opencv_s_face_are_written_by_it(script):
    assert fonts.find_font(WORDS[script]) is None
    assert draw(WORDS[script]).any()
    assert text.name_class(WORDS[script], 3) == WORDS[script]


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow without Raqm")
def test_arabic_letters_are_joined_and_run_from_right_to_left():
    """As Pillow with Raqm draws the presentation forms of the joined letters, last one first."""
    word = WORDS["Arabic"]
    font = fonts.load_font(str(fonts.find_font(word)), 24)
    joined = "\ufe94\ufec4\ufed7"  # teh marbuta final, tah medial, qaf initial
    assert [unicodedata.normalize("NFKC", each) for each in joined[::-1]] == list(word)
    expected = Image.new("L", (200, 48))
    ImageDraw.Draw(expected).text((4, 28), joined[::-1], 255, font=font, anchor="ls")
    np.testing.assert_array_equal(draw(word), np.asarray(expected))
    apart = Image.new("L", (200, 48))
    loose = "\u200c".join(word)
    ImageDraw.Draw(apart).text((4, 28), loose, 255, font=font, anchor="ls")
    assert (draw(word) != np.asarray(apart)).any()


@pytest.mark.parametrize("script", ["Arabic", "Hebrew"])
def test_without_raqm_letters_are_left_out_rather_than_written_apart(machine, script):
    machine.setattr(fonts, "can_join_letters", lambda: False)
    forget()
    with pytest.warns(fonts.FontWarning, match="built without Raqm"):
        drawn = draw(WORDS[script])
    assert not drawn.any()
    assert text.name_class(WORDS[script], 3) == "class 3"


def test_without_opencv_5_and_fonts_the_letters_and_both_remedies_are_named(machine):
    machine.setattr(fonts, "opencv_face", lambda: None)
    forget()
    with pytest.warns(fonts.FontWarning, match=r"writes Han.*install .* or OpenCV 5"):
        text.width_of("日本 a", 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < text.width_of("кошка", 20) < text.width_of("кошка ελ Ä", 20)


def test_accents_are_composed_and_symbols_without_a_font_left_out():
    np.testing.assert_array_equal(draw("e\u0301te\u0301"), draw("été"))
    with pytest.warns(fonts.FontWarning, match="Symbols"):
        np.testing.assert_array_equal(draw("🐈 cat"), draw("cat"))


def test_shortening_never_cuts_a_letter_from_its_marks(machine):
    machine.setattr(text, "width_of", lambda line, _: len(line))
    for word in (WORDS["Devanagari"], WORDS["Thai"], "a\u0323\u0307b"):
        for width in range(2, len(word)):
            kept = text.shorten(word, width, 20)[:-1]
            rest = unicodedata.normalize("NFC", word)[len(kept) :]
            assert unicodedata.category(rest[0])[0] != "M"
            assert not kept or unicodedata.combining(kept[-1]) != 9


@pytest.mark.filterwarnings("ignore::whycam.runtime.fonts.FontWarning")
def test_a_class_whose_name_cannot_be_written_is_named_by_its_number(tiny, tmp_path):
    (image,) = write_images(tmp_path, 1, (400, 300))
    ant, bee = tiny.explain(image, [0, 1])
    thai = replace(ant, label=WORDS["Thai"])
    number = replace(ant, label="class 0")
    for suffix in ("overlay", "figure"):
        thai.save(tmp_path / "thai.png", suffix)
        number.save(tmp_path / "number.png", suffix)
        drawn = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("thai", "number")]
        np.testing.assert_array_equal(*drawn)
    np.testing.assert_array_equal(draw_comparison([thai, bee]), draw_comparison([number, bee]))
    np.testing.assert_array_equal(
        Overlay().draw(ant.image, thai), Overlay().draw(ant.image, number)
    )
    assert thai.label == WORDS["Thai"]
    assert WORDS["Thai"] in thai._repr_html_()  # browsers have fonts of their own


@pytest.mark.filterwarnings("default::whycam.runtime.fonts.FontWarning")
def test_the_command_says_once_what_is_left_out(tiny_engine, manifest_of, tmp_path, capsys):
    from tiny_file import write_tiny

    from whycam.cli import main

    labels = tuple(WORDS["Thai"] + str(number) for number in range(3))
    engine = tiny_engine()
    manifest = manifest_of(methods=("gradcam",), labels=labels)
    write_tiny(tmp_path / "m.onnx", manifest, engine.mix, engine.linear)
    write_images(tmp_path / "images", 2)
    command = ["explain", tmp_path / "m.onnx", tmp_path / "images", "-o", tmp_path / "out"]
    with pytest.raises(SystemExit) as stop:
        main([str(part) for part in [*command, "--top", "3"]])
    assert stop.value.code == 0
    said = capsys.readouterr().err
    assert said.count("no font on this machine writes Thai") == 1
    assert said.count("warning:") == 1
    assert ".py" not in said


def test_what_nothing_writes_is_found_before_it_is_drawn():
    assert fonts.find_font(WORDS["Thai"]) is UNWRITABLE
    assert text._split("a น้ำ b")[1][1] is UNWRITABLE
