"""Memory, from the operating system: what this process has held, and what it may still take."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 1 << 60  # bytes; version 1 of cgroups writes a number like this where there is none


def peak_bytes() -> int:
    """The most memory this process has held so far, in bytes.

    On Linux from /proc: what `getrusage` says there counts the parent too, if that was larger when
    it started us.
    """
    try:
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        peak = None
    if peak:
        return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes(root: Path = Path("/")) -> int | None:
    """What this process may take now: free memory, and what its cgroups leave of their limits.

    None where the system does not say. The page cache counts as free: it gives way.
    """
    limits = [*_left_in_cgroups(root)]
    free = re.search(r"^MemAvailable:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    if free:
        limits.append(int(free[1]) * 1024)
    return max(0, min(limits)) if limits else None


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Limit less use of the cgroups of this process and of all above them, in both versions."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, limit_in, used = "sys/fs/cgroup", "memory.max", "anon"
        elif "memory" in controllers.split(","):
            top, limit_in, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        cgroup = root / top / path.lstrip("/")
        while cgroup.is_relative_to(root / top):  # in a container some of these do not exist
            limit = _text(cgroup / limit_in).strip()
            use = re.search(rf"^{used} (\d+)$", _text(cgroup / "memory.stat"), re.MULTILINE)
            if limit.isdecimal() and int(limit) < _NO_LIMIT:
                yield int(limit) - (int(use[1]) if use else 0)
            cgroup = cgroup.parent


def _text(path: Path) -> str:
    """What a file of the system says; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
