"""One command, measured from outside: wall and CPU seconds, and the memory of its process tree."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

INTERVAL = 0.02  # seconds between two looks at the memory
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a command."""

    seconds: float
    cpu_seconds: float  # user and system, of the command and of the children that it waited for
    peak_bytes: int  # the largest sum of resident memory over the process tree that was seen


@dataclass(frozen=True, slots=True)
class Summary:
    """Several runs of a command."""

    seconds: float  # the median
    least: float
    most: float
    cpu_seconds: float  # the median
    peak_bytes: int  # the largest


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end. Raises RuntimeError with its last words if it fails."""
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
    ) as process:
        begin, peak, ended = time.monotonic(), 0, 0
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        said = b""
        while not ended:
            peak = max(peak, _resident(process.pid))
            said += process.stderr.read() or b""  # a full pipe would hold the command up
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if not ended:
                time.sleep(INTERVAL)
        seconds = time.monotonic() - begin
        said += process.stderr.read() or b""
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        words = said.decode(errors="replace").strip()
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}: {words[-2000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak)


def summary(runs: Sequence[Run]) -> Summary:
    """The median of several runs."""
    seconds = [r.seconds for r in runs]
    cpu = median(r.cpu_seconds for r in runs)
    return Summary(
        median(seconds), min(seconds), max(seconds), cpu, max(r.peak_bytes for r in runs)
    )


def _resident(pid: int) -> int:
    """Bytes of resident memory of a process and everything below it; what just ended counts 0."""
    tree = [pid]
    total = 0
    for one in tree:
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * PAGE
            for thread in Path(f"/proc/{one}/task").iterdir():
                tree += map(int, (thread / "children").read_text().split())
        except (OSError, IndexError):
            continue
    return total
