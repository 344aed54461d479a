"""A trained detector of other origin, where it is installed: the YOLOX of ddddocr (MIT)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import whycam
from whycam.export import to_onnx
from whycam.runtime.boxes import overlaps

PLACES = {"A": (60, 60), "7": (250, 110), "K": (130, 260), "3": (320, 300)}
SIDE = 64


def find_file() -> Path:
    spec = importlib.util.find_spec("ddddocr")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package ddddocr: pip install --no-deps ddddocr==1.6.1")
    return Path(spec.submodule_search_locations[0]) / "common_det.onnx"


@pytest.mark.slow
def test_characters_are_found_where_they_were_drawn_and_maps_point_at_them(tmp_path):
    file = find_file()
    result = to_onnx(file, tmp_path / "a.onnx", format="yolox", labels=["character"])
    image = Image.new("RGB", (416, 416), "white")
    font = ImageFont.load_default(SIDE)
    drawn = []
    for text, place in PLACES.items():
        ImageDraw.Draw(image).text(place, text, "black", font)
        drawn.append(ImageDraw.Draw(image).textbbox(place, text, font))
    found = whycam.load(result.path, threads=1).detect(np.asarray(image), min_score=0.3)
    for box in np.array(drawn, np.float64):
        ious = [overlaps(box[None], np.array([one.box]))[0, 0] for one in found]
        best = found[int(np.argmax(ious))]
        assert max(ious) > 0.5
        heat = best.on_image(best.map)
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        left, top, right, bottom = best.box
        assert left <= column + 0.5 <= right
        assert top <= row + 0.5 <= bottom
