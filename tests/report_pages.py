"""Small reports, and what their pages hold."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import whycam
from whycam.runtime.report.document import About, Report
from whycam.runtime.report.entry import encode_explanations


def write_images(folder: Path, count: int = 3, size: tuple[int, int] = (24, 16)) -> list[Path]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    return paths


def write_report(tiny: whycam.Explainer, folder: Path, **about: Any) -> Path:
    """Three images, each with its three classes, the first one thresholded."""
    images = write_images(folder / "images")
    with Report(folder / "report.html", len(images)) as report:
        for image, found in tiny.iter_explanations(
            images, [-1, -2, -3], "gradcam", True, thresholded=1
        ):
            assert isinstance(found, dict)
            report.add(encode_explanations(Path(image).name, [found["gradcam"]]))
        taus = tiny.manifest.tft.taus
        return report.write(
            About(kind="explain", title="tiny", sources=("tiny",), taus=taus, **about)
        )


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def parts_of(page: Path, number: int) -> list[bytes]:
    found = re.search(rf'<script type="text/plain" id="i{number}">(.*?)</script>', page.read_text())
    assert found is not None
    return [base64.b64decode(part) for part in found[1].split(" ")]
