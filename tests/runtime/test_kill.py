"""Killed at any moment: nothing incomplete is ever in sight, and the next run makes it whole.

Whole process groups are killed, with one and with several workers, while a thread watches OUT. A
run is killed several times over before it may end, so that resuming is killed too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.processes import EDITED, done_files, ended, files, growkit_in, partial, start
from support.tiny import build, save

pytestmark = pytest.mark.alone

DEPTH = "--recipe double_depth --max-shard-size 2kB"
SIDE_FILES = 90  # small files to carry: they are written after the last shard
KILLS, EACH = 105, 5  # in all, and on the way to one result
COUNT = 50  # files of weights
WRITING, CLOSING = "while files are written", "between the last file and the commit"
Listing = dict[str, int]


class Watcher(threading.Thread):
    """Looks at OUT all the time: whatever is there must be a complete result."""

    def __init__(self, out: Path, allowed: list[Listing], *, always: bool) -> None:
        super().__init__(daemon=True)
        self.out, self.allowed, self.always = out, allowed, always
        self.seen = 0  # how often a result was there
        self.wrong: list[str] = []
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        """Until told to stop."""
        while not self.over.wait(0.0005):
            self.look()

    def look(self) -> None:
        """At one moment: whatever is found counts if OUT is still the same folder afterwards."""
        try:
            fd = os.open(self.out, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if self.always:
                self.wrong.append("there is no OUT")
            return
        try:
            with os.scandir(fd) as entries:
                found = {entry.name: entry.stat().st_size for entry in entries}
            if self.out.stat().st_ino == os.fstat(fd).st_ino:
                self.seen += 1
                if stable(found) not in self.allowed:
                    self.wrong.append(f"incomplete: {sorted(found)}")
        except FileNotFoundError:  # it was replaced meanwhile
            pass
        finally:
            os.close(fd)

    def end(self) -> None:
        """Stop, and say what was seen."""
        self.over.set()
        self.join()
        assert self.wrong == []


def stable(found: Listing) -> Listing:
    """Names and sizes; where times are noted, the name alone."""
    return {name: 0 if name in EDITED else size for name, size in found.items()}


def listing(folder: Path) -> Listing:
    """What is in a result."""
    return stable({p.name: p.stat().st_size for p in folder.iterdir()})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder with many side files, `m`; it grown undisturbed, `whole`; an older `old`."""
    folder = tmp_path_factory.mktemp("kill")
    small = save(build("llama", "causal", layers=8, dtype=torch.float32), folder / "m")
    for i in range(SIDE_FILES):
        (small / f"own_{i:03}.py").write_text(f"# {i}")
    growkit_in(folder, f"grow m {DEPTH} -o whole")
    growkit_in(folder, f"grow m {DEPTH} --dtype bf16 -o old")
    assert len([*(folder / "whole").glob("*.safetensors")]) == COUNT
    return folder


def killed(child: subprocess.Popen[str], out: Path, moment: str, dice: random.Random) -> str:
    """Kill a growkit and its workers, and say in which phase that was; "" if it was faster."""
    before = out.stat().st_ino if out.exists() else 0
    have = len(done_files(out))
    if moment == "start":
        time.sleep(dice.uniform(0, 0.5))
    else:
        more = COUNT - have if moment == "close" else dice.randint(0, (COUNT - have) // 2)
        while child.poll() is None and len(done_files(out)) < have + more:
            time.sleep(0.0005)
        time.sleep(dice.uniform(0, 0.15 if moment == "close" else 0.01))
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()  # until workers, too, have let go of its pipes
    if child.returncode != -signal.SIGKILL:
        return ""
    if out.exists() and out.stat().st_ino != before:
        return "after the commit"
    if not partial(out).exists():
        return "before the first write"
    return CLOSING if len(done_files(out)) == COUNT else WRITING


@pytest.mark.slow
def test_killed_at_any_moment(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At least 100 kills, 70 of them while there is an OUT.partial, 15 in the last moments."""
    dice = random.Random(5)
    whole, old = listing(home / "whole"), listing(home / "old")
    wanted = files(home / "whole")
    phases: Counter[str] = Counter()
    for number in range(KILLS):
        out = tmp_path / f"{number}"
        command = ["grow", home / "m", *DEPTH.split(), "-o", out]
        command += ["--workers", (1, 2, 1, 3)[number % 4]]
        overwrite = number % 3 == 2
        if overwrite:
            shutil.copytree(home / "old", out)
            command.append("--overwrite")
        watcher = Watcher(out, [whole, *([old] if overwrite else [])], always=overwrite)
        for i in range(EACH):
            moment = "close" if i > EACH - 3 else dice.choice(["start", "files", "files", "files"])
            if phase := killed(start(*command), out, moment, dice):
                phases[phase] += 1
        assert ended(start(*command))[0] == 0
        watcher.look()
        watcher.end()
        assert watcher.seen
        assert files(out) == wanted
        assert json.loads((out / "growkit.json").read_text())["files"].keys() == wanted.keys()
        assert sorted(p.name for p in tmp_path.iterdir()) == [out.name]
        shutil.rmtree(out)
        if phases.total() >= KILLS:
            break
    with capsys.disabled():
        print(f"\n{phases.total()} kills:", ", ".join(f"{n} {p}" for p, n in phases.most_common()))
    assert phases.total() >= 100
    assert phases[WRITING] + phases[CLOSING] >= 70
    assert phases[CLOSING] >= 15
