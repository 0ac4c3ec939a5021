"""One output file as a task: small, self-contained, and harmless when it is done twice."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import build

from growkit import api
from growkit.errors import CheckpointError, OutputError
from growkit.output.done_marks import Marks
from growkit.output.layout import lay_out
from growkit.runtime.task import Task, peak_of, tasks, write, write_file


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder in two files."""
    folder = tmp_path_factory.mktemp("task") / "small"
    build("llama", "causal", dtype=torch.float32).save_pretrained(folder, max_shard_size="8KB")
    assert len([*folder.glob("*.safetensors")]) > 1
    return folder


@pytest.fixture
def todo(small: Path, tmp_path: Path) -> list[Task]:
    """The tasks of a growth with noise, for an OUT that is prepared."""
    marks = Marks(tmp_path / "out.partial", "0")
    marks.folder.mkdir(parents=True)
    plan = api.plan_growth(small, "double_width")
    shards = lay_out(plan.formulas, max_shard_bytes=2000).shards
    options = {"budget": 1 << 30, "allow_nonfinite": False, "shared": False}
    return tasks(shards, plan.sources, marks, **options)


def content(task: Task) -> bytes:
    """What a task has written."""
    return (task.marks.folder / task.shard.name).read_bytes()


def test_a_task_takes_what_it_needs(todo: list[Task]) -> None:
    """Its tensors and their files and no others, through a pickle too; it answers in few words."""
    named = [{*t.sources["small"].tensors} for t in todo]
    assert all(1 <= len(names) < len(set().union(*named)) for names in named)
    for task in todo:
        (source,) = task.sources.values()
        assert {f.name for f in source.files} == {i.file for i in source.tensors.values()}
        first = write(pickle.loads(pickle.dumps(task)))
        assert (first.name, len(pickle.dumps(first)) < 300) == (task.shard.name, True)
        assert task.marks.finished(task.shard.name)
    assert peak_of([first]) == 0, "this process is not counted twice"
    several = [("a", 1), ("b", 4), ("a", 2)]
    assert peak_of([replace(first, process=p, peak_bytes=b) for p, b in several]) == 6


def test_done_is_done(todo: list[Task]) -> None:
    """A file with a mark is left as it is, and counts as progress."""
    task, told = todo[0], []
    write(task)
    before = (task.marks.folder / task.shard.name).stat()
    write(task, told.append)
    assert told == [task.shard.size]
    assert (task.marks.folder / task.shard.name).stat() == before


def test_twice_at_once(todo: list[Task]) -> None:
    """As when a cluster gives up a worker that still works: no trace of it is left."""
    write(todo[0])
    wanted = content(todo[0])
    for _ in range(20):
        (todo[0].marks.folder / todo[0].shard.name).unlink()
        with ThreadPoolExecutor(2) as pool:
            assert len([*pool.map(write, [todo[0], todo[0]])]) == 2
        assert content(todo[0]) == wanted
        assert todo[0].marks.finished(todo[0].shard.name)
    assert not [*todo[0].marks.partial.glob("*.tmp")]


@dataclass(frozen=True)
class Overtaken(Marks):
    """Another process writes and marks the same file just before a mark is put down."""

    task: Task
    times: list[str] = field(default_factory=list)

    def put(self, path: Path, content: BinaryIO) -> None:
        if not self.times:
            self.times.append(path.name)
            write_file(self.task)
            self.task.marks.mark(self.task.shard, {})
        super().put(path, content)


def test_overtaken_while_marking(todo: list[Task]) -> None:
    """The last mark is of the file that is there, and not of the one that it took the place of."""
    task = todo[0]
    write_file(task)
    Overtaken(task.marks.partial, task.marks.digest, task).mark(task.shard, {})
    assert task.marks.finished(task.shard.name)


def test_a_source_that_changed(small: Path, todo: list[Task]) -> None:
    """It is not what the plan was made of: refused, and nothing is marked."""
    path = small / next(iter(todo[0].sources["small"].files)).name
    before = path.stat()
    save_file({n: t + 1 for n, t in load_file(path).items()}, path, metadata={"format": "pt"})
    try:
        with pytest.raises(CheckpointError, match="changed during the run"):
            write(todo[0])
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert todo[0].marks.finished(todo[0].shard.name) is None
    assert not [*todo[0].marks.partial.glob("*.tmp")]


def test_a_claim(todo: list[Task]) -> None:
    """One writer per file; the next one removes what the last one left half-written."""
    marks, name = todo[0].marks, todo[0].shard.name
    marks.temporary(name).write_bytes(b"half")
    with marks.claim(name):
        assert not [*marks.partial.glob("*.tmp")]
        with (
            pytest.raises(OutputError, match="another growkit is writing it") as caught,
            marks.claim(name),
        ):
            pass
        assert "is this rank running twice?" in caught.value.hint
        with marks.claim(todo[1].shard.name):
            pass
    with marks.claim(name):
        pass


def test_a_filesystem_without_locks(todo: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps nobody apart, and the files are right all the same."""

    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    task = replace(todo[0], shared=True)
    with task.marks.claim(task.shard.name):
        write(task)
    assert task.marks.finished(task.shard.name)
