"""How much a call does, counted: the same on every machine, however busy it is."""

from __future__ import annotations

import cProfile
from collections.abc import Callable


def calls(function: Callable[[], object], of: str = "") -> int:
    """How many functions it calls, Python's and C's; with `of`, those with this in their file.

    Imports and caches count the first time: call it once before.
    """
    profile = cProfile.Profile()
    with profile:
        function()
    return sum(
        entry.callcount
        for entry in profile.getstats()
        if of in (entry.code if isinstance(entry.code, str) else entry.code.co_filename)
    )
