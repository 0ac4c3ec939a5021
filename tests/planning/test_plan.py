"""The plan: what it refuses, and that planning needs no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.growths import sizes, steps_of

from growkit import api
from growkit.errors import CheckpointError, RecipeError
from growkit.recipe.recipe import builtin_recipes, load_recipe

TWICE = {"op": "width", "to": {"axes": "2x"}}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tiny Llama."""
    return tiny.save(tiny.build("llama", "causal", **sizes("llama")), tmp_path / "small")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"op": "noise", "only": ["*.mlpp.*"]}], r'only: no tensor fits "\*\.mlpp\.\*"'),
        ([{"op": "width", "to": {}}], "width: no target"),
        ([{"op": "depth", "to": {"layers": 10**8}}], "at most 10,000, found 1e"),
        ([TWICE, {"op": "width", "to": {"hidden": 50}}], r"steps\[1\] \(width\): .* multiple"),
    ],
)
def test_steps_that_cannot_be(small: Path, steps: list[Any], message: str) -> None:
    """A step that would do nothing, or too much, is refused with its place in the recipe."""
    with pytest.raises(RecipeError, match=message):
        api.plan_growth(small, steps_of(steps))


@pytest.mark.parametrize(
    ("key", "value"), [("rms_norm_eps", "small"), ("rms_norm_eps", True), ("rms_norm_eps", -1)]
)
def test_numbers_of_the_config(small: Path, key: str, value: object) -> None:
    """An eps that is no number is the checkpoint's mistake."""
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=f"{key}: expected a number"):
        api.plan_growth(small, steps_of([TWICE]))


def test_the_plan_is_deterministic(small: Path) -> None:
    """The same headers and recipe give the same digest, another seed another one."""
    noisy = [TWICE, {"op": "noise"}]
    first, second = (api.plan_growth(small, steps_of(noisy)) for _ in range(2))
    assert api.estimate(first).digest == api.estimate(second).digest
    other = api.plan_growth(small, steps_of(noisy, seed=1))
    assert api.estimate(first).digest != api.estimate(other).digest


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_every_built_in_recipe_plans(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shipped recipe is valid and does what it says to some tiny model."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)[1]
    planned = 0
    for family in ("bert", "gpt2", "llama"):
        shape = {"heads": 4, "head_dim": 16, "mlp": 96, "layers": 4}
        base = tiny.save(tiny.build(family, "base", **shape), tmp_path / family)
        double = {"heads": 8, "head_dim": 16, "mlp": 192, "layers": 8}
        large = tiny.save(tiny.build(family, "base", **double), tmp_path / f"{family}2")
        for file in recipe.files:
            Path(file).unlink(missing_ok=True)
            api.save_maps(api.plan_growth(base, "double_width"), file)
        others = [base, large]
        for other in others:
            given = {source: str(other) for source in recipe.sources[1:]}
            try:
                plan = api.plan_growth(base, recipe, sources=given)
            except (RecipeError, CheckpointError):  # of another family, or too large for it
                continue
            planned += 1
            unchanged = all(f.copied and f.copied.name == f.name for f in plan.formulas)
            assert not unchanged or plan.parameters_after != plan.parameters_before
    assert planned
