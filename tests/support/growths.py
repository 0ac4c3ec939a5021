"""Growths that many tests try, and what each measures: both models run in float64.

`GROWTHS` are tried with every model of the zoo: a column of docs/families.md each. `FURTHER` ones,
with noise and other maps, are tried with the classes of `HEADS`: one for each way that a proof can
go. A cell is one model × one growth: what the plan claims, what float64 measures, or why it is
refused.
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
from growkit.planning.plan import Plan
from growkit.planning.proof.claim import EPS, EXACT
from growkit.recipe.recipe import parse_recipe
from growkit.verify.compare import tolerance
from support import tiny

Steps = list[dict[str, Any]]
NOISE: dict[str, Any] = {"op": "noise", "snr_db": 0}
DEEPER: dict[str, Any] = {"op": "depth", "to": {"layers": "2x"}}
GROWTHS = (
    "width 2x", "width 3/2x", "mlp", "heads", "heads in groups", "head_dim 2x", "head_dim 3/2x",
    "hidden and head_dim 2x", "experts", "vocab", "silent depth", "width, depth, noise", "fusion",
    "fusion of two",
)  # fmt: skip
HEADS = [
    ("bert", "base"), ("bert", "no pooler"), ("bert", "masked_lm"), ("bert", "pretraining"),
    ("bert", "sequence"), ("gpt2", "base"), ("gpt2", "causal"), ("gpt2", "untied"),
    ("gpt2", "sequence"), ("llama", "base"), ("llama", "causal"), ("llama", "tied"),
    ("llama", "biased"), ("llama", "classifier"), ("llama", "mistral"), ("llama", "qwen2"),
    ("llama", "qwen2 tied"),
]  # fmt: skip
COUPLED = ("bert", "gpt2")  # hidden = heads × head_dim in code
TOLERANCE = {torch.float64: {EXACT: 1e-10, EPS: 1e-9}, torch.float32: {EXACT: 2e-5, EPS: 2e-5}}
DIFFERS = 1e-3


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


FURTHER: dict[str, Steps] = {  # with the classes of `HEADS` alone
    "3x": [width(axes="3x")],
    "2x, noise": [width(axes="2x"), NOISE],
    "3x, noise": [width(axes="3x"), NOISE],
    "3/2x, noise": [width(axes="3/2x"), NOISE],
    "mlp, noise": [width(mlp=25), NOISE],
    "silent 2x, noise": [DEEPER, NOISE],
    "noise, then 3/2x": [width(mlp="2x"), NOISE, width(axes="3/2x")],
    "stack": [{**DEEPER, "how": "stack"}],
    "uneven split": [{**width(mlp="2x"), "how": {"mlp": {"map": "uneven", "weights": [2, 1]}}}],
}
FREE: dict[str, Steps] = {  # families whose head size is a config key of its own
    "heads only": [width(heads=8)],
    "heads only, noise": [width(heads=8), NOISE],
    "heads only, fresh": [width(heads=6)],
    "heads only, fresh, noise": [width(heads=6), NOISE],
    "heads and kv heads": [width(hidden=48, heads=8, kv_heads=4), NOISE],
    "fresh kv heads": [width(hidden=48, heads=6, kv_heads=3), NOISE],
    "kv heads only": [width(kv_heads=4)],
    "head_dim only, noise": [width(head_dim="2x"), NOISE],
    "head_dim only, 3/2x, noise": [width(head_dim="3/2x"), NOISE],
    "hidden only": [width(hidden=28), NOISE],
    "hidden isometric": [{**width(hidden=28), "how": "isometric"}, NOISE],
    "hidden circular": [{**width(hidden=28), "how": "circular"}],
    "hidden repeat": [{**width(hidden=48), "how": "repeat"}, NOISE],
    "explicit layers": [{"op": "depth", "layers": [0, 0, 1], "new": "silent"}],
}
TOGETHER: dict[str, Steps] = {  # and the others
    "hidden and head_dim 2x, noise": [width(hidden="2x", head_dim="2x"), NOISE],
    "hidden and head_dim 3/2x, noise": [width(hidden="3/2x", head_dim="3/2x"), NOISE],
    "repeat": [{**width(axes="2x"), "how": "repeat"}, NOISE],
}


def sizes(family: str) -> dict[str, int]:
    """Sizes that differ from each other, with grouped kv heads and a free head size if possible."""
    common = {"heads": 4, "head_dim": 4, "mlp": 18, "layers": 2}
    if family in COUPLED:
        return common
    return {**common, "kv_heads": 2, "hidden": 24}


def steps_of(steps: list[dict[str, Any]], **keys: Any) -> Any:
    """A recipe of these steps."""
    return parse_recipe({"steps": steps, **keys})


def growth_of(name: str, model: Model) -> Steps | None:
    """The steps of a named growth for a model; None where it has nothing to grow."""
    if steps := (FURTHER | FREE | TOGETHER).get(name):
        return steps
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
        used = {a for e in model.entries.values() for x, _ in e.pattern.dims for a in x.axes}
        return [{"op": "resize", "vocab": sizes["vocab"] + 9}] if "vocab" in used else None
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


def measure(model: Any, small: Path, result: api.Result) -> float:
    """The largest difference of the outputs that a growth makes, relative to the largest output."""
    return drift(tiny.Saved(model, small), result.out, result.plan)


def drift(small: tiny.Saved, out: Path, plan: Plan) -> float:
    """The same; hidden states are read back through the map of their stream."""
    stream = plan.maps.get(plan.hidden_axis or "")
    read = torch.from_numpy(stream.read.matrix()) if stream else None
    return tiny.difference(small.outputs, small.outputs_of(out), read)


def try_growth(small: tiny.Saved, name: str, out: Path) -> Cell | None:
    """Grow a saved model, run both and compare; None where there is nothing to grow."""
    sources: dict[str, str] = {}
    if name in ("fusion", "fusion of two"):
        other = small.folder
        if name == "fusion of two":
            other = tiny.save(small.another(), out.with_name(out.name + "-other"))
        recipe = {"sources": ["small", "other"], "steps": [{"op": "fuse", "with": ["other"]}]}
        sources = {"other": str(other)}
    else:
        steps = growth_of(name, read_model(open_checkpoint(small.folder)))
        if steps is None:
            return None
        recipe = {"steps": steps}
    try:
        result = api.grow(small.folder, parse_recipe(recipe), sources=sources, out=out)
    except GrowkitError as error:
        return Cell("refused", error.message, None)
    claim = result.plan.claim
    allowed = tolerance(claim.claim, "float64", claim.eps, claim.passes) or 0.0
    measured = drift(small, out, result.plan)
    return Cell(claim.claim, "; ".join(claim.reasons), measured, max(allowed, 1e-9))
