"""One output file: the unit of work, whoever does it.

The law: a task is a pure function of the plan and the file. It can be sent to any process that sees
the sources and OUT.partial, done again, or done twice at once: the file comes out the same, and one
that is marked as done is left as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from growkit._version import __version__
from growkit.checkpoints.identity import crc32_of, weight_files
from growkit.checkpoints.rows import SourceRows
from growkit.checkpoints.types import Checkpoint, Stored
from growkit.engine.row_blocks import Block, blocks_without_arithmetic, needs_arithmetic
from growkit.engine.working_memory import block_rows
from growkit.errors import CheckpointError, UsageError
from growkit.output.done_marks import Marks
from growkit.output.layout import Shard
from growkit.output.shard_writer import ShardWriter
from growkit.planning.formula import Formula, Noise, Term
from growkit.runtime.memory import peak_bytes

T = TypeVar("T")
Tell = Callable[[int], None]  # bytes done since the last call
Progress = Callable[[int], None]  # bytes done of several tasks together


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that writing one file takes, small enough to be sent about."""

    shard: Shard
    sources: Mapping[str, Checkpoint]  # with the tensors and files that this shard takes from
    marks: Marks
    budget: int  # bytes for one block of rows
    allow_nonfinite: bool
    shared: bool  # with ranks that nobody keeps apart: claim the file before writing it
    whole: Mapping[str, Checkpoint] = field(default_factory=dict)  # to take checksums of files of
    version: str = __version__


@dataclass(frozen=True, slots=True)
class Written:
    """A file that is there; `process` and `peak_bytes` are of who answered."""

    name: str
    process: str
    peak_bytes: int


def tasks(
    shards: Iterable[Shard],
    sources: Mapping[str, Checkpoint],
    marks: Marks,
    *,
    budget: int,
    allow_nonfinite: bool,
    shared: bool,
    every: Sequence[Shard] = (),
) -> list[Task]:
    """One task per file, in the order of the files, which is that of the sources.

    `every` file of the result, whoever writes it, shares in taking checksums of the sources.
    """
    whole = _shares(every, sources)
    return [
        Task(
            shard,
            _needed(shard, sources),
            marks,
            budget,
            allow_nonfinite,
            shared,
            whole.get(shard.name, {}),
        )
        for shard in shards
    ]


def _shares(
    shards: Sequence[Shard], sources: Mapping[str, Checkpoint]
) -> dict[str, dict[str, Checkpoint]]:
    """By shard the source files whose checksums its task takes; the Hub's have theirs already."""
    shares: dict[str, dict[str, Checkpoint]] = {}
    files = [(s, f) for s, c in sources.items() for f in weight_files(c) if not f.blob]
    for number, (source, file) in enumerate(files if shards else ()):
        share = shares.setdefault(shards[number % len(shards)].name, {})
        others = share[source].files if source in share else ()
        share[source] = _bare(sources[source], tensors={}, files=(*others, file))
    return shares


def _bare(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    """A checkpoint without what the writing of a file does not need."""
    return replace(checkpoint, config={}, side_files=(), modules=(), **changes)


def _needed(shard: Shard, sources: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """The sources, cut down to what one file takes from them."""
    wanted: dict[str, set[str]] = {name: set() for name in sources}
    for stored in _stored(t for placed in shard.tensors for t in placed.formula.terms):
        wanted[stored.source].add(stored.name)
    needed = {}
    for source, names in wanted.items():
        checkpoint = sources[source]
        tensors = {name: checkpoint.tensors[name] for name in sorted(names)}
        names_of_files = {info.file for info in tensors.values()}
        files = tuple(file for file in checkpoint.files if file.name in names_of_files)
        needed[source] = _bare(checkpoint, tensors=tensors, files=files)
    return needed


def _stored(terms: Iterable[Term]) -> Iterator[Stored]:
    """All stored tensors that terms are made of, those behind noise too."""
    for term in terms:
        if isinstance(term.source, Stored):
            yield term.source
            yield from [term.source.by] if term.source.by else []
        elif isinstance(term.source, Noise):
            yield from _stored(term.source.signal)


def write(task: Task, tell: Tell = lambda count: None) -> Written:
    """Write the file of a task and mark it as done, unless it is."""
    marks, shard = task.marks, task.shard
    if task.version != __version__:
        raise UsageError(
            f"a worker on {os.uname().nodename} has growkit {__version__}, "
            f"the plan is from {task.version}",
            hint="install the same version for all workers",
        )
    marks.refuse_elsewhere()
    with marks.claim(shard.name) if task.shared else nullcontext():
        if marks.finished(shard.name) is None:
            began = time.monotonic()
            sources = _beside(partial(_source_checksums, task.whole))
            checksums, nonfinite = write_file(task, tell)
            taken = sources.result()
            cost = {"seconds": round(time.monotonic() - began, 3), "peak_bytes": peak_bytes()}
            measures = {**cost, "nonfinite": nonfinite, "sources": taken}
            marks.mark(shard, checksums, measures)
        else:
            tell(shard.size)
    return Written(shard.name, _process(), peak_bytes())


def _source_checksums(sources: Mapping[str, Checkpoint]) -> dict[str, dict[str, str]]:
    """The crc32 of whole files of sources, by source and file."""
    with SourceRows(sources) as rows:
        taken = {
            source: {file.name: crc32_of(checkpoint, file.name) for file in checkpoint.files}
            for source, checkpoint in sources.items()
        }
        rows.check_unchanged()
    return taken


def _beside(work: Callable[[], T]) -> Future[T]:
    """What a thread works out meanwhile; nobody waits for it where the rest fails."""
    future = Future[T]()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="growkit-checksums", daemon=True).start()
    return future


def in_this_process(tasks: Sequence[Task], progress: Progress) -> list[Written]:
    """One task after the other."""
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress(done)

    return [write(task, tell) for task in tasks]


def peak_of(written: Sequence[Written]) -> int:
    """The memory of all processes but this one, each at its worst moment."""
    this = _process()
    worst: dict[str, int] = {}
    for file in written:
        if file.process != this:
            worst[file.process] = max(file.peak_bytes, worst.get(file.process, 0))
    return sum(worst.values())


def _process() -> str:
    """This process, told from those of all machines."""
    return f"{os.uname().nodename}:{os.getpid()}"


def write_file(
    task: Task, tell: Tell = lambda count: None
) -> tuple[dict[str, str], dict[str, int]]:
    """Write the file of a task, marked or not.

    By tensor the checksum; and where there are any, how many values are NaN or infinite.
    """
    with SourceRows(task.sources) as rows:
        checksums, nonfinite = _write(task, rows, tell)
        rows.check_unchanged()
    return checksums, nonfinite


def _write(task: Task, rows: SourceRows, tell: Tell) -> tuple[dict[str, str], dict[str, int]]:
    """Tensor after tensor, block after block, while the next block is made."""
    nonfinite: dict[str, int] = {}
    marks, shard = task.marks, task.shard
    temporary = marks.temporary(shard.name.replace("/", "-"))
    with (
        ShardWriter(marks.folder, shard, temporary=temporary) as writer,
        closing(_ahead(_blocks(shard, rows, task.budget))) as blocks,
    ):
        tell(len(shard.header))
        for placed in shard.tensors:
            writer.begin(placed)
            left, bad, overflowed = placed.formula.nbytes, 0, 0
            while left:
                block = next(blocks)
                writer.write(block.data)
                left -= len(block.data)
                bad, overflowed = bad + block.nonfinite, overflowed + block.overflowed
                tell(len(block.data))
            if bad and not task.allow_nonfinite:
                _refuse_values(placed.formula, bad, overflowed)
            if bad:
                nonfinite[placed.formula.name] = bad
            writer.end()
        return writer.finish(), nonfinite


def _blocks(shard: Shard, rows: SourceRows, budget: int) -> Iterator[Block]:
    """All blocks of a file, tensor after tensor."""
    for placed in shard.tensors:
        formula = placed.formula
        if needs_arithmetic(formula):
            from growkit.engine.evaluate import evaluate, one_thread

            with one_thread():
                yield from evaluate(formula, rows, budget=budget)
        else:
            yield from blocks_without_arithmetic(formula, rows, block_rows(formula, budget))


def _ahead(blocks: Iterator[Block]) -> Generator[Block, None, None]:
    """The blocks, each made in a second thread while the caller is busy with the one before."""
    with ThreadPoolExecutor(1, thread_name_prefix="growkit-make") as pool:
        ahead = pool.submit(next, blocks, None)
        while (block := ahead.result()) is not None:
            ahead = pool.submit(next, blocks, None)
            yield block


def _refuse_values(formula: Formula, bad: int, overflowed: int) -> None:
    """Raise CheckpointError: values that are no numbers, by their cause."""
    if overflowed:
        raise CheckpointError(
            f"tensor {formula.name}: {overflowed} values are too large for {formula.dtype}",
            hint="keep the dtype, use bfloat16, or pass --allow-nonfinite",
        )
    raise CheckpointError(
        f"tensor {formula.name}: {bad} values are NaN or infinite",
        hint="mend the source, or pass --allow-nonfinite to carry them over",
    )
