"""whycam: deployed CNN classifiers that explain themselves.

What a product imports; needs neither torch nor the package that trained the model.
"""

from .runtime.class_comparison import draw_comparison
from .runtime.errors import WhyCamError
from .runtime.explainer import Explainer
from .runtime.explanation import Explanation
from .runtime.live.annotate import Overlay
from .runtime.live.stream import Stream, stream
from .runtime.load import explain, load
from .runtime.overlay import Style
from .runtime.region import Region
from .runtime.tft import Tft

__all__ = [
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
    "explain",
    "load",
    "stream",
]


def __getattr__(name: str) -> str:
    """``__version__``, looked up when somebody asks."""
    if name == "__version__":
        from .runtime.version import package_version

        return package_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
