"""Progress in bytes, rate and time left: a bar on a terminal, else a line every few seconds.

Nothing of the kind with -q or HF_HUB_DISABLE_PROGRESS_BARS. NO_COLOR and TERM=dumb ask for plain
text: the bar, which draws over itself, gives way to the lines. A log gets a line now and then while
no bytes are counted, too: a silent step looks like a dead one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from growkit.cli.colour import plain_wanted

Progress = Callable[[int, int], None]  # bytes done, bytes in all
SECONDS = 5.0  # between lines
SILENCE = 10.0  # seconds without a word, then one to a log


@contextmanager
def progress_shown(quiet: bool) -> Iterator[Progress | None]:
    """A callback that shows bytes, rate and time left on stderr; None if nobody wants to see it."""
    if quiet or _off():
        yield None
    elif bars_wanted():
        yield from _bar()
    else:
        yield _lines()


def bars_wanted() -> bool:
    """Whether stderr is a terminal that may be drawn on."""
    return sys.stderr.isatty() and not plain_wanted()


@contextmanager
def alive(quiet: bool, progress: Progress | None = None) -> Iterator[Progress | None]:
    """Inside, a log gets a line after every SILENCE in which the progress does not move."""
    if quiet or _off() or bars_wanted():
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
    from growkit.runtime.progress_bar import bars_off

    return bars_off()


def _bar() -> Iterator[Progress]:
    from tqdm import tqdm

    bars: list[tqdm] = []  # one, from the first call on: the time before was not spent on bytes

    def show(done: int, total: int) -> None:
        if not bars:  # an earlier run may have left some bytes
            bars.append(
                tqdm(
                    desc="growing",
                    initial=done,
                    total=total,
                    unit="B",
                    unit_scale=True,
                    file=sys.stderr,
                    leave=False,
                    delay=0.2,
                    dynamic_ncols=True,  # a window may be resized
                )
            )
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.delay = 0  # or a bar that a signal stops in its first drawing is taken for undrawn
            bar.close()


def _lines() -> Progress:
    import time

    from growkit.byte_sizes import format_size

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
        state = f"{format_size(done)} of {format_size(total)}, {format_size(rate)}/s{left}"
        click.echo(f"growing: {state}", err=True)

    return show
