"""Which graphs TensorRT-RTX builds, for which GPUs, in which precision: no GPU needed.

    python benchmarks/trt_builds.py -o builds/
    python benchmarks/trt_builds.py --networks lite0,resnet50 --outputs raw --work /tmp/graphs

Every graph is exported, converted, built, and its inputs and outputs are read back and held against
the manifest. Writes trt_builds.json and trt_builds.md. All six networks take about an hour, most of
it for exporting and checking; --work keeps the ONNX files for the next time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from timing import console, environment, network, preprocessing

from whycam import WhyCamError
from whycam.calibrate.int8_file import write_int8
from whycam.calibrate.quantise import observe, quantise, read_graph
from whycam.calibrate.ranges import magnitude
from whycam.export import to_half, to_onnx, to_plan
from whycam.export.build import check_network
from whycam.runtime.engines import selftest
from whycam.runtime.engines.plan import Range, read_plan
from whycam.runtime.files import write_whole
from whycam.runtime.onnxfile import read_manifest

NETWORKS = ("resnet50", "vgg16", "mobilenet_v3_large", "efficientnet_b0", "densenet121", "lite0")
OUTPUTS = ("raw", "map", "tft")
PRECISIONS = ("fp32", "fp16", "int8")
# Turing takes another graph, see export/turing.py; the others share one plan.
TARGETS = (("7.5",), ("8.6", "8.9", "12.0"))
COLUMNS = ("network", "outputs", "precision", "compute", "built", "MB", "seconds", "rewritten")


def settled(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights with statistics of their own, as training leaves them.

    With batch normalisation as it is made, activations of a deep random network fade to 1e-10,
    which fp16 cannot hold.
    """
    norms = [each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    for each in norms:
        each.reset_running_stats()
        each.momentum = None  # the mean of all batches
    model.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, 224, 224, generator=generator))
    return model.eval()


def float_file(name: str, outputs: str, folder: Path) -> Path:
    path = folder / f"{name}.{outputs}.onnx"
    if not path.exists():
        model = network(name)
        model = model if name == "lite0" else settled(model)
        to_onnx(model, path, overrides=preprocessing(name), outputs=[outputs])
    return path


def int8_file(source: Path, path: Path) -> Path:
    """As ``whycam calibrate int8`` makes it, but for the proof: ranges of two test patterns."""
    if not path.exists():
        manifest = read_manifest(source)
        graph = read_graph(source)
        seen = observe(graph, (selftest.make_input(manifest, index) for index in range(2)))
        ranges = {name: magnitude(counted, "minmax", 100.0) for name, counted in seen.items()}
        write_int8(quantise(graph, ranges), manifest, path)
    return path


def graph_of(name: str, outputs: str, precision: str, folder: Path) -> Path:
    source = float_file(name, outputs, folder)
    if precision == "fp32":
        return source
    path = source.with_suffix(f".{precision}.onnx")
    if precision == "int8":
        return int8_file(source, path)
    if not path.exists():
        to_half(source, path, precision)
    return path


def attempt(name: str, outputs: str, precision: str, folder: Path) -> list[dict[str, Any]]:
    rows = []
    graph: Path | None = None
    for compute in TARGETS:
        row: dict[str, Any] = {
            "network": name,
            "outputs": outputs,
            "precision": precision,
            "compute": ", ".join(compute),
        }
        begin = time.perf_counter()
        try:
            graph = graph or graph_of(name, outputs, precision, folder)
            begin = time.perf_counter()
            plan = folder / "built.plan"
            made = to_plan(graph, plan, compute=compute, batch=Range(1, 1, 4))
            sidecar = read_plan(plan)
            # Once more, of what was written.
            check_network(str(plan), sidecar.manifest, sidecar.inputs, sidecar.outputs)
            row |= {"built": "yes", "MB": round(made.size / 1e6, 1), "rewritten": made.rewritten}
        except WhyCamError as error:
            row |= {"built": str(error), "MB": None, "rewritten": None}
        row["seconds"] = round(time.perf_counter() - begin, 1)
        console.print(*(f"{row[column]}" for column in COLUMNS), soft_wrap=True)
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(str(row[column]) for column in COLUMNS)} |" for row in rows]
    return "\n".join([*lines, "", json.dumps(about), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--outputs", default=",".join(OUTPUTS))
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="bf16 too")
    parser.add_argument("--work", type=Path, help="folder for ONNX files, kept")
    parser.add_argument("-o", type=Path, help="folder for trt_builds.json and trt_builds.md")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.networks.split(","):
            for outputs in options.outputs.split(","):
                for precision in options.precisions.split(","):
                    rows += attempt(name, outputs, precision, folder)
        (folder / "built.plan").unlink(missing_ok=True)
        (folder / "built.plan.json").unlink(missing_ok=True)
    import tensorrt_rtx

    about = {**environment(torch.get_num_threads()), "tensorrt_rtx": tensorrt_rtx.__version__}
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*(str(row[column]) for column in COLUMNS))
    console.print(table)
    failed = sum(row["built"] != "yes" for row in rows)
    console.print(f"{len(rows) - failed} of {len(rows)} plans built")
    if options.o is not None:
        write_whole(options.o / "trt_builds.json", json.dumps({**about, "rows": rows}).encode())
        write_whole(options.o / "trt_builds.md", markdown(rows, about).encode())
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
