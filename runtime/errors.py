"""Define the exceptions: messages say what was wrong, with which value, and what to do."""

from __future__ import annotations

import re
import sys

__all__ = [
    "BusyError",
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

_LONGEST = 1600  # characters of a message; text quoted from a damaged file may be megabytes
_KEPT_AT_END = 400
_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # colours and the like, of other libraries
# Control characters, and bytes of file names that are not UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class WhyCamError(Exception):
    """Base of every error that whycam raises on purpose (the command line exits with code 2).

    A message is one paragraph that any terminal can show, whatever it quotes: file names, other
    libraries' messages, contents of files.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_make_printable(_BREAKS.sub(" ", _ESCAPES.sub("", message).strip())))


class ImageError(WhyCamError):
    """An image cannot be read or has an unusable type, shape or size."""


class SourceError(WhyCamError):
    """A video source is missing, cannot be opened, was lost for good, or gives no frame."""


class WindowError(WhyCamError):
    """A window cannot be opened on this machine."""


class ModelFileError(WhyCamError):
    """A model file is missing, damaged, foreign, or does not match its manifest."""


class OutputError(WhyCamError):
    """A file cannot be written: no such folder, no permission, disk full."""


class DataError(WhyCamError):
    """A data set is missing, empty, or not written as one of the known kinds."""


class EngineError(WhyCamError):
    """An inference engine is unknown, cannot be loaded, or failed while running."""


class BusyError(WhyCamError):
    """A server has as much work as it takes, or is stopping: try again later."""


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
        package: that is absent.
        extra: of whycam, that installs it.
        purpose: that it is needed for.
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
        The first sentence of its message, without colours and line breaks; if it has no message,
        the type of the error.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in _ESCAPES.sub("", str(error)).splitlines() if line.strip()]
    text = ""
    for line in lines:
        text = f"{text} {line}".strip()
        if not line.endswith((":", ",")):  # then the sentence goes on in the next line
            break
    sentence = re.split(r"(?<=[a-z\d)\]'\"]{2})\.\s+(?=[A-Z])", text, maxsplit=1)[0]
    return sentence.rstrip(" .:,") or type(error).__name__


def _make_printable(text: str) -> str:
    """Escape unprintable characters, and leave out the middle of a very long text."""
    text = _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - _KEPT_AT_END]} [...] {text[-_KEPT_AT_END:]}"
