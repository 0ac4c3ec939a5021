"""A real Dask cluster of processes on this machine: the same bytes, also when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import ENV, done_files, ended, files, growkit_in, partial, start, until
from support.tiny import build, save

from growkit import api
from growkit.errors import ResourceError, UsageError
from growkit.output.done_marks import Marks
from growkit.output.layout import lay_out
from growkit.runtime.dask import on_cluster
from growkit.runtime.task import Task, tasks

pytestmark = pytest.mark.alone

DEPTH = "--recipe double_depth --max-shard-size 1B"  # a file for each of 147 tensors, and no torch

# says where the scheduler is and which processes work, and again when it is asked
CLUSTER = """
import json, sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=3, threads_per_worker=1, host="127.0.0.1",
                      dashboard_address=None, silence_logs=50) as cluster:
        for line in sys.stdin:
            pids = [worker.pid for worker in cluster.workers.values()]
            print(json.dumps([cluster.scheduler_address, pids]), flush=True)
"""


@dataclass
class Cluster:
    """A scheduler and its workers, in processes of their own."""

    process: subprocess.Popen[str]

    def asked(self) -> Any:
        """The address of the scheduler, and the process ids of its workers."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """Three workers, which die if they load torch."""
    (folder / "fake" / "torch").mkdir(parents=True)
    (folder / "fake" / "torch" / "__init__.py").write_text("import os; os._exit(9)")
    child = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENV | {"PYTHONPATH": f"{folder / 'fake'}{os.pathsep}{ENV['PYTHONPATH']}"},
        start_new_session=True,
    )
    with child:
        yield Cluster(child)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One for all tests."""
    with started(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny decoder, `m`, and it grown by one process, `whole`."""
    folder = tmp_path_factory.mktemp("cluster")
    save(build("llama", "causal", layers=8, dtype=torch.float32), folder / "m")
    growkit_in(folder, f"grow m {DEPTH} -o whole")
    return folder


def grow(home: Path, out: Path, address: str, *more: str) -> subprocess.Popen[str]:
    """growkit on a cluster."""
    return start("grow", "m", *DEPTH.split(), "--cluster", address, "-o", out, *more, cwd=home)


def test_a_cluster_writes_the_same(cluster: Cluster, home: Path, tmp_path: Path) -> None:
    """Every file, and nothing else is left anywhere; the second time it is already done."""
    address, _ = cluster.asked()
    out = tmp_path / "out"
    code, stdout, stderr = ended(grow(home, out, address))
    assert (code, stderr) == (0, "")
    assert stdout.startswith(f"{out}: written in ")
    assert files(out) == files(home / "whole")
    assert "already done" in ended(grow(home, out, address))[1]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_worker_is_killed(cluster: Cluster, home: Path, tmp_path: Path) -> None:
    """In the middle, by its process id: another one does its work, and the bytes are the same."""
    address, before = cluster.asked()
    out = tmp_path / "out"
    child = grow(home, out, address)
    until(lambda: len(done_files(out)) > 10)
    os.kill(before[0], signal.SIGKILL)
    assert len(done_files(out)) < 147, "killed too late"
    code, _, stderr = ended(child)
    assert (code, stderr) == (0, "")
    assert files(out) == files(home / "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    until(lambda: before[0] not in cluster.asked()[1])


def test_interrupted_and_resumed(cluster: Cluster, home: Path, tmp_path: Path) -> None:
    """Killed while the cluster works; a run without a cluster goes on from there."""
    address, _ = cluster.asked()
    out = tmp_path / "out"
    child = grow(home, out, address)
    until(lambda: len(done_files(out)) > 10)
    child.send_signal(signal.SIGINT)
    code, _, stderr = ended(child)
    assert (code, stderr.splitlines()[0]) == (130, "error: interrupted")
    kept = {n: (partial(out) / "model" / n).stat().st_ino for n in done_files(out)}
    growkit_in(home, f"grow m {DEPTH} -o {out}")
    assert {n: (out / n).stat().st_ino for n in kept} == kept
    assert files(out) == files(home / "whole")


@pytest.fixture
def todo(home: Path, tmp_path: Path) -> list[Task]:
    """Two tasks for an OUT that nobody has prepared."""
    plan = api.plan_growth(home / "m", "double_depth")
    shards = lay_out(plan.formulas, max_shard_bytes=1).shards[:2]
    options = {"budget": 1 << 30, "allow_nonfinite": False, "shared": False}
    return tasks(shards, plan.sources, Marks(tmp_path / "out.partial", "0"), **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_machine_that_shares_no_disk(cluster: Cluster, todo: list[Task]) -> None:
    """A worker that does not see OUT says so, as one sentence."""
    with pytest.raises(ResourceError, match=r"out\.partial/model: no such folder on ") as caught:
        on_cluster(todo, cluster.asked()[0], lambda done: None)
    assert "on a shared disk" in caught.value.hint


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_worker_of_another_version(cluster: Cluster, todo: list[Task]) -> None:
    """Two versions may not write one result."""
    other = [replace(task, version="0.0.1") for task in todo]
    with pytest.raises(UsageError, match=r"has growkit .*, the plan is from 0\.0\.1"):
        on_cluster(other, cluster.asked()[0], lambda done: None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_that_kills_its_workers(cluster: Cluster, home: Path, tmp_path: Path) -> None:
    """Given up when several workers have died of it."""
    out = tmp_path / "out"
    line = f"grow m --recipe double_width --cluster {cluster.asked()[0]} -o {out}"
    code, stdout, stderr = ended(start(*line.split(), cwd=home))
    assert (code, stdout) == (4, "")
    assert "workers were killed again and again over the same file\nhint: if memory" in stderr
    assert not [*tmp_path.iterdir()]


def test_the_scheduler_goes(home: Path, tmp_path: Path) -> None:
    """In the middle: exit code 5, and what is finished is kept."""
    out = tmp_path / "out"
    with started(tmp_path) as doomed:
        child = grow(home, out, doomed.asked()[0])
        until(lambda: len(done_files(out)) > 10)
        os.killpg(doomed.process.pid, signal.SIGKILL)
        code, stdout, stderr = ended(child)
    assert (code, stdout) == (5, ""), stderr
    assert "the scheduler has gone\nhint: check the address" in stderr
    assert len(done_files(out)) > 10
    growkit_in(home, f"grow m {DEPTH} -o {out}")
    assert files(out) == files(home / "whole")


@pytest.mark.parametrize(
    ("address", "code", "words"),
    [
        ("tcp://127.0.0.1:9", 5, "--cluster tcp://127.0.0.1:9: no Dask scheduler answers: "),
        ("nowhere", 2, '--cluster "nowhere": expected the address of a scheduler\nhint: write'),
    ],
)
def test_no_scheduler(address: str, code: int, words: str, home: Path, tmp_path: Path) -> None:
    """A sentence and the way on, and nothing is left; a scheduler may be there the next time."""
    found, stdout, stderr = ended(grow(home, tmp_path / "out", address, "--json"))
    assert found == code, stderr
    assert json.loads(stdout).get("retryable", False) is (code == 5)
    assert stderr.startswith(f"error: {words}")
    assert stderr.count("\n") == 2
    assert not [*tmp_path.iterdir()]


def test_dask_is_not_installed(home: Path, tmp_path: Path) -> None:
    """One sentence on what to install."""
    (tmp_path / "distributed.py").write_text("raise ImportError('not here')")
    env = ENV | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ENV['PYTHONPATH']}"}
    line = f"grow {home / 'm'} {DEPTH} --cluster tcp://x:1 -o {tmp_path / 'out'}"
    code, _, stderr = ended(start(*line.split(), env=env))
    assert (code, stderr) == (
        2,
        "error: --cluster needs Dask, which is not installed\n"
        "hint: pip install 'growkit[cluster]', here and for all workers\n",
    )
