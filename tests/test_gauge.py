"""The gauge test: permute one axis everywhere, and the function must not change.

This is what proves the labels of a family file: shapes cannot, because several axes may have one
size. Value coordinates are mixed by a random invertible matrix, which is finer than a permutation.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tiny
import torch
from pydantic import ConfigDict
from test_exactness import load, sizes

from growkit import run
from growkit.axes import AxisMap, Kernel
from growkit.family import Family
from growkit.model import read_model
from growkit.ops import Growth, Operator
from growkit.plan import Plan, build_plan
from growkit.recipe import Recipe, parse_recipe
from growkit.store import open_checkpoint
from growkit.verify import full_precision


class Gauge(Operator):
    """Change the coordinates of axes without changing the function."""

    op: Literal["gauge"] = "gauge"
    maps: dict[str, AxisMap]
    model_config = ConfigDict(arbitrary_types_allowed=True)

    def grow(self, family: Family, sizes: object) -> Growth:
        """The maps given."""
        return Growth(maps=self.maps)


def permutation(size: int, seed: int = 1) -> AxisMap:
    """A random permutation that moves something."""
    order = np.random.default_rng(seed).permutation(size)
    if (order == np.arange(size)).all():
        order = np.roll(order, 1)
    return AxisMap.of(Kernel.gather(order, old=size))


def mixing(size: int) -> AxisMap:
    """A random invertible matrix: consumers undo it."""
    matrix = np.eye(size) + 0.3 * np.random.default_rng(2).standard_normal((size, size))
    return AxisMap.of(Kernel.from_matrix(matrix), Kernel.from_matrix(np.linalg.inv(matrix).T))


def gauge(axis: str, family: Family, now: dict[str, int]) -> dict[str, AxisMap]:
    """The change of coordinates that leaves this axis' function alone."""
    groups = now["heads"] // now.get("kv_heads", now["heads"])
    if axis == "kv_heads":
        order = permutation(now["kv_heads"])
        return {axis: order, "heads": order.kron(AxisMap.identity(groups))}
    if axis == "heads" and "kv_heads" in now:
        return {axis: AxisMap.identity(now["kv_heads"]).kron(permutation(groups))}
    if family.axes[axis] == "query":
        return {axis: permutation(now[axis]), family.of_kind("key")[0]: permutation(now[axis])}
    if family.axes[axis] == "value":
        return {axis: mixing(now[axis])}
    maps = {axis: permutation(now[axis])}
    return maps | {follower: maps[axis] for follower, of in family.like.items() if of == axis}


def gauged(small: Path, out: Path, axis: str) -> Plan:
    """Write the model with one axis in other coordinates; the config stays what it is."""
    model = read_model(open_checkpoint(small))
    step = Gauge(maps=gauge(axis, model.family, dict(model.sizes)))
    plan = build_plan("gauge", Recipe.model_construct(steps=(step,)), {"small": model})
    run.execute(replace(plan, recipe=parse_recipe({"steps": [{"op": "noise"}]})), out)
    return plan


CASES = [
    (family, head, axis)
    for family, head, axes in [
        ("bert", "masked_lm", "hidden heads q v mlp"),
        ("bert", "pretraining", "hidden heads q v mlp pool"),
        ("bert", "classifier", "hidden heads q v mlp pool"),
        ("gpt2", "causal", "hidden heads q v mlp"),
        ("gpt2", "untied", "hidden heads q v mlp"),
        ("llama", "causal", "hidden heads kv_heads v mlp"),
        ("llama", "biased", "hidden heads kv_heads v mlp"),
        ("mistral", "causal", "hidden heads kv_heads v mlp"),
        ("qwen2", "tied", "hidden heads kv_heads v mlp"),
    ]
    for axis in axes.split()
]


@pytest.mark.parametrize(("family", "head", "axis"), CASES)
def test_gauge(tmp_path: Path, family: str, head: str, axis: str) -> None:
    """Other coordinates on one axis, the same function."""
    model = tiny.build(family, head, seed=4, **sizes(family))
    small = tiny.save(model, tmp_path / "small")
    plan = gauged(small, tmp_path / "big", axis)
    ids = torch.randint(1, 29, (2, 9), generator=torch.Generator().manual_seed(2))
    with full_precision():
        want = tiny.outputs(load(small, model), ids)
        have = tiny.outputs(load(tmp_path / "big", model), ids)
    assert float((have - want).abs().max() / want.abs().max()) < 1e-10
    before = {f.name: f for f in plan.formulas}
    assert any(f.copied is None for f in before.values())  # something did change


def test_a_wrong_label_fails_the_gauge(tmp_path: Path) -> None:
    """Permuting query coordinates under rotary positions does change the function."""
    model = tiny.build("llama", "causal", seed=4, **sizes("llama"))
    small = tiny.save(model, tmp_path / "small")
    gauged(small, tmp_path / "big", "q")
    ids = torch.randint(1, 29, (2, 9), generator=torch.Generator().manual_seed(2))
    with full_precision():
        want = tiny.outputs(load(small, model), ids)
        have = tiny.outputs(load(tmp_path / "big", model), ids)
    assert float((have - want).abs().max() / want.abs().max()) > 1e-3
