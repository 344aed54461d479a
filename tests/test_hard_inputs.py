"""Hard inputs of every kind, a short run of benchmarks/fuzz.py: answered or refused, nothing else.

A case that fails here is run alone by ``python benchmarks/fuzz.py --seed 1 --case onnx:12``.
"""

from __future__ import annotations

import random

import pytest
from hard_inputs import command, rules, trees
from hard_inputs.rules import Case, Fault, Material
from hard_inputs.worker import KINDS, Worker

CASES = {"options": 60}  # each takes as long as twenty of the others
SEED = 1


@pytest.fixture(scope="module")
def model(mixed_files):
    return mixed_files("raw")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_case_is_answered_or_refused(model, kind):
    became = []
    with Worker(str(model), SEED, limit=300) as worker:
        for number in range(CASES.get(kind, 200)):
            found = worker.run(f"{kind}:{number}")
            assert not found.fault, f"{found.case} {found.became}: {found.fault}"
            became.append(found.became)
    assert set(became) == {rules.ANSWERED, rules.REFUSED}


# The rules themselves: that they are broken must be seen.


@pytest.fixture
def case(model, tmp_path):
    return Case(random.Random(0), tmp_path, Material(model))


def test_a_process_that_dies_is_a_failure_and_the_next_case_runs(model, tmp_path):
    with Worker(str(model), SEED, keep=tmp_path) as worker:
        assert worker.run("manifests:0").fault == ""
        worker._process.kill()
        died = worker.run("manifests:1")
        assert (died.became, died.fault.splitlines()[0]) == ("dies", "SIGKILL")
        assert worker.run("manifests:1").fault == ""
    assert (tmp_path / "manifests-1" / "case.json").is_file()


@pytest.mark.parametrize("text", ["", " ", "two\nlines", "x" * 5000])
def test_a_message_that_helps_nobody_is_a_fault(text):
    with pytest.raises(Fault):
        rules.refusal(text)


@pytest.mark.parametrize("name", [".why.x7.png", "why.png", "map.npy", "report.json", "model.onnx"])
def test_a_file_that_is_not_whole_is_a_fault(tmp_path, name):
    rules.whole(tmp_path)
    (tmp_path / name).write_bytes(b"\x89PNG{")
    with pytest.raises(Fault, match=r"left|not whole"):
        rules.whole(tmp_path)


@pytest.mark.parametrize(
    "spoil", [lambda m: m + 2, lambda m: m - 2, lambda m: m[1:], lambda m: m * float("nan")]
)
def test_a_map_that_is_none_is_a_fault(case, spoil):
    found = case.material.explainer.explain(case.numbers.integers(0, 256, (9, 9, 3), "uint8"))
    assert rules.answer(found, (32, 32)) == rules.ANSWERED
    object.__setattr__(found, "map", spoil(found.map))
    with pytest.raises(Fault):
        rules.answer(found, (32, 32))


@pytest.mark.parametrize(
    ("printed", "code"),
    [("no json", 0), ("", 0), ("{}{}", 2), ("{}", 1), ("[NaN]", 0), ("", 2), ("Warning: {}", 2)],
)
def test_a_command_that_says_something_else_is_a_fault(case, monkeypatch, printed, code):
    def main(arguments):
        print(printed)
        raise SystemExit(code)

    monkeypatch.setattr(command, "main", main)
    with pytest.raises(Fault):
        command.command(case, ["info", "--json"])


def test_the_same_seed_makes_the_same_case():
    tree = {"a": [1, 2, {"b": "c"}], "d": 0.5}
    made = [[trees.mutated(random.Random(f"1/{n}"), tree) for n in range(50)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 30
