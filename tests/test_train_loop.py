"""The training loop: killed and resumed as if nothing had happened, logs, broken losses."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric

from whycam.runtime.errors import RequestError, TrainingError
from whycam.train.loop import LOSSES, Losses, Plan, count_steps, fit
from whycam.train.run import claim_folder

PLAN = Plan(epochs=3, batch=4, lr=1e-2, seed=3)
ITEMS = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]


class Line(Losses):
    names = ("loss", "size")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = torch.nn.Linear(3, 1)

    def trained(self):
        return dict(self.line.named_parameters())

    def forward(self, batch):
        error = (self.line(batch["x"])[:, 0] - batch["y"]).square().mean()
        return torch.stack([error, self.line.weight.norm()])


class Killed(Exception):
    pass


class Source:
    """Batches; records what was asked for, and stops at a step."""

    def __init__(self, stop: int | None = None, broken: bool = False) -> None:
        self.stop, self.broken, self.asked = stop, broken, []

    def __call__(self, items, step):
        if step == self.stop:
            raise Killed
        self.asked.append((step, tuple(items)))
        numbers = torch.tensor(items, dtype=torch.float32) / 29
        y = numbers * (float("inf") if self.broken else 1)
        return {"x": torch.stack([numbers, numbers**2, numbers**3], 1), "y": y}


def run(folder, source, plan=PLAN, key="k", minutes=0.0):
    folder.mkdir(exist_ok=True)
    losses = Line()
    fabric = Fabric(accelerator="cpu", devices=1)
    fit(losses, source, ITEMS, plan, fabric, folder, key, minutes)
    return {name: value.detach().clone() for name, value in losses.trained().items()}


def rows(folder):
    with (folder / LOSSES).open() as file:
        return list(csv.reader(file))


def test_every_epoch_takes_each_item_at_most_once_in_another_order(tmp_path):
    source = Source()
    run(tmp_path, source)
    assert count_steps(PLAN, len(ITEMS), 1) == (2, 4)
    assert [step for step, _ in source.asked] == list(range(6))
    epochs = [[*source.asked[i][1], *source.asked[i + 1][1]] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 and set(epoch) <= set(ITEMS) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("stop", range(1, 6))
def test_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, stop):
    whole = run(tmp_path / "whole", Source())
    with pytest.raises(Killed):
        run(tmp_path / "killed", Source(stop))
    again = Source()
    resumed = run(tmp_path / "killed", again)
    assert again.asked[0][0] == stop
    for name in whole:
        assert torch.equal(whole[name], resumed[name])
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")


def test_steps_after_the_last_checkpoint_are_done_again_and_logged_once(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, Source(3))
    with pytest.raises(Killed):
        run(tmp_path, Source(5), minutes=60)  # steps 3 and 4 reach no checkpoint
    assert len(rows(tmp_path)) == 1 + 5
    again = Source()
    run(tmp_path, again)
    assert again.asked[0][0] == 3
    assert [int(row[0]) for row in rows(tmp_path)[1:]] == [1, 2, 3, 4, 5, 6]


def test_checkpoint_of_another_run_is_not_used(tmp_path):
    run(tmp_path, Source())
    source = Source()
    run(tmp_path, source, key="other")
    assert source.asked[0][0] == 0


def test_damaged_checkpoint_is_named(tmp_path):
    run(tmp_path, Source())
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(TrainingError, match="cannot read the checkpoint"):
        run(tmp_path, Source())


def test_loss_that_is_no_number_stops_the_training(tmp_path):
    with pytest.raises(TrainingError, match="lower the learning rate"):
        run(tmp_path, Source(broken=True))


def test_learning_rate_rises_then_falls_to_nothing(tmp_path):
    run(tmp_path, Source(), Plan(epochs=30, batch=4, lr=1e-2))
    rates = [float(row[2]) for row in rows(tmp_path)[1:]]
    top = rates.index(max(rates))
    assert top <= 3
    assert max(rates) == pytest.approx(1e-2, rel=0.01)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 1e-4


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 0}, {"lr": 0}, {"lr": float("nan")}, {"weight_decay": -1}]
)
def test_impossible_plans_are_refused(wrong):
    with pytest.raises(RequestError):
        Plan(**wrong)


def test_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(RequestError, match="4 processes"):
        count_steps(Plan(batch=3), 100, 4)


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    fabric = SimpleNamespace(is_global_zero=True, broadcast=lambda problem: problem)
    claim_folder(tmp_path / "run", "key", {}, fabric)
    # Ours, and the one that safetensors writes to before it renames it.
    for name in (".checkpoint.0a1b2c3d.safetensors", ".tmpAb3xYz"):
        (tmp_path / "run" / name).write_bytes(b"half")
    claim_folder(tmp_path / "run", "key", {}, fabric)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["settings.json"]
