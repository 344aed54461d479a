"""Define the exceptions: messages say what was wrong, with which value, and what to do."""

from __future__ import annotations

import re
import sys

__all__ = [
    "DataError",
    "EngineError",
    "ExportError",
    "ImageError",
    "MissingExtraError",
    "ModelFileError",
    "OutputError",
    "PreprocessError",
    "RequestError",
    "SourceError",
    "TargetLayerError",
    "TrainingError",
    "VerificationError",
    "WhyCamError",
    "WindowError",
    "WrongAnswerError",
]

_LONGEST = 1600  # characters of a message; what a damaged file says of itself may be megabytes
_KEPT_AT_END = 400
_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
# Terminals obey the first; the second are bytes of file names that are not UTF-8.
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # colours and the like, of other libraries
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class WhyCamError(Exception):
    """Base of every error whycam raises on purpose (the command line exits with code 2).

    Messages quote file names, other libraries and what files hold. Whatever these are, a message
    is one paragraph that any terminal can show.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_shown(_BREAKS.sub(" ", _ESCAPES.sub("", message).strip())))


class ImageError(WhyCamError):
    """An image cannot be read or has an unusable type, shape or size."""


class SourceError(WhyCamError):
    """A video source is missing, cannot be opened, was lost for good, or gives no frame."""


class WindowError(WhyCamError):
    """No window can be opened here."""


class ModelFileError(WhyCamError):
    """A model file is missing, damaged, foreign, or does not match its manifest."""


class OutputError(WhyCamError):
    """A file cannot be written: no such folder, no permission, disk full."""


class DataError(WhyCamError):
    """A data set is missing, empty, or not written as one of the known kinds."""


class EngineError(WhyCamError):
    """An inference engine is unknown, cannot be loaded, or failed while running."""


class WrongAnswerError(EngineError):
    """An engine's answers for a file are not the export's reference answers."""


class RequestError(WhyCamError):
    """A class, method, threshold setting or other argument of a call is not usable."""


class ExportError(WhyCamError):
    """A model cannot be loaded or turned into an explaining graph."""


class PreprocessError(ExportError):
    """Nothing says how images are prepared for a network."""


class TargetLayerError(ExportError):
    """No layer, or not the named one, can serve as target layer; lists those that can."""


class TrainingError(WhyCamError):
    """Training cannot begin, go on, or be resumed."""


class VerificationError(WhyCamError):
    """A graph's answers differ from the reference by more than the stated tolerance."""


class MissingExtraError(WhyCamError):
    """An optional dependency is absent; the message holds the exact ``pip install``.

    Args:
        package: what is absent.
        extra: of whycam, that brings it.
        purpose: what it is needed for.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        error = sys.exc_info()[1]  # as this is raised where an import has failed
        if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
            super().__init__(
                f"{purpose} needs the package '{package}', which is installed but cannot be "
                f"imported ({reason_of(error)}). Install it again with: pip install "
                f'--force-reinstall "whycam[{extra}]"'
            )
            return
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f'Install it with: pip install "whycam[{extra}]"'
        )


def reason_of(error: BaseException) -> str:
    """Quote another library's error in one clause.

    Args:
        error: of any library.

    Returns:
        The first sentence of its message, without colours and line breaks; the kind of error where
        it says nothing.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in _ESCAPES.sub("", str(error)).splitlines() if line.strip()]
    said = ""
    for line in lines:
        said = f"{said} {line}".strip()
        if not line.endswith((":", ",")):  # what follows belongs to it
            break
    sentence = re.split(r"(?<=[a-z\d)\]'\"]{2})\.\s+(?=[A-Z])", said, maxsplit=1)[0]
    return sentence.rstrip(" .:,") or type(error).__name__


def _shown(text: str) -> str:
    text = _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - _KEPT_AT_END]} [...] {text[-_KEPT_AT_END:]}"
