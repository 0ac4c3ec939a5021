"""What writing a plan takes, known before anything is written: files, bytes, memory, digest.

The law: a plan is refused here, while nothing has been made, if one row of one tensor does not fit
into the memory that it may take; what is left of that memory decides the size of a block of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from growkit.byte_sizes import format_size, parse_size
from growkit.engine.row_blocks import needs_arithmetic
from growkit.engine.working_memory import block_rows, dense_bytes, one_per_cost, working_bytes
from growkit.errors import ResourceError
from growkit.output.append import BUFFER, BUFFERS
from growkit.output.layout import Layout, Shard, lay_out
from growkit.planning.plan import Estimate, Plan
from growkit.recipe.recipe import resolved
from growkit.runtime import result_files
from growkit.runtime.digest import digest
from growkit.runtime.memory import available_bytes
from growkit.runtime.ranks import Rank

# what the interpreter takes before any weight is read, in bytes, with room for allocators
BASE_BYTES = 60_000_000
TORCH_BYTES = 220_000_000
WRITER_BYTES = BUFFERS * BUFFER
TENSOR_BYTES = 2_500  # of plan and report, for each tensor of the sources and of the result
MATRIX_COPIES = 6  # of a dense map: as read, as a kernel, transposed, as text in growkit.json


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How a plan is written; only the split into files makes another result of it."""

    max_shard_size: str | int = "5GB"
    max_memory: str | int = "2GB"  # of this process and its workers; on a cluster, of each task
    workers: int = 1  # processes
    cluster: str | None = None  # the address of a Dask scheduler
    overwrite: bool = False
    allow_nonfinite: bool = False


DEFAULTS = WriteOptions()


@dataclass(frozen=True, slots=True)
class PreparedPlan:
    """A plan with everything that writing it needs."""

    plan: Plan
    options: WriteOptions
    rank: Rank | None  # of several ranks; None where one run writes all
    layout: Layout
    block_bytes: int  # that one block of rows may take
    estimate: Estimate

    @property
    def shards(self) -> Sequence[Shard]:
        """The files that this run writes."""
        return self.rank.part_of(self.layout.shards) if self.rank else self.layout.shards


def estimate(plan: Plan, options: WriteOptions = DEFAULTS) -> Estimate:
    """Bytes on disk and in memory, files and digest. Raises ResourceError if a row does not fit."""
    return prepare(plan, options).estimate


def prepare(plan: Plan, options: WriteOptions = DEFAULTS, rank: Rank | None = None) -> PreparedPlan:
    """Lay the files out and share the memory out. Raises ResourceError if a row does not fit."""
    layout = lay_out(plan.formulas, max_shard_bytes=parse_size(options.max_shard_size))
    of_modules = [formula for module in plan.modules for formula in module.formulas]
    kinds = one_per_cost([*plan.formulas, *of_modules])
    torch = TORCH_BYTES if any(map(needs_arithmetic, kinds)) else 0
    fixed = BASE_BYTES + WRITER_BYTES + torch + MATRIX_COPIES * dense_bytes(kinds)
    shards = rank.part_of(layout.shards) if rank else layout.shards
    workers = max(1, min(options.workers, len(shards)))
    # the plan, and the process that waits for the workers
    outside = plan_bytes(plan) + (BASE_BYTES if workers > 1 else 0)
    limit_asked, free = parse_size(options.max_memory), available_bytes()
    # on a cluster, the memory is that of other machines
    memory = limit_asked if free is None or options.cluster else min(limit_asked, free)
    of_each = (memory - outside) // workers
    largest = max(kinds, key=lambda f: working_bytes(f, 1))
    least = fixed + working_bytes(largest, 1)
    if least > of_each:
        several = workers > 1
        enough = f"{-(-(outside + workers * least) // 1_000_000)}MB is enough"
        limit, hint = f"--max-memory {format_size(limit_asked)}", f"--max-memory {enough}"
        if memory < limit_asked:
            limit, hint = f"memory: {format_size(memory)} free", f"free some: {enough}"
        raise ResourceError(
            f"{limit}{f' for {workers} workers' if several else ''}: one row of "
            f"{largest.name} {list(largest.shape)} {largest.dtype} and the program itself take "
            f"{format_size(least)}{' each' if several else ''}",
            hint=hint + (", or use fewer --workers" if several else ""),
        )
    block_bytes = of_each - fixed
    working = max(working_bytes(f, block_rows(f, block_bytes)) for f in kinds)
    module_bytes = sum(shard.size for shard in result_files.module_files(plan).values())
    return PreparedPlan(
        plan,
        options,
        rank,
        layout,
        block_bytes,
        Estimate(
            output_bytes=sum(shard.size - len(shard.header) for shard in layout.shards),
            disk_bytes=layout.total_bytes + module_bytes,
            peak_bytes=outside + workers * (fixed + working),
            shards=tuple(shard.name for shard in layout.shards),
            digest=digest_of(plan, layout, options),
        ),
    )


def digest_of(plan: Plan, layout: Layout, options: WriteOptions) -> str:
    """What identifies the result; one that may hold NaN is not what a run that refuses NaN asks."""
    recipe_text = resolved(plan.recipe) + ("allow-nonfinite" if options.allow_nonfinite else "")
    return digest(plan, (shard.header for shard in layout.shards), recipe_text)


def plan_bytes(plan: Plan) -> int:
    """Bytes that the plan itself takes, and all that is told of it."""
    sources = sum(len(checkpoint.tensors) for checkpoint in plan.sources.values())
    return TENSOR_BYTES * (sources + len(plan.formulas))
