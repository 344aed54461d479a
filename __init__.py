"""whycam: deployed CNN classifiers that explain themselves.

What a product imports; needs neither torch nor the package that trained the model.
"""

from .runtime.errors import WhyCamError
from .runtime.explainer import Explainer, load
from .runtime.explanation import Explanation
from .runtime.live.annotate import Overlay
from .runtime.live.stream import Stream, stream
from .runtime.tft import Tft

__version__ = "0.1.0"

__all__ = [
    "Explainer",
    "Explanation",
    "Overlay",
    "Stream",
    "Tft",
    "WhyCamError",
    "__version__",
    "load",
    "stream",
]
