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
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_int64, c_ubyte
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

from growkit.errors import ResourceError
from growkit.runtime.task import Progress, Task, Written, write

LOSSES = 3  # pools lost one after the other without finishing a file
POLL = 0.2  # seconds between two looks at the progress


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
    """Put results where they belong as they come; the first failure is raised.

    Waiting is for a queue: `concurrent.futures.wait` takes a lock of every future, and a signal
    that arrives in between leaves them taken for ever.
    """
    done: SimpleQueue[Future[Written]] = SimpleQueue()
    with _no_interrupts():
        for future in futures:
            future.add_done_callback(done.put)
    for _ in futures:
        future = _next(done, look)
        look()
        failed = future if future.cancelled() or future.exception() is not None else None
        while failed and not done.empty():  # what others finished meanwhile is not lost
            other = done.get()
            if not other.cancelled() and other.exception() is None:
                written[futures[other]] = other.result()
        written[futures[future]] = future.result()


def _next(done: SimpleQueue[Future[Written]], look: Callable[[], None]) -> Future[Written]:
    """The next future that is done; progress is looked at meanwhile."""
    while True:
        try:
            return done.get(timeout=POLL)
        except Empty:
            look()


def _in_pool(
    context: Any,
    count: int,
    memory: tuple[Any, Any],
    numbers: Sequence[int],
    written: dict[int, Written],
    look: Callable[[], None],
) -> None:
    """One pool, until all is done or something fails; no worker is left when this returns."""
    child_end, parent_end = context.Pipe(duplex=False)
    # The tasks lie in shared memory and only their numbers are sent. What fits into a pipe can
    # always be written; for more Python would wait for ever for a worker that died while it began.
    pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(child_end, *memory))
    try:
        with _no_interrupts():
            futures = {pool.submit(_run, number): number for number in numbers}
        gather(futures, written, look)
    finally:
        parent_end.close()
        pool.shutdown(wait=True, cancel_futures=True)
        child_end.close()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """No signal arrives inside; what is started here never sees Ctrl-C: its starter handles it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in the worker -------------------------------------------------------------------------------

_tasks: list[Task] = []
_counts: Any = None


def _begin(pipe: Connection, shared: Any, counts: Any) -> None:
    global _tasks, _counts
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
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
