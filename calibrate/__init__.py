"""Evaluate explanations on a data set, quantise to INT8, learn thresholds. Needs no torch."""

from .dataset import Box, Classes, Dataset, Sample, open_dataset
from .evaluate import evaluate
from .summary import Evaluation, Result

__all__ = [
    "Box",
    "Classes",
    "Dataset",
    "Evaluation",
    "Result",
    "Sample",
    "evaluate",
    "open_dataset",
]
