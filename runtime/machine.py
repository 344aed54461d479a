"""Describe this machine and its packages, without user names or paths."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from .version import package_version

# Of engines, of what feeds them, and of what they are compared with.
_PACKAGES = re.compile(
    r"onnx(runtime.*)?|numpy|pillow|opencv-.*|openvino|tensorrt.*|cuda-(python|bindings)"
    r"|torch(vision|cam)?|timm|grad-cam"
    r"|nvidia-(cublas|cudnn|cuda-runtime|cuda-nvrtc|cufft|curand).*"
)
_ONNXRUNTIME = re.compile(r"onnxruntime(-(gpu|directml|openvino|training|qnn))?")
_OPENCV = re.compile(r"opencv-(contrib-)?python(-headless)?")


def describe_machine() -> dict[str, Any]:
    """Describe where something was measured or found.

    Returns:
        ``processor``, ``board`` (of a Jetson or another small one, else None), ``architecture``,
        ``cores`` that this process may use, ``memory_mb``, ``system``, ``python``, ``whycam``,
        ``packages`` (see ``installed_packages``) and ``date`` (UTC).
    """
    return {
        "processor": _processor(),
        "board": _text("/proc/device-tree/model").strip("\0 \n") or None,
        "architecture": platform.machine(),
        "cores": _usable_cores(),
        "memory_mb": _memory_mb(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "whycam": package_version(),
        "packages": installed_packages(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def installed_packages() -> dict[str, str]:
    """List the installed packages that decide about speed and answers, with versions."""
    found = {}
    for each in distributions():
        name = str(each.metadata["Name"] or "").lower().replace("_", "-")
        if _PACKAGES.fullmatch(name):
            found[name] = each.version
    return dict(sorted(found.items()))


def conflicts(installed: Mapping[str, str]) -> list[str]:
    """Find packages that overwrite each other's files, and say what to do."""
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


def _processor() -> str:
    lines = _text("/proc/cpuinfo").splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


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
