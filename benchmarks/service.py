"""The HTTP service under load: latency, throughput against one at a time, memory.

    python benchmarks/service.py lite0.onnx --requests 10000

First rounds of three loads in turn: one client with one request at a time; several clients, and the
service runs each image alone; several clients, and the service gathers batches. Then so many
requests by several clients, one in ten with what is no image: latencies of those answered, and the
service's memory at start, middle and end. Clients and service share this machine's cores. Exit
code 1 if an answer is not what it should be, or if memory grows by more than 5 % after the first
tenth.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SERVICE = Path(__file__).parent.parent / "examples" / "service" / "service.py"
BAD = b"\xff\xd8\xff no image after all"
ALLOWED = 0.05


@dataclass(frozen=True)
class Load:
    """What came of a number of requests: seconds of each that was answered, and of all."""

    latencies: list[float]
    statuses: Counter[int]
    seconds: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return sum(self.statuses.values()) / self.seconds


class Service:
    """A running service; each thread keeps a connection."""

    def __init__(self, port: int, query: str) -> None:
        self.port, self.path = port, f"/explain{query}"
        self._own = threading.local()

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send a request; returns the status and the answer."""
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection: http.client.HTTPConnection = self._own.connection
        try:
            connection.request("GET" if body is None else "POST", path, body)
        except OSError:
            connection.close()  # to be opened again by the next request
            raise
        response = connection.getresponse()
        return response.status, response.read()

    def metric(self, name: str) -> float:
        """Read one figure of the service, on a connection of its own."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as response:
            lines = response.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    def mib(self) -> float:
        """Return the service's memory."""
        return self.metric("process_resident_memory_bytes") / 2**20

    def load(self, bodies: list[bytes], requests: int, clients: int, each: Any = None) -> Load:
        """Send requests; ``each`` is told the number of every answer."""
        latencies: list[float] = []
        statuses: Counter[int] = Counter()
        begun = time.perf_counter()

        def one(number: int) -> None:
            sent = time.perf_counter()
            status, _ = self.ask(self.path, bodies[number % len(bodies)])
            statuses[status] += 1
            if status == 200:
                latencies.append(time.perf_counter() - sent)
            if each is not None:
                each(number)

        with ThreadPoolExecutor(clients) as pool:
            for _ in pool.map(one, range(requests)):
                pass
        return Load(latencies, statuses, time.perf_counter() - begun)


@contextlib.contextmanager
def running(model: str, query: str, *options: str) -> Iterator[Service]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(SERVICE), model, "--port", str(port), *options]
    with subprocess.Popen(command) as process:
        try:
            service = Service(port, query)
            while True:
                try:
                    service.ask("/readyz")
                    break
                except OSError:
                    if process.poll() is not None:
                        raise SystemExit("the service did not start") from None
                    time.sleep(0.05)
            yield service
        finally:
            process.terminate()
    if process.returncode != 0:
        raise SystemExit(f"the service ended with code {process.returncode}")


def made_up_images() -> list[bytes]:
    """JPEG files of the sizes that cameras and pages have, with edges and smooth parts."""
    rng = np.random.default_rng(0)
    files = []
    for width, height in ((640, 480), (512, 512), (800, 600), (480, 640)):
        coarse = rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
            buffer, "JPEG", quality=90
        )
        files.append(buffer.getvalue())
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--images", help="a folder of image files [default: made up]")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-requests", type=int, default=100)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--query", default="", help="of each request, as ?tft=true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    files = sorted(Path(options.images).iterdir()) if options.images else []
    bodies = [file.read_bytes() for file in files] or made_up_images()
    shared = ["--threads", str(options.threads)]
    found: dict[str, Any] = {"load average": os.getloadavg()[0]}
    with (
        running(options.model, options.query, "--batch", "1", *shared) as alone,
        running(options.model, options.query, "--batch", str(options.batch), *shared) as batched,
    ):
        found["engine"] = json.loads(batched.ask("/readyz")[1])["engine"]
        found |= compare(alone, batched, bodies, options)
        found |= soak(batched, bodies, options)
    for name, value in found.items():
        if not options.json:
            print(f"{name}: {value}")
    if options.json:
        print(json.dumps(found))
    expected = {200: options.requests - options.requests // 10, 422: options.requests // 10}
    sys.exit(int(found["statuses"] != expected or found["grown"] > ALLOWED))


def compare(
    alone: Service, batched: Service, bodies: list[bytes], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Throughput and CPU time of the three loads, medians of rounds in turn."""
    several = options.clients
    loads = {
        "one at a time": (batched, 1),
        f"{several} at a time, each alone": (alone, several),
        f"{several} at a time, in batches": (batched, several),
    }
    rates: dict[str, list[float]] = {name: [] for name in loads}
    costs: dict[str, list[float]] = {name: [] for name in loads}
    for number in range(options.rounds + 1):
        for name, (service, clients) in loads.items():
            before = service.metric("process_cpu_seconds_total")
            rate = service.load(bodies, options.round_requests, clients).rate
            cpu = service.metric("process_cpu_seconds_total") - before
            if number > 0:  # the first round warms up
                rates[name].append(rate)
                costs[name].append(1000 * cpu / options.round_requests)
    return {
        what: {name: round(statistics.median(each), 1) for name, each in samples.items()}
        for what, samples in (
            ("images a second", rates),
            ("service's CPU, ms an image, by load", costs),
        )
    }


def soak(service: Service, bodies: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """Latency, batch sizes and memory of many requests, one in ten bad."""
    mixed = [BAD if n % 10 == 9 else bodies[n % len(bodies)] for n in range(10 * len(bodies))]
    total, start = options.requests, max(1, options.requests // 10)
    memory: dict[int, float] = {}

    def measure(number: int) -> None:
        if number in (start, total // 2, total - 1):
            memory[number] = service.mib()

    names = ("process_cpu_seconds_total", "whycam_batch_size_sum", "whycam_batch_size_count")
    before = [service.metric(name) for name in names]
    load = service.load(mixed, total, options.clients, measure)
    cpu, images, runs = (service.metric(n) - b for n, b in zip(names, before, strict=True))
    steps = statistics.quantiles(load.latencies, n=1000)
    ranks = {"p50": 499, "p90": 899, "p95": 949, "p99": 989, "p99.9": 998}
    first, middle, last = (memory[number] for number in sorted(memory))
    return {
        "statuses": dict(sorted(load.statuses.items())),
        "seconds": round(load.seconds, 1),
        "requests a second": round(load.rate, 1),
        "latency, ms": {name: round(1000 * steps[rank], 1) for name, rank in ranks.items()},
        "mean batch": round(images / runs, 2),
        "service's CPU, ms an image": round(1000 * cpu / images, 2),
        "memory, MiB": {"start": round(first), "middle": round(middle), "end": round(last)},
        "grown": round(last / first - 1, 3),
    }


if __name__ == "__main__":
    main()
