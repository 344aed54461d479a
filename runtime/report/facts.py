"""Say in a report what every report says: its date, missing images, maps that are reduced."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import islice

from ..version import package_version
from .encode import LARGEST

_EXAMPLES = 3


def describe_time() -> str:
    """Name the date and the version that wrote a report."""
    return f"{datetime.now().astimezone():%Y-%m-%d %H:%M}, whycam {package_version()}"


def describe_unreadable(count: int, errors: Iterable[str]) -> tuple[str, ...]:
    """Tell how many images are missing, with the first errors; no sentence if none is."""
    if not count:
        return ()
    examples = "; ".join(islice(errors, _EXAMPLES)) + ("; ..." if count > _EXAMPLES else "")
    return (f"{count:,} image{'s' * (count != 1)} left out that could not be read: {examples}",)


def describe_reduced(count: int, maps: int) -> str:
    """Tell how many maps are finer than the page shows them, and where they are whole."""
    return (
        f"{count:,} of {maps:,} maps are finer than {LARGEST} x {LARGEST} values, to which this "
        "page reduces them, with their outlines: whycam explain without --report writes them whole"
    )
