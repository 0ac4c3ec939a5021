"""The growths that every family is tried with, and what each measures.

A cell is one model × one growth: what the plan claims, what float64 measures, or why it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from growkit import api
from growkit.checkpoints.open import open_checkpoint
from growkit.errors import GrowkitError
from growkit.families.family import Family
from growkit.families.model import Model, read_model
from growkit.recipe.recipe import parse_recipe
from growkit.verify.compare import tolerance
from support import zoo

Steps = list[dict[str, Any]]
NOISE: dict[str, Any] = {"op": "noise", "snr_db": 0}
DEEPER: dict[str, Any] = {"op": "depth", "to": {"layers": "2x"}}
NAMES = (
    "width 2x", "width 3/2x", "mlp", "heads", "heads in groups", "head_dim 2x", "head_dim 3/2x",
    "hidden and head_dim 2x", "experts", "vocab", "silent depth", "width, depth, noise", "fusion",
    "fusion of two",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What one growth of one model is."""

    claim: str  # exact | exact up to norm eps | approximate | refused
    why: str  # reasons, or the error
    measured: float | None  # largest relative difference; None if refused
    allowed: float = 0.0  # what the claim allows, where it is exact


def width(**to: Any) -> dict[str, Any]:
    """A width step."""
    return {"op": "width", "to": to}


def steps_of(name: str, model: Model) -> Steps | None:
    """The steps of a named growth for a model; None where it has nothing to grow."""
    family, sizes = model.family, model.user_sizes()
    attention = family.attentions[0] if family.attentions else None
    grouped = {t.heads for t in family.attentions if t.kv_heads in sizes}
    if name == "width 2x":
        return [width(axes="2x")]
    if name == "width 3/2x":
        return [width(axes="3/2x")]
    if name == "mlp":
        units = [a for a in family.of_kind("neurons") if a in sizes]
        return [width(**{a: sizes[a] + 7 for a in units})] if units else None
    if name == "heads":
        more = {}
        for t in family.attentions:
            kv = sizes.get(t.kv_heads, 1) if t.heads in grouped else 1
            more[t.heads] = sizes[t.heads] + sizes[t.heads] // kv if kv > 1 else sizes[t.heads] + 1
            if t.heads in grouped:
                more[t.kv_heads] = sizes[t.kv_heads] + 1
                more[t.heads] = sizes[t.heads] // sizes[t.kv_heads] * more[t.kv_heads]
        return [_with_hidden(family, sizes, width(**more))] if more else None
    if name == "heads in groups":
        more = {h: sizes[h] + sizes[t.kv_heads] for t in family.attentions
                if (h := t.heads) in grouped and sizes[t.kv_heads] < sizes[h]}  # fmt: skip
        return [_with_hidden(family, sizes, width(**more))] if more else None
    if name.startswith("head_dim"):
        ratio = name.split()[1]
        return [width(**{t.head_dim: ratio for t in family.attentions})] if attention else None
    if name == "hidden and head_dim 2x":
        both = {*family.of_kind("stream"), *(t.head_dim for t in family.attentions)} & sizes.keys()
        return [width(**dict.fromkeys(sorted(both), "2x"))] if attention else None
    if name == "experts":
        more = dict.fromkeys((a for a in family.of_kind("experts") if a in sizes), "2x")
        return [width(**more)] if more else None
    if name == "vocab":
        there = {a for e in model.entries.values() for x, _ in e.pattern.dims for a in x.axes}
        return [{"op": "resize", "vocab": sizes["vocab"] + 9}] if "vocab" in there else None
    layers = [a for a in family.of_kind("layers") if a in sizes]
    deeper = {"op": "depth", "to": dict.fromkeys(layers, "2x")}
    if name == "silent depth":
        return [deeper]
    if name == "width, depth, noise":
        return [width(axes="2x"), *([deeper] if layers else []), NOISE]
    return None


def _with_hidden(family: Family, sizes: Mapping[str, int], step: dict[str, Any]) -> dict[str, Any]:
    """Where the config asks that hidden be a multiple of heads, hidden grows to the next one."""
    for rule in family.require:
        stream, _, heads = rule.split()
        if heads in step["to"] and stream in sizes and sizes[stream] % step["to"][heads]:
            count = step["to"][heads]
            step["to"][stream] = -(-sizes[stream] // count) * count
    return step


def measure(small: zoo.Saved, name: str, out: Path) -> Cell | None:
    """Grow a saved model, run both and compare; None where there is nothing to grow."""
    sources: dict[str, str] = {}
    if name in ("fusion", "fusion of two"):
        other = small.folder
        if name == "fusion of two":
            other = zoo.save(zoo.build(small.tiny, seed=9), out.with_name(out.name + "-other"))
        recipe = {"sources": ["small", "other"], "steps": [{"op": "fuse", "with": ["other"]}]}
        sources = {"other": str(other)}
    else:
        steps = steps_of(name, read_model(open_checkpoint(small.folder)))
        if steps is None:
            return None
        recipe = {"steps": steps}
    try:
        result = api.grow(small.folder, parse_recipe(recipe), sources=sources, out=out)
    except GrowkitError as error:
        return Cell("refused", error.message, None)
    readback = result.plan.maps.get(result.plan.readback or "")
    matrix = torch.from_numpy(readback.read.matrix()) if readback else None
    claim = result.plan.claim
    allowed = tolerance(claim.claim, "float64", claim.eps, claim.passes) or 0.0
    error = zoo.difference(small.outputs, small.outputs_of(out), matrix)
    return Cell(claim.claim, "; ".join(claim.reasons), error, max(allowed, 1e-9))
