"""The HTTP service: its answers, its limits, its end; over sockets, as clients meet it."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_file import write_tiny

import whycam
from whycam.runtime.errors import RequestError

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
uvicorn = pytest.importorskip("uvicorn")

SOURCE = Path(__file__).parent.parent / "examples" / "service"


def load_service() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_service", SOURCE / "service.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["example_service"] = module  # FastAPI resolves annotations there
    spec.loader.exec_module(module)
    return module


service = load_service()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]["message"]


@dataclass(frozen=True)
class Client:
    """Requests to a running service, each on a connection of its own."""

    port: int

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, response.read())
        finally:
            connection.close()

    def explain(self, body: bytes, query: str = "", **headers: str) -> Answer:
        return self.ask(f"/explain{query}", body, **headers)

    def metric(self, name: str) -> float:
        lines = self.ask("/metrics").body.decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return float(values[name])


@contextmanager
def serving(app: Any) -> Iterator[Client]:
    """Run an app on a thread, as ``main`` does in a process."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.002)
    try:
        yield Client(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def run_service(tiny) -> Callable[..., Any]:
    def run(token: str | None = None, **limits: Any) -> Any:
        return serving(service.create_app(tiny, service.Limits(**limits), token))

    return run


@pytest.fixture
def client(run_service) -> Iterator[Client]:
    with run_service() as running:
        yield running


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def noise(seed: int = 0, height: int = 12, width: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# Answers.


def test_answer_is_that_of_explain(client, tiny):
    answer = client.explain(encode(noise()), "?tft=true&method=layercam")
    expected = tiny.explain(noise(), method="layercam", tft=True)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["model"] == "tiny"
    assert answer.json["image"] == {"height": 12, "width": 10}
    best = answer.json["classes"][0]
    assert (best["index"], best["label"]) == (expected.index, expected.label)
    assert best["probability"] == pytest.approx(expected.probability, abs=1e-6)
    (one,) = answer.json["explanations"]
    assert one["method"] == "layercam"
    assert one["threshold"] == expected.threshold
    assert one["rpi"] == pytest.approx(expected.rpi.tolist(), abs=1e-6)
    assert one["region"]["box"] == list(expected.region.box)
    assert one["region"]["area"] == expected.region.area
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["map"]["png"]))))
    np.testing.assert_array_equal(levels, np.rint(255 * expected.map))
    place = expected.placement
    assert one["map"]["box"] == [place.left, place.top, place.right, place.bottom]


def test_several_classes_are_asked_for_by_index_rank_and_label(client, tiny):
    answer = client.explain(encode(noise()), "?target=2&target=-2&target=ant&image=none")
    expected = tiny.explain(noise(), targets=[2, -2, "ant"])
    assert [one["index"] for one in answer.json["explanations"]] == [e.index for e in expected]
    assert "map" not in answer.json["explanations"][0]


@pytest.mark.parametrize(("accept", "kind"), [("image/png", "PNG"), ("image/jpeg", "JPEG")])
def test_overlay_comes_as_an_image_where_that_is_accepted(client, tiny, accept, kind):
    answer = client.explain(encode(noise()), Accept=f"{accept};q=0.9, */*")
    shown = Image.open(io.BytesIO(answer.body))
    assert (answer.headers["content-type"], shown.format) == (accept, kind)
    if kind == "PNG":
        np.testing.assert_array_equal(np.asarray(shown), tiny.explain(noise()).overlay())


def test_overlay_comes_within_json(client):
    (one,) = client.explain(encode(noise()), "?image=overlay").json["explanations"]
    assert Image.open(io.BytesIO(base64.b64decode(one["overlay"]["jpeg"]))).size == (10, 12)


# Refusals.


@pytest.mark.parametrize(
    ("body", "query", "status", "said"),
    [
        (b"", "", 400, "body"),
        (b"not an image", "", 422, "no image that Pillow can read"),
        (encode(noise())[:60], "", 422, "cannot be decoded"),
        (encode(noise()), "?target=9", 422, "no class 9"),
        (encode(noise()), "?target=dog", 422, "dog"),
        (encode(noise()), "?method=magic", 422, "magic"),
        (encode(noise()), "?method=scorecam", 422, "minutes"),
        (encode(noise()), "?image=film", 422, "image: "),
        (encode(noise(0, 40, 60)), "", 413, "60 x 40 pixels are more than 1,000"),
        (b"x" * 20_001, "", 413, "more than 20,000 bytes"),
    ],
)
def test_bad_request_is_refused_with_its_reason(run_service, body, query, status, said):
    with run_service(bytes=20_000, pixels=1000) as client:
        answer = client.explain(body, query)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
        assert said in answer.error
        assert client.metric(f'whycam_requests_total{{status="{status}"}}') == 1
        assert client.explain(encode(noise())).status == 200


def test_unknown_path_and_verb_are_refused_as_json(client):
    assert client.ask("/nothing").json["error"]["message"] == "Not Found"
    assert client.ask("/explain").status == 405


def test_fault_of_the_engine_is_no_fault_of_the_client(run_service, tiny, capfd):
    def fail(feeds: Any, outputs: Any) -> Any:
        raise ZeroDivisionError("a secret of the machine")

    tiny.engine.run = fail
    with run_service() as client:
        answer = client.explain(encode(noise()))
        assert answer.status == 500
        assert "secret" not in answer.error
        assert client.metric('whycam_requests_total{status="500"}') == 1


def test_bands_are_refused_before_the_service_starts(manifest_of, tiny_engine):
    from whycam.runtime.manifest import Preprocess

    spec = Preprocess(size=(8, 8), resize=(8,), color="bands", value_range=(0.0, 1.0))
    explainer = whycam.Explainer(tiny_engine(), manifest_of(preprocess=spec))
    with pytest.raises(RequestError, match="8-bit"):
        service.create_app(explainer)


def test_token_guards_images_and_figures_but_not_the_probes(run_service):
    with run_service("a-secret") as client:
        assert client.explain(encode(noise())).status == 401
        assert client.explain(encode(noise()), Authorization="Bearer a-secre").status == 401
        assert client.explain(encode(noise()), Authorization="Bearer a-secret").status == 200
        assert client.ask("/metrics").status == 401
        assert client.ask("/healthz").status == client.ask("/readyz").status == 200


# Load.


@pytest.fixture
def slow(tiny) -> Callable[[float], None]:
    """Makes each run of the network take so many seconds at least."""
    run = tiny.engine.run

    def slow_down(seconds: float) -> None:
        def wait(feeds: Any, outputs: Any) -> Any:
            time.sleep(seconds)
            return run(feeds, outputs)

        tiny.engine.run = wait

    return slow_down


def test_requests_of_several_clients_share_a_run(run_service, slow, tiny):
    slow(0.05)
    with run_service(batch=4) as client, ThreadPoolExecutor(8) as pool:
        body = encode(noise())
        answers = list(pool.map(lambda _: client.explain(body), range(16)))
        assert {answer.status for answer in answers} == {200}
        assert max(tiny.engine.batches) > 1
        assert sum(tiny.engine.batches) == client.metric("whycam_batch_size_sum") == 16


def test_full_queue_says_when_to_come_again(run_service, slow):
    slow(0.2)
    with run_service(capacity=2, batch=1) as client, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.explain(encode(noise())), range(6)))
        counted = Counter(answer.status for answer in answers)
        assert counted[200] >= 2
        assert counted[503] == 6 - counted[200] > 0
        refused = next(answer for answer in answers if answer.status == 503)
        assert refused.headers["retry-after"] == "1"
        assert refused.json["error"]["kind"] == "BusyError"
        assert client.explain(encode(noise())).status == 200


def test_service_that_is_full_is_not_ready_but_healthy(run_service, slow):
    slow(0.3)
    with run_service(capacity=1) as client, ThreadPoolExecutor(1) as pool:
        assert client.ask("/readyz").json["ready"] is True
        working = pool.submit(client.explain, encode(noise()))
        while client.metric("whycam_active_requests") == 0:
            time.sleep(0.002)
        assert client.ask("/readyz").status == 503
        assert client.ask("/healthz").status == 200
        assert working.result().status == 200


def test_slow_request_is_given_up(run_service, slow, tiny):
    slow(0.5)
    with run_service(seconds=0.1) as client:
        answer = client.explain(encode(noise()))
        assert answer.status == 504
        assert "0.1 s" in answer.error
    assert tiny.engine.batches == [1]


def test_upload_that_stops_is_given_up(run_service):
    with (
        run_service(seconds=0.1) as client,
        socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection,
    ):
        connection.sendall(b"POST /explain HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        assert b" 504 " in connection.recv(1000)


def load_test(client: Client, requests: int, callers: int = 8) -> tuple[Counter[int], list[int]]:
    """So many requests at so many at a time, every tenth with what is no image."""
    good, bad = encode(noise(), "JPEG"), b"\xff\xd8\xff no image after all"
    statuses = Counter()
    memory = []
    with ThreadPoolExecutor(callers) as pool:
        asked = pool.map(lambda i: client.explain(bad if i % 10 == 9 else good), range(requests))
        for number, answer in enumerate(asked):
            statuses[answer.status] += 1
            if number % (requests // 4) == requests // 8:
                memory.append(client.metric("process_resident_memory_bytes"))
    return statuses, memory


def test_200_requests_at_8_at_a_time_one_bad_in_ten(client):
    load_test(client, 40)
    statuses, memory = load_test(client, 200)
    assert statuses == {200: 180, 422: 20}
    assert max(memory) - memory[0] < 8 * 2**20
    assert client.metric("whycam_active_requests") == 0


# A process, as a container starts it.


@pytest.fixture
def model(tmp_path, manifest_of, tiny_engine) -> Path:
    engine = tiny_engine()
    write_tiny(tmp_path / "tiny.onnx", manifest_of(methods=("gradcam",)), engine.mix, engine.linear)
    return tmp_path / "tiny.onnx"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_sigterm_answers_what_is_in_work_and_ends_well(model):
    port = free_port()
    command = [sys.executable, str(SOURCE / "service.py"), str(model), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        client, body = Client(port), encode(noise(0, 1500, 1500))
        until = time.monotonic() + 60
        while True:
            try:
                assert client.ask("/readyz").status == 200
                break
            except OSError:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < until
                time.sleep(0.05)
        with ThreadPoolExecutor(8) as pool:
            working = [pool.submit(client.explain, body) for _ in range(8)]
            while client.metric("whycam_active_requests") < 8:
                assert not all(one.done() for one in working)
            process.send_signal(signal.SIGTERM)
            assert {one.result().status for one in working} == {200}
        assert process.wait(20) == 0
        with pytest.raises(ConnectionRefusedError):
            client.ask("/healthz")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [(["missing.onnx"], "missing.onnx"), (["missing.onnx", "--host", "0.0.0.0"], "WHYCAM_TOKEN")],
)
def test_service_that_cannot_start_says_why(words, said):
    command = [sys.executable, str(SOURCE / "service.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
