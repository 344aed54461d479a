"""What a Grad-CAM of ResNet-50 costs beside other tools: every figure of the README's table.

    python benchmarks/peers.py --rounds 30
    python benchmarks/peers.py --python openvino-xai=/path/to/venv/bin/python

Every tool runs in a process of its own, so that its memory is its own, and all take turns: a
machine that changes speed changes it for all. A run is from the prepared image to the class and its
finished map of 224 x 224 values in [0, 1]; wall time, and CPU time, which other programs disturb
less. Memory is the most that the process ever held. The network has random weights: time and memory
do not depend on them. A tool that is not installed is left out; one may live in another
environment (``pip install openvino-xai``; ``pip install captum``), which ``--python`` names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 224
WARM_UP = 3
Run = Callable[[], Any]


def main() -> None:
    """Export both files, start a process for each tool, and time them in turn."""
    from rich.console import Console
    from rich.table import Table
    from timing import environment, network, plain_onnx, preprocessing

    from whycam.export import to_onnx

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--python", action="append", default=[], metavar="TOOL=PYTHON", help="of another venv"
    )
    parser.add_argument("--only", default="", help="tools whose name holds this, as OpenVINO")
    parser.add_argument("--json", action="store_true", help="raw samples")
    given = parser.parse_args()
    pythons = dict(text.split("=", 1) for text in given.python)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        rng = np.random.default_rng(0)
        np.save(folder / "image.npy", rng.standard_normal((1, 3, SIDE, SIDE)).astype(np.float32))
        model = network("resnet50")
        to_onnx(
            model, folder / "whycam.onnx", overrides=preprocessing("resnet50"), methods=["gradcam"]
        )
        plain_onnx(model, folder / "plain.onnx")
        workers: dict[str, subprocess.Popen[str]] = {}
        for name in choose(given.only):
            tool = name.split(",")[0]
            python = pythons.get(tool, sys.executable)
            worker = stack.enter_context(start(python, name, folder, given.threads))
            said = answer(worker)
            if "error" in said:
                print(f"left out: {name}: {said['error']}", file=sys.stderr)
                continue
            workers[name] = worker
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for number in range(WARM_UP + given.rounds):
            for name, worker in workers.items():
                said = ask(worker, "run")
                if number >= WARM_UP:
                    samples[name].append(said)
        ends = {name: ask(worker, "end") for name, worker in workers.items()}
    about = {**environment(given.threads), "load": round(os.getloadavg()[0], 1)}
    if given.json:
        print(json.dumps({**about, "samples": samples, "ends": ends}))
        return
    table = Table("what", "median ms", "CPU ms", "/ whycam", "CPU / whycam", "peak MiB", "torch")
    wall, cpu = (
        {name: statistics.median(one[kind] for one in rows) for name, rows in samples.items()}
        for kind in ("wall", "cpu")
    )
    for name in workers:
        ours = REFERENCE[name.endswith("OpenVINO")]
        beside = [f"{one[name] / one[ours]:.2f}" for one in (wall, cpu)]
        table.add_row(
            name, *(f"{one[name] * 1e3:.1f}" for one in (wall, cpu)), *beside,
            f"{ends[name]['peak']:.0f}", "yes" if ends[name]["torch"] else "no",
        )  # fmt: skip
    out = Console(highlight=False, width=120)
    out.print(table)
    out.print(about)


def choose(word: str) -> list[str]:
    """List the tools whose name holds a word, and what they are divided by."""
    chosen = [name for name in TOOLS if word in name]
    beside = {REFERENCE[name.endswith("OpenVINO")] for name in chosen}
    return [name for name in TOOLS if name in chosen or name in beside]


@contextlib.contextmanager
def start(python: str, name: str, folder: Path, threads: int) -> Any:
    """Start the process of a tool."""
    count = str(threads)
    worker = subprocess.Popen(
        [python, __file__, "--worker", name, str(folder), count],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count},
    )  # fmt: skip
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def ask(worker: subprocess.Popen[str], word: str) -> dict[str, Any]:
    """Send a word to a tool's process and return its answer."""
    assert worker.stdin is not None
    worker.stdin.write(word + "\n")
    worker.stdin.flush()
    return answer(worker)


def answer(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next answer of a tool's process; libraries may print lines of their own."""
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith("peer: "):
            return dict(json.loads(line.removeprefix("peer: ")))
    return {"error": "its process ended"}


def work(name: str, folder: Path, threads: int) -> None:
    """Be the process of a tool."""

    def reply(said: dict[str, Any]) -> None:
        print("peer: " + json.dumps(said), flush=True)

    try:
        run = TOOLS[name](folder, np.load(folder / "image.npy"), threads)
        run()
    except Exception as error:  # told to the parent, which goes on without this tool
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    reply({})
    for word in sys.stdin:
        if word.strip() == "end":
            reply({"peak": peak_mib(), "torch": "torch" in sys.modules})
            return
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        reply({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})


def peak_mib() -> float:
    """Return the most memory that this process held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts the process that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def plain_onnxruntime(folder: Path, image: Any, threads: int) -> Run:
    """Classify in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        folder / "plain.onnx", options, providers=["CPUExecutionProvider"]
    )
    feeds = {session.get_inputs()[0].name: image}
    return lambda: session.run(None, feeds)


def plain_openvino(folder: Path, image: Any, threads: int) -> Run:
    """Classify in OpenVINO, in float32."""
    import openvino

    settings = openvino_settings(threads)
    compiled = openvino.Core().compile_model(folder / "plain.onnx", "CPU", settings)
    return lambda: compiled([image])


def openvino_settings(threads: int) -> dict[str, Any]:
    """Compute in float32, which is not OpenVINO's default on every processor."""
    return {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}


def whycam_in(engine: str) -> Callable[[Path, Any, int], Run]:
    """Explain the file that holds its own maps."""

    def prepare(folder: Path, image: Any, threads: int) -> Run:
        import whycam

        run = whycam.load(folder / "whycam.onnx", engine, threads=threads).engine.run
        feeds = {"image": image, "target": np.full((1, 1), -1, np.int64)}
        return lambda: run(feeds, ["probabilities", "targets", "maps"])

    return prepare


def torch_tool(name: str) -> Callable[[Path, Any, int], Run]:
    """Explain in torch, as each library's own documentation does."""

    def prepare(_: Path, image: Any, threads: int) -> Run:
        import torch
        import torchvision

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        model = torchvision.models.resnet50(weights=None).eval()
        x = torch.from_numpy(image)
        layer = model.layer4[-1]

        def enlarge(low: Any) -> Any:
            return torch.nn.functional.interpolate(low, (SIDE, SIDE), mode="bilinear").numpy()

        if name == "torch":

            def classify() -> Any:
                with torch.no_grad():
                    return model(x)

            return classify
        if name == "pytorch-grad-cam":
            from pytorch_grad_cam import GradCAM

            method = GradCAM(model=model, target_layers=[layer])
            return lambda: method(input_tensor=x, targets=None)
        if name == "torch-cam":
            from torchcam.methods import GradCAM as TorchCam

            extractor = TorchCam(model, target_layer=layer)

            def extract() -> Any:
                scores = model(x.clone().requires_grad_(True))
                (low,) = extractor(scores.argmax(-1).tolist(), scores)
                return enlarge(low[:, None])

            return extract
        from captum.attr import LayerGradCam

        captum = LayerGradCam(model, layer)

        def attribute() -> Any:
            with torch.no_grad():  # it does not say the class, nor take the most probable one
                target = int(model(x).argmax())
            low = captum.attribute(x, target, relu_attributions=True).detach()
            return enlarge((low - low.amin()) / (low.amax() - low.amin()).clamp_min(1e-7))

        return attribute

    return prepare


def openvino_xai(mode: str) -> Callable[[Path, Any, int], Run]:
    """Explain with OpenVINO XAI: Recipro-CAM in the graph, or AISE from outside."""

    def prepare(folder: Path, image: Any, threads: int) -> Run:
        import openvino
        import openvino_xai as xai
        from openvino_xai.explainer.explainer import ExplainMode

        # It has no option for precision and threads, and OpenVINO's own choice is bf16 and all.
        compile_model = openvino.Core.compile_model
        openvino.Core.compile_model = lambda core, model, device_name="CPU": compile_model(
            core, model, device_name, openvino_settings(threads)
        )

        model = openvino.Core().read_model(folder / "plain.onnx")
        white = mode == "white box"
        explainer = xai.Explainer(
            model,
            task=xai.Task.CLASSIFICATION,
            preprocess_fn=lambda data: data,
            postprocess_fn=lambda outputs: next(iter(outputs.values())),
            explain_mode=ExplainMode.WHITEBOX if white else ExplainMode.BLACKBOX,
            explain_method=xai.Method.RECIPROCAM if white else xai.Method.AISE,
        )

        def explain() -> Any:
            return explainer(
                image,
                targets=[0],
                original_input_image=np.zeros((SIDE, SIDE, 3), "u1"),
                resize=True,
                colormap=False,
                overlay=False,
            )

        return explain

    return prepare


TOOLS: dict[str, Callable[[Path, Any, int], Run]] = {
    "plain classification, ONNX Runtime": plain_onnxruntime,
    "whycam, ONNX Runtime": whycam_in("onnxruntime"),
    "plain classification, torch": torch_tool("torch"),
    "pytorch-grad-cam, torch": torch_tool("pytorch-grad-cam"),
    "torch-cam, torch": torch_tool("torch-cam"),
    "captum, torch": torch_tool("captum"),
    "plain classification, OpenVINO": plain_openvino,
    "whycam, OpenVINO": whycam_in("openvino"),
    "openvino-xai, white box, OpenVINO": openvino_xai("white box"),
    "openvino-xai, black box, OpenVINO": openvino_xai("black box"),
}
# What each is divided by: the explaining file in the same engine; torch's beside ONNX Runtime.
REFERENCE = {False: "whycam, ONNX Runtime", True: "whycam, OpenVINO"}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
