"""Make docs/images/stream.jpg: the page of a stream in Chromium, on a desk and on a phone.

    python benchmarks/screenshots.py lite0.onnx cockatoo.mp4

Plays the video with `--tft track`, as `whycam stream --serve` does, and waits for a moment of it.
Needs the extra `dev`, and Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

import whycam
from whycam.runtime.serve.server import Server

DESK, PHONE = (1280, 800), (390, 844)
MOST_BYTES = 150_000


def main() -> None:
    """Play, wait, take both images, and join them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("video")
    parser.add_argument("--at", type=float, default=10.3, help="seconds of the video")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/stream.jpg"))
    given = parser.parse_args()
    explainer = whycam.load(given.model)
    desk, phone = open_browser(*DESK, phone=False), open_browser(*PHONE, phone=True)
    try:
        shots = play(explainer, given.video, given.at, desk, phone)
    finally:
        desk.quit()
        phone.quit()
    save(join(*shots), given.output)
    print(f"{given.output}: {given.output.stat().st_size} bytes")


def play(
    explainer: whycam.Explainer, video: str, at: float, desk: Any, phone: Any
) -> tuple[bytes, ...]:
    """What both browsers show of a video at a time of it.

    The phone comes in for the last frame, so that the figures are those of one page.
    """
    opened = whycam.stream(explainer, video, tft="track", drop=True, loop=True, caption=False)
    server = Server(
        opened.controls,
        engine=explainer.engine.description,
        source=Path(video).name,
        port=0,
    )
    with opened, server:
        desk.get(server.url)
        for frame in opened:
            server.publish(frame)
            if frame.seconds >= at:
                break
        # Both show the last frame, for it is a few seconds until they say that it stands still.
        return tuple(shown(page, server) for page in (desk, phone))


def shown(page: Any, server: Server) -> bytes:
    """A page with the last frame on it."""
    if not page.current_url.startswith("http"):
        page.get(server.url)
    last = f"return window.whycam?.numbers?.sequence == {server.broadcaster.sequence}"
    WebDriverWait(page, 3, 0.02).until(lambda _: page.execute_script(last))
    page.execute_script("document.getAnimations().forEach((each) => each.finish())")
    return bytes(page.get_screenshot_as_png())


def open_browser(width: int, height: int, phone: bool) -> Any:
    """Headless Chromium with a screen of its own."""
    options = webdriver.ChromeOptions()
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(switch)
    options.binary_location = shutil.which("chromium") or ""
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    return browser


def join(desk: bytes, phone: bytes) -> Image.Image:
    """Side by side on the page's own ground."""
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in (desk, phone)]
    gap, height = 24, max(image.height for image in images)
    width = sum(image.width for image in images) + gap
    joined = Image.new("RGB", (width, height), (0x2B, 0x33, 0x43))
    left = 0
    for image in images:
        joined.paste(image, (left, (height - image.height) // 2))
        left += image.width + gap
    return joined


def save(image: Image.Image, output: Path) -> None:
    """As good a JPEG as fits."""
    for quality in range(90, 30, -5):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MOST_BYTES:
            break
    output.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
