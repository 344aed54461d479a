"""Show images in a window, where OpenCV can open one."""

from __future__ import annotations

import os
import sys

from ..errors import WindowError
from ..images import RGBImage

_KEYS = (ord("q"), 27)  # Esc


class Window:
    """Shows images; a context manager.

    Raises:
        WindowError: OpenCV was built without windows, or there is no screen.
    """

    def __init__(self, title: str) -> None:
        _check()
        import cv2

        self._title = title
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        self._shown = False

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, image: RGBImage) -> bool:
        """Show an image, uint8 [h, w, 3], RGB; False: it was closed, or q or Esc pressed."""
        import cv2

        if not self._shown:
            cv2.resizeWindow(self._title, image.shape[1], image.shape[0])
        cv2.imshow(self._title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self._shown = True
        if cv2.waitKey(1) & 0xFF in _KEYS:
            return False
        return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1

    def close(self) -> None:
        """Close the window."""
        import cv2

        cv2.destroyWindow(self._title)


def _check() -> None:
    import cv2

    information = cv2.getBuildInformation()
    built = [line for line in information.splitlines() if line.strip().startswith("GUI:")]
    if not built or "NONE" in built[0]:
        raise WindowError(
            "the OpenCV here opens no windows: it is opencv-python-headless. To show one: "
            "pip uninstall opencv-python-headless && pip install opencv-python. Or look at the "
            "stream in a browser: --serve PORT"
        )
    # Without a screen OpenCV's window library ends the whole program.
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise WindowError(
            "there is no screen here (neither DISPLAY nor WAYLAND_DISPLAY is set). Look at the "
            "stream in a browser: --serve PORT; or write it to a file: --output FILE.mp4"
        )
