"""Read, write and check prompts: the classes of a zero-shot classifier, as names and embeddings."""

from __future__ import annotations

import os
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import DataError, RequestError
from .files import replacing
from .manifest import Manifest

__all__ = ["Prompts", "read_prompts", "write_prompts"]

EXAMPLES = 5  # classes with which a file that takes class embeddings is checked
_MOST = 1 << 20
_LEAST_NORM = 1e-9  # its square is far from the smallest float32


@dataclass(frozen=True, eq=False)
class Prompts:
    """The classes to choose among.

    Attributes:
        names: of the classes, C of them.
        embeddings: float32 [C, D], by the text encoder that was trained with the image encoder; of
            any length, for graphs normalise them.

    Raises:
        DataError: names and embeddings do not fit, or an embedding is not finite or zero.
    """

    names: tuple[str, ...]
    embeddings: NDArray[np.float32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "embeddings", check_embeddings(self.embeddings, "the prompts"))
        if len(self.names) != len(self.embeddings):
            raise DataError(
                f"there are {len(self.names)} names for {len(self.embeddings)} class embeddings"
            )
        check_names(self.names)


def check_names(names: Sequence[str]) -> None:
    """Refuse names that cannot be shown or written, and one name for several prompts.

    Raises:
        DataError: there are such names.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"the name '{twice[0]}' stands for several prompts: names must differ")
    for name in names:
        kinds = [unicodedata.category(character) for character in name]
        if all(kind[0] in "CZ" for kind in kinds):
            raise DataError(f"a prompt has an empty name: {name!r}")
        if "Cc" in kinds:  # tabs, ends of lines, codes for terminals
            raise DataError(f"the name {name!r} has control characters: leave them out")


def check_embeddings(embeddings: object, source: str) -> NDArray[np.float32]:
    """Check class embeddings, and return them as float32 [C, D].

    Raises:
        DataError: they are no float matrix, or one is not finite, zero, or too short or long for
            float32 to normalise; names ``source``.
    """
    values = np.asarray(embeddings)
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind != "f":
        raise DataError(
            f"{source}: class embeddings are a float array [classes, length], not "
            f"{values.dtype} {list(values.shape)}"
        )
    if len(values) > _MOST:
        raise DataError(f"{source}: {len(values)} class embeddings; {_MOST} are the most")
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(values, np.float32)
    wrong = ~np.isfinite(found).all(-1) | ~found.any(-1)
    if wrong.any():
        raise DataError(
            f"{source}: the class embedding {int(wrong.argmax())} is zero or not finite"
        )
    norms = np.linalg.norm(found.astype(np.float64), axis=-1)
    wrong = (norms < _LEAST_NORM) | (norms > 1 / _LEAST_NORM)
    if wrong.any():
        index = int(wrong.argmax())
        raise DataError(
            f"{source}: the class embedding {index} has the length {norms[index]:.3g}, which "
            "float32 cannot normalise: divide it by its length"
        )
    return found


def read_prompts(path: str | os.PathLike[str]) -> Prompts:
    """Read a .npz file with the arrays ``names`` (text [C]) and ``embeddings`` (float [C, D]).

    Args:
        path: of the file.

    Returns:
        The prompts.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    place = Path(path)
    try:
        with np.load(place, allow_pickle=False) as file:
            names, embeddings = file["names"], file["embeddings"]
    except OSError as error:
        raise DataError(f"cannot read {place}: {error.strerror or error}") from error
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{place} is no file of prompts, a .npz with names and embeddings ({error}): make one "
            "with whycam prompts"
        ) from error
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(f"{place}: names are text, not {names.dtype} {list(names.shape)}")
    return Prompts(tuple(map(str, names)), check_embeddings(embeddings, str(place)))


def write_prompts(path: str | os.PathLike[str], prompts: Prompts) -> Path:
    """Write a file that ``read_prompts`` reads.

    Args:
        path: of the .npz file.
        prompts: to write.

    Returns:
        The path.

    Raises:
        RequestError: its name does not end in .npz.
        OutputError: it cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() != ".npz":
        raise RequestError(f"prompts are written to a .npz file, not {target}")
    with replacing(target) as temporary:
        np.savez(temporary, names=np.array(prompts.names), embeddings=prompts.embeddings)
    return target


def example_prompts(manifest: Manifest) -> Prompts:
    """Make the classes of the reference answers, the same on every machine.

    Raises:
        RequestError: the file has classes of its own.
    """
    length = manifest.class_embeddings
    if length is None:
        raise _has_classes(manifest)
    # Integer arithmetic, which is exact everywhere, unlike sines.
    bits = np.arange(EXAMPLES * length, dtype=np.uint64) + np.uint64(1)
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    values = (bits >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    embeddings = values.reshape(EXAMPLES, length).astype(np.float32)
    return Prompts(tuple(f"example {index}" for index in range(EXAMPLES)), embeddings)


def choose_prompts(
    manifest: Manifest, prompts: Prompts | str | os.PathLike[str] | None
) -> Prompts | None:
    """Read the prompts for a file, and check that both go together; None where it needs none.

    Raises:
        RequestError: the file needs prompts and there are none, or the other way round; or they do
            not fit it.
        DataError: they cannot be read.
    """
    if prompts is None:
        if manifest.class_embeddings is not None:
            raise RequestError(
                f"{manifest.model} was exported with --classes input, so it needs prompts to "
                "choose among: pass --prompts FILE.npz (in Python prompts=), made by whycam prompts"
            )
        return None
    if manifest.class_embeddings is None:
        raise _has_classes(manifest)
    found = prompts if isinstance(prompts, Prompts) else read_prompts(prompts)
    count, length = found.embeddings.shape
    if length != manifest.class_embeddings:
        raise RequestError(
            f"the prompts' embeddings have {length} numbers, and {manifest.model} takes "
            f"{manifest.class_embeddings}: use the text encoder that was trained with it"
        )
    if manifest.task == "softmax" and count == 1:
        raise RequestError(
            f"one prompt ('{found.names[0]}') would always have probability 1, for "
            f"{manifest.model} chooses among its prompts by softmax: add prompts for what else an "
            "image may show, or export with --task none, which explains the similarity itself"
        )
    if manifest.top is not None and manifest.top > count:
        raise RequestError(
            f"the file explains its {manifest.top} most probable classes, and there are {count} "
            "prompts"
        )
    return found


def prompts_or_examples(
    manifest: Manifest, prompts: str | os.PathLike[str] | None = None
) -> Prompts | None:
    """Read prompts for a check or a timing, which any classes serve: by default the examples.

    None for files with classes of their own, so that one option serves several files.

    Raises:
        RequestError, DataError: see ``choose_prompts``.
    """
    if manifest.class_embeddings is None:
        return None
    return choose_prompts(manifest, prompts or example_prompts(manifest))


def _has_classes(manifest: Manifest) -> RequestError:
    return RequestError(
        f"prompts are for files exported with --classes input; {manifest.model} has "
        f"{manifest.num_classes} classes of its own"
    )


def apply_prompts(manifest: Manifest, prompts: Prompts) -> Manifest:
    """Describe a file that was given prompts; its reference answers stay for the example ones."""
    examples = example_prompts(manifest)
    same = np.array_equal(prompts.embeddings, examples.embeddings)
    return msgspec.structs.replace(
        manifest,
        num_classes=len(prompts.names),
        labels=prompts.names,
        references=manifest.references if same else (),
    )
