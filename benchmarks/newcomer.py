"""The README's first steps, timed: from nothing to one's own image and video, explained.

    python benchmarks/newcomer.py cat.jpg walk.mp4

Clones this repository into an empty folder, runs there what the README says before it comes to
"Install", and then installs on "the machine that explains", without torch. Python, pip and make are
as this machine has them; what is committed is what is tried. Needs a connection and 6 GB.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def first_steps(readme: str) -> list[str]:
    """The commands before "Install", without their comments; running all tests is none."""
    begin = readme.partition("\n## Install\n")[0]
    blocks = re.findall(r"```sh\n(.*?)```", begin, re.DOTALL)
    lines = [line.partition(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and line != "make test"]


class Clock:
    """Runs one command after the other, and says how long each took."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self.total = 0.0

    def run(self, command: str, within: Path | None = None) -> None:
        """Run a command line in the clone, or elsewhere; what fails is shown, and ends it all."""
        begin = time.perf_counter()
        done = subprocess.run(
            command,
            shell=True,  # as a newcomer would type it
            cwd=within or self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        took = time.perf_counter() - begin
        self.total += took
        print(f"{took:7.1f} s  {command}", flush=True)
        if done.returncode != 0:
            sys.exit(f"exit code {done.returncode}:\n{done.stdout[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--no-cache", action="store_true", help="without pip's cache")
    options = parser.parse_args()
    own = {"cat.jpg": options.image.resolve(), "walk.mp4": options.video.resolve()}
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PIP_NO_CACHE_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    if options.no_cache:
        environment["PIP_NO_CACHE_DIR"] = "1"
    with tempfile.TemporaryDirectory(prefix="whycam-newcomer-") as folder:
        clone = Path(folder) / "whycam"
        clock = Clock(clone, environment)
        clock.run(f"git clone --quiet {ROOT} {clone}", Path(folder))
        for line in first_steps((clone / "README.md").read_text("utf-8")):
            if line == "make demo":  # its two parts, apart
                clock.run("make .venv/demo.stamp")
            for name, path in own.items():
                line = re.sub(rf"(?<=\s){re.escape(name)}", str(path), line)
            clock.run(line)
        print(f"{clock.total:7.1f} s  from nothing to both; {size_of(clone / '.venv'):.2f} GB")
        made = [*sorted((clone / "maps").iterdir()), clone / "why.mp4"]
        print("made:", ", ".join(f"{path.name} ({path.stat().st_size >> 10} KiB)" for path in made))

        box = Path(folder) / "box"  # where the model is deployed
        box.mkdir()
        clock = Clock(box, environment)
        clock.run(f"{sys.executable} -m venv {box}/env")
        clock.run(f'{box}/env/bin/pip install --quiet "{clone}[cpu]"')
        model, image, video = clone / ".demo" / "lite0.onnx", *own.values()
        clock.run(f"{box}/env/bin/whycam explain {model} {image} -o maps/ --tft")
        clock.run(f"{box}/env/bin/whycam stream {model} --source {video} --output why.mp4")
        print(f"{clock.total:7.1f} s  the same without torch; {size_of(box / 'env'):.2f} GB")


def size_of(folder: Path) -> float:
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir()) / 1e9


if __name__ == "__main__":
    main()
