"""Runs the real command line on hostile input, under limits, and judges how it ended.

    with Runner(base) as runner:
        ending = runner.run({"small/config.json": b"..."}, ["grow", "small", ...])
        assert not fault(ending)

`base` is a folder that every case gets a fresh copy of, with the case's own files on top. The
command runs in a worker process of its own kind (this file, run as a script), whose memory and
time are limited by the system. So a hang and a leak are seen and not only believed to be absent. It
is the worker's own memory and processor time that count, so that other work on the machine makes no
hang and its tests need not run alone; a worker that only waits is killed by its pid in the end.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

PATIENCE = 10.0  # seconds of processor time
ASLEEP = 60.0  # seconds on the clock
MEMORY = 500_000_000  # bytes
LONGEST = 2_000  # characters of an answer that is still read

# a case's files by their path; "->" and a path makes a link
Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Ending:
    """How one call of growkit ended."""

    code: int  # of the exit; -1 if it took too long, -2 if it died
    stderr: str
    outside: tuple[str, ...]  # what it changed that is not OUT
    peak: int  # bytes


class Runner:
    """A worker, started again when a case kills it, and the tally of how its cases ended."""

    def __init__(self, base: Path, app: str = "growkit", patience: float = PATIENCE) -> None:
        self._base = base
        self._app = app
        self._patience = patience
        shm = Path("/dev/shm")
        self._folder = tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else None)
        self._worker: subprocess.Popen[bytes] | None = None
        self.endings: Counter[int] = Counter()
        self.peak = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, files: Files, args: Sequence[str]) -> Ending:
        """One call in a fresh copy of the base folder."""
        place = Path(self._folder, "case")
        shutil.rmtree(place, ignore_errors=True)
        self.lay_out(place, files)
        patience = self._patience
        ending = self._ask({"place": str(place), "args": list(args), "patience": patience})
        self.endings[ending.code] += 1
        self.peak = max(self.peak, ending.peak)
        return ending

    def lay_out(self, place: Path, files: Files) -> None:
        """A copy of the base folder, with a case's own files in it."""
        shutil.copytree(self._base, place, symlinks=True)
        for name, content in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if content.startswith(b"->"):
                path.symlink_to(os.fsdecode(content[2:]))
            else:
                path.write_bytes(content)

    def _ask(self, question: Mapping[str, Any]) -> Ending:
        if self._worker is None:
            command = [sys.executable, __file__, self._app]
            self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            _line(self._worker.stdout, 60.0)  # imports are done
        worker = self._worker
        assert worker.stdin
        worker.stdin.write(json.dumps(question).encode() + b"\n")
        worker.stdin.flush()
        answer = _line(worker.stdout, ASLEEP)
        if answer:
            told = json.loads(answer)
            return Ending(told["code"], told["stderr"], tuple(told["outside"]), told["peak"])
        self._stop()
        slow = answer is None or worker.returncode == -signal.SIGPROF
        return Ending(-1 if slow else -2, f"ended by signal {-worker.returncode}", (), 0)

    def _stop(self) -> None:
        if self._worker:
            with suppress(subprocess.TimeoutExpired):
                self._worker.communicate(timeout=1)  # closes its input, at which it ends
            self._worker.kill()
            self._worker.communicate()
            self._worker = None


def _line(stream: IO[bytes] | None, seconds: float) -> bytes | None:
    """The next line; None if it takes too long, empty if there will be none."""
    assert stream
    ready, _, _ = select.select([stream], [], [], seconds)
    return stream.readline() if ready else None


def fault(ending: Ending, codes: Sequence[int] = (0, 2, 3)) -> str:
    """What is wrong with how a call ended, in words; empty if nothing is."""
    lines = ending.stderr.splitlines()
    if ending.code == -1:
        return "took longer than anyone waits"
    if ending.code not in codes:
        return f"exit code {ending.code}: {ending.stderr[:300]}"
    if "Traceback" in ending.stderr or "error: unexpected" in ending.stderr:
        return f"no sentence: {ending.stderr[:300]}"
    if len(ending.stderr) > LONGEST:
        return f"{len(ending.stderr)} characters of answer: {ending.stderr[:300]}"
    if not all(c.isprintable() for line in ending.stderr.split("\n") for c in line):
        return f"control characters: {ending.stderr[:300]!r}"
    errors = [line for line in lines if line.startswith("error: ")]
    if ending.code and (len(errors) != 1 or not lines[0].startswith("error: ")):
        return f"not one sentence: {ending.stderr[:300]}"
    if ending.code and not all(line.startswith(("error: ", "hint: ", "  ")) for line in lines):
        return f"not one sentence: {ending.stderr[:300]}"
    if ending.outside:
        return f"changed {', '.join(ending.outside)}"
    return f"{ending.peak} bytes of memory" if ending.peak > MEMORY else ""


# -- the worker ----------------------------------------------------------------------------------


def _snapshot(place: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for folder, _, names in os.walk(place.parent):
        if Path(folder).is_relative_to(place / "out") or folder.startswith(f"{place}/out.partial"):
            continue
        for name in names:
            stat = os.lstat(f"{folder}/{name}")
            found[f"{folder}/{name}"] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found


def _virtual() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def _peak() -> int:
    """VmHWM: what this process itself held at most, without what it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _growkit() -> Any:
    """The command line, with what every command imports."""
    from growkit import api  # noqa: F401
    from growkit.cli.main import app

    return app


def _faults() -> Any:
    """Commands that do what growkit must not."""
    import click

    held = []
    app = click.Group()
    app.command("hang")(lambda: sum(iter(int, 1)))
    app.command("eat")(lambda: held.append(b"x" * (MEMORY + 1)))
    app.command("stray")(lambda: Path("../elsewhere").touch())
    app.command("crash")(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    return app


def work() -> None:
    """Answer one question per line."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    from click.testing import CliRunner

    app = _growkit() if sys.argv[1] == "growkit" else _faults()
    limit = _virtual() + 3 * MEMORY  # torch, where a case needs it, maps much that it never uses
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        place = Path(question["place"])
        os.chdir(place)
        before = _snapshot(place)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        signal.setitimer(signal.ITIMER_PROF, question["patience"])
        result = CliRunner().invoke(app, question["args"], prog_name="growkit")
        signal.setitimer(signal.ITIMER_PROF, 0)
        after = _snapshot(place)
        changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        answer = {
            "code": result.exit_code,
            "stderr": result.stderr[: 2 * LONGEST],
            "outside": [os.path.relpath(name, place) for name in changed[:5]],
            "peak": _peak(),
        }
        del result  # its traceback may hold all that was read; the next case is not to count that
        gc.collect()
        gc.freeze()  # what is left is imported modules: the next case need not look through them
        os.chdir("/")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    work()
