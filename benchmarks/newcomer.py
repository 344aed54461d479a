"""The README's three lines, timed: from a fresh machine to a heatmap of one's own ONNX file.

    python benchmarks/newcomer.py classifier.onnx cat.jpg [--no-cache]

Clones this repository into an empty folder, makes a virtual environment, and runs there what the
README says under "Start with the ONNX file that you have": installation, export and explanation,
without torch. Python and pip are as this machine has them; what is committed is what is tried.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECTION = "## Start with the ONNX file that you have"


def read_commands(readme: str) -> list[str]:
    """Read the command lines of the section's first block."""
    block = re.search(r"```sh\n(.*?)```", readme[readme.index(SECTION) :], re.DOTALL)
    assert block is not None
    return block[1].strip().splitlines()


def run(command: str, folder: Path, environment: dict[str, str]) -> float:
    """Run a command line as typed, and return its seconds; a failure is shown and ends it all."""
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begin
    print(f"{seconds:7.1f} s  {command}", flush=True)
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode}:\n{done.stdout[-3000:]}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--no-cache", action="store_true", help="without pip's cache")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whycam-newcomer-") as folder:
        clone, venv = Path(folder) / "whycam", Path(folder) / "venv"
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PIP_NO_CACHE_DIR")
        environment = {k: v for k, v in os.environ.items() if k not in hidden}
        environment["PATH"] = f"{venv / 'bin'}{os.pathsep}{environment['PATH']}"
        if options.no_cache:
            environment["PIP_NO_CACHE_DIR"] = "1"
        total = run(f"git clone --quiet {ROOT} {clone}", Path(folder), environment)
        total += run(f"{sys.executable} -m venv {venv}", clone, environment)
        for command in read_commands((clone / "README.md").read_text("utf-8")):
            for name, path in (("deployed.onnx", options.model), ("cat.jpg", options.image)):
                command = re.sub(rf"(?<=\s){name}", shlex.quote(str(path.resolve())), command)
            total += run(command, clone, environment)
        print(f"{total:7.1f} s  from nothing to the first heatmap")
        written = sorted(path for path in (clone / "maps").iterdir() if path.is_file())
        print("written:", ", ".join(f"{p.name} ({p.stat().st_size >> 10} KiB)" for p in written))
        size = sum(p.lstat().st_size for p in venv.rglob("*") if not p.is_dir()) / 1e9
        torch = "with" if any(venv.glob("lib/python*/site-packages/torch")) else "without"
        print(f"installed: {size:.2f} GB, {torch} torch")


if __name__ == "__main__":
    main()
