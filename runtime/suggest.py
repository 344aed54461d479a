"""Suggest what was meant by a name that does not exist."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence


def suggest(name: str, known: Sequence[str], count: int = 3) -> list[str]:
    """List known names that resemble one; the best first.

    Names that contain it as a word come first, then those with a word that begins with it, then
    those that contain it at all, then those that are spelt alike. Of equals the shorter is first.

    Args:
        name: as it was given.
        known: names there are.
        count: of suggestions, at most.

    Example:
        >>> suggest("cat", ["catamaran", "Egyptian cat", "cart", "tiger cat", "bobcat"])
        ['tiger cat', 'Egyptian cat', 'catamaran']
    """
    wanted = name.lower().strip()
    if not wanted:
        return []
    part = re.escape(wanted)
    found: list[str] = []
    for pattern in (rf"(?<!\w){part}(?!\w)", rf"(?<!\w){part}", part):
        matches = (each for each in known if re.search(pattern, each.lower()))
        found += sorted((each for each in matches if each not in found), key=len)
    by_lower = {each.lower(): each for each in reversed(known)}
    close = difflib.get_close_matches(wanted, by_lower, n=count, cutoff=0.5)
    found += [by_lower[each] for each in close if by_lower[each] not in found]
    return found[:count]
