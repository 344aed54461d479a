"""Translate a PyTorch model to an ONNX graph with PyTorch's exporter."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch

from ..runtime.errors import ExportError, VerificationError, reason_of
from .attention_products import AttentionProducts
from .data_flow import MODULE_KEY
from .input_sizes import check_usual_size
from .model_outputs import IMAGE, LOGITS, list_tensors

# Pooling that rounds up (ceil_mode) has a size that PyTorch cannot express for any image, but can
# for multiples of the usual total stride.
_STEP = 32
_LIMIT = 2**31 - 2**20  # protobuf's bound on one message, less room for the metadata


def to_ir(
    model: torch.nn.Module,
    size: tuple[int, int],
    opset: int,
    channels: int = 3,
    dynamic_size: tuple[int, int] | None = None,
    names: Sequence[str] = (LOGITS,),
) -> ir.Model:
    """Translate a classifier to ONNX with a free batch and modules' paths in the nodes' metadata.

    Args:
        model: in eval mode, float32; takes [N, C, H, W] and returns a tensor or a tuple of them.
        size: (H, W).
        opset: of the ONNX file.
        channels: C.
        dynamic_size: the least and largest height or width, to keep these free as well.
        names: of the tensors that it returns, see ``return_tensors``.

    Raises:
        RequestError: ``size`` is not within ``dynamic_size``.
        ExportError: the model does not run on that shape, cannot be traced, or returns something
            else.
        VerificationError: it answers differently from call to call.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = torch.zeros(2, channels, *size, device=device)
    _check_output(model, example)
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if weights > _LIMIT:
        raise ExportError(
            f"the model has {weights / 2**30:.1f} GiB of weights; an ONNX file holds 2 GiB"
        )
    if dynamic_size is not None:
        check_usual_size(size, dynamic_size)

    def translate(step: int) -> torch.onnx.ONNXProgram | None:
        with _reduced_noise(), AttentionProducts():
            return torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=(_free_dims(dynamic_size, step),),
                input_names=[IMAGE],
                output_names=list(names),
                opset_version=opset,
                verbose=False,
            )

    try:
        try:
            program = translate(1)
        except Exception:
            if dynamic_size is None or any(side % _STEP for side in (*size, *dynamic_size)):
                raise
            program = translate(_STEP)
    except Exception as error:
        if dynamic_size is not None:
            raise ExportError(
                "torch.onnx.export cannot keep height and width free in this model (position "
                "embeddings, windows or pooling to a fixed grid?); without --dynamic-size it may: "
                f"{_cause(error)}"
            ) from error
        raise ExportError(
            "torch.onnx.export cannot translate this model (data-dependent control flow, a batch "
            f"size fixed in its code, or an operator without an ONNX form?): {_cause(error)}"
        ) from error
    assert program is not None
    written = program.model.opset_imports.get("")
    if written != opset:
        raise ExportError(
            f"PyTorch's exporter can only write this model for opset {written}, not {opset}"
        )
    batch = program.model.graph.inputs[0].shape
    if batch is None or isinstance(batch[0], int):
        raise ExportError(
            "the model's code fixes the batch size, as reshape(2, -1) does for two images: use "
            "x.shape[0] there"
        )
    if dynamic_size is not None and any(isinstance(side, int) for side in batch[2:]):
        raise ExportError(
            "the model's code fixes the height and width of its images (position embeddings, "
            "windows, pooling to a fixed grid?): leave out --dynamic-size"
        )
    _keep_module_paths(program.model)
    return program.model


def _free_dims(dynamic_size: tuple[int, int] | None, step: int) -> dict[int, Any]:
    """Name the axes of the images that are free; heights and widths are multiples of ``step``."""
    free: dict[int, Any] = {0: torch.export.Dim("batch")}
    if dynamic_size is not None:
        least, most = dynamic_size
        for axis, name in ((2, "height"), (3, "width")):
            side = torch.export.Dim(name, min=least // step, max=most // step)
            free[axis] = side if step == 1 else step * side
    return free


def _check_output(model: torch.nn.Module, example: torch.Tensor) -> None:
    try:
        with torch.no_grad():
            returned, repeated = model(example), model(example)
    except Exception as error:
        raise ExportError(
            f"the model does not accept a float32 image batch of shape {tuple(example.shape)}: "
            f"{reason_of(error)}"
        ) from error
    for first, second in zip(list_tensors(returned), list_tensors(repeated), strict=True):
        if not torch.equal(first, second) and not torch.isnan(first).any():
            raise VerificationError(
                "the model answers differently from call to call (dropout or noise that eval mode "
                "does not switch off?), so no file could be verified. No file was written"
            )


def _cause(error: BaseException) -> str:
    """Return the message of the innermost cause, which names the operator."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error)


def _keep_module_paths(model: ir.Model) -> None:
    """Keep only the modules' paths of the exporter's metadata, not source paths."""
    model.metadata_props.clear()
    for node in model.graph.all_nodes():
        kept = node.metadata_props.get(MODULE_KEY)
        node.metadata_props.clear()
        node.doc_string = None
        node.name = (node.name or "").removeprefix("node_")
        if kept is not None:
            node.metadata_props[MODULE_KEY] = kept
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.metadata_props.clear()


@contextlib.contextmanager
def _reduced_noise() -> Iterator[None]:
    """Silence the exporters' logs and warnings; the result is verified afterwards."""
    names = ("torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")
    noisy = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, before, strict=True):
            logger.setLevel(level)
