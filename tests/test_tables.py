"""Tables in terminals of any width: no number is cut."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from whycam.cli.tables import table

COLUMNS = ["image", "method", "class", "probability", "tau*", "rpi", "p masked"]
NUMBERS = ["tau*", "rpi", "p masked"]
ROWS = [
    ["astronaut.png", "gradcam", "football helmet (560)", "0.1616", "0.2", "1.354", "0.3804"],
    ["n" * 50 + ".JPEG", "gradcam++", "a class of many long words", "0.1616", "none", "-", "0.38"],
]


def printed(width: int, rows: list[list[str]] = ROWS, columns: list[str] = COLUMNS) -> str:
    file = io.StringIO()
    numbers = [name for name in columns if name in NUMBERS]
    Console(width=width, file=file).print(table(columns, rows, numbers))
    return file.getvalue()


def test_columns_of_text_are_broken_before_a_table_becomes_records():
    wide, middle, narrow = (printed(width).splitlines() for width in (160, 80, 50))
    assert len(wide) == 3
    assert middle[0].split()[-2:] == ["p", "masked"]
    assert len(middle) > 3
    assert narrow[0].split() == ["image", "astronaut.png"]
    assert narrow[4].split() == ["tau*", "0.2"]
    assert narrow[7] == ""


@pytest.mark.parametrize("width", [160, 120, 100, 80, 60, 40])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width):
    text = printed(width)
    assert max(map(len, text.splitlines())) <= width
    for cell in ("0.1616", "1.354", "0.3804", "none", "560", "gradcam++", "0.38"):
        assert cell in text


@given(
    st.lists(st.floats(0, 1e6).map(lambda number: f"{number:,.3f}"), min_size=12, max_size=12),
    st.integers(60, 200),
)
def test_every_number_of_a_wide_table_is_printed_whole(numbers, width):
    text = printed(width, [numbers], [f"column {place}" for place in range(12)])
    for number in numbers:
        assert number in text.split()


def test_a_remark_in_brackets_goes_to_the_next_line_before_a_table_becomes_records():
    rows = [["gradcam", "average drop", "0.677 ± 0.029 (x0.00)", "0.5"]]
    text = printed(45, rows, ["method", "measure", "tau*", "rpi"]).splitlines()
    assert text[1].split() == ["gradcam", "average", "drop", "0.677", "±", "0.029", "0.5"]
    assert text[2].split() == ["(x0.00)"]


def test_records_leave_out_what_a_row_does_not_have():
    text = printed(40, [["broken.png", "", "unreadable"]])
    assert "method" not in text
    assert "probability" not in text


def test_a_table_of_many_numbers_is_transposed_before_it_becomes_records():
    columns = ["method", *(f"a long name {place}" for place in range(6))]
    rows = [["gradcam", *"012345"], ["layercam", *"678901"]]
    wide, middle, narrow = (printed(width, rows, columns) for width in (120, 40, 30))
    assert wide.splitlines()[1].split() == rows[0]
    assert [line.split() for line in middle.splitlines()] == [
        ["method", "gradcam", "layercam"],
        *(["a", "long", "name", str(i), rows[0][i + 1], rows[1][i + 1]] for i in range(6)),
    ]
    assert narrow.splitlines()[:2] == ["method         gradcam", "a long name 0  0"]


def test_lines_of_a_cell_stand_behind_each_other_in_a_record():
    rows = [["openvino", "7.29\n11%", "whole\n"]]
    text = printed(30, rows, ["engine", "decode, in ms", "a name that is long"])
    assert [line.split()[-2:] for line in text.splitlines()[1:]] == [
        ["7.29", "11%"],
        ["long", "whole"],
    ]


def test_a_title_is_broken_at_the_terminal_s_width_not_at_the_table_s():
    file = io.StringIO()
    title = "a title that is much longer than the table below it"
    Console(width=60, file=file).print(table(["a", "b"], [["1", "2"]], title=title))
    assert file.getvalue().splitlines()[0].rstrip() == title
