"""What runs within a Ray cluster: a coordinator that drives Ray Data, and the workers."""

from __future__ import annotations

import getpass
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engines.plan import is_plan, sidecar_of
from ..errors import EngineError, WhyCamError
from ..explainer import Explainer
from ..files import write_whole
from ..load import load
from ..version import package_version

RETRIES = 3  # of an item whose worker died
LOST = 10  # items that may be given up before the run ends
Work = Callable[[Explainer, Any], Any]


@dataclass(frozen=True)
class Workers:
    """The workers of a run.

    Attributes:
        count: how many there are.
        threads: processors of each, and threads of its engine.
        gpus: of each, 0 or 1.
    """

    count: int
    threads: int
    gpus: int


@dataclass(frozen=True)
class ClusterModel:
    """A model file that is sent to the workers, which need not reach this machine's disk.

    Attributes:
        path: of the file here.
        prompts: of its classes, or None.
        options: further arguments of ``whycam.load``.
    """

    path: Path
    prompts: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def read(self) -> dict[str, bytes]:
        """Return the files by name, the model first."""
        files = [self.path, *([sidecar_of(self.path)] if is_plan(self.path) else [])]
        files += [self.prompts] if self.prompts is not None else []
        return {file.name: file.read_bytes() for file in files}


def key_of(files: dict[str, bytes]) -> str:
    """Return a digest of the names and contents of files."""
    hasher = hashlib.sha256()
    for name, data in files.items():
        hasher.update(f"{name}\0{len(data)}\0".encode())
        hasher.update(data)
    return hasher.hexdigest()[:32]


class Coordinator:
    """Runs Ray Data within the cluster, and hands out its results one by one."""

    def __init__(
        self,
        files: dict[str, bytes],
        model: ClusterModel,
        work: Work,
        items: Sequence[bytes],
        workers: Workers,
        ordered: bool,
    ) -> None:
        import ray
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = LOST
        context.execution_options.preserve_order = ordered
        self._files = {name: ray.put(data) for name, data in files.items()}  # held while it runs
        rows = [{"place": place, "item": item} for place, item in enumerate(items)]
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            fn_constructor_args=(
                self._files,
                key_of(files),
                model,
                work,
                workers.threads,
                package_version(),
            ),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers.count, max_tasks_in_flight_per_actor=1),
            num_cpus=workers.threads,
            num_gpus=workers.gpus or None,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        self._rows = iter(data.iter_rows())

    def take(self) -> dict[str, Any] | None:
        """Wait for the next result; None after the last one."""
        row = next(self._rows, None)
        if row is None:
            return None
        return {"place": int(row["place"]), "failure": row["failure"], "result": row["result"]}


class Worker:
    """Loads the model with its first item, and works on one item at a time."""

    def __init__(
        self,
        files: dict[str, Any],
        key: str,
        model: ClusterModel,
        work: Work,
        threads: int,
        version: str,
    ) -> None:
        self._files, self._key, self._model, self._work = files, key, model, work
        self._threads, self._version = threads, version
        self._explainer: Explainer | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Work on the item of a batch of one; what goes wrong is told in words."""
        try:
            if self._explainer is None:
                self._explainer = self._load()
            result = self._work(self._explainer, pickle.loads(batch["item"][0]))
            failure, data = "", pickle.dumps(result)
        except WhyCamError as error:
            failure, data = str(error), b""
        except Exception as error:  # which Ray Data would count as a lost block
            failure, data = f"{type(error).__name__}: {error} (a fault of whycam)", b""
        return {"place": batch["place"], "failure": [failure], "result": [data]}

    def _load(self) -> Explainer:
        import ray

        if package_version() != self._version:
            raise EngineError(
                f"a worker has whycam {package_version()}, and this machine {self._version}: "
                "install the same version on all machines"
            )
        folder = _model_folder(self._key)
        for name, data in self._files.items():
            if not (folder / name).exists():
                write_whole(folder / name, ray.get(data))
        prompts = self._model.prompts
        return load(
            folder / self._model.path.name,
            threads=self._threads,
            prompts=None if prompts is None else folder / prompts.name,
            **self._model.options,
        )


def _model_folder(key: str) -> Path:
    """Return the folder of a model's files, which all workers of a machine share.

    Raises:
        EngineError: the folder above it is another user's.
    """
    above = Path(tempfile.gettempdir()) / f"whycam-{getpass.getuser()}"
    above.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and above.stat().st_uid != os.getuid():
        raise EngineError(f"{above} belongs to another user: set TMPDIR to a folder of your own")
    return above / key
