"""What a machine is and has installed, without a name of its user or a place on its disk."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from ..bench.report import machine as measured_on

# Whose versions say something about engines.
_PACKAGES = re.compile(
    r"onnx(runtime.*)?|numpy|pillow|opencv-.*|openvino|tensorrt.*|cuda-(python|bindings)|torch"
    r"|nvidia-(cublas|cudnn|cuda-runtime|cuda-nvrtc|cufft|curand).*"
)
_ONNXRUNTIME = re.compile(r"onnxruntime(-(gpu|directml|openvino|training|qnn))?")
_OPENCV = re.compile(r"opencv-(contrib-)?python(-headless)?")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, Python and whycam."""
    found = measured_on()
    board = _text("/proc/device-tree/model").strip("\0 \n")  # of a Jetson or another small one
    return {
        "processor": found["processor"],
        "board": board or None,
        "architecture": platform.machine(),
        "cores": _usable_cores(),
        "memory_mb": _memory_mb(),
        "system": found["system"],
        "python": found["python"],
        "whycam": found["versions"]["whycam"],
        "date": found["date"],
    }


def packages() -> dict[str, str]:
    """Versions of the installed packages that engines are made of."""
    found = {}
    for each in distributions():
        name = str(each.metadata["Name"] or "").lower().replace("_", "-")
        if _PACKAGES.fullmatch(name):
            found[name] = each.version
    return dict(sorted(found.items()))


def conflicts(installed: Mapping[str, str]) -> list[str]:
    """Packages that overwrite each other's files, and what to do."""
    said = []
    runtimes = [name for name in installed if _ONNXRUNTIME.fullmatch(name)]
    if len(runtimes) > 1:
        listed = " ".join(runtimes)
        wanted = "gpu" if "onnxruntime-gpu" in runtimes else "cpu"
        said.append(
            f"{' and '.join(runtimes)} are installed together and overwrite each other. Run: pip "
            f'uninstall -y {listed}; then: pip install "whycam[{wanted}]"'
        )
    readers = [name for name in installed if _OPENCV.fullmatch(name)]
    if len(readers) > 1:
        listed = " ".join(readers)
        said.append(
            f"{' and '.join(readers)} are installed together and overwrite each other. Run: pip "
            f"uninstall -y {listed}; then install the one you want, such as "
            "opencv-python-headless"
        )
    return said


def without_places(text: str, known: Iterable[str | os.PathLike[str]] = ()) -> str:
    """A message with the names of files alone, and without those of user and machine.

    Args:
        text: the message.
        known: files and folders that may stand in it, with whatever characters.
    """
    places = {str(each): Path(each).name for each in known}
    places |= {str(Path(each).absolute()): Path(each).name for each in known}
    places |= {sys.prefix: "python", str(Path.cwd()): ".", str(Path.home()): "~"}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = text.replace(place, places[place])
    host = platform.node()
    if len(host) > 1:
        text = re.sub(rf"\b{re.escape(host)}\b", "host", text)
    # Not after a colon or a slash, which is an address in the web.
    text = re.sub(r"(?<![\w:/.])~?(?:/[^\s/:'\"()]+)+/([^\s/:'\"()]*)", r"\1", text)
    return re.sub(r"\b[A-Za-z]:\\(?:[^\s\\:'\"]+\\)*([^\s\\:'\"]*)", r"\1", text)


def _usable_cores() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count()


def _memory_mb() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (AttributeError, ValueError, OSError):
        return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
