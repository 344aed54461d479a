"""Type-check whycam against the stubs of NVIDIA's TensorRT: ``python tests/tensorrt_stubs.py``.

The package ``tensorrt-stubs`` cannot simply be installed: it asks for TensorRT itself, gigabytes,
and its stubs, generated from docstrings, hold lines that are no Python. They are fetched alone into
a temporary folder, those lines are mended, and mypy reads them there.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

STUBS = "tensorrt-stubs==10.13.0.35.1"
# Parameters called ``in``, and a parameter without a default after some that have one.
MENDED = (
    (r"\bin: list\[", "in_: list["),
    (r"channel_axis: int\) ->", "channel_axis: int = ...) ->"),
)


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="whycam-stubs-") as name:
        folder = Path(name)
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", STUBS]
        subprocess.run([*fetch, "--dest", name], check=True)
        zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
        for stubs in folder.rglob("*.pyi"):
            text = stubs.read_text()
            for wrong, right in MENDED:
                text = re.sub(wrong, right, text)
            # They are read, not judged.
            stubs.write_text(f"# mypy: ignore-errors\n{text}")
        (folder / "typed").mkdir()
        (folder / "typed" / "whycam").symlink_to(root)
        path = os.pathsep.join([str(folder / "typed"), name])
        command = [sys.executable, "-m", "mypy", "--cache-dir", str(folder / "cache")]
        done = subprocess.run(command, cwd=root, env={**os.environ, "MYPYPATH": path}, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
