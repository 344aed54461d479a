"""Run the training loop: steps, checkpoints and logs, for any losses and batches."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from ..runtime.errors import RequestError, TrainingError, reason_of
from ..runtime.files import replacing
from ..runtime.timing import Tick

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKPOINT, LOSSES = "checkpoint.safetensors", "losses.csv"
# Returns the batch of some items in a step, on the device: named tensors.
Fetch = Callable[[Sequence[int], int], Mapping[str, torch.Tensor]]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Epochs, batch size, optimizer settings and seed of a training.

    Attributes:
        epochs: passes over the data.
        batch: images of one step, over all processes together.
        lr: highest learning rate of AdamW; it rises linearly over the first twentieth of the
            steps, and falls to 0 on a cosine.
        weight_decay: of AdamW.
        seed: of the order of images and of initial weights.
    """

    epochs: int = 4
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise RequestError(
                f"epochs and batch must be 1 or more, not {self.epochs} and {self.batch}"
            )
        if not (0 < self.lr < float("inf") and 0 <= self.weight_decay < float("inf")):
            raise RequestError(
                f"lr must be above 0 and weight decay from 0, not {self.lr} and {self.weight_decay}"
            )


class Losses(torch.nn.Module):
    """A module whose ``forward`` takes a batch and returns losses, their weighted sum first.

    Attributes:
        names: of the losses, in order.
    """

    names: tuple[str, ...] = ("loss",)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters to train, by name."""
        raise NotImplementedError


def count_steps(plan: Plan, count: int, world: int) -> tuple[int, int]:
    """Return steps an epoch and images a step; an incomplete last batch is left out."""
    batch = min(plan.batch, count) // world * world
    if batch == 0:
        raise RequestError(
            f"{world} processes cannot share a batch of {min(plan.batch, count)} images"
        )
    return count // batch, batch


def fit(
    losses: Losses,
    fetch: Fetch,
    items: Sequence[int],
    plan: Plan,
    fabric: Fabric,
    folder: Path,
    key: str,
    checkpoint_minutes: float = 5.0,
    tick: Tick | None = None,
) -> None:
    """Train, resuming from ``folder``'s checkpoint if it belongs to the same run.

    A run that was killed and resumed ends with the weights of one that was not: the order of
    images depends on seed and epoch alone, and optimizer and step are in the checkpoint.

    Args:
        losses: the module to train, on the CPU.
        fetch: makes a batch.
        items: indices of the images to train on.
        plan: of the training.
        fabric: devices, processes and precision; launched.
        folder: of checkpoint and logs.
        key: identifies the run; a checkpoint with another key is ignored.
        checkpoint_minutes: time between checkpoints.
        tick: called with (text, steps done since).

    Raises:
        TrainingError: the loss is no longer a number.
    """
    names = losses.names
    trained = losses.trained()
    optimizer = torch.optim.AdamW(
        trained.values(), lr=plan.lr, weight_decay=plan.weight_decay, fused=False
    )
    an_epoch, batch = count_steps(plan, len(items), fabric.world_size)
    total = an_epoch * plan.epochs
    step = _restore(folder / CHECKPOINT, key, trained, optimizer)
    module, optimizer = fabric.setup(losses, optimizer)
    log = _Log(folder, names, step) if fabric.is_global_zero else None
    if tick is not None:
        tick(f"training, {total} steps", step)
    saved = time.monotonic()
    while step < total:
        epoch, within = divmod(step, an_epoch)
        order = _order(plan.seed, epoch, len(items))
        step_items = order[within * batch : (within + 1) * batch]
        share = [items[i] for i in step_items[fabric.global_rank :: fabric.world_size]]
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * _schedule(step, total)
        values = module(fetch(share, step))
        fabric.backward(values[0])
        optimizer.step()
        optimizer.zero_grad()
        means = _mean_over_processes(fabric, values)
        if not math.isfinite(means[0]):
            raise TrainingError(
                f"the loss became {means[0]} in step {step + 1}: lower the learning rate "
                f"(now {plan.lr:g}) or the weights of the terms"
            )
        step += 1
        if log is not None:
            log.write(step, epoch, optimizer.param_groups[0]["lr"], means)
            due = time.monotonic() - saved > checkpoint_minutes * 60
            if due or step == total:
                _save(folder / CHECKPOINT, key, step, trained, optimizer)
                saved = time.monotonic()
        if tick is not None:
            tick(f"training, loss {means[0]:.3f}", 1)
    if log is not None:
        log.close()
    fabric.barrier()


def _mean_over_processes(fabric: Fabric, values: torch.Tensor) -> list[float]:
    whole = fabric.all_reduce(values.detach(), reduce_op="mean")
    assert isinstance(whole, torch.Tensor)
    return [float(value) for value in whole]


def _order(seed: int, epoch: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return [int(i) for i in torch.randperm(count, generator=generator)]


def _schedule(step: int, total: int) -> float:
    warm_up = max(1, total // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def _save(
    path: Path,
    key: str,
    step: int,
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Save weights, optimizer and step in one file, so that they always belong together."""
    from safetensors.torch import save_file

    tensors = {f"weights.{name}": p.detach() for name, p in trained.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    document = json.dumps({"key": key, "step": step})
    with replacing(path) as temporary:
        copies = {name: value.cpu().clone() for name, value in tensors.items()}
        save_file(copies, str(temporary), {"whycam": document})


def _restore(
    path: Path,
    key: str,
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Restore a checkpoint of the same run; return its step, or 0 without one."""
    from safetensors import safe_open

    if not path.is_file():
        return 0
    try:
        with safe_open(str(path), "pt") as file:
            document = json.loads((file.metadata() or {})["whycam"])
            if document["key"] != key:
                return 0
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise TrainingError(
            f"cannot read the checkpoint {path}: {reason_of(error)}; delete it"
        ) from error
    state: dict[int, dict[str, Any]] = {}
    with torch.no_grad():
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            if part == "weights":
                trained[rest].copy_(value)
            else:
                index, _, field = rest.partition(".")
                state.setdefault(int(index), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return int(document["step"])


class _Log:
    """Logs losses as CSV and for TensorBoard; lines after the last checkpoint are dropped."""

    def __init__(self, folder: Path, names: Sequence[str], step: int) -> None:
        path = folder / LOSSES
        kept = path.read_text().splitlines()[1 : step + 1] if path.is_file() and step else []
        self._file = path.open("w", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["step", "epoch", "lr", *names])
        self._file.writelines(f"{line}\r\n" for line in kept)
        self._names = names
        self._board = _tensorboard(folder, step)

    def write(self, step: int, epoch: int, lr: float, values: Sequence[float]) -> None:
        self._rows.writerow([step, epoch, f"{lr:.6g}", *(f"{value:.6g}" for value in values)])
        self._file.flush()
        if self._board is not None:
            for name, value in zip(self._names, values, strict=True):
                self._board.add_scalar(f"loss/{name}", value, step)
            self._board.add_scalar("lr", lr, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)
