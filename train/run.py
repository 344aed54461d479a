"""Start a training run: launch processes, claim the run's folder, and identify the run."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from ..calibrate.dataset import Dataset
from ..export.saved_model import SavedModel, is_saved_model, read_saved_model
from ..export.source import Source
from ..runtime.errors import (
    MissingExtraError,
    OutputError,
    RequestError,
    TrainingError,
    WhyCamError,
    reason_of,
)
from ..runtime.files import write_json

try:
    from lightning_fabric import Fabric
except ImportError as error:
    raise MissingExtraError("lightning-fabric", "train", "training") from error

SETTINGS = "settings.json"
# As lightning-fabric calls them: weights stay float32.
PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
STRATEGIES = ("auto", "ddp")


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """Devices, nodes and precision to train with.

    Attributes:
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: processes on each node, or ``auto``.
        nodes: how many; all must see the run's folder.
        strategy: ``auto`` or ``ddp``.
        precision: of the arithmetic, ``fp32``, ``bf16`` or ``fp16``.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "fp32"

    def _processes(self) -> tuple[int | str, int]:
        """Return devices and nodes; torchrun's settings win over these."""
        if not _started():
            return self.devices, self.nodes
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here

    def launch(self) -> Fabric:
        """Start the other processes, if there are any, and join them.

        Raises:
            RequestError: lightning-fabric refuses the request, or it does not fit this machine.
        """
        for value, known, name in (
            (self.precision, PRECISIONS, "precision"),
            (self.strategy, STRATEGIES, "strategy"),
        ):
            if value not in known:
                raise RequestError(f"{name} must be one of {', '.join(known)}, not '{value}'")
        devices, nodes = self._processes()
        many = devices not in (1, "1") or nodes > 1
        strategy = "ddp" if self.strategy == "auto" and many else self.strategy
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fabric = Fabric(
                    accelerator=self.accelerator,
                    devices=devices,
                    num_nodes=nodes,
                    strategy=strategy,
                    precision=PRECISIONS[self.precision],
                )
                if "LT_CLI_USED" not in os.environ:  # `fabric run` has launched it already
                    fabric.launch()
        except Exception as error:
            raise RequestError(f"cannot train on these devices: {reason_of(error)}") from error
        return fabric


def _started() -> bool:
    """Tell whether torchrun or `fabric run` has started this process, and others."""
    return {"WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


def fingerprint(
    source: Source,
    parts: Mapping[str, Dataset],
    settings: Mapping[str, Any],
    classes: str | Path | None = None,
) -> str:
    """Hash weights, preprocessing, classes, images and settings, which identify a run.

    Args:
        source: the network before training.
        parts: images to train on and to evaluate on.
        settings: of the training.
        classes: the file that says which class a label means.
    """
    digest = hashlib.sha256(msgspec.json.encode(settings))
    digest.update(msgspec.json.encode((source.preprocess, source.labels)))
    if classes is not None:
        digest.update(Path(classes).read_bytes())
    for name, tensor in sorted(source.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    for data in parts.values():
        for sample in data.samples:
            digest.update(f"{sample.path.resolve()}\0{sample.labels}\n".encode())
    return digest.hexdigest()[:16]


def claim_folder(folder: Path, key: str, settings: Mapping[str, Any], fabric: Fabric) -> None:
    """Make the run's folder, or check that it holds the same run.

    The first process does so; its error is raised in all processes, so that none waits forever.

    Raises:
        TrainingError: the folder holds another run.
        OutputError: it cannot be written.
    """
    problem: WhyCamError | None = None
    if fabric.is_global_zero:
        try:
            _claim(folder, key, settings)
        except WhyCamError as error:
            problem = error
    problem = fabric.broadcast(problem)
    if problem is not None:
        raise problem


def _claim(folder: Path, key: str, settings: Mapping[str, Any]) -> None:
    path = folder / SETTINGS
    if path.is_file():
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot read {path}: {error}") from error
        if known.get("key") != key:
            recorded = known.get("settings", {})
            requested = json.loads(msgspec.json.encode(settings))  # lists, as in the file
            differing = [name for name in requested if recorded.get(name) != requested[name]]
            what = ", ".join(differing) or "weights, images, preprocessing or class names"
            raise TrainingError(
                f"{folder} holds another run (different {what}): choose another folder or delete it"
            )
        for left in folder.glob(".*"):  # what a killed process was writing
            if left.is_file():
                left.unlink(missing_ok=True)
        return
    write_json(path, {"key": key, "settings": dict(settings)})


def describe_model(
    model: str,
    source: Source,
    num_classes: int | None,
    labels: tuple[str, ...],
    entry: dict[str, object],
) -> SavedModel:
    """Describe a model trained from ``model``."""
    history: tuple[dict[str, object], ...] = ()
    architecture = _absolute(model)
    if is_saved_model(model):
        before = read_saved_model(model)
        history, architecture = before.history, before.model
        num_classes = num_classes or before.num_classes
    return SavedModel(
        model=architecture,
        num_classes=num_classes,
        labels=labels,
        preprocess=source.preprocess,
        history=(*history, entry),
    )


def _absolute(model: str) -> str:
    """Return a factory's file with its full path, so that it is found from any folder."""
    place, colon, name = model.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if colon and place.endswith(".py") else model
