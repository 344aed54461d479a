"""Data sets are listed as they are written, and labels find the network's classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from whycam.calibrate.dataset import Box, Classes, check_one_label, open_dataset, read_boxes
from whycam.runtime.errors import DataError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def objects(*entries: tuple[str, int, int, int, int]) -> str:
    inner = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in entries
    )
    return f"<annotation>{inner}</annotation>"


def test_subfolders_are_labels_and_flat_images_have_none(tmp_path):
    for name in ("cat/b.jpg", "cat/a.JPEG", "dog/deep/c.png", "loose.webp", "cat/notes.txt"):
        touch(tmp_path / name)
    data = open_dataset(tmp_path)
    assert data.kind == "folder"
    assert [(sample.name, sample.label) for sample in data.samples] == [
        ("cat/a.JPEG", "cat"),
        ("cat/b.jpg", "cat"),
        ("dog/deep/c.png", "dog"),
        ("loose.webp", None),
    ]
    assert data.labels() == ("cat", "dog")


@pytest.mark.parametrize(
    "text",
    [
        "a.png,cat;dog\nb.png,dog\n",
        "image,labels\na.png, cat | dog|\nb.png,dog\nb.png,dog\n",
        "a.png,cat\nb.png,dog\na.png,dog\na.png,\n",
        "image,bird,cat,dog\na.png,0,1,1\nb.png,0.0,0, 1.0\n",
    ],
    ids=["semicolons", "bars", "rows", "columns"],
)
def test_csv_gives_an_image_several_labels_in_three_ways(tmp_path, text):
    table = tmp_path / "list.csv"
    table.write_text(text)
    data = open_dataset(table)
    assert [(s.name, s.labels) for s in data.samples] == [
        ("a.png", ("cat", "dog")),
        ("b.png", ("dog",)),
    ]
    assert [sample.label for sample in data.samples] == [None, "dog"]
    assert data.columns == (("bird", "cat", "dog") if "bird" in text else ())
    with pytest.raises(DataError, match=r"'a\.png' several labels \(cat, dog\), and one is needed"):
        check_one_label(data, "one is needed")


def test_csv_tells_no_label_stated_from_none_present(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("a.png,\nb.png,cat\n")
    assert [sample.labels for sample in open_dataset(table).samples] == [None, ("cat",)]
    table.write_text("image,cat,dog\na.png,0,0\nb.png,1,0\n")
    data = open_dataset(table)
    assert [sample.labels for sample in data.samples] == [(), ("cat",)]
    assert (data.labels(), data.all_labels()) == (("cat",), ("cat", "dog"))
    check_one_label(data, "columns with a single 1 are one label")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,cat;dog\nb.png,cat|dog\n", r"by both ; and \|: use one"),
        ("a.png,cat,dog\n", "3 columns and no header"),
        ("image,label,split\na.png,cat,train\n", "column 'label' holds 'cat' instead of 0 or 1"),
        ("image,cat,dog\na.png,1,\n", "image 1: column 'dog' holds '' instead of 0 or 1"),
        ("image,cat,dog\na.png,1\n", "image 1: column 'dog' holds ''"),
        ("image,cat,dog\na.png,1,-1\n", "Leave out images whose labels are not known"),
        ("image,cat\na.png,1,0\n", "3 columns, whose labels in the header"),
        ("image,cat,cat\na.png,1,0\n", "each once"),
        ("image,cat,dog\na.png,1,0\na.png,1,1\n", r"two rows of 'a\.png'"),
    ],
)
def test_csv_whose_labels_are_not_clear_is_refused(tmp_path, text, message):
    table = tmp_path / "list.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(table)


@pytest.mark.parametrize("header", ["file,label\n", ""], ids=["header", "no header"])
def test_csv_paths_are_relative_to_the_file(tmp_path, header):
    table = tmp_path / "list.csv"
    table.write_text(f"\ufeff{header}a.jpg,3\nsub/b.png,\n\n")
    data = open_dataset(table)
    assert [(s.path, s.label) for s in data.samples] == [
        (tmp_path / "a.jpg", "3"),
        (tmp_path / "sub/b.png", None),
    ]


def test_voc_label_is_the_one_class_in_the_image(tmp_path):
    for stem, entries in {
        "1": [("car", 1, 2, 10, 20), ("car", 3, 3, 4, 4)],
        "2": [("car", 1, 1, 2, 2), ("cat", 1, 1, 2, 2)],
    }.items():
        touch(tmp_path / "JPEGImages" / f"{stem}.jpg")
        touch(tmp_path / "Annotations" / f"{stem}.xml").write_text(objects(*entries))
    touch(tmp_path / "JPEGImages" / "3.jpg")
    data = open_dataset(tmp_path)
    assert [(s.name, s.label) for s in data.samples] == [
        ("1.jpg", "car"),
        ("2.jpg", None),
        ("3.jpg", None),
    ]
    assert [s.labels for s in data.samples] == [("car",), ("car", "cat"), None]
    check_one_label(data, "objects of several classes are no several labels of an image")
    # VOC counts from 1 and includes the last pixel.
    assert data.samples[0].annotation is not None
    assert read_boxes(data.samples[0].annotation)[0] == Box("car", 0, 1, 10, 20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "no folder or file"),
        (lambda p: p.mkdir(), "no images in"),
        (lambda p: p.write_text("a.jpg,1\nnonsense,2\n"), "'nonsense' is not an image file"),
        (lambda p: p.write_bytes(b"\xff\xfe\xff"), "cannot read"),
    ],
    ids=["missing", "empty", "no image", "no text"],
)
def test_what_is_no_data_set_is_refused(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "data")


@pytest.mark.parametrize(
    "text", ["", "<annotation>", objects(("a", 1, 2, 3, 4)).replace("<xmin>1</xmin>", "")]
)
def test_damaged_annotation_is_named(tmp_path, text):
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(DataError, match=r"x\.xml"):
        read_boxes(tmp_path / "x.xml")


def test_labels_find_classes_by_name_then_by_number():
    classes = Classes(["great white shark", "7", "Tench"], 9)
    assert classes.index("great_white_Shark") == 0
    assert classes.index("tench") == 2
    assert classes.index("7") == 1  # a name before a number
    assert classes.index("8") == 8
    assert classes.index("9") is None
    assert classes.index("-1") is None
    assert classes.index("whale") is None
    assert classes.index(None) is None
    assert classes.unknown(["tench", "whale"]) == ["whale"]


def test_file_of_names_says_what_a_label_means(tmp_path):
    names = tmp_path / "names.csv"
    names.write_text("n01440764,tench\nn0148,0\n")
    classes = Classes(["shark", "tench"], 2, names)
    assert classes.index("n01440764") == 1
    assert classes.index("n0148") == 0
    assert classes.index("shark") == 0


@pytest.mark.parametrize("text", ["a,whale\n", "a,5\n", "a,b,c\n"])
def test_file_of_names_with_an_unknown_class_is_refused(tmp_path, text):
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(DataError, match=r"names\.csv"):
        Classes(["shark"], 1, tmp_path / "names.csv")
