"""The bar of bytes that Python's `grow` shows; the command line has its own.

The law: a terminal and a notebook see it, a log never does; HF_HUB_DISABLE_PROGRESS_BARS is heeded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@contextmanager
def bar_shown(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """The callback that a growth is to tell its bytes: the caller's, a bar's, or none."""
    if callable(progress) or not progress or bars_off() or not _seen():
        yield progress if callable(progress) else None
        return
    from tqdm.auto import tqdm

    bars: list[tqdm] = []  # one, from the first call on

    def show(done: int, total: int) -> None:
        if not bars:  # an earlier run may have left some bytes
            size = {"initial": done, "total": total, "unit": "B", "unit_scale": True}
            bars.append(tqdm(desc="growing", delay=0.2, leave=False, **size))
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def bars_off() -> bool:
    """Progress is switched off where huggingface_hub's is."""
    setting = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").lower()
    return setting in {"1", "on", "yes", "true"}


def _seen() -> bool:
    """Whether somebody looks on: a notebook's kernel, or a terminal behind the standard error."""
    try:
        return "ipykernel" in sys.modules or os.isatty(2)
    except OSError:  # closed
        return False
