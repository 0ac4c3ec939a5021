"""The memory measured is this process's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from growkit.runtime.memory import available_bytes, peak_bytes


@pytest.mark.alone
def test_a_large_parent_does_not_count() -> None:
    """A process started by one that holds much memory reports only its own."""
    ballast = bytearray(300_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    code = "from growkit.runtime.memory import peak_bytes; print(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert int(child.stdout) < 150_000_000
    assert peak_bytes() > 300_000_000


def machine(root: Path, files: dict[str, str]) -> Path:
    """A root folder that says these things about memory."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


FREE = {"proc/meminfo": "MemTotal: 8000 kB\nMemAvailable:    4000 kB\n"}
V2, V1 = "sys/fs/cgroup/", "sys/fs/cgroup/memory/"


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, None),
        (FREE, 4_096_000),
        (FREE | {"proc/self/cgroup": "0::/a/b\n", V2 + "a/b/memory.max": "max\n"}, 4_096_000),
        (FREE | {"proc/self/cgroup": "0::/a/b\n", V2 + "a/b/memory.max": "1000\n"}, 1000),
        (FREE | {"proc/self/cgroup": "0::/a/b\n", V2 + "a/memory.max": "1000\n"}, 1000),
        # in a container: the path is that of the host, the limit stands at the top
        (FREE | {"proc/self/cgroup": "0::/x/y\n", V2 + "memory.max": "3000\n"}, 3000),
        (
            FREE
            | {"proc/self/cgroup": "0::/\n", V2 + "memory.max": "3000\n"}
            | {V2 + "memory.stat": "anon 1200\nfile 1700\n"},
            1800,
        ),
        (
            FREE
            | {"proc/self/cgroup": "3:cpu:/q\n4:memory:/q\n0::/\n"}
            | {V1 + "q/memory.limit_in_bytes": "2000\n", V1 + "q/memory.stat": "total_rss 500\n"},
            1500,
        ),
        (
            FREE
            | {"proc/self/cgroup": "4:hugetlb,memory:/\n"}
            | {V1 + "memory.limit_in_bytes": "9223372036854771712\n"},
            4_096_000,
        ),
        (FREE | {"proc/self/cgroup": "0::/\n", V2 + "memory.max": "0\n"}, 0),
    ],
)
def test_what_may_still_be_taken(tmp_path: Path, files: dict[str, str], available: int) -> None:
    """Free memory or a cgroup's limit less its use, of either version, whichever is least."""
    assert available_bytes(machine(tmp_path, files)) == available
