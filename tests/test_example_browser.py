"""The browser example in headless Chromium, held against Python's answer."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import overlap
from chromium import chromium
from PIL import Image

import whycam

SOURCE = Path(__file__).parent.parent / "examples" / "browser"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(needs, tmp_path_factory) -> Path:
    """A copy of the example with its packages."""
    needs("node", "npm", "chromium", "chromedriver")
    folder = tmp_path_factory.mktemp("browser") / "example"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules", "*.onnx"))
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(home) -> Iterator[str]:
    server = subprocess.Popen(["node", "serve.mjs", "0"], cwd=home, stdout=subprocess.PIPE)
    assert server.stdout is not None
    line = server.stdout.readline().decode()
    yield line.split()[-1]
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def browser(home) -> Iterator[Any]:
    with chromium(
        "--window-size=1120,900",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
    ) as driver:
        yield driver


@pytest.fixture(scope="module")
def model(home, pixels_onnx) -> Path:
    from whycam.runtime.onnxfile import read_manifest

    shutil.copy(pixels_onnx, home / "model.onnx")
    (home / "model.json").write_text(read_manifest(pixels_onnx).to_json(), "utf-8")
    return pixels_onnx


@pytest.fixture
def wait(browser) -> Callable[..., None]:
    from selenium.webdriver.support.ui import WebDriverWait

    def until(condition: Callable[[], Any], seconds: float = 60) -> None:
        WebDriverWait(browser, seconds).until(lambda _: condition())

    return until


@pytest.fixture
def status(browser) -> Callable[[], str]:
    return lambda: browser.find_element("id", "status").text


@pytest.fixture
def page(browser, address, model, wait, status) -> Any:
    """The page, loaded and ready."""
    browser.get(address)
    wait(lambda: status().startswith("ready"))
    return browser


def choose(page: Any, wait: Any, image: Path) -> None:
    page.execute_script("window.whycam.answer = null")
    page.find_element("id", "file").send_keys(str(image))
    wait(lambda: page.execute_script("return window.whycam.answer !== null"))


def answer(page: Any) -> dict[str, Any]:
    return page.execute_script(
        "const a = window.whycam.answer; return {...a, map: Array.from(a.map), cutMap: "
        "Array.from(a.cutMap), probabilities: Array.from(a.probabilities)}"
    )


def shown(page: Any) -> str:
    return page.execute_script("return document.getElementById('view').toDataURL()")


@pytest.mark.parametrize("index", [0, 3])
def test_answer_is_pythons(page, wait, model, sample_images, tmp_path, index):
    sample = tmp_path / "sample.png"
    Image.open(sample_images[index]).convert("RGB").save(sample)
    choose(page, wait, sample)
    found = answer(page)
    expected = whycam.load(model, threads=2).explain(sample, tft=True)
    assert found["index"] == found["top"][0] == expected.index
    assert found["probabilities"][expected.index] == pytest.approx(expected.probability, abs=1e-3)
    assert found["threshold"] == pytest.approx(expected.threshold, abs=1e-6)
    # WebAssembly rounds otherwise: a few pixels fall on the other side of a cut.
    np.testing.assert_allclose(found["rpi"], expected.rpi, atol=1e-3, rtol=0.03)
    shape = expected.map.shape
    np.testing.assert_allclose(np.reshape(found["map"], shape), expected.original_map, atol=1e-3)
    assert overlap(np.reshape(found["cutMap"], shape), expected.map) > 0.99
    assert expected.label in page.find_element("id", "classes").text
    assert f"{expected.threshold:.1f}" in page.find_element("id", "chosen").text


def test_map_lies_where_python_draws_it(page, wait, model, chelsea, tmp_path):
    import base64
    import io

    choose(page, wait, chelsea)
    data = base64.b64decode(shown(page).split(",")[1])
    drawn = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
    changed = np.abs(drawn - np.asarray(Image.open(chelsea).convert("RGB"), int)).max(-1) > 3
    expected = whycam.load(model).explain(chelsea, tft=True, geometry="image").map
    assert overlap(changed, expected > 0.02) > 0.9
    assert page.get_screenshot_as_file(str(tmp_path / "page.png"))


def test_opacity_threshold_box_and_class_change_the_image(page, wait, chelsea):
    choose(page, wait, chelsea)
    first = shown(page)
    page.execute_script(
        "const o = document.getElementById('opacity'); o.value = 0.1; "
        "o.dispatchEvent(new Event('input'))"
    )
    faint = shown(page)
    page.find_element("id", "cut").click()
    whole = shown(page)
    assert len({first, faint, whole}) == 3
    second = answer(page)["top"][1]
    page.find_element("css selector", f"#classes button[data-index='{second}']").click()
    wait(lambda: answer(page)["index"] == second)
    assert shown(page) != whole
    pressed = page.find_element("css selector", "#classes button[aria-pressed='true']")
    assert pressed.get_attribute("data-index") == str(second)


def test_file_that_is_no_image_is_told_and_the_page_goes_on(page, wait, status, chelsea, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    page.find_element("id", "file").send_keys(str(broken))
    wait(lambda: "broken.jpg" in status())
    assert "error" in page.find_element("id", "status").get_attribute("class")
    choose(page, wait, chelsea)
    wait(lambda: "451 x 300" in status())
    assert "error" not in page.find_element("id", "status").get_attribute("class")


def test_large_image_is_scaled_down(page, wait, status, tmp_path):
    Image.new("RGB", (6000, 20), "teal").save(tmp_path / "wide.png")
    choose(page, wait, tmp_path / "wide.png")
    wait(lambda: "1600 x 5" in status())


def test_camera_shows_its_rate_and_stops(page, wait, status):
    camera = page.find_element("id", "camera")
    camera.click()
    wait(lambda: "frames a second" in status())
    assert float(status().split()[1]) > 0
    first = shown(page)
    wait(lambda: shown(page) != first)
    camera.click()
    wait(lambda: status() == "camera off")
    assert camera.text == "Use the camera"


@pytest.mark.parametrize(
    ("name", "told"),
    [("model.onnx", "whycam export"), ("model.json", "whycam info")],
)
def test_missing_model_is_told_with_the_command_that_makes_it(
    browser, address, model, home, wait, status, name, told
):
    (home / name).rename(home / "away")
    try:
        browser.get(address)
        wait(lambda: "There is no" in status())
        assert name in status()
        assert told in status()
        assert not browser.find_element("id", "file").is_enabled()
    finally:
        (home / "away").rename(home / name)


def test_page_runs_without_complaints_in_the_console(page, wait, chelsea):
    page.get_log("browser")
    choose(page, wait, chelsea)
    assert page.get_log("browser") == []


@pytest.mark.parametrize(
    "path", ["/../../../../etc/passwd", "/..%2f..%2f..%2fetc/passwd", "/%00", "/nothing", "/%"]
)
def test_server_serves_nothing_outside_its_folder(address, path):
    import http.client
    from urllib.parse import urlsplit

    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
    connection.request("GET", path)
    assert connection.getresponse().status == 404


@pytest.fixture
def zero_shot(home) -> Iterator[tuple[Path, Path]]:
    """A model that takes class embeddings beside the page, and a file of prompts."""
    import math

    from export_cache import exported
    from networks import SMALL
    from test_zero_shot import encoder, prompts

    from whycam.runtime.onnxfile import read_manifest
    from whycam.runtime.prompts import write_prompts

    path = exported(
        encoder, overrides=SMALL, task="softmax", classes="input", logit_scale=math.log(20.0),
        outputs=["tft"], embed_preprocess=True,
    )  # fmt: skip
    kept = {name: (home / name).read_bytes() for name in ("model.onnx", "model.json")}
    shutil.copy(path, home / "model.onnx")
    (home / "model.json").write_text(read_manifest(path).to_json(), "utf-8")
    write_prompts(home / "prompts.npz", prompts(3))
    yield path, home / "prompts.npz"
    for name, data in kept.items():
        (home / name).write_bytes(data)


def test_prompts_are_chosen_in_the_page_without_another_export(
    browser, address, wait, status, model, zero_shot, chelsea, tmp_path
):
    from test_zero_shot import prompts

    from whycam.runtime.prompts import Prompts, write_prompts

    path, first = zero_shot
    browser.get(address)
    wait(lambda: status().startswith("ready"))
    sample = tmp_path / "sample.png"
    Image.open(chelsea).convert("RGB").save(sample)
    choose(browser, wait, sample)
    other = Prompts(("eine Katze", "Füchslein 🦊", "x", "y"), prompts(4, seed=9).embeddings)
    second = write_prompts(tmp_path / "other.npz", other)
    for file in (first, second):
        if file == second:
            browser.execute_script("window.whycam.answer = null")
            browser.find_element("id", "prompts").send_keys(str(file))
            wait(lambda: browser.execute_script("return window.whycam.answer !== null"))
        found = answer(browser)
        explainer = whycam.load(path, prompts=file)
        expected = explainer.explain(sample, tft=True)
        np.testing.assert_allclose(found["probabilities"], explainer.classify(sample)[0], atol=1e-3)
        assert found["index"] == expected.index
        assert expected.label in browser.find_element("id", "classes").text
        assert found["threshold"] == pytest.approx(expected.threshold, abs=1e-6)
    (tmp_path / "bad.npz").write_bytes(b"no zip file, but long enough for its last record")
    browser.find_element("id", "prompts").send_keys(str(tmp_path / "bad.npz"))
    wait(lambda: "no file of prompts" in status())
    rows = np.ones((2, prompts(1).embeddings.shape[1]), np.float32)
    rows[1] = 0
    np.savez(tmp_path / "zero.npz", names=np.array(["x", "y"]), embeddings=rows)
    browser.find_element("id", "prompts").send_keys(str(tmp_path / "zero.npz"))
    wait(lambda: 'no direction for "y"' in status())
    np.savez(tmp_path / "twice.npz", names=np.array(["x", "x"]), embeddings=rows + 1)
    browser.find_element("id", "prompts").send_keys(str(tmp_path / "twice.npz"))
    wait(lambda: 'the name "x" twice' in status())
