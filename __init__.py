"""whycam: deployed image classifiers, detectors and segmentation networks explain themselves.

What a product imports; needs neither torch nor the package that trained the model.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .runtime.detection import Detection
from .runtime.errors import WhyCamError
from .runtime.explainer import Explainer
from .runtime.explanation import Explanation
from .runtime.load import explain, load
from .runtime.overlay import Style
from .runtime.region import Region
from .runtime.tft import Tft

if TYPE_CHECKING:
    from .runtime.box_drawing import draw_detections
    from .runtime.class_comparison import draw_comparison
    from .runtime.detection import to_supervision
    from .runtime.live.annotate import Overlay
    from .runtime.live.stream import Stream, stream

__all__ = [
    "Detection",
    "Explainer",
    "Explanation",
    "Overlay",
    "Region",
    "Stream",
    "Style",
    "Tft",
    "WhyCamError",
    "__version__",
    "draw_comparison",
    "draw_detections",
    "explain",
    "load",
    "stream",
    "to_supervision",
]

_LATER = {
    "Overlay": "live.annotate",
    "Stream": "live.stream",
    "draw_comparison": "class_comparison",
    "draw_detections": "box_drawing",
    "stream": "live.stream",
    "to_supervision": "detection",
}


def __getattr__(name: str) -> Any:
    """Import what only some need, and look up ``__version__``, when somebody asks."""
    if name == "__version__":
        from .runtime.version import package_version

        return package_version()
    if name == "distributed":
        return import_module(".distributed", __name__)
    if name in _LATER:
        return getattr(import_module(f".runtime.{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
