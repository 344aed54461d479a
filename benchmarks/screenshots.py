"""Make docs/images/stream.webp and stream.jpg: the page of a stream, moving, and on two screens.

    python benchmarks/screenshots.py lite0.onnx
    python benchmarks/screenshots.py --terminal terminal/

The stream pans over three images that scikit-image brings (CC0; the rocket is in the public
domain), with ``--tft track`` as ``whycam stream --serve`` does. ``--terminal`` writes instead what
every verb prints in terminals of 80 and 120 columns, to be looked at. Needs the extra ``dev``, and
Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

import whycam
from whycam.runtime.serve.server import Server

DESK, PHONE = (1280, 800), (390, 844)
MOVING = (880, 550)  # pixels, about as wide as a README shows
IMAGES = ("chelsea.png", "coffee.png", "rocket.jpg")
VIEW = (640, 427)  # pixels of a frame
STAY, TRAVEL = 10, 14  # frames on an image, and from one to the next
FRAME_MS = 110
AT = STAY + TRAVEL + STAY // 2  # the frame of stream.jpg
MOST_JPEG, MOST_WEBP = 150_000, 1_400_000  # bytes


def main() -> None:
    """Play once, photograph each frame, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images"), help="folder")
    parser.add_argument("--terminal", type=Path, metavar="FOLDER", help="what verbs print")
    given = parser.parse_args()
    if given.terminal is not None:
        photograph_terminal(given.terminal)
        return
    if given.model is None:
        parser.error("name a model, or --terminal FOLDER")
    explainer = whycam.load(given.model)
    desk, phone = open_browser(*DESK, phone=False), open_browser(*PHONE, phone=True)
    try:
        moving, both = play(explainer, desk, phone)
    finally:
        desk.quit()
        phone.quit()
    save_moving(moving, given.output / "stream.webp")
    save_still(join(*both), given.output / "stream.jpg")


def photograph_terminal(folder: Path) -> None:
    """Write what every verb prints as SVG and PNG files."""
    from terminal import photograph_verbs

    page = open_browser(*DESK, phone=False)

    def take(file: Path) -> bytes:
        page.get(file.as_uri())
        _, _, width, height = page.execute_script(
            "return document.documentElement.getAttribute('viewBox').split(' ').map(Number)"
        )
        sizes = {"width": round(width), "height": round(height), "deviceScaleFactor": 1}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**sizes, "mobile": False})
        return bytes(page.get_screenshot_as_png())

    try:
        photograph_verbs(folder, take)
    finally:
        page.quit()


def pan() -> Iterator[NDArray[np.uint8]]:
    """Pan from image to image and back to the first: uint8 [h, w, 3]."""
    width, height = VIEW
    folder = Path(skimage.data.__file__).parent
    images = [Image.open(folder / name).convert("RGB") for name in (*IMAGES, IMAGES[0])]
    strip = np.concatenate([cover(image) for image in images], axis=1)
    for stop in range(len(IMAGES)):
        for step in range(STAY + TRAVEL):
            share = max(0, step - STAY) / TRAVEL
            left = round(width * (stop + share**2 * (3 - 2 * share)))  # gently in and out
            yield np.ascontiguousarray(strip[:height, left : left + width])


def cover(image: Image.Image) -> NDArray[np.uint8]:
    """Scale an image until it covers a frame, and cut off what is beyond it."""
    width, height = VIEW
    scale = max(width / image.width, height / image.height)
    size = (round(image.width * scale), round(image.height * scale))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(image.resize(size).crop((left, top, left + width, top + height)))


def play(
    explainer: whycam.Explainer, desk: Any, phone: Any
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Return the desktop's page at every frame, and both pages at one of them."""
    opened = whycam.stream(explainer, pan(), tft="track", caption=False)
    description = explainer.engine.description
    server = Server(opened.controls, explainer, engine=description, source="pan.mp4", port=0)
    moving, both = [], []
    with opened, server:
        for frame in opened:
            server.publish(frame)
            moving.append(photograph(desk, server))
            if frame.index == AT:
                both = [moving[-1], photograph(phone, server)]
    return moving, both


def photograph(page: Any, server: Server) -> Image.Image:
    """Photograph a page once it shows the last frame and its figures."""
    if not page.current_url.startswith("http"):
        page.get(server.url)
    last = f"return window.whycam?.numbers?.sequence == {server.broadcaster.sequence}"
    WebDriverWait(page, 5, 0.02).until(lambda _: page.execute_script(last))
    page.execute_script("document.getAnimations().forEach((each) => each.finish())")
    return Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")


def open_browser(width: int, height: int, phone: bool) -> Any:
    """Open headless Chromium with a screen of its own, dark."""
    options = webdriver.ChromeOptions()
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(switch)
    options.binary_location = shutil.which("chromium") or ""
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    return browser


def join(desk: Image.Image, phone: Image.Image) -> Image.Image:
    """Side by side on the page's own ground."""
    gap, height = 24, max(desk.height, phone.height)
    joined = Image.new("RGB", (desk.width + gap + phone.width, height), (0x2B, 0x33, 0x43))
    joined.paste(desk, (0, (height - desk.height) // 2))
    joined.paste(phone, (desk.width + gap, (height - phone.height) // 2))
    return joined


def save_still(image: Image.Image, output: Path) -> None:
    """As good a JPEG as fits."""
    for quality in range(90, 30, -5):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MOST_JPEG:
            break
    write(buffer, output)


def save_moving(images: list[Image.Image], output: Path) -> None:
    """As good an animated WebP as fits."""
    first, *others = [image.resize(MOVING, Image.Resampling.LANCZOS) for image in images]
    for quality in range(70, 10, -10):
        buffer = io.BytesIO()
        first.save(
            buffer, "WEBP", save_all=True, append_images=others, duration=FRAME_MS, loop=0,
            quality=quality, method=4, minimize_size=False,
        )  # fmt: skip
        if buffer.tell() <= MOST_WEBP:
            break
    write(buffer, output)


def write(buffer: io.BytesIO, output: Path) -> None:
    """Write a file, and say how large it is."""
    output.write_bytes(buffer.getvalue())
    print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
