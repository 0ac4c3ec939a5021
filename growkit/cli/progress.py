"""Progress in bytes, rate and time left: a bar on a terminal, else a line every few seconds.

A log gets a line now and then while no bytes are counted, too: a silent step looks like a dead one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

Progress = Callable[[int, int], None]  # bytes done, bytes in all
SECONDS = 5.0  # between lines
SILENCE = 10.0  # seconds without a word, then one to a log


@contextmanager
def progress_shown(quiet: bool) -> Iterator[Progress | None]:
    """A callback that shows bytes, rate and time left on stderr; None if nobody wants to see it."""
    if quiet or _off():
        yield None
    elif sys.stderr.isatty():
        yield from _bar()
    else:
        yield _lines()


@contextmanager
def alive(quiet: bool, progress: Progress | None = None) -> Iterator[Progress | None]:
    """Inside, a log gets a line after every SILENCE in which the progress does not move."""
    if quiet or _off() or sys.stderr.isatty():
        yield progress
        return
    import threading
    import time

    over, moves, begin = threading.Event(), 0, time.monotonic()

    def counted(done: int, total: int) -> None:
        nonlocal moves
        moves += 1
        if progress:
            progress(done, total)

    def beat() -> None:
        seen = 0
        while not over.wait(SILENCE):
            if moves == seen:
                click.echo(f"working: {time.monotonic() - begin:.0f} s", err=True)
            seen = moves

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield counted
    finally:
        over.set()
        thread.join()


def _off() -> bool:
    """Progress is switched off where huggingface_hub's is."""
    said = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").lower()
    return said in {"1", "on", "yes", "true"}


def _bar() -> Iterator[Progress]:
    from tqdm import tqdm

    bar = tqdm(desc="growing", unit="B", unit_scale=True, file=sys.stderr, leave=False, delay=0.2)

    def show(done: int, total: int) -> None:
        if bar.total is None:  # the first call says what an earlier run has left
            bar.total, bar.initial, bar.n = total, done, done
        bar.update(done - bar.n)

    with bar:
        yield show


def _lines() -> Progress:
    import time

    from growkit.show import in_bytes

    first: list[float] = []  # time and bytes of the first call
    shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if not first:
            first.extend((now, done))
        if now - shown < SECONDS:
            return
        shown = now
        rate = (done - first[1]) / max(now - first[0], 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        share = f"{in_bytes(done)} of {in_bytes(total)}, {in_bytes(rate)}/s{left}"
        click.echo(f"growing: {share}", err=True)

    return show
