"""Share work out to the workers of a Ray cluster, each of which loads the model once.

Ray Data schedules: it holds the workers, gives each the next item, and starts a worker that died
again with the item that it had. A coordinator, an actor of Ray, drives it within the cluster, so
that a program outside can use it as well: Ray Data itself does not run through a Ray client.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from ..engines.plan import is_plan
from ..engines.registry import ENGINES
from ..errors import EngineError, MissingExtraError, RequestError, reason_of
from .coordinator import LOST, RETRIES, ClusterModel, Coordinator, Work, Workers


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
        threads: of each; None: 1, which takes the least processor time.

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
    coordinator = ray.remote(num_cpus=0)(Coordinator).remote(
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
            f"died, {RETRIES + 1} in all: number {', '.join(lost[:LOST])}. Ray's logs say why "
            "(memory, or an image that ends the process); the same command tries them again"
        )


def _take(ray: Any, coordinator: Any) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] | None = ray.get(coordinator.take.remote())
    except Exception as error:  # of the cluster, not of the work
        cause = getattr(error, "cause", None) or error
        raise EngineError(f"the run on Ray ended: {reason_of(cause)}") from error
    return row
