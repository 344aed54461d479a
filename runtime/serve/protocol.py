"""Encode and decode the messages between the server and its page.

To the page go JSON texts with a ``kind`` (``hello``, ``look``, ``state``, ``refused``), and for
each frame a binary message: the length of its numbers (4 bytes, big-endian), these as JSON, a JPEG.
From the page come JSON texts: ``seen`` (a frame was shown, another may be sent) and ``change``.
An image that a page sends with POST to ``/explain`` is answered with a message like a frame's.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

from ..cam import Method
from ..errors import EngineError, RequestError
from ..images import RGBImage
from ..live.annotate import VIEWS
from ..live.controls import SWEEPS, Look, StreamFrame
from ..manifest import Manifest
from ..overlay import COLORMAPS, Colormap, color_table
from ..request import find_refusal

__all__ = ["unpack"]

State = Literal["live", "lost", "ended"]

# A larger image looks no better on the page, and takes longer to encode and to send.
_LONGEST_SIDE = 1280
_JPEG_QUALITY = 80
_GRADIENT_STOPS = 9


class FrameShown(msgspec.Struct, tag_field="kind", tag="seen", forbid_unknown_fields=True):
    """The page has shown a frame."""

    sequence: int


class Change(msgspec.Struct, tag_field="kind", tag="change", forbid_unknown_fields=True):
    """The page asks to change some of the look's attributes."""

    look: dict[str, Any]


_received = msgspec.json.Decoder(FrameShown | Change)
_encode = msgspec.json.Encoder().encode


def read_message(text: str | bytes) -> FrameShown | Change:
    """Decode a message of a page.

    Raises:
        RequestError: it is not JSON, or not one of these messages.
    """
    try:
        message: FrameShown | Change = _received.decode(text)
        return message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the message cannot be read: {error}") from error


def hello_message(manifest: Manifest, engine: str, source: str, image_bytes: int) -> str:
    """Describe the model to a new page: classes, methods, thresholds, ways to draw.

    Args:
        manifest: of the model file.
        engine, source: their names.
        image_bytes: size of the largest image that the page may send; 0: it may send none.
    """
    return _text(
        kind="hello",
        model=manifest.model,
        engine=engine,
        source=source,
        methods=[{"name": name, "sweeps": _sweeps(manifest, name)} for name in manifest.methods],
        own_method=manifest.map_method or "gradcam",
        labels=manifest.labels,
        classes=manifest.num_classes,
        task=manifest.task,
        top=manifest.top,
        taus=manifest.tft.taus,
        colormaps={name: _gradient(name) for name in COLORMAPS},
        views=VIEWS,
        image_bytes=image_bytes,
    )


def look_message(look: Look) -> str:
    """Tell a page how the stream explains and draws from now on."""
    return _text(kind="look", look=look)


def state_message(state: State, text: str) -> str:
    """Tell a page the stream's state."""
    return _text(kind="state", state=state, text=text)


def refusal_message(text: str, look: Look) -> str:
    """Tell a page why its message changed nothing, and the current look."""
    return _text(kind="refused", text=text, look=look)


def pack(sequence: int, frame: StreamFrame) -> bytes:
    """Encode a frame's numbers and image in one message, so that they stay together.

    Args:
        sequence: number of the frame, from 1.
        frame: of any size; its image is shrunk so that the longer side of the original has 1280
            pixels.
    """
    numbers = _encode(
        {
            "sequence": sequence,
            "index": frame.index,
            "seconds": frame.seconds,
            "size": frame.original.shape[:2],
            "ranking": [(int(i), label, float(p)) for i, label, p in frame.ranking],
            "explanation": None if frame.explanation is None else frame.explanation.to_dict(),
            "timing": frame.timing,
            "dropped": frame.dropped,
            "reused": frame.reused,
            "look": frame.look,
            "live": frame.live,
        }
    )
    return (
        len(numbers).to_bytes(4, "big")
        + numbers
        + _jpeg(frame.image, _LONGEST_SIDE / max(frame.original.shape[:2]))
    )


def unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Decode a message of ``pack`` into numbers and JPEG, for programs that read the stream."""
    size = int.from_bytes(message[:4], "big")
    return msgspec.json.decode(message[4 : 4 + size]), message[4 + size :]


def _jpeg(image: RGBImage, scale: float) -> bytes:
    import cv2

    height, width = image.shape[:2]
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise EngineError(f"OpenCV cannot encode an image of {image.shape} as JPEG")
    return bytes(data)


def _sweeps(manifest: Manifest, method: Method) -> list[str]:
    """List the thresholding modes that a method allows."""
    return ["off"] if find_refusal(manifest, method, True) else list(SWEEPS)


def _gradient(colormap: Colormap) -> list[str]:
    """List colours of a colour map from 0 to 1, evenly spaced, as CSS writes them."""
    steps = np.linspace(0, 255, _GRADIENT_STOPS).round().astype(int)
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in color_table(colormap)[steps, 0].tolist()]


def _text(**message: Any) -> str:
    return _encode(message).decode()
