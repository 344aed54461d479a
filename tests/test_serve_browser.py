"""The stream's page in headless Chromium: what it shows, and that its controls act."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from chromium import chromium
from live_page import Publisher, frame_of
from PIL import Image

from whycam.runtime.errors import RequestError
from whycam.runtime.live.controls import Controls, Look
from whycam.runtime.overlay import color_table
from whycam.runtime.serve.server import Server

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow

SIZE = (180, 320)
TOKEN = "a-token-of-my-own"


@pytest.fixture(scope="module")
def browser(needs) -> Iterator[Any]:
    needs("chromium", "chromedriver")
    with chromium("--window-size=1280,800") as driver:
        yield driver


@pytest.fixture
def server(tiny) -> Iterator[Server]:
    controls = Controls(tiny.manifest)
    running = Server(controls, tiny, engine="a tiny engine", port=0)
    with running as server, Publisher(server, tiny, SIZE):
        yield server


@pytest.fixture
def until(browser) -> Callable[..., Any]:
    from selenium.webdriver.support.ui import WebDriverWait

    return lambda condition: WebDriverWait(browser, 10, 0.02).until(lambda _: condition())


@pytest.fixture
def page(browser, server, until) -> Iterator[Any]:
    """The page, with an image on it; it must have had nothing to complain of."""
    browser.get_log("browser")
    browser.get(server.url)
    until(lambda: state(browser) == "live")
    yield browser
    assert browser.get_log("browser") == []


def state(browser: Any) -> str:
    return browser.find_element("id", "state").text


def image_of(browser: Any) -> np.ndarray:
    data = browser.execute_script("return document.getElementById('image').toDataURL()")
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB"), int
    )


def expected(tiny: Any, server: Server) -> np.ndarray:
    return frame_of(tiny, server.broadcaster.controls, 7, SIZE).image.astype(int)


def like(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and float(np.abs(one - other).mean()) < 4  # JPEG


def press(browser: Any, selector: str, *keys: str) -> None:
    browser.find_element("css selector", selector).send_keys(*keys)


def test_image_and_figures_are_shown(page, server, tiny, until):
    until(lambda: like(image_of(page), expected(tiny, server)))
    assert page.title == "tiny · whycam"
    assert "a tiny engine" in page.find_element("id", "about").text
    until(lambda: page.find_element("id", "latency").text == "5.0 ms")
    assert page.find_element("id", "dropped").text == "3"
    best = frame_of(tiny, server.broadcaster.controls, 7, SIZE).ranking[0]
    row = page.find_element("css selector", "#ranking button.explained")
    assert row.text.split("\n") == [best[1], f"{100 * best[2]:.1f} %"]


def test_opacity_and_method_change_the_image(page, server, tiny, until):
    from selenium.webdriver.common.keys import Keys

    controls = server.broadcaster.controls
    first = image_of(page)
    press(page, "#opacity", Keys.HOME)
    until(lambda: controls.look.opacity == 0)
    plain = frame_of(tiny, controls, 7, SIZE).original
    until(lambda: like(image_of(page), plain))
    press(page, "#opacity", Keys.END)
    until(lambda: controls.look.opacity == 1)
    until(lambda: like(image_of(page), expected(tiny, server)))
    assert not like(image_of(page), first)
    press(page, "#method", "X")  # the one that begins with it
    until(lambda: controls.look.method == "xgradcam")
    until(lambda: page.execute_script("return whycam.numbers.explanation.method") == "xgradcam")
    until(lambda: like(image_of(page), expected(tiny, server)))


def test_thresholds_are_swept_charted_and_fixed(page, server, until):
    from selenium.webdriver.common.keys import Keys

    controls = server.broadcaster.controls
    assert "With TFT on" in page.find_element("id", "curve-text").text
    page.find_element("css selector", "#sweep label:nth-of-type(2)").click()
    until(lambda: controls.look.tft == "every")
    taus = len(controls.manifest.tft.taus)
    until(lambda: len(page.find_elements("css selector", "#curve circle")) == taus)
    until(lambda: "all tried" in page.find_element("id", "curve-text").text)
    press(page, "#threshold", Keys.END)
    until(lambda: controls.look.threshold == 1)
    assert not page.find_element("id", "automatic").is_selected()
    page.find_element("css selector", ".chip").click()
    until(lambda: controls.look.threshold is None)


def test_class_is_searched_and_pressed(page, server, until):
    from selenium.webdriver.common.keys import Keys

    controls, field = server.broadcaster.controls, page.find_element("id", "class")
    assert field.get_attribute("value").startswith("Automatic")
    press(page, "#class", "zebra")
    assert "no class" in page.find_element("id", "class-list").text
    press(page, "#class", Keys.CONTROL, "a", Keys.CONTROL)
    press(page, "#class", "EE", Keys.ENTER)
    until(lambda: controls.look.target == 1)
    until(lambda: page.execute_script("return whycam.numbers.explanation.label") == "bee")
    assert field.get_attribute("value") == "bee"
    kept = until(lambda: page.find_elements("css selector", "#ranking [aria-pressed='true']"))[0]
    assert kept.text.startswith("bee")
    kept.click()
    until(lambda: controls.look.target == -1)
    press(page, "#class", Keys.ESCAPE)
    until(lambda: field.get_attribute("value").startswith("Automatic"))


def test_changes_from_elsewhere_and_refusals_move_the_controls(page, server, until, monkeypatch):
    controls = server.broadcaster.controls
    controls.change(opacity=0.25, contour=False)
    until(lambda: page.find_element("id", "opacity-value").text == "0.25")
    assert not page.find_element("id", "contour").is_selected()

    def refuse(**_: Any) -> None:
        raise RequestError("this stream cannot do that")

    monkeypatch.setattr(controls, "change", refuse)
    page.find_element("id", "contour").click()
    until(lambda: page.find_element("id", "refused").text == "This stream cannot do that.")
    assert not page.find_element("id", "contour").is_selected()


def test_pause_holds_the_image(page, until):
    count = "return whycam.frames"
    button = page.find_element("id", "pause")
    button.click()
    held = page.execute_script(count)
    time.sleep(0.4)
    assert page.execute_script(count) - held <= 1
    button.click()
    until(lambda: page.execute_script(count) > held + 3)


def test_phone_shows_everything_without_scrolling_sideways(page, until):
    sizes = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    try:
        until(lambda: page.execute_script("return innerWidth") == 390)
        assert page.execute_script("return document.documentElement.scrollWidth") == 390
        heights = page.execute_script(
            "return [...document.querySelectorAll('button, select, input[type=range], "
            "input[type=text]')].filter(e => e.offsetParent).map(e => [e.id, e.offsetHeight])"
        )
        assert {name for name, _ in heights} >= {"pause", "method", "opacity", "class"}
        assert min(height for _, height in heights) >= 44
        box = page.execute_script(
            "const r = document.getElementById('image').getBoundingClientRect(); "
            "return [r.left, r.right, r.top, r.bottom]"
        )
        assert box[0] >= 0
        assert box[1] <= 390
        assert box[3] < 844
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_controls_have_names_for_those_who_do_not_see(page):
    unnamed = page.execute_script(
        "return [...document.querySelectorAll('input, select, button, [role=img]')]"
        ".filter(e => !(e.labels && e.labels.length) && !e.textContent.trim() && "
        "!e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')).map(e => e.id)"
    )
    assert unnamed == []


def test_every_control_says_what_it_does(page, until):
    until(lambda: page.find_elements("css selector", "#ranking button"))
    silent = page.execute_script(
        "return [...document.querySelectorAll('input, select, button')]"
        ".filter(e => !e.title.trim()).map(e => e.outerHTML)"
    )
    assert silent == []


def test_views_and_colour_map_change_the_image_and_its_scale(page, server, tiny, until):
    controls = server.broadcaster.controls
    page.find_element("css selector", "#view label:nth-of-type(3)").click()
    until(lambda: controls.look.view == "side-by-side")
    page.find_element("css selector", "#view label:nth-of-type(2)").click()
    until(lambda: controls.look.view == "map")
    until(lambda: not page.find_element("id", "opacity").is_enabled())
    press(page, "#colormap", "V")
    until(lambda: controls.look.colormap == "viridis")
    red, green, blue = color_table("viridis")[0, 0]
    scale = "return document.getElementById('scale').style.backgroundImage"
    until(lambda: f"rgb({red}, {green}, {blue})" in page.execute_script(scale))
    press(page, "#frame", "v")
    until(lambda: controls.look.view == "side-by-side")


def test_speed_is_shown_for_live_sources_alone(page, tiny, until):
    assert page.find_element("id", "latency").is_displayed()
    with Server(Controls(tiny.manifest), port=0) as server:
        frame = replace(frame_of(tiny, server.broadcaster.controls, 7, SIZE), live=False)
        page.get(server.url)
        server.publish(frame)
        until(lambda: page.find_element("id", "index").text.startswith("7"))
        assert state(page) == "playing"
        for name in ("latency", "fps"):
            assert not page.find_element("id", name).is_displayed()
        assert not page.find_element("css selector", ".key.latency").is_displayed()
        assert not page.find_element("id", "open").is_displayed()


@pytest.mark.parametrize(
    ("reused", "tried", "figure", "curve"),
    [
        ("threshold", False, "0 τ held", "τ* 0.3 of an earlier image holds; no time to try any"),
        ("unchanged", True, "0 unchanged", "τ* 0.3 gains"),
        ("explanation", True, "0 map held", "τ* 0.3 gains"),
        (None, True, "0", "τ* 0.3 gains"),
    ],
)
def test_what_is_reused_of_an_earlier_image_is_said(
    page, tiny, until, reused, tried, figure, curve
):
    with Server(Controls(tiny.manifest, Look(tft="track")), port=0) as server:
        frame = frame_of(tiny, server.broadcaster.controls, 7, SIZE)
        rpi = np.full(10, 0.2 if tried else np.nan, np.float32)
        explanation = replace(frame.explanation, threshold=0.3, improved=True, rpi=rpi)
        timing = replace(frame.timing, evaluations=0)
        page.get(server.url)
        server.publish(replace(frame, explanation=explanation, timing=timing, reused=reused))
        until(lambda: page.find_element("id", "evaluations").text == figure)
        until(lambda: curve in page.find_element("id", "curve-text").text)


def test_image_is_explained_beside_the_stream(page, server, tiny, until, tmp_path):
    image = frame_of(tiny, server.broadcaster.controls, 3, (90, 120)).original
    file = tmp_path / "my own.png"
    Image.fromarray(image).save(file)
    page.find_element("id", "file").send_keys(str(file))
    until(lambda: "my own.png: an image of yours" in page.find_element("id", "still-name").text)
    assert image_of(page).shape == (90, 120, 3)
    assert not page.find_element("id", "fps").is_displayed()
    best = frame_of(tiny, server.broadcaster.controls, 3, (90, 120)).ranking[0]
    row = page.find_element("css selector", "#ranking button.explained")
    assert row.text.split("\n") == [best[1], f"{100 * best[2]:.1f} %"]
    count = "return whycam.frames"
    before = page.execute_script(count)
    until(lambda: page.execute_script(count) > before + 2)  # the stream goes on behind it
    press(page, "#method", "X")
    until(lambda: page.execute_script("return whycam.numbers.explanation.method") == "xgradcam")
    assert image_of(page).shape == (90, 120, 3)
    press(page, "#frame", "\ue00c")  # Escape
    until(lambda: image_of(page).shape == (*SIZE, 3))
    assert not page.find_element("id", "still").is_displayed()


DROP = """
const files = new DataTransfer();
for (const [name, size] of arguments[0]) files.items.add(new File([new Uint8Array(size)], name));
const drag = { dataTransfer: files, bubbles: true, cancelable: true };
document.body.dispatchEvent(new DragEvent(arguments[1], drag));
"""


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("a.png", 21 * 2**20)], "a.png has 21 MiB, and at most 20"),
        ([("a.png", 9), ("b.png", 9)], "drop one image at a time"),
        ([], "what was dropped is no file"),
    ],
)
def test_drops_that_cannot_be_explained_are_told_and_the_stream_goes_on(page, until, files, words):
    page.execute_script(DROP, files, "drop")
    until(lambda: words in page.find_element("id", "notice").text)
    count = "return whycam.frames"
    before = page.execute_script(count)
    until(lambda: page.execute_script(count) > before + 2)


def test_file_that_is_no_image_is_told_as_the_server_says(browser, server, until):
    browser.get(server.url)
    until(lambda: state(browser) == "live")
    browser.execute_script(DROP, [("notes.txt", 9)], "dragenter")
    assert browser.find_element("id", "drop-hint").is_displayed()
    browser.execute_script(DROP, [("notes.txt", 9)], "drop")
    assert not browser.find_element("id", "drop-hint").is_displayed()
    told = browser.find_element("id", "notice")
    until(lambda: "notes.txt cannot be explained" in told.text)
    assert "no image" in told.text
    browser.get_log("browser")  # Chromium notes the status 422 there


def test_recording_is_a_video_of_what_is_shown(page, until, tmp_path):
    import cv2

    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    button = page.find_element("id", "record")
    button.click()
    until(lambda: button.text.startswith("Stop"))
    shown, count = image_of(page), "return whycam.frames"
    before = page.execute_script(count)
    until(lambda: page.execute_script(count) > before + 15)
    button.click()
    assert button.text == "Record"
    (file,) = until(lambda: list(tmp_path.glob("whycam-*.webm")))
    video = cv2.VideoCapture(str(file))
    images = []
    while (read := video.read())[0]:
        images.append(read[1][..., ::-1].astype(int))
    assert len(images) > 3
    assert images[-1].shape == shown.shape
    assert float(np.abs(images[-1] - shown).mean()) < 12


def test_recording_is_saved_when_the_stream_ends(browser, tiny, until, tmp_path):
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    server = Server(Controls(tiny.manifest), port=0)
    with server, Publisher(server, tiny, SIZE):
        browser.get(server.url)
        until(lambda: state(browser) == "live")
        press(browser, "#frame", "r")
        until(lambda: browser.find_element("id", "record").text.startswith("Stop"))
        time.sleep(0.5)
    until(lambda: "recording was saved" in browser.find_element("id", "notice").text)
    (file,) = until(lambda: list(tmp_path.glob("whycam-*.webm")))
    assert file.stat().st_size > 1000


def test_image_is_sent_with_the_token_and_explained_when_pasted(browser, tiny, until):
    controls = Controls(tiny.manifest)
    with Server(controls, tiny, port=0, token=TOKEN) as server, Publisher(server, tiny, SIZE):
        browser.get("about:blank")
        browser.get(server.url)
        until(lambda: state(browser) == "live")
        browser.execute_script(
            "const canvas = Object.assign(document.createElement('canvas'), "
            "{ width: 40, height: 30 }); canvas.getContext('2d'); canvas.toBlob(blob => {"
            "const data = new DataTransfer(); data.items.add(new File([blob], 'pasted.png'));"
            "dispatchEvent(new ClipboardEvent('paste', { clipboardData: data })); });"
        )
        name = browser.find_element("id", "still-name")
        until(lambda: "pasted.png: an image of yours" in name.text)
        assert image_of(browser).shape == (30, 40, 3)
        browser.find_element("id", "back").click()
        until(lambda: image_of(browser).shape == (*SIZE, 3))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(page, until, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        rows = page.execute_script(
            "const of = (e, name) => "
            "getComputedStyle(e).getPropertyValue(name).match(/\\d+/g).map(Number);"
            "const card = document.querySelector('.look');"
            "return ['#look-title', '#method', '#opacity-value'].map(s => "
            "[of(document.querySelector(s), 'color'), of(card, 'background-color')])"
        )
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for ink, ground in rows:
        light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, contrast of text
        assert (luminance(ground) > 0.5) == (scheme == "light")


def luminance(color: list[int]) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    parts = np.asarray(color[:3]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_token_is_asked_for_and_leaves_the_address(browser, tiny, until):
    controls = Controls(tiny.manifest)
    with Server(controls, port=0, token=TOKEN) as server, Publisher(server, tiny, SIZE):
        bare = server.url.partition("#")[0]
        browser.get(bare)
        until(lambda: state(browser) == "locked")
        press(browser, "#token", "not-the-right-one\n")
        until(lambda: browser.find_element("id", "token").get_attribute("value") == "")
        until(lambda: state(browser) == "locked")
        press(browser, "#token", f"{TOKEN}\n")
        until(lambda: state(browser) == "live")
        browser.get("about:blank")
        browser.get(server.url)
        until(lambda: state(browser) == "live")
        assert browser.current_url == bare
        browser.refresh()
        until(lambda: state(browser) == "live")


def test_page_tells_loss_and_end_and_goes_on_when_the_stream_begins_again(browser, tiny, until):
    controls = Controls(tiny.manifest)
    with Server(controls, port=0) as server:
        browser.get(server.url)
        server.publish(frame_of(tiny, controls, 1, SIZE))
        until(lambda: state(browser) == "live")
        server.tell("lost", "the camera does not answer")
        until(lambda: state(browser) == "source lost")
        assert browser.find_element("id", "veil-text").text == "The camera does not answer."
        server.tell("live")
        until(lambda: state(browser) == "live")
        until(lambda: state(browser).startswith("stands still"))
    until(lambda: state(browser) == "ended")
    assert "The stream has ended." in browser.find_element("id", "veil-text").text
    with Server(controls, port=urlsplit(server.url).port) as again:
        again.publish(frame_of(tiny, controls, 2, SIZE))
        until(lambda: state(browser) == "live")
