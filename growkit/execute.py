"""Writes a plan: every output file, then everything beside them, then one rename.

The law: nothing is decided here. Which bytes go where is in the plan and the layout; this loop
asks the engine for blocks and gives them to the store. A killed run is resumed by the same call.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from growkit import __version__, report
from growkit.blocks import Block, block_rows, dense_bytes, is_plain, plain, working_bytes
from growkit.card import model_card
from growkit.digest import digest
from growkit.errors import CheckpointError, ResourceError
from growkit.formula import ITEM_BYTES, Formula, Stored
from growkit.layout import INDEX, Layout, Shard, format_size, lay_out, parse_size
from growkit.plan import Plan
from growkit.recipe import resolved
from growkit.store import ShardWriter, SourceRows, Workspace
from growkit.store.check import read_record
from growkit.store.memory import peak_bytes

# what the interpreter takes before any weight is read, in bytes, with room for allocators
BASE_BYTES = 60_000_000
TORCH_BYTES = 220_000_000
WRITER_BYTES = 16_000_000
MATRIX_COPIES = 6  # of a dense map: as read, as a kernel, transposed, as text in growkit.json

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a growth will take, known before anything is written."""

    output_bytes: int
    disk_bytes: int
    peak_bytes: int
    shards: tuple[str, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Result:
    """A finished growth."""

    out: Path
    plan: Plan
    report: Mapping[str, Any]  # what growkit.json holds
    already_done: bool
    seconds: float
    pushed: Mapping[str, Any] | None = None  # what the Hub has of it


@dataclass(frozen=True, slots=True)
class _Job:
    """A plan with everything that writing it needs."""

    plan: Plan
    layout: Layout
    budget: int  # bytes for one block of rows
    estimate: Estimate


def _job(
    plan: Plan, max_shard_size: str | int, max_memory: str | int, *, checked: bool = True
) -> _Job:
    layout = lay_out(plan.formulas, max_shard_bytes=parse_size(max_shard_size))
    torch = 0 if all(map(is_plain, plan.formulas)) else TORCH_BYTES
    fixed = BASE_BYTES + WRITER_BYTES + torch + MATRIX_COPIES * dense_bytes(plan.formulas)
    allowed = parse_size(max_memory)
    largest = max(plan.formulas, key=lambda f: working_bytes(f, 1))
    least = fixed + working_bytes(largest, 1)
    if least > allowed:
        raise ResourceError(
            f"--max-memory {format_size(allowed)}: one row of {largest.name} "
            f"{list(largest.shape)} {largest.dtype} and the program itself take "
            f"{format_size(least)}",
            hint=f"--max-memory {-(-least // 1_000_000)}MB is enough",
        )
    budget = allowed - fixed
    work = max(working_bytes(f, block_rows(f, budget)) for f in plan.formulas)
    known = Estimate(
        output_bytes=sum(f.nbytes for f in plan.formulas),
        disk_bytes=layout.total_bytes,
        peak_bytes=fixed + work,
        shards=tuple(s.name for s in layout.shards),
        digest=digest(
            plan,
            (s.header for s in layout.shards),
            # a result that may hold NaN is not what a run that refuses NaN asks for
            resolved(plan.recipe) + ("" if checked else "allow-nonfinite"),
        ),
    )
    return _Job(plan, layout, budget, known)


def estimate(
    plan: Plan, *, max_shard_size: str | int = "5GB", max_memory: str | int = "2GB"
) -> Estimate:
    """Bytes on disk and in memory, files and digest. Raises ResourceError if a row does not fit."""
    return _job(plan, max_shard_size, max_memory).estimate


def is_done(
    plan: Plan,
    out: str | Path,
    *,
    max_shard_size: str | int = "5GB",
    max_memory: str | int = "2GB",
    overwrite: bool = False,
    allow_nonfinite: bool = False,
) -> bool:
    """Whether `out` holds the plan's result. Raises where it may not be written; changes nothing.

    For what takes long before the writing can begin, such as a download.
    """
    job = _job(plan, max_shard_size, max_memory, checked=not allow_nonfinite)
    return Workspace(
        out,
        digest=job.estimate.digest,
        layout=job.layout,
        sources=list(plan.sources.values()),
        overwrite=overwrite,
    ).look()


def execute(
    plan: Plan,
    out: str | Path,
    *,
    max_shard_size: str | int = "5GB",
    max_memory: str | int = "2GB",
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Write a plan."""
    begin, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    job = _job(plan, max_shard_size, max_memory, checked=not allow_nonfinite)
    with Workspace(
        out,
        digest=job.estimate.digest,
        layout=job.layout,
        sources=list(plan.sources.values()),
        overwrite=overwrite,
    ) as work:
        if work.already_done:
            record = read_record(work.out) or {}
            return Result(work.out, plan, record, True, time.monotonic() - begin)
        with SourceRows(plan.sources) as rows:
            _compare_ties(plan, rows)
            tensors = _write_shards(job, work, rows, allow_nonfinite, progress)
            rows.check_unchanged()
        _write_side_files(plan, work)
        work.add("recipe.yaml", resolved(plan.recipe))
        work.add("config.json", _json(plan.config))
        if job.layout.index:
            work.add(INDEX, _json(job.layout.index))
        record = report.report_json(
            plan,
            version=__version__,
            digest=job.estimate.digest,
            files=work.sizes(),  # README.md is for people to edit
            tensors=tensors,
            started=started,
            seconds=time.monotonic() - begin,
            peak_bytes=peak_bytes(),
        )
        work.add("README.md", model_card(plan, record))
        work.add("growkit.json", _json(record))
        return Result(work.commit(), plan, record, False, time.monotonic() - begin)


def _json(value: Any) -> str:
    """JSON for people and diffs: indented, but lists of numbers on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    flat = re.sub(r"\[[-\d.,\seE+]+\]", lambda m: re.sub(r"\s+", "", m[0]).replace(",", ", "), text)
    return flat + "\n"


def _compare_ties(plan: Plan, rows: SourceRows) -> None:
    """Tensors that config.json ties, but that are stored twice, must be equal."""
    for source, name, twin in plan.same:
        tensors = plan.sources[source].tensors
        a, b = (Stored(source, n, tensors[n].shape, tensors[n].dtype) for n in (name, twin))
        step = max(1, WRITER_BYTES // max(1, a.shape[1] * ITEM_BYTES[a.dtype]))
        same = (a.shape, a.dtype) == (b.shape, b.dtype) and all(
            rows(a, i, min(i + step, a.shape[0])) == rows(b, i, min(i + step, a.shape[0]))
            for i in range(0, a.shape[0], step)
        )
        if not same:
            raise CheckpointError(
                f"{plan.sources[source].path}: {name} and {twin} differ, but config.json ties them",
                hint='set "tie_word_embeddings": false in config.json if the head is its own',
            )


def _write_shards(
    job: _Job, work: Workspace, rows: SourceRows, allow_nonfinite: bool, progress: Progress | None
) -> dict[str, dict[str, Any]]:
    """All output files that are not there yet; file and checksum of every tensor."""
    tensors: dict[str, dict[str, Any]] = {}
    done, total = 0, sum(s.size for s in job.layout.shards)

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    for shard in job.layout.shards:
        mark = work.finished(shard.name)
        if mark is None:
            checksums = _write_shard(shard, job, work, rows, allow_nonfinite, tell)
            work.mark(shard, checksums)
        else:
            checksums = mark["crc32"]
            tell(shard.size)
        tensors |= {n: {"file": shard.name, "crc32": crc} for n, crc in checksums.items()}
    return tensors


def _write_shard(
    shard: Shard,
    job: _Job,
    work: Workspace,
    rows: SourceRows,
    allow_nonfinite: bool,
    tell: Callable[[int], None],
) -> dict[str, str]:
    checksums = {}
    with ShardWriter(work.folder, shard) as writer:
        tell(len(shard.header))
        for placed in shard.tensors:
            writer.begin(placed)
            bad = overflowed = 0
            for block in _blocks(placed.formula, rows, job.budget):
                writer.write(block.data)
                bad, overflowed = bad + block.nonfinite, overflowed + block.overflowed
                tell(len(block.data))
            if bad and not allow_nonfinite:
                _refuse_values(placed.formula, bad, overflowed)
            checksums[placed.formula.name] = writer.end()
        writer.finish()
    return checksums


def _blocks(formula: Formula, rows: SourceRows, budget: int) -> Iterator[Block]:
    if is_plain(formula):
        yield from plain(formula, rows, budget=budget)
        return
    from growkit.engine import evaluate, one_thread

    with one_thread():
        yield from evaluate(formula, rows, budget=budget)


def _refuse_values(formula: Formula, bad: int, overflowed: int) -> None:
    if overflowed:
        raise CheckpointError(
            f"tensor {formula.name}: {overflowed} values are too large for {formula.dtype}",
            hint="keep the dtype, use bfloat16, or pass --allow-nonfinite",
        )
    raise CheckpointError(
        f"tensor {formula.name}: {bad} values are NaN or infinite",
        hint="mend the source, or pass --allow-nonfinite to carry them over",
    )


# keys of side files that hold a size, by user axis
SIDE_SIZES = {"word_embedding_dimension": "hidden"}


def _write_side_files(plan: Plan, work: Workspace) -> None:
    """Tokenizer and the like, byte for byte; what holds a grown size is edited."""
    first = next(iter(plan.sources.values()))

    def edit(value: Any) -> Any:
        for key, axis in SIDE_SIZES.items():
            if isinstance(value, dict) and value.get(key) == plan.sizes_before.get(axis):
                value = {**value, key: plan.sizes_after[axis]}
        return value

    for name in first.side_files:
        holds_sizes = Path(name).name == "config.json"  # of a module in a sub-folder
        work.copy_side_file(first, name, edit if holds_sizes else None)
