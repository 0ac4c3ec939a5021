"""growkit in processes of its own, to be watched, stopped and killed by tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import growkit

HERE = str(Path(growkit.__file__).parents[1])
ENV = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
}
EDITED = {"growkit.json", "README.md"}  # they hold times, and what a person writes


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """`growkit ARGUMENTS` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "growkit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **{"env": ENV, "start_new_session": True} | options,
    )


def ended(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that ends by itself."""
    stdout, stderr = child.communicate(timeout=300)
    return child.returncode, stdout, stderr


def growkit_in(folder: Path, line: str) -> str:
    """What a successful `growkit LINE` prints, with `folder` as the working folder."""
    code, stdout, stderr = ended(start(*line.split(), cwd=folder))
    assert code == 0, stderr
    return stdout


def until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """Wait for something to come true, and say what it is."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)
    return found


def done_files(out: Path) -> list[str]:
    """The files that are marked as done in OUT.partial."""
    return [p.name.removesuffix(".done") for p in partial(out).glob("*.done")]


def partial(out: Path) -> Path:
    """Where OUT is made."""
    return out.with_name(f"{out.name}.partial")


def workers_of(child: subprocess.Popen[str]) -> list[int]:
    """Process ids of the workers that a growkit has started."""
    found = []
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be forgotten does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def files(folder: Path) -> dict[str, bytes]:
    """The files that are the same for the same plan."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in EDITED}


def pressed(child: subprocess.Popen[str], number: signal.Signals) -> tuple[str, str]:
    """What a process says when it is told to end, and told again if that fell into an import.

    Python drops an interrupt that arrives in a weak reference's callback, and imports have some.
    """
    for _ in range(2):
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.communicate(timeout=20)
    child.send_signal(number)
    return child.communicate(timeout=20)
