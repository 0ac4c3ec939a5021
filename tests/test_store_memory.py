"""The memory measured is this process's own."""

from __future__ import annotations

import subprocess
import sys

from growkit.store.memory import peak_bytes


def test_a_large_parent_does_not_count() -> None:
    """A process started by one that holds much memory reports only its own."""
    ballast = bytearray(300_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    code = "from growkit.store.memory import peak_bytes; print(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert int(child.stdout) < 150_000_000
    assert peak_bytes() > 300_000_000
