"""Train on your own images: a classifier, and cleaner maps for one (AFT).

Needs the extra ``train``, so the names here are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..export.requirements import require_torch

if TYPE_CHECKING:
    from .aft import train_aft
    from .aft_result import AftResult
    from .classifier import train_classifier
    from .classifier_result import ClassifierResult
    from .loop import Plan
    from .objective import Objective
    from .run import Machines

__all__ = [
    "AftResult",
    "ClassifierResult",
    "Machines",
    "Objective",
    "Plan",
    "train_aft",
    "train_classifier",
]

_MODULES = {
    "Machines": "run",
    "Objective": "objective",
    "Plan": "loop",
    "ClassifierResult": "classifier_result",
    "AftResult": "aft_result",
    "train_aft": "aft",
    "train_classifier": "classifier",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_torch("training", "train")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
