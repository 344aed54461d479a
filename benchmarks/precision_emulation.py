"""What half precision does to labels and maps, with every result of the backbone rounded.

    python benchmarks/precision_emulation.py lite0.onnx DATA --images 200

ONNX Runtime's CPU leaves most roundings of an fp16 file out and refuses bf16, so ``whycam calibrate
compare`` cannot show them. This runs the converted graphs with their roundings made explicit.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import whycam
from whycam.calibrate.dataset import open_dataset, shuffle_samples
from whycam.calibrate.fidelity import compare
from whycam.cli.compare import fidelity_lines, fidelity_table
from whycam.cli.console import out
from whycam.cli.progress import progress
from whycam.export import to_half
from whycam.export.onnx_graph import read_onnx
from whycam.export.precision_emulation import emulate_half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a float file made by whycam export")
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--precisions", default="fp16,bf16")
    options = parser.parse_args()
    samples = shuffle_samples(open_dataset(options.data).samples)[: options.images]
    reference = whycam.load(options.model)
    for precision in options.precisions.split(","):
        with tempfile.TemporaryDirectory() as folder:
            made = to_half(options.model, Path(folder) / "half.onnx", precision)
            engine = emulate_half(read_onnx(made.path), made.manifest)
        with progress(precision, len(samples), False) as advance:
            found = compare(
                reference, whycam.Explainer(engine, made.manifest), samples, None, None, advance
            )
        out.print(f"{precision}, every result rounded")
        out.print(fidelity_table(found))
        out.print(fidelity_lines(found), soft_wrap=True)


if __name__ == "__main__":
    main()
