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

# Engines, the packages that they and image reading depend on, and the tools compared with.
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
    """List the installed packages that affect speed and answers, with their versions."""
    versions = {}
    for package in distributions():
        name = str(package.metadata["Name"] or "").lower().replace("_", "-")
        if _PACKAGES.fullmatch(name):
            versions[name] = package.version
    return dict(sorted(versions.items()))


def conflicts(installed: Mapping[str, str]) -> list[str]:
    """Describe packages that overwrite each other's files, and the commands that repair it."""
    runtimes = [name for name in installed if _ONNXRUNTIME.fullmatch(name)]
    opencv = [name for name in installed if _OPENCV.fullmatch(name)]
    extra = "gpu" if "onnxruntime-gpu" in runtimes else "cpu"
    repairs = (
        (runtimes, f'pip install "whycam[{extra}]"'),
        (opencv, "pip install the one you want, such as opencv-python-headless"),
    )
    return [
        f"{' and '.join(names)} are installed together and overwrite each other. Run: pip "
        f"uninstall -y {' '.join(names)}; then: {repair}"
        for names, repair in repairs
        if len(names) > 1
    ]


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
