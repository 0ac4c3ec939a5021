"""Tasks in several processes of this machine, through `concurrent.futures`.

The law: a worker never outlives the process that started it, and one that dies costs the files that
were in hand and nothing else. Workers are started afresh (`spawn`): what the caller has loaded,
opened or locked is not carried over, and a job that needs no torch loads none in its workers.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_int64, c_ubyte
from multiprocessing.connection import Connection
from typing import Any

from growkit.errors import ResourceError
from growkit.task import Task, Written, write

LOSSES = 3  # pools lost one after the other without finishing a file
POLL = 0.2  # seconds between two looks at the progress

Progress = Callable[[int], None]  # bytes of these tasks that are done, in all


def in_this_process(tasks: Sequence[Task], progress: Progress) -> list[Written]:
    """One task after the other."""
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress(done)

    return [write(task, tell) for task in tasks]


def in_processes(tasks: Sequence[Task], count: int, progress: Progress) -> list[Written]:
    """The tasks in `count` processes; a pool that loses one of them is made anew and goes on."""
    context = multiprocessing.get_context("spawn")
    counts = context.RawArray(c_int64, len(tasks))  # each slot is written by one worker at a time
    packed = pickle.dumps([*tasks])
    shared = context.RawArray(c_ubyte, len(packed))
    memoryview(shared).cast("B")[:] = packed
    written: dict[int, Written] = {}
    losses = 0
    while len(written) < len(tasks):
        before = len(written)
        left = {n: task for n, task in enumerate(tasks) if n not in written}
        try:
            _in_pool(
                context,
                min(count, len(left)),
                (shared, counts),
                [*left],
                written,
                lambda: progress(sum(counts)),
            )
        except BrokenProcessPool as error:
            losses = losses + 1 if len(written) == before else 0
            if losses == LOSSES:
                raise ResourceError(
                    f"workers: {losses} times in a row one was killed or could not start, and no "
                    "file was finished",
                    hint="if memory ran out, use fewer --workers or a lower --max-memory; a script "
                    'must call growkit under `if __name__ == "__main__":`',
                ) from error
            for n, task in left.items():  # all workers of a broken pool are gone
                if n not in written:
                    counts[n] = 0
                    task.marks.clear([task.shard.name])
    return list(written.values())


def gather(
    futures: dict[Future[Written], int], written: dict[int, Written], look: Callable[[], None]
) -> None:
    """Put results where they belong as they come; the first failure is raised."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=POLL, return_when=FIRST_COMPLETED)
        failed = [f for f in done if f.cancelled() or f.exception() is not None]
        for future in done.difference(failed):
            written[futures[future]] = future.result()
        look()
        for future in failed:
            future.result()


def _in_pool(
    context: Any,
    count: int,
    memory: tuple[Any, Any],
    numbers: Sequence[int],
    written: dict[int, Written],
    look: Callable[[], None],
) -> None:
    """One pool, until all is done or something fails; no worker is left when this returns."""
    theirs, ours = context.Pipe(duplex=False)
    # The tasks lie in shared memory and only their numbers are sent. What fits into a pipe can
    # always be written; for more Python would wait for ever for a worker that died while it began.
    pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(theirs, *memory))
    try:
        with _no_interrupts():
            futures = {pool.submit(_run, number): number for number in numbers}
        gather(futures, written, look)
    finally:
        ours.close()
        pool.shutdown(wait=True, cancel_futures=True)
        theirs.close()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """What is started inside never sees Ctrl-C: that is for the one who started it to handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in the worker -------------------------------------------------------------------------------

_tasks: list[Task] = []
_counts: Any = None


def _begin(pipe: Connection, shared: Any, counts: Any) -> None:
    global _tasks, _counts
    _tasks, _counts = pickle.loads(memoryview(shared)), counts
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()


def _end_with(pipe: Connection) -> None:
    """End at once when the other end of the pipe is closed, as it is when its process dies."""
    pipe.poll(None)
    os._exit(1)


def _run(number: int) -> Written:
    def tell(count: int) -> None:
        _counts[number] += count

    return write(_tasks[number], tell)
