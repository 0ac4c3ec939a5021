"""The page on workers and clusters: its commands run as they stand, with what they need around."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.pages import ROOT, Block, blocks, walk
from support.processes import ENV, files, growkit_in, until
from support.tiny import build, save

PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
WORKERS, SCRIPT, JOB, THEN, TORCHRUN, FINISH, SCHEDULER, WORKER, GROW = blocks(PAGE)

SHARDS = "--max-shard-size 2kB"  # for a tiny model as many files as for a large one

# what Slurm does with a script or a command: every task of an array in a process of its own
SBATCH = """#!/bin/bash
for word; do case $word in
  --wrap=*) bash -c "${word#--wrap=}" >&2 && echo Submitted batch job 1235; exit ;;
esac; done
script=${!#}
last=$(sed -n 's/^#SBATCH --array=0-//p' $script)
for id in $(seq $last -1 0); do
  SLURM_ARRAY_TASK_ID=$id SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=$last \
  SLURM_ARRAY_TASK_COUNT=$((last + 1)) SLURM_PROCID=0 SLURM_NTASKS=1 bash $script >&2 &
  tasks+=" $!"
done
for task in $tasks; do wait $task || exit 1; done
echo 1234
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a tiny decoder, `small`, and it grown by one process, `whole`."""
    save(build("llama", "causal", dtype=torch.float32), tmp_path / "small")
    growkit_in(tmp_path, f"grow small --recipe double_depth {SHARDS} -o whole")
    return tmp_path


def run(home: Path, *chosen: Block) -> None:
    """Walk these blocks as they stand, but for the size of shards, where there is a Slurm."""
    (home / "bin").mkdir(exist_ok=True)
    sbatch = home / "bin" / "sbatch"
    sbatch.write_text(SBATCH)
    sbatch.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{ENV['PATH']}")
        patch.setenv("PYTHONPATH", ENV["PYTHONPATH"])
        wrong = walk([replace(block, code=small(block.code)) for block in chosen], home)
    assert not wrong, "\n\n".join(wrong)


def small(text: str) -> str:
    """The same for a tiny model."""
    return text.replace("--max-shard-size 500MB", SHARDS)


def test_workers(home: Path) -> None:
    """The first example."""
    run(home, WORKERS)
    assert files(home / "deep") == files(home / "whole")


def test_slurm(home: Path) -> None:
    """The script runs once per task of the array, at the same time; then the last step."""
    run(home, SCRIPT, JOB, THEN)
    assert small(SCRIPT.code) == (home / "grow.sh").read_text()
    assert files(home / "big") == files(home / "whole")


@pytest.mark.slow
def test_torchrun(home: Path) -> None:
    """The example, by the torchrun of this environment."""
    run(home, TORCHRUN, FINISH)
    assert files(home / "big") == files(home / "whole")


@contextmanager
def running(home: Path, *lines: str) -> Iterator[None]:
    """Inside, each of these commands runs in the background."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{ENV['PATH']}"
    with (home / "dask.log").open("w") as log:
        children = [
            subprocess.Popen(line.split(), cwd=home, env=ENV | {"PATH": path}, stderr=log)
            for line in lines
        ]
        try:
            yield
        finally:
            for child in reversed(children):
                child.terminate()
            for child in children:
                child.wait(30)


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.alone
@pytest.mark.slow
def test_dask(home: Path) -> None:
    """Scheduler, workers and growkit as three commands, on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scheduler, worker, grow = [
        block.code.replace("--host head", f"--host 127.0.0.1 --port {port} --no-dashboard")
        .replace("head:8786", f"127.0.0.1:{port}")
        .replace("--nworkers", "--no-dashboard --nworkers")
        for block in (SCHEDULER, WORKER, GROW)
    ]
    with running(home, scheduler):
        until(lambda: answers(port) or time.sleep(0.1))
        with running(home, worker):
            run(home, replace(GROW, code=grow))
    assert files(home / "big") == files(home / "whole")


def test_every_way_is_named() -> None:
    """The page names each option that it is about."""
    options = ("--workers N", "--cluster tcp", "--rank R --world W", "--rank auto", "--overwrite")
    assert [option for option in options if option not in PAGE] == []
