"""The benchmark of a newcomer finds the lines that it times in the README."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_newcomers_commands_stand_in_the_readme():
    read_commands = runpy.run_path(str(ROOT / "benchmarks" / "newcomer.py"))["read_commands"]
    commands = read_commands((ROOT / "README.md").read_text("utf-8"))
    assert [command.split()[:2] for command in commands] == [
        ["pip", "install"],
        ["whycam", "export"],
        ["whycam", "explain"],
    ]
