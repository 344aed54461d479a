"""Build a TensorRT plan and its sidecar from an explaining graph, without torch."""

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
from ..runtime.timing import Tick, Total
from .build_options import (
    TURING,
    check_plan_path,
    check_suppression,
    choose_capabilities,
    choose_precision,
    choose_sizes,
    find_build_device,
    read_checked_manifest,
    read_timing_cache,
)
from .plan_builder import BuildConfig, build_plan


@dataclass(frozen=True)
class BuildResult:
    """A TensorRT plan as it was built.

    Attributes:
        path: the plan.
        sidecar: the JSON file beside it.
        plan: the sidecar's contents.
        converted: whether the float file was converted to half precision for it.
        rewritten: how many matrix products became convolutions or sums, for Turing.
        size: of the plan, in bytes.
        seconds: how long the build took.
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
    prompts: Range | None = None,
    workspace: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    tick: Tick | None = None,
    total: Total | None = None,
) -> BuildResult:
    """Build a TensorRT plan from an explaining graph.

    The network is strongly typed: it computes in the precision of the graph. Its inputs and outputs
    are read back and must match the manifest. Plan and sidecar are written
    together or not at all.

    Args:
        model: a file made by ``whycam export``, ``half`` or ``calibrate int8``.
        path: the plan to write; its sidecar is ``<plan>.json``.
        library: ``tensorrt-rtx`` builds ahead of time and without a GPU, for RTX GPUs;
            ``tensorrt`` builds on the GPU that will run the plan.
        compute: for ``tensorrt-rtx``, CUDA compute capabilities such as ``8.6``; by default 8.6,
            8.9 and 12.0.
        precision: ``fp16`` and ``bf16`` convert a float file first; ``int8`` takes a file in INT8;
            by default the file's precision.
        batch: how many images; by default 1 to 16, optimised for 1, or 1 to 4 where the graph
            sweeps thresholds.
        classes: how many classes of each image; by default 1 to 5, or 1 where the graph sweeps
            thresholds.
        source_size: heights and widths of the images, where the graph takes any; by default those
            that the graph was exported for.
        prompts: how many classes to choose among, where class embeddings are an input; by default
            1 to 256, optimised for 8.
        workspace: scratch memory for kernels, in MB; by default all there is.
        timing_cache: for ``tensorrt``, a file that makes the next build faster; written if absent.
        tick: called with the present phase and the number of steps just done.
        total: called with the number of steps to come.

    Returns:
        The plan, its sidecar and how it was built.

    Raises:
        RequestError: an option does not fit the file, the library or this machine.
        ModelFileError: the file is missing, damaged, not made by whycam, changed afterwards, or the
            library cannot parse it.
        EngineError: the library cannot build the plan, or not on this machine.
        VerificationError: a converted graph differs too much from the float file.
        OutputError: the plan cannot be written.
        MissingExtraError: a package is not installed.
    """
    begin = time.perf_counter()
    tick = tick or (lambda _phase, _steps: None)
    total = total or (lambda _steps: None)
    target = Path(path)
    manifest = read_checked_manifest(model)
    check_suppression(manifest)
    precision = choose_precision(model, manifest, precision)
    check_plan_path(target, model)
    if workspace is not None and workspace < 1:
        raise RequestError(f"workspace must be 1 MB or more, not {workspace}")
    sizes = choose_sizes(manifest, batch, classes, source_size, prompts)
    capabilities = choose_capabilities(library, compute, precision)
    device = find_build_device(library)
    cache = read_timing_cache(library, timing_cache)
    config = BuildConfig(library, capabilities, sizes.shapes(manifest), workspace, cache)
    with (
        _restored_on_failure(sidecar_of(target)),
        replacing(target) as temporary,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder,
    ):
        graph, graph_manifest, rewritten = _prepare_graph(
            model, manifest, precision, capabilities, Path(folder), tick
        )

        def check(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
            check_network(os.fspath(model), graph_manifest, inputs, outputs)

        tick("parsing", 0)
        built = build_plan(graph, config, check, tick, total)
        temporary.write_bytes(built.data)
        plan = Plan(
            # The digest is the given file's, not that of a conversion of it.
            manifest=msgspec.structs.replace(graph_manifest, digest=manifest.digest),
            digest=digest_of(temporary),
            library=library,
            library_version=built.version,
            compute=capabilities if device is None else (device.compute,),
            gpu=None if device is None else device.name,
            batch=sizes.batch,
            classes=sizes.classes,
            height=sizes.height,
            width=sizes.width,
            prompts=sizes.prompts,
            inputs=built.inputs,
            outputs=built.outputs,
        )
        # The sidecar comes last: after a crash before the plan is renamed, its digest is not the
        # old plan's, and no engine accepts the pair.
        sidecar = write_sidecar(target, plan)
    if timing_cache is not None and built.timing_cache is not None:
        write_whole(Path(timing_cache), built.timing_cache)
    seconds = time.perf_counter() - begin
    return BuildResult(
        target, sidecar, plan, precision != manifest.precision, rewritten, len(built.data), seconds
    )


def _prepare_graph(
    model: str | os.PathLike[str],
    manifest: Manifest,
    precision: FilePrecision,
    compute: Sequence[str],
    folder: Path,
    tick: Tick,
) -> tuple[Path, Manifest, int]:
    """Convert the graph where needed; returns it, its manifest and the rewritten products."""
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
    """Compare a network, as read back from the library, with the manifest.

    Raises:
        ModelFileError: they do not match.
    """
    check_interface(
        path,
        manifest,
        {
            tensor.name: (tensor.dtype, [_length(side) for side in tensor.shape])
            for tensor in inputs
        },
        [tensor.name for tensor in outputs],
        parts_needed(manifest.output_shapes, manifest),
    )
    promised = {
        graph_name(name, manifest): (
            "int64" if name in ("targets", "detections") else "float32",
            (None, *shape),
        )
        for name, shape in manifest.output_shapes.items()
    }
    if manifest.class_embeddings is not None:
        promised[graph_name("probabilities", manifest)] = ("float32", (None, None))
    for tensor in outputs:
        if tensor.name in manifest.own_outputs:
            continue
        actual = (tensor.dtype, tuple(map(_length, tensor.shape)))
        if actual != promised.get(tensor.name):
            raise ModelFileError(
                f"{path} does not match its manifest: TensorRT finds an output '{tensor.name}' "
                f"{_format(actual)}, the manifest has {_format(promised.get(tensor.name))}"
            )


def _length(side: int) -> int | None:
    return None if side < 0 else side


def _format(tensor: tuple[str, tuple[int | None, ...]] | None) -> str:
    if tensor is None:
        return "none of that name"
    kind, shape = tensor
    return f"{kind} [{', '.join('any' if side is None else str(side) for side in shape)}]"


@contextmanager
def _restored_on_failure(file: Path) -> Iterator[None]:
    """Restore a small file if the block fails."""
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
