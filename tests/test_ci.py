"""What CI runs besides ``make test``: the slow tests of what has changed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def slow_tests() -> Any:
    spec = importlib.util.spec_from_file_location("slow_tests", ROOT / ".ci" / "slow_tests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_file_with_slow_tests_is_called_for_by_some_change(slow_tests):
    subjects = {word for words in slow_tests.TESTED_BY.values() for word in words.split()}
    unreachable = [
        file
        for file in slow_tests.slow_files()
        if not any(slow_tests.tests_subject(file, subject) for subject in subjects)
    ]
    assert unreachable == []


def test_every_subject_has_a_test_file(slow_tests):
    files = [str(path) for path in (ROOT / "tests").glob("test_*.py")]
    subjects = {word for words in slow_tests.TESTED_BY.values() for word in words.split()}
    assert {s for s in subjects if not any(slow_tests.tests_subject(f, s) for f in files)} == set()


@pytest.mark.parametrize(
    ("changed", "called_for", "left_out"),
    [
        (["train/loop.py"], "tests/test_train_runs.py", "tests/test_full_size.py"),
        (["export/gradient/rules.py"], "tests/test_full_size.py", "tests/test_train_runs.py"),
        (["docs/export.md"], "tests/test_docs.py", "tests/test_full_size.py"),
        (["tests/test_full_size.py"], "tests/test_full_size.py", "tests/test_docs.py"),
    ],
)
def test_change_calls_for_the_slow_tests_of_its_part(slow_tests, changed, called_for, left_out):
    files = slow_tests.affected(changed)
    assert called_for in files
    assert left_out not in files


@pytest.mark.parametrize("changed", [["pyproject.toml"], ["docs/export.md", "tests/conftest.py"]])
def test_change_that_may_concern_everything_calls_for_every_slow_test(slow_tests, changed):
    assert slow_tests.affected(changed) == slow_tests.slow_files()


def test_change_that_no_slow_test_is_about_calls_for_none(slow_tests):
    assert slow_tests.affected(["CHANGELOG.md", "docs/images/a.jpg", "LICENSE"]) == []


def test_without_a_base_every_slow_test_is_called_for(slow_tests, monkeypatch, capsys):
    monkeypatch.setattr(slow_tests, "git", lambda *_: None)
    slow_tests.main([])
    assert capsys.readouterr().out.split() == slow_tests.slow_files()
