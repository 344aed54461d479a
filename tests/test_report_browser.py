"""Reports in headless Chromium: what the page draws, its controls and keys, and what it refuses."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from chromium import chromium
from PIL import Image
from report_pages import data_of, write_images, write_report

import whycam
from whycam.calibrate import evaluate, open_dataset
from whycam.calibrate.comparison_page import add_compared, describe_comparison
from whycam.calibrate.dataset import Classes
from whycam.calibrate.evaluation_page import write_evaluation_page
from whycam.calibrate.fidelity import compare
from whycam.runtime import overlay
from whycam.runtime.manifest import Preprocess
from whycam.runtime.report.document import About, Report
from whycam.runtime.report.entry import encode_explanations

pytestmark = pytest.mark.slow

EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def browser(needs) -> Iterator[Any]:
    needs("chromium", "chromedriver")
    with chromium("--window-size=1280,900") as driver:
        yield driver


@pytest.fixture
def until(browser) -> Callable[..., Any]:
    from selenium.webdriver.support.ui import WebDriverWait

    return lambda condition: WebDriverWait(browser, 10, 0.02).until(lambda _: condition())


@pytest.fixture
def show(browser, until) -> Iterator[Callable[[Path], Any]]:
    """Opens a report; the browser must have had nothing to complain of, or to fetch."""

    def open_page(path: Path) -> Any:
        browser.get_log("browser")
        browser.get(path.as_uri())
        until(lambda: browser.execute_script("return Boolean(window.whycam)"))
        return browser

    yield open_page
    assert browser.get_log("browser") == []
    fetched = browser.execute_script(
        "return performance.getEntriesByType('resource').map((one) => one.name)"
    )
    assert [name for name in fetched if not name.startswith("data:")] == []


def write_smooth(tiny: whycam.Explainer, folder: Path, count: int = 4, tft: Any = True) -> Path:
    """Images of one grey, on which nothing but the map has colours."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(7)
    with Report(folder / "report.html", count) as report:
        for number in range(count):
            path = folder / "images" / f"{number}.png"
            pixels = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
            Image.fromarray(pixels).resize((240, 240), Image.Resampling.BILINEAR).save(path)
            found = tiny.explain(path, [-1, -2, -3], "gradcam", tft=tft)
            report.add(encode_explanations(path.name, [found], (number % 3, "abc"[number % 3])))
        taus = tiny.manifest.tft.taus
        about = About(kind="explain", title="t", sources=("tiny",), taus=taus)
        return report.write(about)


def canvas_of(browser: Any, selector: str) -> np.ndarray:
    data = browser.execute_script(
        f"return document.querySelector({selector!r}).toDataURL('image/png')"
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))), int)


def names(browser: Any) -> list[str]:
    return browser.execute_script("return whycam.order().map((image) => image.name)")


def cards(browser: Any) -> list[Any]:
    return browser.find_elements("css selector", "#gallery button")


def press(browser: Any, *keys: str) -> None:
    browser.switch_to.active_element.send_keys(*keys)


def at_map_pixels(drawn: np.ndarray, size: int = 8) -> np.ndarray:
    """What a canvas shows at the centres of the pixels of a map of 8 x 8."""
    rows, columns = (
        ((np.arange(size) + 0.5) * side / size).astype(int) for side in drawn.shape[:2]
    )
    return drawn[rows][:, columns]


def test_a_map_is_drawn_as_the_overlay_draws_it(tiny, tmp_path, show, until):
    """At the map's pixels the page's colours are those of the whole map's overlay on black."""
    page = show(write_smooth(tiny, tmp_path))
    cards(page)[1].click()
    until(lambda: page.find_elements("css selector", ".panels canvas.heat"))
    page.execute_script(
        "const mode = document.querySelector('[data-control=mode]'); mode.value = 'whole';"
        "mode.dispatchEvent(new Event('change'))"
    )
    until(lambda: page.execute_script("return document.querySelector('.panels .heat').width > 100"))
    drawn = at_map_pixels(canvas_of(page, ".panels .heat"))
    name = page.find_element("id", "viewer-title").text
    one = tiny.explain(tmp_path / "images" / name, method="gradcam")
    expected = overlay.blend(np.zeros((8, 8, 3), np.uint8), one.original_map, 1.0).astype(int)
    shown = drawn[..., :3] * drawn[..., 3:] / 255
    assert np.abs(shown - expected).max() < 10
    assert expected.max() > 100


def test_below_the_threshold_nothing_is_drawn(tiny, tmp_path, show, until):
    page = show(write_smooth(tiny, tmp_path, tft="naive"))
    cards(page)[0].click()
    until(lambda: page.find_elements("css selector", ".panels canvas.heat"))
    until(lambda: page.execute_script("return document.querySelector('.panels .heat').width > 100"))
    name = page.find_element("id", "viewer-title").text
    one = tiny.explain(tmp_path / "images" / name, method="gradcam", tft="naive")
    drawn = at_map_pixels(canvas_of(page, ".panels .heat"))[..., 3] > 0
    clear = np.abs(one.original_map - one.cut) > 0.02
    assert one.cut > 0.15
    np.testing.assert_array_equal(drawn[clear], (one.map > 0)[clear])
    assert canvas_of(page, ".panels .outline")[..., 3].max() > 100


def test_images_are_searched_sorted_and_filtered(tiny, tmp_path, show, until):
    page = show(write_smooth(tiny, tmp_path, 6))
    images = data_of(tmp_path / "report.html")["images"]
    assert len(cards(page)) == 6
    search = page.find_element("id", "search")
    search.send_keys("3.png")
    assert names(page) == ["3.png"]
    assert page.find_element("id", "count").text == "1 of 6"
    search.send_keys("x")
    assert page.find_element("id", "nothing").is_displayed()
    page.find_element("id", "clear").click()
    assert len(names(page)) == 6
    page.execute_script(
        "const sort = document.getElementById('sort'); sort.value = 'unsure';"
        "sort.dispatchEvent(new Event('change'))"
    )
    expected = sorted(images, key=lambda image: image["top"][0][0][1])
    assert names(page) == [image["name"] for image in expected]
    page.execute_script(
        "const sort = document.getElementById('sort'); sort.value = 'wrong';"
        "sort.dispatchEvent(new Event('change'))"
    )
    wrong = [image["top"][0][0][0] != image["label"] for image in images]
    ordered = [images[int(name[0])] for name in names(page)]
    assert [image["top"][0][0][0] != image["label"] for image in ordered] == sorted(wrong)[::-1]


def test_keys_search_move_open_and_close(tiny, tmp_path, show, until):
    from selenium.webdriver.common.keys import Keys

    page = show(write_smooth(tiny, tmp_path))
    press(page, "/")
    assert page.switch_to.active_element.get_attribute("id") == "search"
    press(page, Keys.ESCAPE)
    page.execute_script("document.querySelector('#gallery button').focus()")
    press(page, Keys.ARROW_RIGHT)
    press(page, Keys.ENTER)
    until(lambda: page.find_elements("css selector", "#viewer-title"))
    title = lambda: page.find_element("id", "viewer-title").text  # noqa: E731
    order = names(page)
    assert title() == order[1]
    press(page, Keys.ARROW_RIGHT)
    until(lambda: title() == order[2])
    press(page, "2")
    pressed = page.find_elements("css selector", ".ranking [aria-pressed=true]")
    assert len(pressed) == 1
    second = data_of(tmp_path / "report.html")["images"][int(order[2][0])]["maps"][1]["index"]
    assert pressed[0].text.startswith(("ant", "bee", "cat", "a", "b", "c")[second][0])
    press(page, Keys.ESCAPE)
    until(lambda: not page.execute_script("return document.getElementById('viewer').open"))
    focused = page.switch_to.active_element.get_attribute("data-image")
    assert focused == order[2][0]


def test_two_maps_are_compared_with_their_difference(tiny, tmp_path, show, until):
    page = show(write_smooth(tiny, tmp_path))
    cards(page)[0].click()
    until(lambda: page.find_elements("css selector", "[data-control=compare]"))
    page.execute_script(
        "const compare = document.querySelector('[data-control=compare]');"
        "compare.selectedIndex = 1; compare.dispatchEvent(new Event('change'))"
    )
    until(lambda: len(page.find_elements("css selector", ".panels figure")) == 3)
    name = page.find_element("id", "viewer-title").text
    first, second, _ = tiny.explain(tmp_path / "images" / name, [-1, -2, -3], "gradcam")
    drawn = canvas_of(page, ".panels .difference canvas")
    difference = cv2.resize(
        first.original_map - second.original_map, (drawn.shape[1], drawn.shape[0])
    )
    clear = np.abs(difference) > 0.1
    orange = drawn[..., 0] > drawn[..., 2]
    assert clear.any()
    assert (orange == (difference > 0))[clear].mean() > 0.97


def test_opacity_changes_every_map(tiny, tmp_path, show, until):
    page = show(write_smooth(tiny, tmp_path))
    page.execute_script(
        "const slider = document.getElementById('opacity'); slider.value = 25;"
        "slider.dispatchEvent(new Event('input'))"
    )
    opacity = page.execute_script(
        "return getComputedStyle(document.querySelector('#gallery .heat')).opacity"
    )
    assert float(opacity) == pytest.approx(0.25)


def test_no_label_or_name_becomes_markup(tiny, manifest_of, tmp_path, show, until):
    named = whycam.Explainer(tiny.engine, manifest_of(labels=(EVIL, f"bee {EVIL}", f"cat {EVIL}")))
    page = show(write_report(named, tmp_path, facts=((EVIL, EVIL),), notes=(EVIL,)))
    cards(page)[0].click()
    until(lambda: page.find_elements("css selector", ".ranking"))
    assert page.title == "tiny"
    assert EVIL in page.find_element("css selector", ".ranking").text
    injected = "return document.querySelectorAll('img[onerror]').length"
    assert page.execute_script(injected) == 0


def test_a_phone_scrolls_down_alone_and_has_large_controls(tiny, tmp_path, show, until):
    page = show(write_smooth(tiny, tmp_path))
    sizes = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    try:
        page.refresh()
        until(lambda: page.execute_script("return innerWidth") == 390)
        assert page.execute_script("return document.documentElement.scrollWidth") == 390
        cards(page)[0].click()
        until(lambda: page.find_elements("css selector", ".panels canvas.heat"))
        dialog = "document.getElementById('viewer')"
        assert page.execute_script(f"return {dialog}.scrollWidth <= {dialog}.clientWidth")
        heights = page.execute_script(
            "return [...document.querySelectorAll('button, select, input')]"
            ".filter((one) => one.offsetParent).map((one) => one.offsetHeight)"
        )
        assert min(heights) >= 44
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark_follow_the_system_and_the_button(tiny, tmp_path, show, until):
    page = show(write_smooth(tiny, tmp_path))
    ground = "return getComputedStyle(document.body).backgroundColor"
    found = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        found[scheme] = page.execute_script(ground)
    assert found["light"] != found["dark"]
    page.find_element("id", "theme").click()
    assert page.execute_script(ground) == found["light"]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_controls_have_names_for_those_who_do_not_see(tiny, tmp_path, show, until):
    page = show(write_smooth(tiny, tmp_path))
    cards(page)[0].click()
    until(lambda: page.find_elements("css selector", ".panels canvas.heat"))
    unnamed = page.execute_script(
        "return [...document.querySelectorAll('input, select, button, [role=img]')]"
        ".filter((one) => one.offsetParent && !(one.labels && one.labels.length)"
        " && !one.textContent.trim() && !one.getAttribute('aria-label'))"
        ".map((one) => one.outerHTML)"
    )
    assert unnamed == []


def test_far_images_are_not_drawn_until_they_come_near(tiny, tmp_path, show, until):
    (path,) = write_images(tmp_path / "images", 1)
    one = tiny.explain(path)
    with Report(tmp_path / "report.html", 400) as report:
        for number in range(400):
            report.add(encode_explanations(f"{number}", [[one]]))
        report.write(About(kind="explain", title="many", sources=("tiny",)))
    page = show(tmp_path / "report.html")
    drawn = "return [...document.querySelectorAll('#gallery img[src]')].length"
    until(lambda: page.execute_script(drawn) > 10)
    assert page.execute_script(drawn) < 100
    page.execute_script("scrollTo({top: document.body.scrollHeight, behavior: 'instant'})")
    last = "return Boolean(document.querySelector('#gallery li:last-child img').src)"
    until(lambda: page.execute_script(last))
    assert page.execute_script(drawn) < 150


@pytest.fixture
def labelled(tmp_path) -> Path:
    for label in ("ant", "bee", "cat"):
        write_images(tmp_path / "data", 0)
        rng = np.random.default_rng(len(label) + ord(label[0]))
        (tmp_path / "data" / label).mkdir()
        for number in range(4):
            pixels = rng.integers(0, 256, (12, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    return tmp_path


def test_a_cell_of_the_confusion_matrix_shows_its_images(tiny, labelled, show, until):
    data = open_dataset(labelled / "data")
    evaluation = evaluate(tiny, data, methods=["gradcam", "layercam"], folder=labelled)
    page = show(write_evaluation_page(tiny, data, evaluation, labelled))
    titles = [one.text for one in page.find_elements("css selector", "#overview h2")]
    assert titles == ["Worst cases", "Quality of the maps", "Classes", "Confusion matrix"]
    cell = page.find_element("css selector", ".confusion .miss button")
    label, predicted = cell.get_attribute("aria-label").split(":")[0].split(" predicted as ")
    count = int(cell.text)
    page.execute_script("arguments[0].click()", cell)
    shown = page.execute_script("return whycam.order()")
    assert len(shown) == count
    assert {image["name"].split("/")[0] for image in shown} == {label}
    names_of = data_of(labelled / "report.html")["labels"]
    assert {names_of[str(image["top"][0][0][0])] for image in shown} == {predicted}
    assert predicted in page.find_element("id", "chip").text


def test_tables_sort_by_the_heading_that_is_pressed(tiny, labelled, show, until):
    data = open_dataset(labelled / "data")
    evaluation = evaluate(tiny, data, methods=["gradcam"], folder=labelled)
    page = show(write_evaluation_page(tiny, data, evaluation, labelled))
    heading = page.find_element("css selector", "#classes th:nth-child(3) button")
    values = "return [...document.querySelectorAll('#classes td:nth-child(3)')]"
    for order in (1, -1):
        page.execute_script("arguments[0].click()", heading)
        found = [float(text.rstrip(" %")) for text in page.execute_script(
            f"{values}.map((one) => one.textContent)")]  # fmt: skip
        assert found == sorted(found, reverse=order > 0)


def test_a_comparison_opens_with_both_maps_and_their_difference(
    tiny, tiny_engine, manifest_of, labelled, show, until
):
    other = whycam.Explainer(
        tiny_engine(), manifest_of(preprocess=Preprocess(size=(12, 12), resize=(12,)))
    )
    data = open_dataset(labelled / "data")
    classes = Classes(tiny.manifest.labels, 3)
    with Report(labelled / "report.html", len(data.samples)) as report:
        collect = partial(add_compared, report, classes, tiny.manifest.labels)
        found = compare(tiny, other, data.samples, ["gradcam"], whycam.Tft(), collect=collect)
        about = describe_comparison(tiny, ("one", "other"), "data", found, whycam.Tft())
        page = show(report.write(about))
    cards(page)[0].click()
    until(lambda: len(page.find_elements("css selector", ".panels figure")) == 3)
    headings = [one.text for one in page.find_elements("css selector", "aside h3")]
    assert headings[:2] == ["one", "other"]


@pytest.fixture
def training(tiny, tiny_engine, manifest_of, labelled) -> Path:
    """The page of a training: the maps of two networks of one size, and a curve."""
    changed = tiny_engine()
    changed.linear = -changed.linear
    other = whycam.Explainer(changed, manifest_of())
    data = open_dataset(labelled / "data")
    classes = Classes(tiny.manifest.labels, 3)
    curve = {"steps": [1, 2, 3], "terms": {"loss": [3, 2, 1], "faithful": [1.5, 1, 0.5]}}
    figures = {"images": 4, "before": 1, "before_error": 0, "after": 0.5, "after_error": 0.2}
    figures |= {"change": -0.5, "change_error": 0.2}
    of_classes = [{"index": index} | figures for index in (None, 0, 1, 2)]
    sections = {
        "curve": curve | {"epochs": [2], "span": 1},
        "weights": {"faithful": 2},
        "classes": of_classes,
    }
    with Report(labelled / "report.html", len(data.samples)) as report:
        collect = partial(add_compared, report, classes, tiny.manifest.labels)
        compare(tiny, other, data.samples, ["gradcam"], collect=collect)
        return report.write(
            About(
                kind="train",
                title="t",
                sources=("before", "after"),
                sections={"training": sections},
            )
        )


def test_a_training_shows_each_image_before_and_after(training, show, until):
    page = show(training)
    titles = [one.text for one in page.find_elements("css selector", "#overview h2")]
    assert titles == ["Accuracy", "Learning curve"]
    assert len(page.find_elements("css selector", "#curve .chart")) == 2
    assert "50.0 % ± 20.0 %" in page.find_element("id", "accuracy").text
    first = cards(page)[0]
    until(lambda: first.text)
    tags = [one.text for one in first.find_elements("css selector", ".tag")]
    assert tags == ["before", "after"]
    drawn = "return [...arguments[0].querySelectorAll('canvas')].every((one) => one.width > 1)"
    until(lambda: page.execute_script(drawn, first))
    place = "#gallery li:first-child .frame:nth-child({}) canvas"
    before, after = (canvas_of(page, place.format(number)) for number in (1, 2))
    assert not np.array_equal(before, after)
    image = page.execute_script("return whycam.order()[0]")
    assert image["top"][0][0][0] != image["top"][1][0][0]  # another class first
    assert "→" in first.text
    assert "now " in first.text


def test_a_training_fits_a_phone(training, show, until):
    page = show(training)
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    try:
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        until(lambda: page.execute_script("return innerWidth") == 390)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        assert len({card.location["x"] for card in cards(page)}) == 1
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("task", ["none", "sigmoid", "binary"])
def test_other_tasks_are_shown_without_an_error(tiny, manifest_of, tmp_path, show, until, task):
    fields = {"num_classes": 2, "labels": ("not bee", "bee")} if task == "binary" else {}
    explainer = whycam.Explainer(
        tiny.engine, manifest_of(task=task, methods=("gradcam",), **fields)
    )
    (path,) = write_images(tmp_path / "images", 1)
    with Report(tmp_path / "report.html", 1) as report:
        found = explainer.explain(path, [-1, -2], "gradcam", tft=None)
        report.add(encode_explanations("0.png", [found]))
        page = show(report.write(About(kind="explain", title="t", sources=("m",), task=task)))
    cards(page)[0].click()
    until(lambda: page.find_elements("css selector", ".ranking"))
    number = page.find_element("css selector", ".ranking li").text
    assert ("%" in number) == (task != "none")
