"""Writes a plan: every file of weights, then the files beside them, then one rename.

The law: nothing is decided here. Which bytes go where is in the plan and the layout; every file is
a task, and it does not matter who does it. A killed run is resumed by the same call.

Several independent processes share the work as ranks: each writes its files and leaves the rest to
`finish`, which needs neither the plan nor the sources.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from growkit.checkpoints.rows import SourceRows
from growkit.checkpoints.types import Stored
from growkit.dtypes import ITEM_BYTES
from growkit.errors import CheckpointError, UsageError, VerifyError
from growkit.output.layout import Layout, Shard
from growkit.output.record import read_record
from growkit.output.workspace import Workspace, read_description
from growkit.planning.plan import Plan
from growkit.report.as_json import summary_json
from growkit.runtime import result_files
from growkit.runtime.differences import differences, with_recorded_times
from growkit.runtime.estimate import WRITER_BYTES, PreparedPlan, digest_of
from growkit.runtime.memory import peak_bytes
from growkit.runtime.progress_bar import Progress
from growkit.runtime.ranks import Rank
from growkit.runtime.task import Written, in_this_process, peak_of, tasks


@dataclass(frozen=True, slots=True)
class Finished:
    """A result that is complete."""

    out: Path
    report: Mapping[str, Any]  # what growkit.json holds
    already_done: bool
    seconds: float

    def __repr__(self) -> str:
        done = "already done" if self.already_done else f"written in {self.seconds:.1f} s"
        return f"<{type(self).__name__} {self.out}: {done}>"

    def summary(self) -> dict[str, Any]:
        """What `growkit finish --json` prints."""
        return summary_json(
            self.report,
            out=str(self.out),
            already_done=self.already_done,
            seconds=self.seconds,
        )


@dataclass(frozen=True, slots=True, repr=False)
class Result(Finished):
    """A finished growth."""

    plan: Plan
    pushed: Mapping[str, Any] | None = None  # what the Hub has of it

    def summary(self) -> dict[str, Any]:
        """What `growkit grow --json` prints."""
        pushed = {"pushed": dict(self.pushed)} if self.pushed else {}
        return Finished.summary(self) | pushed


@dataclass(frozen=True, slots=True)
class RankResult:
    """What one of several ranks has written."""

    out: Path
    plan: Plan
    rank: Rank
    files: Mapping[str, int]  # this rank's, with their bytes
    missing: Sequence[str]  # of all ranks, when this one ended
    already_done: bool  # OUT was complete before
    seconds: float

    def __repr__(self) -> str:
        share = f"rank {self.rank.rank} of {self.rank.world_size}"
        return f"<RankResult {self.out}: {share}, {len(self.missing)} files of others to come>"

    def summary(self) -> dict[str, Any]:
        """What `growkit grow --rank --json` prints."""
        return {
            "out": str(self.out),
            "already_done": self.already_done,
            "seconds": round(self.seconds, 3),
            "rank": self.rank.rank,
            "world": self.rank.world_size,
            "files": dict(self.files),
            "missing": list(self.missing),
        }


def is_done(prepared: PreparedPlan, out: str | Path) -> bool:
    """Whether `out` holds the plan's result. Raises where it may not be written; changes nothing.

    For what takes long before the writing can begin, such as a download.
    """
    return _workspace(prepared, out).is_done()


def execute(prepared: PreparedPlan, out: str | Path, *, progress: Progress | None = None) -> Result:
    """Write a plan."""
    begin, started, plan = time.monotonic(), _now(), prepared.plan
    with _workspace(prepared, out) as work:
        if work.already_done:
            record = read_record(work.out) or {}
            return Result(work.out, record, True, time.monotonic() - begin, plan)
        written = _write_shards(prepared, work, progress)
        _copy_side_files(prepared, work)
        record = result_files.complete(
            result_files.describe(plan, prepared.layout, prepared.estimate.digest),
            work,
            started=started,
            seconds=time.monotonic() - begin,
            peak_bytes=peak_bytes() + peak_of(written),
        )
        return Result(work.commit(), record, False, time.monotonic() - begin, plan)


def execute_rank(
    prepared: PreparedPlan, out: str | Path, *, progress: Progress | None = None
) -> RankResult:
    """Write the files of one rank; `finish` makes a result of those of all ranks."""
    begin, started, plan = time.monotonic(), _now(), prepared.plan
    assert prepared.rank, "prepared for no rank"
    with _workspace(prepared, out) as work:
        if not work.already_done:
            if read_description(work.out) is None:  # this rank is the first
                _copy_side_files(prepared, work)
            description = result_files.describe(plan, prepared.layout, prepared.estimate.digest)
            work.leave_description({**description, "started": started})
            _write_shards(prepared, work, progress)
        return RankResult(
            out=work.out,
            plan=plan,
            rank=prepared.rank,
            files={shard.name: shard.size for shard in prepared.shards},
            missing=() if work.already_done else work.missing(),
            already_done=work.already_done,
            seconds=time.monotonic() - begin,
        )


def finish(out: str | Path) -> Finished:
    """Check what all ranks have written and make it visible as OUT.

    Raises VerifyError, and changes nothing, while files are missing.
    """
    begin = time.monotonic()
    description = read_description(Path(out))
    if description is None:
        record = read_record(Path(out))
        if record is None:
            raise UsageError(
                f"{out}: no rank has written anything for it",
                hint="give the OUT of `growkit grow … --rank R --world W`",
            )
        description = {"record": record, "shards": {}, "overwrite": False}
    shards = tuple(Shard(name, b"", size, ()) for name, size in description["shards"].items())
    with Workspace(
        out,
        digest=description["record"]["digest"],
        layout=Layout(shards, None, sum(s.size for s in shards)),
        sources=(),
        overwrite=description["overwrite"],
        role="finish",
    ) as work:
        if work.already_done:
            record = read_record(work.out) or {}
            return Finished(work.out, record, True, time.monotonic() - begin)
        missing = work.missing()
        if missing:
            raise VerifyError(
                f"{work.partial}: {len(missing)} of {len(shards)} files are not finished: "
                f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}",
                hint="run the ranks that were stopped again, then `growkit finish`",
            )
        seconds = (
            datetime.now(UTC) - datetime.fromisoformat(description["started"])
        ).total_seconds()
        marks = [work.marks.finished(shard.name) or {} for shard in shards]
        record = result_files.complete(
            description,
            work,
            started=description["started"],
            seconds=seconds,
            peak_bytes=max(mark["extra"]["peak_bytes"] for mark in marks),
        )
        return Finished(work.commit(), record, False, time.monotonic() - begin)


def _workspace(prepared: PreparedPlan, out: str | Path) -> Workspace:
    shards = {shard.name: shard.size for shard in prepared.layout.shards}
    return Workspace(
        out,
        digest=_digest(prepared, out),
        layout=replace(prepared.layout, total_bytes=prepared.estimate.disk_bytes),
        sources=list(prepared.plan.sources.values()),
        overwrite=prepared.options.overwrite,
        role="rank" if prepared.rank else "alone",
        differing=partial(differences, prepared.plan, shards),
    )


def _digest(prepared: PreparedPlan, out: str | Path) -> str:
    """The digest of a plan; if its sources were only touched since OUT was written, that of OUT."""
    record, digest = read_record(Path(out)), prepared.estimate.digest
    if record is None or record.get("digest") == digest or prepared.options.overwrite:
        return digest
    plan = with_recorded_times(prepared.plan, record)
    settled = plan and digest_of(plan, prepared.layout, prepared.options)
    return settled if settled and settled == record.get("digest") else digest


def _copy_side_files(prepared: PreparedPlan, work: Workspace) -> None:
    result_files.copy_side_files(
        prepared.plan,
        work,
        budget=prepared.block_bytes,
        allow_nonfinite=prepared.options.allow_nonfinite,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# -- files of weights ----------------------------------------------------------------------------


def _write_shards(
    prepared: PreparedPlan, work: Workspace, progress: Progress | None
) -> list[Written]:
    """Those of this run's files that are not there yet, by whoever is to write them."""
    plan, options = prepared.plan, prepared.options
    left = [shard for shard in prepared.shards if work.marks.finished(shard.name) is None]
    total = sum(shard.size for shard in prepared.shards)
    before = total - sum(shard.size for shard in left)

    def tell(done: int) -> None:
        if progress:
            progress(before + done, total)

    tell(0)
    with SourceRows(plan.sources) as rows:
        _compare_ties(plan, rows)
        todo = tasks(
            left,
            plan.sources,
            work.marks,
            budget=prepared.block_bytes,
            allow_nonfinite=options.allow_nonfinite,
            shared=prepared.rank is not None,
            every=prepared.layout.shards,
        )
        if options.cluster is not None and todo:
            from growkit.runtime.dask import on_cluster

            written = on_cluster(todo, options.cluster, tell)
        elif min(options.workers, len(todo)) > 1:
            from growkit.runtime.processes import in_processes

            written = in_processes(todo, options.workers, tell)
        else:
            written = in_this_process(todo, tell)
        rows.check_unchanged()
    return written


def _compare_ties(plan: Plan, rows: SourceRows) -> None:
    """Tensors that config.json ties, but that are stored twice, must be equal."""
    for source, name, twin in plan.same:
        tensors = plan.sources[source].tensors
        a, b = (Stored(source, n, tensors[n].shape, tensors[n].dtype) for n in (name, twin))
        step = max(1, WRITER_BYTES // max(1, prod(a.shape[1:]) * ITEM_BYTES[a.dtype]))
        same = (a.shape, a.dtype) == (b.shape, b.dtype) and all(
            rows(a, i, min(i + step, a.shape[0])) == rows(b, i, min(i + step, a.shape[0]))
            for i in range(0, a.shape[0], step)
        )
        if not same:
            raise CheckpointError(
                f"{plan.sources[source].path}: {name} and {twin} differ, but config.json ties them",
                hint='set "tie_word_embeddings": false in config.json if the head is its own',
            )
