"""Measure how fast a report opens and scrolls in headless Chromium.

    whycam explain lite0.onnx images/ -o out/ --report
    python benchmarks/report_page.py out/report.html

Needs the extra `dev`, and Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from screenshots import DESK, open_browser
from selenium.webdriver.support.ui import WebDriverWait

_STEP = 90  # pixels a frame: 5400 a second at 60 frames, faster than people read
_SCROLL = """
const done = arguments[0], times = [];
const bottom = document.documentElement.scrollHeight - innerHeight;
let at = 0, last = performance.now();
requestAnimationFrame(function frame(now) {
  times.push(now - last);
  last = now;
  at += arguments_step;
  scrollTo({top: at, behavior: 'instant'});
  if (at < bottom && times.length < 1500) requestAnimationFrame(frame);
  else done(times.slice(2));
});
""".replace("arguments_step", str(_STEP))
# Runs before the page: notes when all images on the screen are drawn.
_WATCH = """
(function look() {
  const seen = [...document.querySelectorAll('#gallery li, .row li')].filter((one) => {
    const {top, left} = one.getBoundingClientRect();
    return top < innerHeight && left < innerWidth - 100;
  });
  const drawn = (one) => one.querySelector('canvas').width > 1 && one.querySelector('img').complete;
  if (seen.length && seen.every(drawn)) window.firstScreen = performance.now();
  else setTimeout(look, 5);
})();
"""
_PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def main() -> None:
    """Open, scroll, and print sizes and times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    size = given.report.stat().st_size
    rounds = [measure(given.report) for _ in range(given.rounds)]
    images = rounds[0]["images"]
    print(f"{images} images, {size / 1e6:.1f} MB, {size / images / 1e3:.1f} KB an image")
    for name in ("first paint", "first screen drawn", "whole file read"):
        values = sorted(one[name] for one in rounds)
        print(f"{name}: {statistics.median(values):.0f} ms ({values[0]:.0f} to {values[-1]:.0f})")
    frames = sorted(time for one in rounds for time in one["frames"])
    processor = statistics.median(one["processor"] for one in rounds)
    print(
        f"{len(frames)} frames of scrolling: {processor:.1f} ms of processor time each on the main "
        f"thread; they came after {statistics.median(frames):.1f} ms, 95 % within "
        f"{frames[int(0.95 * len(frames))]:.1f} ms"
    )


def measure(report: Path) -> dict[str, Any]:
    """Open a report once in a new browser, and scroll it from top to bottom."""
    browser = open_browser(*DESK, phone=False)
    try:
        browser.set_script_timeout(120)
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _WATCH})
        browser.get(report.resolve().as_uri())
        drawn = "return window.firstScreen"
        WebDriverWait(browser, 60).until(lambda page: page.execute_script(drawn))
        timing = "return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        before = busy(browser)
        frames = browser.execute_async_script(_SCROLL)
        processor = 1000 * (busy(browser) - before) / len(frames)
        return {
            "images": browser.execute_script("return whycam.images.length"),
            "first paint": browser.execute_script(_PAINT),
            "first screen drawn": browser.execute_script(drawn),
            "whole file read": browser.execute_script(timing),
            "frames": frames,
            "processor": processor,
        }
    finally:
        browser.quit()


def busy(browser: Any) -> float:
    """Processor time of the page's main thread, in seconds."""
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


if __name__ == "__main__":
    main()
