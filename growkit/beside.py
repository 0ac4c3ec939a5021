"""Everything beside the weights: config, index, recipe, report, pictures, model card, tokenizer.

Most of it is known before a weight is written. The law: what `known` gives is plain data, so that
another process can complete the result without the plan or the sources; growkit.json comes last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growkit import __version__, report
from growkit.card import model_card
from growkit.layout import INDEX, Layout
from growkit.picture import PAGE, PICTURE, growth_page, growth_picture
from growkit.plan import Plan
from growkit.recipe import resolved
from growkit.store import Workspace
from growkit.store.check import checksums, seal

# keys of side files that hold a size, by user axis
SIDE_SIZES = {"word_embedding_dimension": "hidden"}


def known(plan: Plan, layout: Layout, digest: str) -> dict[str, Any]:
    """All that can be said of a result before its weights are there."""
    shards = layout.shards
    record = report.report_json(
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
        "config.json": _json(plan.config),
        PAGE: growth_page(plan, output_bytes=layout.total_bytes),
        PICTURE: growth_picture(plan),
    }
    if layout.index:
        texts[INDEX] = _json(layout.index)
    return {
        "record": record,
        "texts": texts,
        "card": model_card(plan, record, picture=PICTURE),
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
    work.add("growkit.json", seal(_json(record)))
    return record


def _json(value: Any) -> str:
    """JSON for people and diffs: indented, but lists of numbers on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    flat = re.sub(r"\[[-\d.,\seE+]+\]", lambda m: re.sub(r"\s+", "", m[0]).replace(",", ", "), text)
    return flat + "\n"


def carry(plan: Plan, work: Workspace) -> None:
    """Tokenizer and the like, byte for byte; what holds a grown size is edited."""
    first = next(iter(plan.sources.values()))

    def edit(value: Any) -> Any:
        for key, axis in SIDE_SIZES.items():
            size = plan.sizes_before.get(axis)
            if size and isinstance(value, dict) and value.get(key) == size:
                value = {**value, key: plan.sizes_after[axis]}
        return value

    for name in first.side_files:
        holds_sizes = Path(name).name == "config.json"  # of a module in a sub-folder
        work.copy_side_file(first, name, edit if holds_sizes else None)
