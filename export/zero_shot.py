"""Read how a zero-shot classifier scores an image embedding: classes, scale, bias, task."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.cosine import normalise
from ..runtime.errors import DataError, ExportError, RequestError
from ..runtime.manifest_parts import Task
from ..runtime.prompts import Prompts, check_embeddings, read_prompts

INPUT = "input"
_LARGEST_SCALE = 7.0  # trained models clamp at log(100) or stay near it


@dataclass(frozen=True)
class LogitParameters:
    """What a PyTorch model says of its class scores.

    Attributes:
        logit_scale: the logarithm of the factor of cosine similarities.
        logit_bias: added to the product; None: the model has none.
    """

    logit_scale: float
    logit_bias: float | None


@dataclass(frozen=True, eq=False)
class Similarity:
    """Class scores as scaled cosine similarities: z_c = scale cos(e, w_c) + bias.

    Attributes:
        embeddings: w, float32 [C, D], normalised; None: an input of the graph.
        names: of these classes, or empty.
        scale, bias: of the cosines.
        task: ``softmax``, ``sigmoid`` or ``none``.
        notes: where these come from, for the user to check.
    """

    embeddings: NDArray[np.float32] | None
    names: tuple[str, ...]
    scale: float
    bias: float
    task: Task
    notes: tuple[str, ...]


def read_classes(
    classes: str | os.PathLike[str] | Prompts | NDArray[Any],
) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
    """Read the argument ``classes``: class embeddings [C, D], or None for an input; and names.

    Raises:
        RequestError: a file of another kind.
        DataError: it cannot be read, or holds something else.
    """
    if isinstance(classes, Prompts):
        return classes.embeddings, classes.names
    if isinstance(classes, np.ndarray):
        return check_embeddings(classes, "classes"), ()
    if os.fspath(classes) == INPUT:
        return None, ()
    place = Path(classes)
    if place.suffix.lower() == ".npz":
        prompts = read_prompts(place)
        return prompts.embeddings, prompts.names
    if place.suffix.lower() != ".npy":
        raise RequestError(
            f"--classes takes the word 'input', a .npy file of class embeddings, or a .npz file "
            f"of whycam prompts, not '{place}'"
        )
    try:
        values = np.load(place, allow_pickle=False)
    except OSError as error:
        raise DataError(f"cannot read {place}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{place} is not a readable .npy file: {error}") from error
    return check_embeddings(values, str(place)), ()


def choose_similarity(
    classes: str | os.PathLike[str] | Prompts | NDArray[Any],
    logit_scale: float | None,
    logit_bias: float | None,
    task: Task | None,
    model: LogitParameters | None,
) -> Similarity:
    """Complete the options of a zero-shot export by what the model says of itself.

    Args:
        classes: see ``read_classes``.
        logit_scale, logit_bias, task: as stated by the user, or None.
        model: the parameters of a PyTorch model; None: they are not known.

    Raises:
        RequestError: something is not known and must be stated, or is not usable.
    """
    embeddings, names = read_classes(classes)
    notes = []
    if logit_scale is not None:
        scale = logit_scale
        bias = logit_bias if logit_bias is not None or model is None else model.logit_bias
    elif model is not None:
        scale = model.logit_scale
        bias = model.logit_bias if logit_bias is None else logit_bias
        said = "" if model.logit_bias is None else f", logit_bias {model.logit_bias:.5g}"
        notes.append(f"the model says logit_scale {scale:.5g}{said}")
    else:
        raise RequestError(
            "the factor of the cosine similarities is not known: state the logit_scale of the "
            "trained model with --logit-scale, as its checkpoint has it (a logarithm; 4.6052 for "
            "OpenAI's CLIP, whose factor is 100)"
        )
    if not math.isfinite(scale) or not -_LARGEST_SCALE <= scale <= _LARGEST_SCALE:
        raise RequestError(
            f"logit_scale {scale:g} is the logarithm of the factor, which would be exp({scale:g}): "
            f"for a factor of {scale:g} state {math.log(scale):.4f}"
            if math.isfinite(scale) and scale > 0
            else f"logit_scale {scale:g} is not usable: state the model's own"
        )
    if bias is not None and not math.isfinite(bias):
        raise RequestError(f"logit_bias {bias:g} is not a finite number")
    if task is None:
        if bias is not None:
            task = "sigmoid"
        elif model is not None:
            task = "softmax"
        else:
            raise RequestError(
                "it is not known what the similarities mean: pass --task softmax (one class an "
                "image, as CLIP), --task sigmoid (each class by itself, as SigLIP, with its "
                "--logit-bias), or --task none (the scaled similarity itself is explained)"
            )
        notes.append(
            f"probabilities are by {task}, for the model has "
            f"{'a' if task == 'sigmoid' else 'no'} logit_bias; --task says otherwise"
        )
    if task == "binary":
        raise RequestError("task binary is for one logit; with --classes: softmax, sigmoid or none")
    if embeddings is not None:
        if task == "softmax" and len(embeddings) == 1:
            raise RequestError(
                "one class would always have probability 1 by softmax: add classes for what else "
                "an image may show, or pass --task none, which explains the similarity itself"
            )
        embeddings = normalise(embeddings.astype(np.float64)).astype(np.float32)
    return Similarity(embeddings, names, math.exp(scale), bias or 0.0, task, tuple(notes))


def check_length(similarity: Similarity, length: int, output: str) -> None:
    """Refuse class embeddings of another length than the image embedding's.

    Raises:
        ExportError: they have.
    """
    if similarity.embeddings is not None and similarity.embeddings.shape[1] != length:
        raise ExportError(
            f"the class embeddings have {similarity.embeddings.shape[1]} numbers each, and the "
            f"output '{output}' has {length}: use the text encoder that was trained with the image "
            "encoder"
        )


def label_classes(similarity: Similarity, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of fixed classes; none where they are an input.

    Raises:
        RequestError: labels for classes that are an input, which prompts name.
    """
    if similarity.embeddings is None:
        if labels:
            raise RequestError(
                "with --classes input the prompts hold the names: leave out the labels"
            )
        return ()
    return tuple(labels) or similarity.names
