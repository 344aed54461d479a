"""Make docs/images/report.jpg: a report in Chromium, light on a desk and dark on a phone.

    whycam explain lite0.onnx images/ -o out/ --report --tft
    python benchmarks/report_screenshot.py out/report.html

Needs the extra `dev`, and Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image
from screenshots import PHONE, join, open_browser, save_still
from selenium.webdriver.support.ui import WebDriverWait

DESK = (1280, 844)
_DRAWN = (
    "return [...document.querySelectorAll('SELECTOR')].every((one) => one.width > 1)"
    " && [...document.images].every((one) => one.complete)"
)


def main() -> None:
    """Open the gallery and one image of it, take both images, and join them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--image", type=int, default=0, help="the one that the phone shows")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/report.jpg"))
    given = parser.parse_args()
    address = given.report.resolve().as_uri()
    shots = (
        shoot(address, DESK, False, "light", "#gallery canvas"),
        shoot(f"{address}#image-{given.image}", PHONE, True, "dark", "#viewer .heat"),
    )
    save_still(join(*shots), given.output)
    print(f"{given.output}: {given.output.stat().st_size} bytes")


def shoot(address: str, size: tuple[int, int], phone: bool, scheme: str, drawn: str) -> Image.Image:
    """Take one image of the page, when all that ``drawn`` selects is drawn."""
    browser: Any = open_browser(*size, phone=phone)
    try:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(address)
        script = _DRAWN.replace("SELECTOR", drawn)
        WebDriverWait(browser, 20).until(lambda page: page.execute_script(script))
        return Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
