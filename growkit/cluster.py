"""Tasks on a Dask cluster: machines that share a filesystem, and an engine that is not ours.

The law: all that is sent is a task, all that comes back is a few words. Dask gives a task whose
worker died to another one; it may also repeat a finished one, which then finds its file done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

from growkit.errors import HubError, ResourceError, UsageError
from growkit.task import Task, Written, write
from growkit.workers import gather

TIMEOUT = 20  # seconds until a scheduler that does not answer is given up


def on_cluster(
    tasks: Sequence[Task], address: str, progress: Callable[[int], None]
) -> list[Written]:
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
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # failures are said once, by us
    try:
        client = Client(address, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise _lost(address, f"no Dask scheduler answers: {error}") from error
    written: dict[int, Written] = {}
    with client:
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


def _lost(address: str, what: str) -> HubError:
    return HubError(
        f"--cluster {address}: {what}",
        hint="check the address and the scheduler, and run again to resume",
    )
