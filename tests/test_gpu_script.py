"""benchmarks/gpu.sh without a GPU: parts that fail or hang do not stop the others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
SUMMARY = ROOT / "benchmarks" / "gpu_summary.py"
pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("bash", "timeout", "sha256sum")),
    reason="needs bash and coreutils",
)

# Stands in for Python there: doctor fails, the tests hang, training writes, the rest does nothing.
STUB = f"""#!/usr/bin/env bash
case "$*" in
    *gpu_summary.py*) exec {sys.executable} "$@" ;;
    *" doctor "*) echo "error: no GPU that can be used"; exit 3 ;;
    *"-m pytest "*) sleep 60 ;;
    *"-o "*/aft) mkdir -p "${{@: -1}}"; cp "$AFT_RESULT" "${{@: -1}}/aft.json" ;;
esac
"""


def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **variables},
    )


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A pack with nothing in it, in two parts."""
    folder = tmp_path / "parts"
    (folder / "pack").mkdir(parents=True)
    (folder / "pack" / "lite0.onnx").write_bytes(os.urandom(4000))
    with tarfile.open(folder / "all.tar.gz", "w:gz") as archive:
        archive.add(folder / "pack", "pack")
    data = (folder / "all.tar.gz").read_bytes()
    sums = []
    for number, part in enumerate((data[:2000], data[2000:])):
        (folder / f"part-0{number}").write_bytes(part)
        sums.append(f"{hashlib.sha256(part).hexdigest()}  part-0{number}")
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    return folder


def test_script_without_a_verb_says_what_to_do():
    done = run()
    assert done.returncode == 1
    assert "say pack or run" in done.stderr


@pytest.mark.parametrize("change", ["missing", "damaged"])
def test_part_that_is_missing_or_damaged_is_named(parts, tmp_path, change):
    part = parts / "part-01"
    if change == "missing":
        part.unlink()
    else:
        data = part.read_bytes()
        part.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    done = run("run", tmp_path / "out", WHYCAM_GPU_PARTS=str(parts), PYTHON=sys.executable)
    assert done.returncode == 1
    assert "part-01" in done.stderr + done.stdout
    assert "missing or damaged" in done.stderr


@pytest.mark.slow
def test_parts_that_fail_or_hang_do_not_stop_the_others(parts, tmp_path):
    stub, result = tmp_path / "python", tmp_path / "aft.json"
    stub.write_text(STUB)
    stub.chmod(0o755)
    rows = {name: {"average_increase": 0.5, "images": 3} for name in ("original", "tft", "aft")}
    result.write_text(json.dumps({"rows": rows, "accuracy_before": 0.7, "accuracy_after": 0.8}))
    out = tmp_path / "out"
    done = run(
        "run",
        out,
        WHYCAM_GPU_PARTS=str(parts),
        WHYCAM_GPU_ENGINE="onnxruntime",
        WHYCAM_GPU_SECONDS="15",
        PYTHON=str(stub),
        AFT_RESULT=str(result),
    )
    assert done.returncode == 0, done.stderr
    said = (out / "parts.txt").read_text()
    assert "1-doctor: ended with code 3" in said
    assert "error: no GPU that can be used" in said
    assert "2-tests: stopped after 3 s" in said
    for name in ("3-training", "4-bench", "5-aft"):
        assert f"{name}: done in" in said
    summary = (out / "summary.md").read_text()
    assert "no result: FileNotFoundError" in summary  # of the tests, which wrote nothing
    assert "- aft: average_increase 0.5" in summary
    assert "accuracy 0.7 before, 0.8 after" in summary


def test_summary_reads_what_the_parts_wrote(tmp_path):
    (tmp_path / "parts.txt").write_text("1-doctor: done in 9 s\n")
    check = {
        "model": "lite0.onnx",
        "engine": "onnxruntime-cuda",
        "precision": "fp32",
        "outcome": "wrong",
        "why": "maps differ",
        "comparison": {
            "differences": {
                "probabilities": {"worst": 1e-6},
                "maps.gradcam": {"worst": 2e-3},
                "maps.cam": {"worst": 3e-3},
            }
        },
        "median_ms": {"classification": 1.234, "explanation": 2.5},
    }
    (tmp_path / "doctor-lite0.json").write_text(json.dumps({"problems": ["a"], "checks": [check]}))
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">'
        '<testcase name="one"><failure message="it broke"/></testcase>'
        '<testcase name="two"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    for precision, loss in (("fp32", 2.0), ("bf16", 2.1)):
        folder = tmp_path / f"aft-{precision}"
        folder.mkdir()
        (folder / "losses.csv").write_text(f"step,epoch,lr,loss\n1,0,0.1,{loss}\n")
    (tmp_path / "aft-fp32" / "aft.json").write_text('{"trained_on": 9}')
    (tmp_path / "3-training.log").write_text("took 12 s: whycam train aft --precision fp32\n")
    done = subprocess.run(
        [sys.executable, str(SUMMARY), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert (
        "| lite0.onnx | onnxruntime-cuda fp32 | wrong: maps differ | 1.0e-06 | 3.0e-03 | 1.23 ms"
        in done.stdout
    )
    assert "- failure: one: it broke" in done.stdout
    assert "- skipped, 1: no GPU" in done.stdout
    assert "differ by 5.0% (median)" in done.stdout
    assert "- aft-fp32: one epoch of 9 images" in done.stdout
    assert "- took 12 s, preparation" in done.stdout
