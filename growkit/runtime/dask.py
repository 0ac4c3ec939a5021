"""Tasks on a Dask cluster: machines that share a filesystem, and an engine that is not ours.

The law: all that is sent is a task, all that comes back is a few words. Dask gives a task whose
worker died to another one; it may also repeat a finished one, which then finds its file done.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager

from growkit.errors import HubError, ResourceError, UsageError
from growkit.runtime.processes import gather
from growkit.runtime.task import Progress, Task, Written, write

TIMEOUT = 10  # seconds until a scheduler that does not answer is given up
_LOGGERS = ("distributed", "tornado")


def on_cluster(tasks: Sequence[Task], address: str, progress: Progress) -> list[Written]:
    """The tasks on the workers of the scheduler at `address`; progress file by file."""
    try:
        from distributed import Client
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise UsageError(
            "--cluster needs Dask, which is not installed",
            hint="pip install 'growkit[cluster]', here and for all workers",
        ) from error
    if not re.fullmatch(r"(\w+://)?[^\s/]+:\d+", address):
        raise UsageError(
            f'--cluster "{address}": expected the address of a scheduler',
            hint="write it as Dask prints it: tcp://HOST:8786",
        )
    written: dict[int, Written] = {}
    with ExitStack() as stack:
        stack.enter_context(_silence())
        try:
            client = Client(address, timeout=TIMEOUT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise _lost(address, f"no Dask scheduler answers: {error}") from error
        stack.enter_context(client)
        executor = client.get_executor(pure=False)
        try:
            futures = {executor.submit(write, task): n for n, task in enumerate(tasks)}
            gather(futures, written, lambda: progress(sum(tasks[n].shard.size for n in written)))
        except KilledWorker as error:
            raise ResourceError(
                f"--cluster {address}: workers were killed again and again over the same file",
                hint="if memory ran out, lower --max-memory or give workers more, and run again",
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise _lost(address, "the scheduler has gone") from error
        finally:
            executor.shutdown(wait=False)
    return list(written.values())


@contextmanager
def _silence() -> Iterator[None]:
    """Inside, Dask keeps what it notes to itself: a failure is said once, by us."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(_LOGGERS)]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")  # a task is as small as it is
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _lost(address: str, what: str) -> HubError:
    return HubError(
        f"--cluster {address}: {what}",
        hint="check the address and the scheduler, and run again to resume",
        retryable=True,
    )
