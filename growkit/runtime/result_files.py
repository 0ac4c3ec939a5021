"""Everything beside the weights: config, index, recipe, report, page, card, tokenizer, modules.

Most of it is known before a weight is written. The law: a description is plain data, so that
another process can complete the result without the plan or the sources; growkit.json comes last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from growkit._version import __version__
from growkit.checkpoints.side_files import GENERATION_CONFIG
from growkit.checkpoints.tensor_list import measured
from growkit.families.named_layers import follow_layers
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


def _generation(plan: Plan, settings: Any) -> Any:
    """Settings of generation, with the layers and heads that they name."""
    if not isinstance(settings, dict):
        return settings
    state = plan.state
    model, maps = state.model, (state.layer_maps, state.maps)
    return follow_layers(model.family, settings, *maps, model.sizes)


def describe(plan: Plan, layout: Layout, digest: str) -> dict[str, Any]:
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
    description: Mapping[str, Any],
    work: Workspace,
    *,
    started: str,
    seconds: float,
    peak_bytes: int,
) -> dict[str, Any]:
    """Add what `describe` gave, and growkit.json with what was measured; it is returned.

    All shards are there by now.
    """
    record: dict[str, Any] = description["record"]
    crc32: dict[str, str] = {}
    nonfinite: dict[str, int] = {}
    for shard in description["shards"]:
        mark = work.marks.finished(shard)
        assert mark is not None, f"{shard}: described before it was complete"
        crc32 |= mark["crc32"]
        nonfinite |= mark["extra"]["nonfinite"]
        for source, taken in mark["extra"].get("sources", {}).items():
            for file in record["sources"][source]["files"]:
                file["crc32"] = taken.get(file["name"], file["crc32"])
    record["tensors"] = {
        name: measured(name, entry, crc32, nonfinite) for name, entry in record["tensors"].items()
    }
    for name, text in description["texts"].items():
        work.add(name, text)
    unlisted = ("README.md", "growkit.json")  # the former is for people to edit
    record["files"] = {n: size for n, size in work.sizes().items() if n not in unlisted}
    record["checksums"] = checksums(work.folder, record["files"])
    record["timings"] = {"started": started, "seconds": round(seconds, 3)}
    record["peak_memory_bytes"] = peak_bytes
    work.add("README.md", description["card"])
    work.add("growkit.json", seal(json_text(record).encode()))
    return record


def module_files(plan: Plan) -> dict[str, Shard]:
    """The files of weights that modules behind the model grow, by their names in OUT."""
    shards = {}
    for grown in plan.modules:
        if grown.formulas:
            size = sum(formula.nbytes for formula in grown.formulas)
            (shard,) = lay_out(grown.formulas, max_shard_bytes=size).shards
            name = f"{grown.module.folder}/{shard.name}"
            shards[name] = replace(shard, name=name)
    return shards


def copy_side_files(plan: Plan, work: Workspace, *, budget: int, allow_nonfinite: bool) -> None:
    """Tokenizer and the like, byte for byte; what holds a grown size is edited, or grown itself."""
    source = next(iter(plan.sources.values()))
    shards, grown = module_files(plan), {module.module.folder: module for module in plan.modules}
    folders = {name.rpartition("/")[0] for name in source.side_files}
    unlisted = folders - {module.folder for module in source.modules}
    before, after = (sizes.get("hidden") for sizes in (plan.sizes_before, plan.sizes_after))

    def edit(folder: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if folder in grown:
            return {**value, **grown[folder].sizes}
        if folder in unlisted and before and after:
            return {**value, **resized(value, before, after)}
        return value

    for name in source.side_files:
        folder, _, file = name.rpartition("/")
        if name in shards:
            stored = {folder: grown[folder].module.stored}
            write_file(
                Task(shards[name], stored, work.marks, budget, allow_nonfinite, shared=False)
            )
        elif name == GENERATION_CONFIG:
            work.copy_side_file(source, name, partial(_generation, plan))
        elif file == "config.json":
            work.copy_side_file(source, name, partial(edit, folder))
        else:
            work.copy_side_file(source, name)
