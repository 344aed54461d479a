"""Print the files whose slow tests a change calls for: ``python .ci/slow_tests.py [BASE]``.

What `make test` leaves out is run by CI where the change touches it. The change is what differs
from BASE: a commit; without it, where this branch left ``origin/main``, or on main itself the
commit before. Where git cannot tell, or a change concerns everything, all files are named.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
MAIN = "origin/main"

# Patterns of changed files, and what the slow tests about them are called. All that match count.
TESTED_BY: dict[str, str] = {
    "export/*": "build dynamic_size export full_size fused_layers half image_encoders input_export "
    "int8 legrad parity_gradcam preprocessing right_edge segmentation tokens two_encoders "
    "zero_shot",
    "export/detectors/*": "detect detector",
    "export/gradient/*": "export_gradients full_size gradient parity_gradcam",
    "export/precision/*": "half int8",
    "export/tensorrt/*": "build full_size",
    "calibrate/*": "calibrate evaluate int8",
    "train/*": "train",
    "runtime/*": "api detect explainer full_size in_graph parity_gradcam signals",
    "runtime/engines/*": "build engines explainer gpu onnxruntime_gpu ort_plugins",
    "runtime/live/*": "serve stream",
    "runtime/serve/*": "serve",
    "runtime/serve/page/*": "serve",
    "runtime/report/*": "report",
    "runtime/report/page/*": "report",
    "runtime/bench/*": "bench",
    "runtime/distributed/*": "cluster",
    "runtime/doctor/*": "doctor",
    "cli/*": "cli docs hard_inputs signals",
    "cli/cluster.py": "cluster",
    "calibrate/on_cluster.py": "cluster",
    "distributed.py": "cluster",
    "cli.py": "cli docs hard_inputs signals",
    "docs/*.md": "docs",
    "docs/research/*.md": "docs",
    "README.md": "docs",
    "examples/*": "docs",
    "examples/browser/*": "example_browser",
    "examples/node/*": "example_node",
    "examples/cpp/*": "example_cpp",
    "examples/service/*": "example_service",
    "benchmarks/hard_inputs/*": "hard_inputs",
    "benchmarks/gpu*": "gpu_script",
}
# No slow test is about these.
UNTESTED = (
    "*.md",
    "docs/*/*",
    "benchmarks/*.py",
    "LICENSE",
    ".gitignore",
    "tests/*/*",
    "tests/test_*",
)


def main(arguments: list[str]) -> int:
    """Print file names, apart by spaces; nothing if there is nothing to run."""
    changed = changed_files(*arguments[:1])
    print(*(slow_files() if changed is None else affected(changed)))
    return 0


def changed_files(base: str | None = None) -> list[str] | None:
    """Files that differ from the base; None where there is no base to compare with."""
    if base is None:
        base = git("merge-base", MAIN, "HEAD")
        if base is None or base == git("rev-parse", "HEAD"):
            base = git("rev-parse", "--verify", "--quiet", "HEAD~1")
    listed = None if base is None else git("diff", "--name-only", base)
    return None if listed is None else listed.splitlines()


def affected(changed: Iterable[str]) -> list[str]:
    """Test files with slow tests that a change of these files calls for."""
    files = slow_files()
    selected: set[str] = set()
    for name in changed:
        subjects = [
            word
            for pattern, words in TESTED_BY.items()
            if matches(name, pattern)
            for word in words.split()
        ]
        if not subjects and not any(matches(name, pattern) for pattern in UNTESTED):
            return files
        selected |= {name} & set(files)
        selected |= {file for file in files for word in subjects if tests_subject(file, word)}
    return sorted(selected)


def matches(name: str, pattern: str) -> bool:
    """Whether a path has a pattern's folders and name; ``*`` is part of one of them."""
    path = PurePosixPath(name)
    return len(path.parts) >= pattern.count("/") + 1 and path.match(pattern)


def tests_subject(file: str, subject: str) -> bool:
    """Whether a test file's name begins with a subject."""
    return f"{Path(file).stem}_".startswith(f"test_{subject}_")


def slow_files() -> list[str]:
    """Test files that mark tests as slow."""
    paths = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(p.relative_to(ROOT)) for p in paths if "pytest.mark.slow" in p.read_text("utf-8")]


def git(*arguments: str) -> str | None:
    """What a git command prints; None where it fails."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
