"""Share work out to the workers of a Ray cluster, each of which loads the model once.

Ray Data schedules: it holds the workers, gives each the next item, and starts a worker that died
again with the item that it had. A coordinator, an actor of Ray, drives it within the cluster, so
that a program outside can use it as well: Ray Data itself does not run through a Ray client.
"""

from __future__ import annotations

import getpass
import hashlib
import logging
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engines.plan import is_plan, sidecar_of
from ..engines.registry import ENGINES
from ..errors import EngineError, MissingExtraError, RequestError, WhyCamError, reason_of
from ..explainer import Explainer
from ..files import write_whole
from ..load import load
from ..version import package_version

_RETRIES = 3  # of an item whose worker died
_LOST = 10  # items that may be given up before the run ends
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


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster, for the length of a block.

    Args:
        address: ``ray://HOST:PORT``, a cluster's client server; or ``ray``: the cluster that
            RAY_ADDRESS names or that runs on this machine, else one of this machine alone that
            ends with the block.

    Returns:
        The module ``ray``.

    Raises:
        MissingExtraError: Ray is not installed.
        EngineError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # whycam sends nothing to anybody
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "running on a cluster") from error
    is_mine = not ray.is_initialized()
    # Ray prints what happens to workers on standard output, which may be one JSON document.
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if is_mine:
                ray.init(
                    None if address == "ray" else address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except Exception as error:  # Ray raises whatever its transports do
            raise EngineError(f"cannot connect to {address}: {reason_of(error)}") from error
        try:
            yield ray
        finally:
            if is_mine:
                ray.shutdown()


def plan_workers(
    ray: Any, model: Path, engine: str, count: int | None, threads: int | None
) -> Workers:
    """Choose how many workers share a cluster.

    Args:
        ray: from ``connect``.
        model: the file.
        engine: that it runs in; those for GPUs get one each.
        count: None: as many as the cluster has room for.
        threads: of each; None: 1, which gives the most images a second.

    Raises:
        RequestError: the cluster has no room for them.
    """
    backend = ENGINES.get(engine)
    gpus = int(is_plan(model) or (backend is not None and backend.gpu))
    share = threads or 1
    has = ray.cluster_resources()
    room = int(has.get("CPU", 0)) // share
    if gpus:
        room = min(room, int(has.get("GPU", 0)))
    if (count or 1) > room:
        needs = f"{share} processor{'s' * (share > 1)}{' and a GPU' * gpus}"
        raise RequestError(
            f"the cluster has room for {room} workers of {needs} each, and {count or 1} are asked "
            "for: change --workers or --threads, or add machines"
        )
    return Workers(count or room, share, gpus)


def run_on_workers(
    ray: Any,
    model: ClusterModel,
    work: Work,
    items: Sequence[Any],
    workers: Workers,
    ordered: bool = False,
) -> Iterator[Any]:
    """Apply a function to items on the workers of a cluster.

    Args:
        ray: from ``connect``.
        model: which each worker loads once.
        work: takes the explainer and an item; it and what it returns can be pickled.
        items: that can be pickled.
        workers: that share them.
        ordered: return results in the order of the items, else as they are finished.

    Returns:
        The results.

    Raises:
        WhyCamError: what the work raised, or the loading of the model.
        EngineError: items were given up, because each worker that had them died.
    """
    coordinator = ray.remote(num_cpus=0)(_Coordinator).remote(
        model.read(), model, work, [pickle.dumps(item) for item in items], workers, ordered
    )
    finished: set[int] = set()
    try:
        while (row := _take(ray, coordinator)) is not None:
            if row["failure"]:
                raise EngineError(row["failure"])
            finished.add(row["place"])
            yield pickle.loads(row["result"])
    finally:
        ray.kill(coordinator)
    lost = [str(place) for place in range(len(items)) if place not in finished]
    if lost:
        raise EngineError(
            f"{len(lost)} of {len(items)} parts were given up, because every worker that had one "
            f"died, {_RETRIES + 1} in all: number {', '.join(lost[:_LOST])}. Ray's logs say why "
            "(memory, or an image that ends the process); the same command tries them again"
        )


def _take(ray: Any, coordinator: Any) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] | None = ray.get(coordinator.take.remote())
    except Exception as error:  # of the cluster, not of the work
        cause = getattr(error, "cause", None) or error
        raise EngineError(f"the run on Ray ended: {reason_of(cause)}") from error
    return row


class _Coordinator:
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
        context.max_errored_blocks = _LOST
        context.execution_options.preserve_order = ordered
        self._files = {name: ray.put(data) for name, data in files.items()}  # held while it runs
        rows = [{"place": place, "item": item} for place, item in enumerate(items)]
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
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
            max_task_retries=_RETRIES,
        )
        self._rows = iter(data.iter_rows())

    def take(self) -> dict[str, Any] | None:
        """Wait for the next result; None after the last one."""
        row = next(self._rows, None)
        if row is None:
            return None
        return {"place": int(row["place"]), "failure": row["failure"], "result": row["result"]}


class _Worker:
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
