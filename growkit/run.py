"""The Python API: joins the rooms. It decides nothing itself.

    plan = plan_growth("small/", "bert_base")       headers only, no torch
    result = grow("small/", "bert_base")            writes small-bert_base/
    verify_growth("small/", result.out).passed      runs both models

The law: OUT appears whole or not at all, and the same plan gives the same bytes.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from growkit import __version__, report
from growkit.blocks import Block, block_rows, is_plain, plain, working_bytes
from growkit.errors import CheckpointError, RecipeError, VerifyError
from growkit.family import family_names, family_text
from growkit.formula import ITEM_BYTES, Formula, Stored
from growkit.layout import INDEX, Layout, Shard, lay_out, parse_size
from growkit.model import Model, read_model
from growkit.plan import Plan, build_plan, digest
from growkit.recipe import Recipe, check_sources, load_recipe, resolved
from growkit.store import ShardWriter, SourceRows, Workspace, check_files, open_checkpoint
from growkit.store.check import read_record, write_record

if TYPE_CHECKING:
    from growkit.verify import Verification

__all__ = [
    "Estimate", "Result", "check_files", "default_out", "estimate", "family_text", "grow",
    "inspect_checkpoint", "list_families", "plan_growth", "verify_growth",
]  # fmt: skip

# what the interpreter takes before any weight is read, in bytes, with room for allocators
BASE_BYTES = 60_000_000
TORCH_BYTES = 220_000_000
WRITER_BYTES = 16_000_000

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


def plan_growth(
    source: str | Path,
    recipe: str | Path | Recipe,
    *,
    sources: Mapping[str, str] | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    seed: int | None = None,
    family: Path | None = None,
) -> Plan:
    """The plan of growing `source` by `recipe`, from headers alone.

    `sources` are further checkpoints by the recipe's names; `overrides` are `PATH=VALUE` as in
    `--set`. Raises RecipeError, FamilyError or CheckpointError.
    """
    if isinstance(recipe, Recipe):
        name, chosen = "recipe", recipe
        changes = {k: v for k, v in (("dtype", dtype), ("seed", seed)) if v is not None}
        if overrides:
            raise RecipeError("overrides: only for recipes given by name or file")
        if changes:
            chosen = Recipe.model_validate({**chosen.model_dump(by_alias=True), **changes})
    else:
        name, chosen = load_recipe(str(recipe), overrides=overrides, dtype=dtype, seed=seed)
    further = dict(sources or {})
    check_sources(chosen, further)
    models = {chosen.sources[0]: _model(source, config, family)}
    for label in chosen.sources[1:]:
        models[label] = _model(further[label], None, family)
    return build_plan(name, chosen, models)


def _model(path: str | Path, config: Path | None, family: Path | None) -> Model:
    return read_model(open_checkpoint(path, config=config), family)


@dataclass(frozen=True, slots=True)
class _Job:
    """A plan with everything that writing it needs."""

    plan: Plan
    layout: Layout
    budget: int  # bytes for one block of rows
    estimate: Estimate


def _job(plan: Plan, max_shard_size: str | int, max_memory: str | int) -> _Job:
    layout = lay_out(plan.formulas, max_shard_bytes=parse_size(max_shard_size))
    torch = 0 if all(map(is_plain, plan.formulas)) else TORCH_BYTES
    fixed = BASE_BYTES + WRITER_BYTES + torch
    budget = max(parse_size(max_memory) - fixed, 0)
    work = max(working_bytes(f, block_rows(f, budget)) for f in plan.formulas)
    known = Estimate(
        output_bytes=sum(f.nbytes for f in plan.formulas),
        disk_bytes=layout.total_bytes,
        peak_bytes=fixed + work,
        shards=tuple(s.name for s in layout.shards),
        digest=digest(plan, (s.header for s in layout.shards), resolved(plan.recipe)),
    )
    return _Job(plan, layout, budget, known)


def estimate(
    plan: Plan, *, max_shard_size: str | int = "5GB", max_memory: str | int = "2GB"
) -> Estimate:
    """Bytes on disk and in memory, files and digest. Raises ResourceError if a row does not fit."""
    return _job(plan, max_shard_size, max_memory).estimate


def default_out(source: str | Path, recipe_name: str) -> Path:
    """`<stem>-<recipe>` in the working directory.

    >>> default_out("models/small.safetensors", "bert_base")
    PosixPath('small-bert_base')
    """
    path = Path(source)
    stem = path.resolve().name if path.is_dir() else path.name.removesuffix(".index.json")
    return Path(f"{stem.removesuffix('.safetensors')}-{recipe_name}")


def grow(
    source: str | Path,
    recipe: str | Path | Recipe,
    *,
    out: str | Path | None = None,
    sources: Mapping[str, str] | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    seed: int | None = None,
    family: Path | None = None,
    max_shard_size: str | int = "5GB",
    max_memory: str | int = "2GB",
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Write the grown checkpoint to `out`, by default `<stem>-<recipe>/` in the working directory.

    Returns at once if `out` already holds the same result. With `verify` both models are run at the
    end, and VerifyError is raised if the claim does not hold. Raises what `plan_growth` raises, and
    UsageError, ResourceError or OutputError before anything is written.
    """
    plan = plan_growth(
        source,
        recipe,
        sources=sources,
        config=config,
        overrides=overrides,
        dtype=dtype,
        seed=seed,
        family=family,
    )
    target = Path(out) if out is not None else default_out(source, plan.recipe_name)
    result = execute(
        plan,
        target,
        max_shard_size=max_shard_size,
        max_memory=max_memory,
        overwrite=overwrite,
        allow_nonfinite=allow_nonfinite,
        progress=progress,
    )
    if not verify:
        return result
    found = verify_growth(source, result.out, config=config)
    record = {**result.report, "verify": report.verification_json(found)}
    write_record(result.out, record)
    if not found.passed:
        raise VerifyError(
            f"{result.out}: {'; '.join(found.failures)}",
            hint="the checkpoint is written; growkit.json holds the measurement",
        )
    return replace(result, report=record)


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
    job = _job(plan, max_shard_size, max_memory)
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
        sizes = {s.name: s.size for s in job.layout.shards}
        record = report.report_json(
            plan,
            version=__version__,
            digest=job.estimate.digest,
            files=sizes,
            tensors=tensors,
            started=started,
            seconds=time.monotonic() - begin,
            peak_bytes=_peak_bytes(),
        )
        work.write_text("recipe.yaml", resolved(plan.recipe))
        work.write_text("README.md", report.model_card(plan, record))
        work.write_text("config.json", _json(plan.config))
        if job.layout.index:
            work.write_text(INDEX, _json(job.layout.index))
        work.write_text("growkit.json", _json(record))
        return Result(work.commit(), plan, record, False, time.monotonic() - begin)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _peak_bytes() -> int:
    """The most memory this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
        return plain(formula, rows, budget=budget)
    from growkit.engine import evaluate

    return evaluate(formula, rows, budget=budget)


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


# -- looking -------------------------------------------------------------------------------------


def verify_growth(
    small: str | Path,
    big: str | Path,
    *,
    config: Path | None = None,
    text: str | None = None,
    max_drift: float | None = None,
) -> Verification:
    """Run both models and hold the difference against what `big`'s growkit.json claims.

    Where there is a growkit.json, every byte of `big` is checked too. Raises UsageError if
    transformers is not installed.
    """
    from growkit import verify

    record = read_record(Path(big)) if Path(big).is_dir() else None
    return verify.verify(
        open_checkpoint(small, config=config),
        open_checkpoint(big),
        growth=record,
        text=text,
        max_drift=max_drift,
        file_problems=check_files(big) if record else (),
    )


def inspect_checkpoint(
    path: str | Path, *, config: Path | None = None, family: Path | None = None
) -> dict[str, Any]:
    """What a checkpoint is: family, axes and what can grow, parameters, dtypes, ties, files."""
    model = _model(path, config, family)
    coupled = {
        a
        for expressions in model.family.config.values()
        if len(expressions) > 1
        for e in expressions
        for a in e.axes
    }
    axes = {}
    for axis, members in model.family.user_axes.items():
        if members[0] not in model.sizes:
            continue
        table = model.family.axes[members[0]] == "table"
        why = "a table keeps its size" if table else ""
        if not table and members[0] in coupled and axis != "head_dim":
            others = {u for u, m in model.family.user_axes.items() if coupled & {*m}} - {axis}
            why = f"together with {' and '.join(sorted(others))}"
        axes[axis] = {"size": model.sizes[members[0]], "can_grow": not table, "why": why}
    dtypes: dict[str, int] = {}
    for entry in model.entries.values():
        dtypes[entry.info.dtype] = dtypes.get(entry.info.dtype, 0) + 1
    parameters = sum(
        (e.info.stop - e.info.start) // ITEM_BYTES[e.info.dtype] for e in model.entries.values()
    )
    return {
        "path": str(path),
        "family": model.family.name,
        "about": model.family.about,
        "classes": list(model.config.get("architectures") or []),
        "axes": axes,
        "parameters": parameters,
        "tensors": len(model.entries),
        "dtypes": dtypes,
        "tied": model.tied,
        "dropped": list(model.dropped),
        "files": [f.name for f in model.checkpoint.files],
        "side_files": list(model.checkpoint.side_files),
    }


def list_families() -> list[dict[str, Any]]:
    """The families that ship with growkit: name, model types, what it is about."""
    found = []
    for name in family_names():
        data = yaml.safe_load(family_text(name))
        types = data["model_type"]
        found.append({"name": name, "model_types": types, "about": data.get("about", "")})
    return found
