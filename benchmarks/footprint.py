"""Start-up time and peak memory of one explained image, in fresh processes.

    python benchmarks/footprint.py resnet50.onnx cat.jpg

Beside it a bare ONNX Runtime session that classifies with the same file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

_COMMON = """
import json, resource, sys, time
begin = time.perf_counter()
"""
_REPORT = """
unit = 2**20 if sys.platform == "darwin" else 2**10
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
marks |= {"total s": time.perf_counter() - begin, "peak MiB": peak, "torch": "torch" in sys.modules}
print(json.dumps(marks))
"""
_WHYCAM = """
import whycam
marks = {"import s": time.perf_counter() - begin}
explainer = whycam.load(sys.argv[1], threads=int(sys.argv[3]))
explainer.explain(sys.argv[2])
"""
_BARE = """
import numpy, onnxruntime
marks = {"import s": time.perf_counter() - begin}
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
shape = session.get_inputs()[0].shape[1:]
feeds = {"image": numpy.zeros((1, *shape), "float32"), "target": numpy.zeros((1, 1), "int64")}
session.run(["probabilities"], feeds)
"""


def run(script: str, model: str, image: str, threads: int) -> dict[str, float]:
    command = [sys.executable, "-c", _COMMON + script + _REPORT, model, image, str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    contenders = {"whycam, first map": _WHYCAM, "bare ONNX Runtime, first class": _BARE}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, script in contenders.items():
            samples[name].append(run(script, options.model, options.image, options.threads))
    for name, found in samples.items():
        figures = ", ".join(
            f"{key} {statistics.median(row[key] for row in found):.3g}" for key in found[0]
        )
        print(f"{name}: {figures}")


if __name__ == "__main__":
    main()
