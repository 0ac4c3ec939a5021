"""Everything beside the weights: config, index, recipe, report, page, card, tokenizer, stages.

Most of it is known before a weight is written. The law: what `known` gives is plain data, so that
another process can complete the result without the plan or the sources; growkit.json comes last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from growkit import __version__
from growkit.output.layout import INDEX, Layout, Shard, lay_out
from growkit.output.record import checksums, json_text, seal
from growkit.output.workspace import Workspace
from growkit.planning.plan import Plan
from growkit.planning.sentence_transformers import resized
from growkit.recipe.recipe import resolved
from growkit.report.as_json import report_json
from growkit.report.model_card import model_card
from growkit.report.page import PAGE, SVG
from growkit.report.page.page import growth_page
from growkit.report.page.svg import growth_svg
from growkit.runtime.task import Task, write_file


def known(plan: Plan, layout: Layout, digest: str) -> dict[str, Any]:
    """All that can be said of a result before its weights are there."""
    shards = layout.shards
    record = report_json(
        plan,
        version=__version__,
        digest=digest,
        files={},
        checksums={},
        tensors={
            placed.formula.name: {"file": shard.name, "crc32": ""}
            for shard in shards
            for placed in shard.tensors
        },
        started="",
        seconds=0,
        peak_bytes=0,
    )
    texts = {
        "recipe.yaml": resolved(plan.recipe),
        "config.json": json_text(plan.config),
        PAGE: growth_page(plan, output_bytes=layout.total_bytes),
        SVG: growth_svg(plan),
    }
    if layout.index:
        texts[INDEX] = json_text(layout.index)
    return {
        "record": record,
        "texts": texts,
        "card": model_card(plan, record, image=SVG),
        "shards": {shard.name: shard.size for shard in shards},
    }


def complete(
    beside: Mapping[str, Any],
    work: Workspace,
    *,
    started: str,
    seconds: float,
    peak_bytes: int,
) -> dict[str, Any]:
    """Add what is known, and growkit.json with what was measured; all shards are there by now."""
    record: dict[str, Any] = beside["record"]
    for shard in beside["shards"]:
        mark = work.marks.finished(shard)
        assert mark is not None, f"{shard}: described before it was complete"
        for name, crc in mark["crc32"].items():
            record["tensors"][name]["crc32"] = crc
        for name, count in mark["extra"]["nonfinite"].items():
            record["tensors"][name]["nonfinite"] = count
    for name, text in beside["texts"].items():
        work.add(name, text)
    listed = work.sizes().items()  # but for README.md, which is for people to edit
    record["files"] = {n: size for n, size in listed if n not in ("README.md", "growkit.json")}
    record["checksums"] = checksums(work.folder, record["files"])
    record["timings"] = {"started": started, "seconds": round(seconds, 3)}
    record["peak_memory_bytes"] = peak_bytes
    work.add("README.md", beside["card"])
    work.add("growkit.json", seal(json_text(record).encode()))
    return record


def stage_files(plan: Plan) -> dict[str, Shard]:
    """The files of weights that stages behind the model grow, by their names in OUT."""
    files = {}
    for follower in plan.stages:
        if follower.formulas:
            size = sum(f.nbytes for f in follower.formulas)
            (shard,) = lay_out(follower.formulas, max_shard_bytes=size).shards
            name = f"{follower.stage.folder}/{shard.name}"
            files[name] = replace(shard, name=name)
    return files


def carry(plan: Plan, work: Workspace, *, budget: int, allow_nonfinite: bool) -> None:
    """Tokenizer and the like, byte for byte; what holds a grown size is edited, or grown itself."""
    first = next(iter(plan.sources.values()))
    files, followers = stage_files(plan), {f.stage.folder: f for f in plan.stages}
    unlisted = {name.rpartition("/")[0] for name in first.side_files} - {
        stage.folder for stage in first.stages
    }
    before, after = (sizes.get("hidden") for sizes in (plan.sizes_before, plan.sizes_after))

    def edit(folder: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if folder in followers:
            return {**value, **followers[folder].sizes}
        if folder in unlisted and before and after:
            return {**value, **resized(value, before, after)}
        return value

    for name in first.side_files:
        folder, _, file = name.rpartition("/")
        if name in files:
            sources = {folder: followers[folder].stage.stored}
            write_file(
                Task(files[name], sources, work.marks, budget, allow_nonfinite, shared=False)
            )
        elif file == "config.json":
            work.copy_side_file(first, name, partial(edit, folder))
        else:
            work.copy_side_file(first, name)
