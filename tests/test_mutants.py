"""A family file with one mistake is caught: by its tensors, by a gauge, or by a growth.

Mistakes are made in every shipped file: another axis, another order of fused parts, another norm, a
flag that is forgotten. What no check catches must not change any result, or it counts as escaped.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
import zoo

from growkit import family_file
from growkit.check import check_loaded
from growkit.errors import GrowkitError
from growkit.facts import APPROXIMATE, EPS, EXACT
from growkit.family_file import family_names, family_text
from growkit.formula import Term
from growkit.model import Model, read_model
from growkit.plan import build_plan
from growkit.recipe import parse_recipe
from growkit.store import open_checkpoint

COUNT = int(os.environ.get("GROWKIT_MUTANTS", "4"))  # per family; 0: all of them
LEAST = 0.97  # share of the mistakes that change a result that must be caught
FLAGS = (
    "like", "derived", "rope", "alibi", "scores", "multipliers", "bare_norms", "lists", "indices",
    "thresholds", "periods", "head",
)  # fmt: skip
RECIPES: list[list[dict[str, Any]]] = [
    [{"op": "width", "to": {"axes": "2x"}}],
    [{"op": "width", "to": {"axes": "3/2x"}}],
    [{"op": "width", "to": {"head_dim": "2x"}}],
    [{"op": "width", "to": {"heads": "2x"}}],
    [{"op": "width", "to": {"hidden": "2x", "head_dim": "2x"}}],
    [{"op": "depth", "to": {"layers": "2x"}}],
    [{"op": "depth", "layers": [0, 0], "to": {"layers": 2}}],
    [{"op": "width", "to": {"axes": "2x"}}, {"op": "noise", "snr_db": 0}],
]
MODELS = {
    family: next(
        (m for m in (f"{family}/causal", f"{family}/masked_lm") if m in zoo.models()),
        next((m for m in sorted(zoo.models()) if m.startswith(family + "/")), ""),
    )
    for family in family_names()
}


def whole(name: str) -> dict[str, Any]:
    """A shipped file without `extends`."""
    data = family_file._extend(yaml.safe_load(family_text(name)), name)
    return copy.deepcopy(data)


def mutants(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every file with one mistake, with what the mistake is."""

    def changed(**keys: Any) -> dict[str, Any]:
        return {k: v for k, v in {**data, **keys}.items() if v is not None}

    def line(module: str, kind: str) -> tuple[str, dict[str, Any]]:
        return f"{module}: {kind}", changed(modules={**data["modules"], module: kind})

    axes = [a for a, kind in data["axes"].items() if kind not in ("layers", "choices")]
    for module, kind in data["modules"].items():
        word, *rest = str(kind).split()
        for place, dim in enumerate(rest):
            for axis in axes:
                for other in axes:
                    if axis != other and dim.rstrip("+-*~#=") == axis:
                        role = dim[len(axis) :]
                        yield line(
                            module,
                            " ".join([word, *rest[:place], other + role, *rest[place + 1 :]]),
                        )
        for old, new in (
            ("q|k|v", "k|q|v"), ("heads.(q|k|v)", "heads.q|heads.k|heads.v"),
            ("heads.q|heads.k|heads.v", "heads.(q|k|v)"), ("> stream", ""), ("> branch", ""),
            ("rms ", "ln "), ("rms1 ", "rms "), ("ln ", "rms "),
            ("heads.q|kv_heads.k", "kv_heads.k|heads.q"),
        ):  # fmt: skip
            if old in str(kind):
                yield line(module, str(kind).replace(old, new))
        yield (
            f"without {module}",
            changed(modules={k: v for k, v in data["modules"].items() if k != module}),
        )
    for flag in FLAGS:
        if data.get(flag):
            yield f"without {flag}", changed(**{flag: None})
    if data.get("rope"):
        other = {"halves": "adjacent", "adjacent": "halves"}[data["rope"]["pairs"]]
        yield "rope.pairs", changed(rope={**data["rope"], "pairs": other})
    if data.get("head"):
        yield "head.scale_at", changed(head={**data["head"], "scale_at": None})
    yield "residual", changed(residual="pre" if data.get("residual") == "post" else "post")


def told(term: Term) -> Any:
    """A term as data."""
    kernels = [k and (k.old, k.index.tolist(), k.coef.tolist()) for k in term.kernels]
    return term.scale, kernels


def results(model: Model) -> list[Any]:
    """What a family file makes of a model: every plan, as data."""
    out: list[Any] = []
    for steps in RECIPES:
        try:
            plan = build_plan("mutant", parse_recipe({"steps": steps}), {"small": model})
        except GrowkitError as error:
            out.append(type(error).__name__)
            continue
        kernels = [(f.name, f.shape, [told(t) for t in f.terms]) for f in plan.formulas]
        out.append((kernels, plan.config, plan.claim.claim))
    return out


def weaker(found: list[Any], right: list[Any]) -> bool:
    """Whether a growth that the right file proves is refused now, or only approximate."""
    level = {EXACT: 0, EPS: 1, APPROXIMATE: 2}
    pairs = zip(found, right, strict=True)
    return any(
        isinstance(b, tuple) and (not isinstance(a, tuple) or level[a[2]] > level[b[2]])
        for a, b in pairs
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f, model in MODELS.items() if model])
def test_mistakes_are_caught(tmp_path: Path, family: str) -> None:
    """Nearly all mistakes that change a result show in a tiny model."""
    small = zoo.save(zoo.build(zoo.models()[MODELS[family]]), tmp_path / "small")
    checkpoint = open_checkpoint(small)
    right = results(read_model(checkpoint))
    every = list(dict(mutants(whole(family))).items())
    chosen = random.Random(family).sample(every, min(COUNT, len(every))) if COUNT else every
    caught, escaped = 0, []
    for what, data in chosen:
        file = tmp_path / "mutant.yaml"
        file.write_text(yaml.safe_dump(data, sort_keys=False))
        try:
            model = read_model(checkpoint, file)
        except GrowkitError:
            caught += 1
            continue
        found = results(model)
        if found == right:
            continue  # the mistake changes nothing
        if weaker(found, right):  # the survey says what must be exact
            caught += 1
        elif all(f.passed for f in check_loaded(model, small)):
            escaped.append(what)
        else:
            caught += 1
    print(f"{family}: {caught} caught, {escaped} escaped, of {len(chosen)}")
    assert len(escaped) <= max(1, (1 - LEAST) * (caught + len(escaped))), escaped
