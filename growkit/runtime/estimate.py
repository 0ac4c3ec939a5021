"""What a growth will take in bytes, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict, Unpack

from growkit.byte_sizes import format_size, parse_size
from growkit.engine.row_blocks import needs_arithmetic
from growkit.engine.working_memory import block_rows, dense_bytes, one_per_cost, working_bytes
from growkit.errors import ResourceError
from growkit.output.append import BUFFER, BUFFERS
from growkit.output.layout import Layout, lay_out
from growkit.planning.plan import Plan
from growkit.recipe.recipe import resolved
from growkit.runtime import result_files
from growkit.runtime.digest import digest
from growkit.runtime.memory import available_bytes
from growkit.runtime.ranks import Share

# what the interpreter takes before any weight is read, in bytes, with room for allocators
BASE_BYTES = 60_000_000


TORCH_BYTES = 220_000_000


WRITER_BYTES = BUFFERS * BUFFER


TENSOR_BYTES = 2_500  # of plan and report, for each tensor of the sources and of the result


MATRIX_COPIES = 6  # of a dense map: as read, as a kernel, transposed, as text in growkit.json


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a growth will take, known before anything is written."""

    output_bytes: int
    disk_bytes: int
    peak_bytes: int
    shards: tuple[str, ...]
    digest: str


class Options(TypedDict, total=False):
    """How a plan is written; only the split into files makes another result of it."""

    max_shard_size: str | int
    max_memory: str | int  # of this process and its workers; on a cluster, of each task
    workers: int  # processes
    cluster: str | None  # the address of a Dask scheduler
    overwrite: bool
    allow_nonfinite: bool


@dataclass(frozen=True, slots=True)
class How:
    max_shard_size: str | int = "5GB"
    max_memory: str | int = "2GB"
    workers: int = 1
    cluster: str | None = None
    overwrite: bool = False
    allow_nonfinite: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A plan with everything that writing it needs."""

    plan: Plan
    layout: Layout
    budget: int  # bytes for one block of rows
    estimate: Estimate


def job_of(plan: Plan, how: How, share: Share | None = None) -> Job:
    layout = lay_out(plan.formulas, max_shard_bytes=parse_size(how.max_shard_size))
    behind = [formula for follower in plan.stages for formula in follower.formulas]
    kinds = one_per_cost([*plan.formulas, *behind])
    torch = TORCH_BYTES if any(map(needs_arithmetic, kinds)) else 0
    fixed = BASE_BYTES + WRITER_BYTES + torch + MATRIX_COPIES * dense_bytes(kinds)
    count = max(1, min(how.workers, len((share or Share(0, 1)).of(layout.shards))))
    # the plan, and the process that waits for the workers
    outside = plan_bytes(plan) + (BASE_BYTES if count > 1 else 0)
    asked, free = parse_size(how.max_memory), available_bytes()
    # on a cluster, the memory is that of other machines
    whole = asked if free is None or how.cluster else min(asked, free)
    allowed = (whole - outside) // count
    largest = max(kinds, key=lambda f: working_bytes(f, 1))
    least = fixed + working_bytes(largest, 1)
    if least > allowed:
        whose = f" for {count} workers" if count > 1 else ""
        fewer = ", or use fewer --workers" if count > 1 else ""
        enough = f"{-(-(outside + count * least) // 1_000_000)}MB"
        limit, hint = (
            f"--max-memory {format_size(asked)}",
            f"--max-memory {enough} is enough{fewer}",
        )
        if whole < asked:
            limit, hint = (
                f"memory: {format_size(whole)} free",
                f"free some: {enough} is enough{fewer}",
            )
        raise ResourceError(
            f"{limit}{whose}: one row of "
            f"{largest.name} {list(largest.shape)} {largest.dtype} and the program itself take "
            f"{format_size(least)}{' each' if count > 1 else ''}",
            hint=hint,
        )
    budget = allowed - fixed
    work = max(working_bytes(f, block_rows(f, budget)) for f in kinds)
    known = Estimate(
        output_bytes=sum(f.nbytes for f in plan.formulas),
        disk_bytes=layout.total_bytes
        + sum(s.size for s in result_files.stage_files(plan).values()),
        peak_bytes=outside + count * (fixed + work),
        shards=tuple(s.name for s in layout.shards),
        digest=digest(
            plan,
            (s.header for s in layout.shards),
            # a result that may hold NaN is not what a run that refuses NaN asks for
            resolved(plan.recipe) + ("allow-nonfinite" if how.allow_nonfinite else ""),
        ),
    )
    return Job(plan, layout, budget, known)


def plan_bytes(plan: Plan) -> int:
    """Bytes that the plan itself takes, and all that is told of it."""
    sources = sum(len(checkpoint.tensors) for checkpoint in plan.sources.values())
    return TENSOR_BYTES * (sources + len(plan.formulas))


def estimate(plan: Plan, **options: Unpack[Options]) -> Estimate:
    """Bytes on disk and in memory, files and digest. Raises ResourceError if a row does not fit."""
    return job_of(plan, How(**options)).estimate
