"""The page's server: what it sends, what it lets change, whom it lets in, how it ends."""

from __future__ import annotations

import http.client
import io
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_page import Page, frame_of
from PIL import Image

from whycam.cli import main
from whycam.runtime.errors import MissingExtraError, RequestError
from whycam.runtime.live.controls import Controls, StreamFrame
from whycam.runtime.serve.access_control import (
    is_allowed_host,
    is_same_origin,
    new_token,
    validate_token,
)
from whycam.runtime.serve.protocol import read_message, unpack
from whycam.runtime.serve.server import Server

pytest.importorskip("uvicorn")
closed = pytest.importorskip("websockets.exceptions")

TOKEN = "a-token-of-my-own"


@pytest.fixture
def controls(tiny) -> Controls:
    return Controls(tiny.manifest)


@pytest.fixture
def server(controls) -> Iterator[Server]:
    with Server(controls, engine="a tiny engine", source="made up", port=0) as running:
        yield running


@pytest.fixture
def frames(tiny, controls) -> Callable[[int], StreamFrame]:
    return lambda index: frame_of(tiny, controls, index)


def request(
    server: Server, path: str = "/", method: str = "GET", **headers: str
) -> http.client.HTTPResponse:
    """An HTTP request with exactly these headers."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    headers.setdefault("Host", f"127.0.0.1:{place.port}")
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    return connection.getresponse()


def upgrade(server: Server, **headers: str) -> int:
    """The status of a WebSocket handshake."""
    return request(
        server, "/stream", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Version="13",
        Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==", **headers,
    ).status  # fmt: skip


def shown(frame: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(frame["jpeg"])), int)


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not come true in time"
        time.sleep(0.005)


# What is sent.


def test_page_is_told_what_the_file_supports(server, tiny):
    with Page(server.url) as page:
        hello = page.hear("hello")
    assert (hello["model"], hello["engine"], hello["source"]) == (
        "tiny",
        "a tiny engine",
        "made up",
    )
    assert [each["name"] for each in hello["methods"]] == list(tiny.manifest.methods)
    assert hello["methods"][1]["sweeps"] == ["off", "every", "track"]
    assert hello["labels"] == ["ant", "bee", "cat"]
    assert hello["taus"] == list(tiny.manifest.tft.taus)
    assert hello["views"] == ["overlay", "map", "side-by-side"]
    # Its first and last colours as matplotlib, where it comes from, publishes them.
    assert hello["colormaps"]["viridis"][0] == "#440154"
    assert hello["colormaps"]["viridis"][-1] == "#fde725"


def test_methods_whose_thresholds_cannot_be_swept_say_so(manifest_of):
    manifest = manifest_of(
        embedded_preprocess=True, outputs=("map",), map_methods=("gradcam",), methods=("gradcam",)
    )
    with Server(Controls(manifest), port=0) as server, Page(server.url) as page:
        assert page.hear("hello")["methods"] == [{"name": "gradcam", "sweeps": ["off"]}]


def test_image_and_numbers_of_a_frame_come_together(server, frames, controls):
    controls.change(tft="every")
    with Page(server.url) as page:
        page.hear("state")
        for index in range(4):
            frame = frames(index)
            server.publish(frame)
            got = page.see()
            assert got["index"] == index
            assert np.abs(shown(got) - frame.image).mean() < 12  # JPEG
            assert np.abs(shown(got) - frames(index + 1).image).mean() > 24
            assert got["explanation"]["rpi"] == pytest.approx(frame.explanation.rpi)
            assert got["explanation"]["threshold"] == frame.explanation.threshold
            assert got["ranking"] == [list(row) for row in frame.ranking]
            assert got["timing"]["latency"] == frame.timing.latency
            assert got["size"] == [72, 128]
            assert got["dropped"] == 3


def test_large_frames_are_shrunk(server, tiny, controls):
    server.publish(frame_of(tiny, controls, 1, (1080, 2560)))
    with Page(server.url) as page:
        got = page.see()
    assert got["size"] == [1080, 2560]
    assert shown(got).shape == (540, 1280, 3)


def test_frames_side_by_side_are_shrunk_as_one_frame_is(server, tiny, controls):
    frame = frame_of(tiny, controls, 1, (1080, 2560))
    server.publish(replace(frame, image=np.concatenate([frame.original, frame.image], 1)))
    with Page(server.url) as page:
        got = page.see()
    assert got["size"] == [1080, 2560]
    assert shown(got).shape == (540, 2560, 3)


def test_lost_source_is_told_to_pages_there_and_to_come(server):
    with Page(server.url) as early:
        assert early.hear("state")["state"] == "live"
        server.tell("lost", "the camera does not answer")
        told = early.hear("state")
    assert (told["state"], told["text"]) == ("lost", "the camera does not answer")
    with Page(server.url) as late:
        assert late.hear("state")["state"] == "lost"


# Only the newest frame, encoded once, and nobody waits for a page.


def test_slow_page_gets_the_newest_frame_when_it_is_ready(server, frames):
    with Page(server.url) as page:
        page.hear("state")
        under_way = []
        for index in range(2):
            server.publish(frames(index))
            under_way.append(page.hear("frame")["index"])
        for index in range(2, 30):
            server.publish(frames(index))
        with pytest.raises(TimeoutError):
            page.hear("frame", 0.3)
        page.say({"kind": "seen", "sequence": 1})
        assert page.see()["index"] == 29
    assert under_way == [0, 1]


def test_page_that_reads_nothing_does_not_hold_up_the_stream_or_others(server, tiny, controls):
    frame = frame_of(tiny, controls, 3, (720, 1280))
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(
            b"GET /stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        wait_for(lambda: server.broadcaster.clients == 1)
        with Page(server.url) as page:
            page.hear("state")
            begun = time.perf_counter()
            for _ in range(1000):
                server.publish(frame)
            spent = time.perf_counter() - begun
            wait_for(lambda: page.see()["sequence"] == 1000)
        begun = time.perf_counter()
        server.stop()
        assert time.perf_counter() - begun < 5
    assert spent < 1


def test_frame_is_encoded_once_for_all_pages_and_not_at_all_without_any(server, frames):
    for index in range(5):
        server.publish(frames(index))
    assert server.broadcaster.encoded == 0
    pages = [Page(server.url) for _ in range(3)]
    assert [page.see()["index"] for page in pages] == [4, 4, 4]
    assert server.broadcaster.encoded == 1
    server.publish(frames(5))
    assert [page.see()["index"] for page in pages] == [5, 5, 5]
    assert server.broadcaster.encoded == 2
    for page in pages:
        page.socket.close()
    wait_for(lambda: server.broadcaster.clients == 0)
    server.publish(frames(6))
    time.sleep(0.1)
    assert server.broadcaster.encoded == 2


# What pages change.


def test_change_acts_on_the_stream_and_is_told_to_every_page(server, controls):
    with Page(server.url) as mine, Page(server.url) as other:
        assert other.hear("look")["look"]["opacity"] == controls.look.opacity
        mine.hear("look")
        wanted = {"opacity": 0.25, "method": "layercam", "target": 2, "tft": "every"}
        mine.say({"kind": "change", "look": wanted})
        for page in (mine, other):
            assert wanted.items() <= page.hear("look")["look"].items()
    assert (controls.look.opacity, controls.look.method) == (0.25, "layercam")


def test_change_by_the_program_is_told_with_the_next_frame(server, controls, frames):
    with Page(server.url) as page:
        page.hear("look")
        controls.change(smoothing=0.0)
        server.publish(frames(0))
        assert page.hear("look")["look"]["smoothing"] == 0.0


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"kind": "change", "look": {"opacity": 2}}, "opacity must lie between 0 and 1"),
        ({"kind": "change", "look": {"opacity": True}}, "cannot be used"),
        ({"kind": "change", "look": {"view": "sideways"}}, "cannot be used"),
        ({"kind": "change", "look": {"colormap": "rainbow"}}, "cannot be used"),
        ({"kind": "change", "look": {"opacity": 0.3, "method": "guess"}}, "method"),
        ({"kind": "change", "look": {"target": 99}}, "there is no class 99"),
        ({"kind": "change", "look": {"target": "bird"}}, "no class is called 'bird'"),
        ({"kind": "change", "look": {"self": 1}}, "no setting self"),
        ({"kind": "change", "look": []}, "cannot be read"),
        ({"kind": "shutdown"}, "cannot be read"),
        ({"kind": "seen", "sequence": "all"}, "cannot be read"),
        ("[" * 10_000, "cannot be read"),
        (b"\xff\x00", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_bad_message_is_refused_in_words_and_changes_nothing(server, controls, message, words):
    before = controls.look
    with Page(server.url) as page:
        page.say(message)
        told = page.hear("refused")
        assert words in told["text"]
        assert told["look"]["opacity"] == before.opacity
        page.say({"kind": "change", "look": {"opacity": 0.5}})
        page.hear("look")
        wait_for(lambda: controls.look.opacity == 0.5)


def test_huge_message_ends_that_connection_alone(server, controls):
    with Page(server.url) as page, Page(server.url) as other:
        page.say("x" * 20_000)
        with pytest.raises(closed.ConnectionClosed) as ended:
            page.hear("refused")
        assert ended.value.rcvd.code == 1009
        other.hear("look")
        other.say({"kind": "change", "look": {"opacity": 0.5}})
        assert other.hear("look")["look"]["opacity"] == 0.5


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(message):
    with suppress(RequestError):  # any other error would end the connection
        read_message(message)


# Images that pages send.


@pytest.fixture
def still_server(tiny, controls) -> Iterator[Server]:
    with Server(controls, tiny, port=0) as running:
        yield running


def post(server: Server, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Send an image file; the answer's status and body."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=10)
    connection.request("POST", "/explain", body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_image_is_explained_as_explain_does_with_the_look_in_force(still_server, tiny, controls):
    blocks = np.random.default_rng(3).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    pixels = blocks.repeat(10, 0).repeat(10, 1)
    controls.change(method="layercam", target=2, tft="track", view="side-by-side")
    status, body = post(still_server, png(pixels))
    assert status == 200
    numbers, jpeg = unpack(body)
    expected = tiny.explain(pixels, 2, "layercam", True)
    assert numbers["explanation"]["label"] == "cat"
    assert numbers["explanation"]["probability"] == pytest.approx(expected.probability)
    assert numbers["explanation"]["threshold"] == expected.threshold
    assert numbers["explanation"]["rpi"] == pytest.approx(list(expected.rpi))
    assert (numbers["live"], numbers["size"]) == (False, [50, 70])
    image = np.asarray(Image.open(io.BytesIO(jpeg)), int)
    assert image.shape == (50, 140, 3)
    assert np.abs(image[:, :70] - pixels).mean() < 15  # JPEG; of another image 85
    assert controls.look.tft == "track"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the file is empty"),
        (b"no image", "the file is no image"),
        (png(np.zeros((40, 40, 3), np.uint8))[:60], "cannot be decoded"),
        (bytes(21 * 2**20), "more than 20 MiB"),
        (png(np.zeros((7100, 7100), np.uint8)), "7100 x 7100 pixels, more than 50,000,000"),
    ],
    ids=["empty", "text", "truncated", "bytes", "pixels"],
)
def test_image_that_cannot_be_explained_is_refused_and_the_stream_goes_on(
    still_server, frames, body, words
):
    with Page(still_server.url) as page:
        page.hear("state")
        status, told = post(still_server, body)
        assert status == 422
        assert words in told.decode()
        still_server.publish(frames(4))
        assert page.see()["index"] == 4


def test_failure_of_the_engine_is_told_and_the_stream_goes_on(
    still_server, frames, monkeypatch, capfd
):
    def fail(*_: object) -> None:
        raise ValueError("the device is gone")

    monkeypatch.setattr("whycam.runtime.serve.still.FrameExplainer", fail)
    status, told = post(still_server, png(np.zeros((9, 9, 3), np.uint8)))
    assert status == 422
    assert b"cannot be explained: the device is gone" in told
    with Page(still_server.url) as page:
        still_server.publish(frames(4))
        assert page.see()["index"] == 4
    assert "Traceback" not in capfd.readouterr().err


def test_images_are_explained_one_by_one_and_few_wait(still_server, monkeypatch):
    going, at_once, most, answers = threading.Event(), [], [], []

    def slow(*_: object) -> bytes:
        at_once.append(1)
        most.append(len(at_once))
        going.wait(10)
        at_once.pop()
        return b"done"

    monkeypatch.setattr("whycam.runtime.serve.still.explain_still", slow)
    senders = [
        threading.Thread(target=lambda: answers.append(post(still_server, b"x"))) for _ in range(4)
    ]
    for sender in senders:
        sender.start()
    wait_for(lambda: still_server._stills is not None and still_server._stills._waiting == 4)
    status, told = post(still_server, b"x")
    assert (status, b"4 images are being explained" in told) == (422, True)
    going.set()
    for sender in senders:
        sender.join(10)
    assert answers == [(200, b"done")] * 4
    assert max(most) == 1


def test_method_that_takes_minutes_does_not_hold_up_the_end(tiny, controls, monkeypatch):
    going, begun = threading.Event(), threading.Event()

    def slow(*_: object) -> bytes:
        begun.set()
        going.wait(30)
        return b""

    def send() -> None:
        with suppress(OSError, http.client.HTTPException):
            post(server, b"x")

    monkeypatch.setattr("whycam.runtime.serve.still.explain_still", slow)
    server = Server(controls, tiny, port=0).start()
    sender = threading.Thread(target=send)
    sender.start()
    assert begun.wait(5)
    since = time.perf_counter()
    server.stop()
    spent = time.perf_counter() - since
    going.set()
    sender.join(10)
    assert spent < 3


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "evil.example"}, 403),
    ],
)
def test_images_are_taken_from_this_servers_own_page_with_its_token(
    tiny, controls, headers, status
):
    with Server(controls, tiny, port=0, token=TOKEN) as server:
        image = png(np.zeros((9, 9, 3), np.uint8))
        assert post(server, image, **headers)[0] == status


def test_page_is_told_whether_it_may_send_images(server, still_server):
    for running, most in ((server, 0), (still_server, 20 * 2**20)):
        with Page(running.url) as page:
            assert page.hear("hello")["image_bytes"] == most
    assert post(server, b"x")[0] == 404


# Who is let in.


@pytest.mark.parametrize(
    ("given_token", "code"), [(None, 4401), (TOKEN[:-1] + "x", 4401), (TOKEN, None)]
)
def test_token_is_asked_for(controls, given_token, code):
    with Server(controls, port=0, token=TOKEN) as server:
        assert server.url.endswith(f"/#token={TOKEN}")
        with Page(server.url, given_token) as page:
            if code is None:
                assert page.hear("hello")["model"] == "tiny"
                return
            with pytest.raises(closed.ConnectionClosed) as ended:
                page.hear("hello")
        assert ended.value.rcvd.code == code


def test_other_machines_need_a_token_that_is_made_where_none_is_given(controls):
    with Server(controls, host="0.0.0.0", port=0) as server:
        token = server.url.partition("#token=")[2]
        assert len(token) >= 20
        assert not server.url.startswith("http://0.0.0.0")
        with Page(server.url) as page, pytest.raises(closed.ConnectionClosed):
            page.hear("hello")
        with Page(server.url, token) as page:
            page.hear("hello")
        assert request(server, Host="evil.example").status == 403
        assert request(server, Host="192.168.1.20:8080").status == 200
        assert request(server, Host=f"{socket.gethostname()}:8080").status == 200
    assert new_token() != new_token()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 101),
        ({"Host": "localhost:9999", "Origin": "http://localhost:9999"}, 101),
        ({"Host": "[::1]:9999", "Origin": "http://[::1]:9999"}, 101),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost:8000"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Origin": "file://localhost"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "192.168.1.20"}, 403),
        ({"Host": "x@localhost"}, 403),
    ],
)
def test_only_this_servers_own_page_may_connect(server, headers, status):
    assert upgrade(server, **headers) == status
    if headers.get("Host") and "Origin" not in headers:
        assert request(server, **headers).status == status


def test_names_of_a_proxy_are_let_in_where_they_are_given(controls):
    with Server(controls, port=0, names=["Why.Example.org"]) as server:
        own = {"Host": "why.example.org", "Origin": "https://why.example.org"}
        assert upgrade(server, **own) == 101
        assert upgrade(server, **{**own, "Origin": "https://other.example.org"}) == 403


@given(st.text(max_size=40))
def test_no_name_under_a_foreign_domain_is_let_in(text):
    assert not is_allowed_host(f"{text}.example", (), loopback=False)
    assert not is_same_origin(f"http://{text}.example", "localhost")


def test_pages_beyond_those_allowed_are_turned_away(controls):
    with Server(controls, port=0, clients=1) as server:
        with Page(server.url) as first:
            first.hear("hello")
            with Page(server.url) as second, pytest.raises(closed.ConnectionClosed) as ended:
                second.hear("hello")
        assert ended.value.rcvd.code == 4429
        wait_for(lambda: server.broadcaster.clients == 0)
        with Page(server.url) as third:
            third.hear("hello")


def test_page_is_served_with_headers_that_let_nothing_else_in(server):
    page = request(server)
    assert page.status == 200
    assert b"<title>whycam</title>" in page.read()
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert "server" not in page.headers
    script = request(server, "/app.js")
    assert script.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert script.headers["Content-Security-Policy"] == policy


@pytest.mark.parametrize(
    "path", ["/page", "/page/", "/nothing", "/../serve.py", "/..%2fserve.py", "/%00", "/app.js/"]
)
def test_nothing_but_the_page_is_served(server, path):
    assert request(server, path).status == 404
    assert request(server, "/", "POST").status == 405


# How it begins and ends.


def test_stop_tells_the_pages_and_leaves_no_thread_and_no_port(controls, frames):
    before = set(threading.enumerate())
    server = Server(controls, port=0).start()
    port = urlsplit(server.url).port
    with Page(server.url) as page:
        page.hear("state")
        server.publish(frames(0))
        server.stop()
        assert page.hear("frame")["index"] == 0
        assert page.hear("state")["state"] == "ended"
        with pytest.raises(closed.ConnectionClosed) as ended:
            page.hear("state")
        assert ended.value.rcvd.code == 1001
        mine = {each for each in threading.enumerate() if each.name.startswith("whycam-page")}
        assert not mine - before
    server.publish(frames(1))  # a stream that is a moment behind
    server.stop()
    with Server(controls, port=port) as again:
        assert urlsplit(again.url).port == port
    with pytest.raises(RequestError, match="once"):
        server.start()


def test_interrupt_of_the_stream_stops_the_server(controls, server):
    with pytest.raises(KeyboardInterrupt), Server(controls, port=0) as other:
        raise KeyboardInterrupt
    with pytest.raises(ConnectionRefusedError):
        Page(other.url)


def test_port_in_use_is_told(server, controls):
    with pytest.raises(RequestError, match=r"port \d+: the port is in use"):
        Server(controls, port=urlsplit(server.url).port).start()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"host": "no-such-host.invalid"}, "no such address"),
        ({"host": ""}, "no such address"),
        ({"host": "a" * 70}, "no such address"),
        ({"host": "192.0.2.77"}, "none of this machine's"),
        ({"port": 70_000}, "from 0 to 65535"),
        ({"port": -1}, "from 0 to 65535"),
        ({"clients": 0}, "1 or more"),
        ({"token": "short"}, "12 to 128"),
        ({"token": "twelve letters"}, "12 to 128"),
    ],
)
def test_unusable_settings_are_told_before_anything_runs(controls, fields, words):
    with pytest.raises(RequestError, match=words):
        Server(controls, **{"port": 0, **fields}).start()
    assert validate_token(TOKEN) == TOKEN


def test_without_the_extra_its_install_is_named(controls, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"'uvicorn'.*pip install \"whycam\[serve\]\""):
        Server(controls, port=0).start()


# From the command line.


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def whycam(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_stream_serves_its_page_while_it_runs(tiny, images, monkeypatch, capsys):
    monkeypatch.setattr("whycam.runtime.load.load", lambda *_, **__: tiny)
    for module in ("stream", "options"):  # the manifest is read before the file is loaded
        monkeypatch.setattr(f"whycam.cli.{module}.read_manifest", lambda _: tiny.manifest)
    port, heard = free_port(), []

    def visit() -> None:
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 30)
        with Page(f"http://127.0.0.1:{port}/") as page:
            heard.append(page.hear("hello")["source"])
            page.say({"kind": "change", "look": {"opacity": 0, "tft": "every"}})
            wait_for(lambda: page.see()["look"]["opacity"] == 0)
            heard.append(page.see()["explanation"]["taus"])
            with suppress(closed.ConnectionClosed):
                while True:
                    page.see()

    visitor = threading.Thread(target=visit)
    visitor.start()
    play = ["--loop", "--drop", "--fps", 25, "--limit", 60]
    assert whycam("stream", "tiny.onnx", "-s", images, *play, "--serve", port) == 0
    visitor.join(10)
    assert heard == ["images", list(tiny.manifest.tft.taus)]
    assert f"page: http://127.0.0.1:{port}/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "is a setting of --serve: add it"),
        (["--serve", "PORT"], "the port is in use"),
        (["--serve", "0", "--token", "short"], "12 to 128"),
    ],
)
def test_what_cannot_be_served_is_told_before_the_model_is_read(server, capsys, arguments, words):
    port = str(urlsplit(server.url).port)
    given = [port if each == "PORT" else each for each in arguments]
    assert whycam("stream", "no-such-model.onnx", *given) == 2
    assert words in capsys.readouterr().err
