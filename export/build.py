"""An explaining graph as a TensorRT plan, with the sidecar that says what it is. Needs no torch."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..runtime.engines.interface import check_interface, graph_name, parts_needed
from ..runtime.engines.plan import (
    Library,
    Plan,
    Range,
    Tensor,
    digest_of,
    sidecar_of,
    write_sidecar,
)
from ..runtime.errors import ModelFileError, OutputError, RequestError
from ..runtime.files import replacing, write_whole
from ..runtime.manifest import FilePrecision, Manifest
from .build_options import (
    TURING,
    check_plan_path,
    choose_capabilities,
    choose_precision,
    choose_sizes,
    find_build_device,
    read_checked_manifest,
    read_timing_cache,
)
from .plan_builder import BuildConfig, Tick, Total, build_plan


@dataclass(frozen=True)
class BuildResult:
    """What a build made.

    Attributes:
        path: the plan.
        sidecar: what lies beside it.
        plan: the sidecar's contents.
        converted: whether the float file was converted to half precision for it.
        rewritten: matrix products that became convolutions or sums, for Turing.
        size: of the plan, in bytes.
        seconds: it took.
    """

    path: Path
    sidecar: Path
    plan: Plan
    converted: bool
    rewritten: int
    size: int
    seconds: float


def to_plan(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    library: Library = "tensorrt-rtx",
    compute: Sequence[str] | None = None,
    precision: FilePrecision | None = None,
    batch: Range | None = None,
    classes: Range | None = None,
    source_size: tuple[Range, Range] | None = None,
    workspace: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    tick: Tick | None = None,
    total: Total | None = None,
) -> BuildResult:
    """Build a TensorRT plan from an explaining graph.

    The network is strongly typed: it computes in the precision that the graph says. Its inputs and
    outputs are read back and must be what the manifest promises. Plan and sidecar are written
    together or not at all.

    Args:
        model: a file made by ``whycam export``, ``half`` or ``calibrate int8``.
        path: the plan to write; its sidecar is ``<plan>.json``.
        library: ``tensorrt-rtx`` builds ahead of time and without a GPU, for RTX GPUs;
            ``tensorrt`` builds on the GPU that will run the plan.
        compute: for ``tensorrt-rtx``: capabilities, as ``8.6``; by default 8.6, 8.9 and 12.0.
        precision: ``fp16`` and ``bf16`` convert a float file first; ``int8`` is for files that
            are; by default the file's own.
        batch: N of the graph contract; by default 1 to 16, fastest at 1, or 1 to 4 where the graph
            sweeps thresholds itself.
        classes: k of the graph contract; by default 1 to 5, or 1 where the graph sweeps.
        source_size: heights and widths of the images, where the graph takes any.
        workspace: memory that kernels may use besides, in MB; by default all there is.
        timing_cache: for ``tensorrt``: a file that makes the next build faster; made if absent.
        tick: told what is done, and steps since.
        total: told how many steps there will be.

    Returns:
        What was built.

    Raises:
        RequestError: a wish that cannot be met.
        ModelFileError: the file is missing, damaged, foreign, changed since, or the library
            cannot parse it.
        EngineError: the library cannot build it, or not here.
        VerificationError: a converted graph does not give the float file's answers.
        OutputError: the plan cannot be written.
        MissingExtraError: a package is not installed.
    """
    begin = time.perf_counter()
    told: Tick = tick or (lambda _name, _steps: None)
    counted: Total = total or (lambda _steps: None)
    target = Path(path)
    manifest = read_checked_manifest(model)
    wanted = choose_precision(model, manifest, precision)
    check_plan_path(target, model)
    if workspace is not None and workspace < 1:
        raise RequestError(f"workspace must be 1 MB or more, not {workspace}")
    sizes = choose_sizes(manifest, batch, classes, source_size)
    found = choose_capabilities(library, compute, wanted)
    device = find_build_device(library)
    cache = read_timing_cache(library, timing_cache)
    settings = BuildConfig(library, found, sizes.shapes(manifest), workspace, cache)
    with (
        _restored_on_failure(sidecar_of(target)),
        replacing(target) as temporary,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder,
    ):
        graph, own, rewritten = _prepared(model, manifest, wanted, found, Path(folder), told)

        def check(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
            check_network(os.fspath(model), own, inputs, outputs)

        told("parsing", 0)
        made = build_plan(graph, settings, check, told, counted)
        temporary.write_bytes(made.data)
        plan = Plan(
            # The digest is of the file that was given, whatever was made of it on the way.
            manifest=msgspec.structs.replace(own, digest=manifest.digest),
            digest=digest_of(temporary),
            library=library,
            library_version=made.version,
            compute=found if device is None else (device.compute,),
            gpu=None if device is None else device.name,
            batch=sizes.batch,
            classes=sizes.classes,
            height=sizes.height,
            width=sizes.width,
            inputs=made.inputs,
            outputs=made.outputs,
        )
        # Last of all: what a crash leaves between here and the plan's renaming is a sidecar whose
        # digest is not the plan's, which no engine accepts.
        sidecar = write_sidecar(target, plan)
    if timing_cache is not None and made.timing_cache is not None:
        write_whole(Path(timing_cache), made.timing_cache)
    seconds = time.perf_counter() - begin
    return BuildResult(
        target, sidecar, plan, wanted != manifest.precision, rewritten, len(made.data), seconds
    )


def _prepared(
    model: str | os.PathLike[str],
    manifest: Manifest,
    precision: FilePrecision,
    compute: Sequence[str],
    folder: Path,
    tick: Tick,
) -> tuple[Path, Manifest, int]:
    """The graph that the library is given, its manifest, and how many products it lost."""
    graph, rewritten = Path(model), 0
    if precision != manifest.precision:
        from .half import to_half

        tick(f"converting to {precision}", 0)
        half = to_half(model, folder / "half.onnx", precision)  # type: ignore[arg-type]
        graph, manifest = half.path, half.manifest
    if TURING in compute:
        from .turing import write_for_turing

        tick("replacing matrix products", 0)
        turing = folder / "turing.onnx"
        rewritten = write_for_turing(graph, turing, manifest)
        graph = turing
    return graph, manifest, rewritten


def check_network(
    path: str, manifest: Manifest, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> None:
    """A network, as read back from the library, must be what the manifest promises.

    Raises:
        ModelFileError: it is not.
    """
    check_interface(
        path,
        manifest,
        {each.name: (each.dtype, [_side(side) for side in each.shape]) for each in inputs},
        [each.name for each in outputs],
        parts_needed(manifest.output_shapes, manifest),
    )
    promised = {
        graph_name(name, manifest): ("int64" if name == "targets" else "float32", (None, *shape))
        for name, shape in manifest.output_shapes.items()
    }
    for each in outputs:
        if each.name in manifest.own_outputs:
            continue
        found = (each.dtype, tuple(map(_side, each.shape)))
        if found != promised.get(each.name):
            raise ModelFileError(
                f"{path} does not match its manifest: TensorRT finds an output '{each.name}' "
                f"{_said(found)}, the manifest has {_said(promised.get(each.name))}"
            )


def _side(side: int) -> int | None:
    return None if side < 0 else side


def _said(tensor: tuple[str, tuple[int | None, ...]] | None) -> str:
    if tensor is None:
        return "none of that name"
    kind, shape = tensor
    return f"{kind} [{', '.join('any' if side is None else str(side) for side in shape)}]"


@contextmanager
def _restored_on_failure(file: Path) -> Iterator[None]:
    """Puts a small file back as it was, if the block does not succeed."""
    try:
        before = file.read_bytes() if file.is_file() else None
    except OSError as error:
        raise OutputError(f"cannot read {file}, to replace it: {error.strerror}") from error
    try:
        yield
    except BaseException:
        with suppress(OSError, OutputError):
            if before is None:
                file.unlink(missing_ok=True)
            elif file.read_bytes() != before:
                write_whole(file, before)
        raise
