"""Messages: one paragraph that any terminal can show, whatever they quote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whycam.runtime.errors import MissingExtraError, ModelFileError, WhyCamError, reason_of

# Any characters, those that end lines, move cursors or are half of a pair above all.
ANY = st.text(
    st.characters() | st.sampled_from("\n\r\v\f\x1b\x00\x7f\x85\u2028\ud800\udcff"), max_size=60
)


@given(text=ANY)
def test_any_message_is_one_line_that_can_be_written_as_utf8(text):
    said = str(WhyCamError(f"{text}: what to do"))
    assert len(said.splitlines()) == 1
    assert said.encode().decode() == said
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in said)
    assert said.endswith("what to do")


def test_words_are_left_as_they_are():
    text = "C:\\photos\\[new]  crème brûlée 数.png is no image"
    assert str(WhyCamError(text)) == text
    assert str(MissingExtraError("a", "cpu", "c")).endswith('pip install "whycam[cpu]"')


def test_long_messages_keep_their_beginning_and_their_end():
    said = str(ModelFileError(f"model.onnx: {'x' * 10**6}: export it again"))
    assert len(said) < 2000
    assert said.startswith("model.onnx: xxx")
    assert said.endswith("xxx: export it again")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("\x1b[1mdo not\x1b[0m do it. Or else.", "do not do it"),
        ("cannot load X:\n\tMissing key(s): a, b\nmore", "cannot load X: Missing key(s): a, b"),
        ("size 1.5 is not 2.5", "size 1.5 is not 2.5"),
        ("\n\n", "ValueError"),
    ],
)
def test_what_a_library_says_is_quoted_as_one_whole_sentence(message, reason):
    assert reason_of(ValueError(message)) == reason


def test_escape_codes_of_other_libraries_are_left_out():
    assert str(WhyCamError("a \x1b[31mred\x1b[0m word")) == "a red word"


def test_a_package_that_is_there_but_broken_is_not_called_missing():
    try:
        raise ImportError("libcudart.so.12: cannot open shared object file")
    except ImportError:
        said = str(MissingExtraError("torch", "export", "export"))
    assert "installed but cannot be imported (libcudart.so.12: cannot open" in said
    assert said.endswith('pip install --force-reinstall "whycam[export]"')
