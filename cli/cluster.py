"""Explain a folder of any size on a cluster: the options, and what explain does with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..runtime.cam import Method
from ..runtime.errors import RequestError
from ..runtime.input_format import describe_images
from ..runtime.version import package_version
from .console import note, print_json, say, unreadable_lines
from .options import PromptedEngineOptions, require
from .progress import progress

if TYPE_CHECKING:
    from ..runtime.distributed.coordinator import ClusterModel, Workers
    from ..runtime.manifest import Manifest
    from ..runtime.request import Thresholding


@dataclass(frozen=True)
class ClusterOptions:
    """The cluster, and how many workers share the images."""

    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="ray[://HOST:PORT]",
            help="Work on a Ray cluster: ray for the one that RAY_ADDRESS names or that runs here, "
            "else all processors of this machine.",
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            help="With --on: number of workers, of --threads processors each (1 by default) "
            "[default: all that there is room for]."
        ),
    ] = None

    def check(self) -> None:
        """Refuse other clusters than Ray's, --workers without --on, and fewer than one."""
        if self.on is not None and self.on != "ray" and not self.on.startswith("ray://"):
            raise RequestError(f"--on must be ray or ray://HOST:PORT, not '{self.on}'")
        require("--workers", self.workers is not None, "--on", self.on is not None)
        if self.workers is not None and self.workers < 1:
            raise RequestError(f"--workers must be 1 or more, not {self.workers}")

    @contextmanager
    def connect(
        self, model: Path, engine: PromptedEngineOptions
    ) -> Iterator[tuple[Any, ClusterModel, Workers]]:
        """Connect to the cluster; yield the module ray, what is loaded there, and the workers."""
        from ..runtime.distributed.cluster import connect, plan_workers
        from ..runtime.distributed.coordinator import ClusterModel

        sent = ClusterModel(
            model,
            engine.prompts,
            {
                "engine": engine.engine,
                "precision": engine.precision,
                "cache": engine.cache,
                "gpu": engine.gpu,
            },
        )
        with connect(self.on or "") as ray:
            yield ray, sent, plan_workers(ray, model, engine.engine, self.workers, engine.threads)


def explain_on_cluster(
    model: Path,
    sources: Sequence[str],
    output: Path | None,
    cluster: ClusterOptions,
    engine: PromptedEngineOptions,
    manifest: Manifest,
    targets: Sequence[int | str],
    methods: Sequence[Method] | None,
    thresholding: Thresholding,
    as_json: bool,
) -> None:
    """Explain a folder on a cluster, and write Parquet files.

    Raises:
        RequestError: more than one folder, or a run of other settings.
        WhyCamError: see ``begin_run`` and ``run_on_workers``.
    """
    from ..runtime.distributed.cluster import run_on_workers
    from ..runtime.distributed.explain import Request
    from ..runtime.distributed.run import (
        Run,
        begin_run,
        describe_settings,
        explain_part,
        finished_parts,
        read_unreadable,
    )
    from ..runtime.distributed.storage import is_address, open_storage
    from ..runtime.request import plan_request

    if output is None:
        raise RequestError("--on needs a folder to write to, which every worker reaches: -o FOLDER")
    if len(sources) != 1:
        raise RequestError(f"--on takes one folder or address of images, not {len(sources)}")
    spec = manifest.preprocess
    if is_address(sources[0]) and (spec.color == "bands" or spec.value_range is not None):
        raise RequestError(
            f"{sources[0]} is an address, whose images are read as 8-bit RGB or grey, and the "
            f"network takes {describe_images(spec)}: pass a folder that every "
            "worker reaches"
        )
    plan = plan_request(manifest, methods, thresholding)
    request = Request(
        target=tuple(targets),
        method=tuple(one.method for one in plan.methods),
        tft=thresholding,
    )
    prompts = engine.prompts
    digest = "" if prompts is None else hashlib.sha256(prompts.read_bytes()).hexdigest()
    settings = describe_settings(
        manifest, request, engine.engine, engine.precision, digest, package_version()
    )
    source, folder = open_storage(sources[0]), open_storage(str(output))
    asked = Run(model=model.name, source=source.name, settings=settings)
    run, done = begin_run(folder, source, asked)
    left = [part for part in range(run.parts) if part not in done]
    before = run.count(done)
    if done:
        note(f"going on: {before:,} of {run.images:,} images are done")
    if left:
        work = partial(explain_part, folder=folder, source=source, request=request)
        try:
            with (
                cluster.connect(model, engine) as (ray, sent, workers),
                progress("explaining", run.images - before, as_json) as advance,
            ):
                advance("explaining", 0)
                for images in run_on_workers(ray, sent, work, left, workers):
                    advance("explaining", images)
        except BaseException:
            kept = run.count(finished_parts(folder))
            note(
                f"{kept:,} of {run.images:,} images are done and stay in "
                f"{folder.name}: the same command goes on with the others"
            )
            raise
    count, reasons = read_unreadable(folder, 3)
    if as_json:
        print_json(
            {
                "model": str(model),
                "images": run.images,
                "unreadable": count,
                "parts": run.parts,
                "written": folder.name,
            }
        )
        return
    say(f"{run.images - count:,} of {run.images:,} images explained")
    for line in unreadable_lines(dict(zip(reasons, reasons, strict=True)), count):
        say(line)
    say(f"written to {folder.name}/: {run.parts:,} Parquet files, part-00000.parquet and on")
