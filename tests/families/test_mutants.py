"""A family file with one mistake is caught: by its tensors, by a symmetry, or by a growth.

Mistakes are made in every shipped file: another axis, another order of fused parts, another norm, a
flag that is forgotten. What no check catches must not change any result, or it counts as escaped.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import tiny, zoo

from growkit.checkpoints.open import open_checkpoint
from growkit.checkpoints.types import Checkpoint
from growkit.errors import GrowkitError
from growkit.families import load
from growkit.families.load import blamed, family_text
from growkit.families.model import Model, read_model
from growkit.planning.formula import Term
from growkit.planning.plan import build_plan
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT
from growkit.recipe.recipe import parse_recipe
from growkit.verify.check_family import check_loaded

COUNT = int(os.environ.get("GROWKIT_MUTANTS", "4"))  # per family; 0: all of them
CAUGHT, SAME, ESCAPED = "caught", "changes nothing", "escaped"
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
    [{"op": "resize", "vocab": 40}],
    [{"op": "width", "to": {"axes": "2x"}}, {"op": "noise", "snr_db": 0}],
]
SYMMETRIC = "scores are symmetric in q and k: only which of them gets new rows at random differs"
LISTED = "new configs list the layers' kinds beside it; test_decoder_families has an old one"
ACCEPTED: dict[str, dict[str, str]] = {  # mistakes that change a plan, but no function; and why
    "gpt_neox": {
        "layers.{layers}.attention.query_key_value: lin heads.(k|q|v) hidden": SYMMETRIC,
    },
    "llama": {"without thresholds": LISTED},
    "qwen2_moe": {"without thresholds": LISTED},
    "qwen3": {"without thresholds": LISTED},
}


def whole(name: str) -> dict[str, Any]:
    """A shipped file without `extends`."""
    data = load._extend(yaml.safe_load(family_text(name)), name)
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
    kernels = [k and (k.shape, k.matrix().tobytes()) for k in term.kernels]
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


@dataclass
class Tried:
    """A tiny model, and what the right file makes of it."""

    folder: Path
    checkpoint: Checkpoint
    right: Model
    results: list[Any]

    @cached_property
    def sound(self) -> bool:
        """Nothing is found where there is no mistake."""
        return all(f.passed for f in check_loaded(self.right, self.folder))


def tried(name: str, folder: Path) -> Tried:
    """A tiny model, saved and planned."""
    small = tiny.Saved.at(folder, name).folder
    checkpoint = open_checkpoint(small)
    model = read_model(checkpoint)
    return Tried(small, checkpoint, model, results(model))


def verdict(file: Path, one: Tried) -> str:
    """Whether a mistake is caught by one model, changes nothing of it, or escapes."""
    runs = passed = False
    try:
        with blamed(file):
            model = read_model(one.checkpoint, file)
            if model.family == one.right.family:
                return SAME  # it is about what this model does not have
            found = results(model)
            if found == one.results:
                return SAME
            if weaker(found, one.results):  # the survey says what must be exact
                return CAUGHT
            runs = True
            passed = all(f.passed for f in check_loaded(model, one.folder))
    except GrowkitError:
        passed = False
    assert passed or not runs or one.sound, f"{one.folder}: the file is wrong as it is"
    return ESCAPED if passed else CAUGHT


@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f, models in zoo.families().items() if models])
def test_mistakes_are_caught(tmp_path: Path, family: str) -> None:
    """Every mistake that changes a result shows in some tiny model, but for what is listed."""
    models: list[Tried] = []
    every = list(dict(mutants(whole(family))).items())
    chosen = random.Random(family).sample(every, min(COUNT, len(every))) if COUNT else every
    told: dict[str, list[str]] = {CAUGHT: [], SAME: [], ESCAPED: []}
    for what, data in chosen:
        file = tmp_path / "mutant.yaml"
        file.write_text(yaml.safe_dump(data, sort_keys=False))
        worst = SAME
        for number, name in enumerate(zoo.families()[family]):
            if number == len(models):
                models.append(tried(name, tmp_path / str(number)))
            found = verdict(file, models[number])
            worst = found if found != SAME else worst
            if found == CAUGHT:
                break
        told[worst].append(what)
    print(family, *(f"{word}: {len(found)}" for word, found in told.items()), told[ESCAPED])
    known = ACCEPTED.get(family, {})
    assert known.keys() <= dict(every).keys()
    assert set(told[ESCAPED]) == known.keys() & {what for what, _ in chosen}
