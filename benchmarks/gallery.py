"""Make the images of docs/gallery.md: run the page's own commands, and shrink what they write.

    python benchmarks/gallery.py lite0.onnx

``lite0.onnx`` is made by the first command of the page, which is not run again. The images are
those that scikit-image brings (CC0 or in the public domain). Needs the extra ``dev`` and takes
some minutes, most of them for the two small networks that the page trains.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import skimage.data
from PIL import Image
from screenshots import pan

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "examples"), str(ROOT / "tests")]
from demo import load_images  # noqa: E402
from documents import steps  # noqa: E402

PAGE = "docs/gallery.md"
SOURCES = {
    "cat.png": "chelsea.png",
    "camera.png": "camera.png",
    "galaxies.jpg": "hubble_deep_field.jpg",
}
FRAME_RATE = 20
QUALITY = 82
WIDE, NARROW = 900, 360  # pixels, of an image alone and of one in a table


def main() -> None:
    """Run the page in a temporary folder, and write its images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "docs", help="folder of the page"
    )
    parser.add_argument("--textures", type=Path, help="folder of networks that are trained already")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, given.model)
        if given.textures is not None:
            shutil.copytree(given.textures, folder / "textures")
        for step in steps(PAGE):
            is_trained = "benchmarks/textures.py" in step.words and given.textures is not None
            if "export" not in step.words and not is_trained:
                print(step.text, flush=True)
                subprocess.run(
                    ["bash", "-euc", step.text], cwd=folder, env=environment(), check=True
                )
        size = 0
        for line in (ROOT / PAGE).read_text("utf-8").splitlines():
            for name in re.findall(r"\]\(images/gallery/([^)]+)\)", line):
                target = given.output / "images" / "gallery" / name
                save(folder, name, target, NARROW if line.startswith("|") else WIDE)
                size += target.stat().st_size
    print(f"{size:,} bytes")


def prepare(folder: Path, model: Path) -> None:
    """Put what the page names into a folder."""
    shutil.copy(model, folder / "lite0.onnx")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    data = Path(skimage.data.__file__).parent
    for name, source in SOURCES.items():
        shutil.copy(data / source, folder / name)
    load_images()["cat-and-coffee"].save(folder / "cat-and-coffee.png")
    writer: cv2.VideoWriter | None = None
    for frame in pan():
        if writer is None:
            fourcc = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(
                str(folder / "walk.mp4"), fourcc, FRAME_RATE, frame.shape[1::-1]
            )
        writer.write(frame[..., ::-1])
    assert writer is not None
    writer.release()


def environment() -> dict[str, str]:
    """Return the environment of the commands: whycam and python are those that run this."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def save(folder: Path, name: str, target: Path, width: int) -> None:
    """Shrink an image that the page's commands wrote, or a video's frame, to a small JPEG."""
    is_video = name.endswith(".mp4.jpg")
    written = next(folder.rglob(name.removesuffix(".jpg") if is_video else name))
    image = take_frame(written) if is_video else Image.open(written).convert("RGB")
    if image.width > width:
        height = round(image.height * width / image.width)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, "JPEG", quality=QUALITY, optimize=True)


def take_frame(video: Path) -> Image.Image:
    """Take the frame after two fifths of a video: the coffee."""
    reader = cv2.VideoCapture(str(video))
    reader.set(cv2.CAP_PROP_POS_FRAMES, 2 * reader.get(cv2.CAP_PROP_FRAME_COUNT) // 5)
    read, frame = reader.read()
    assert read
    return Image.fromarray(frame[..., ::-1])


if __name__ == "__main__":
    main()
