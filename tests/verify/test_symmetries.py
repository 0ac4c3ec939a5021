"""The symmetry test: other coordinates on one axis everywhere, and the function must not change.

This is what proves the labels of a family file: shapes cannot, because several axes may have one
size. `growkit families check` runs the same on a user's own file.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import growths, tiny, zoo

from growkit import api
from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.checkpoints.open import open_checkpoint
from growkit.families.model import Model, read_model
from growkit.planning.plan import Plan
from growkit.planning.proof.claim import EXACT
from growkit.verify.symmetries import symmetries, symmetry_plan

SAME, OTHER = 1e-10, 1e-3


def read(name: str, folder: Path) -> tuple[tiny.Saved, Model]:
    """A tiny model, saved and read."""
    small = tiny.Saved.at(folder / "small", name, seed=4)
    return small, read_model(open_checkpoint(small.folder))


def change(small: tiny.Saved, plan: Plan, folder: Path) -> float:
    """How far the outputs move, relative to the largest."""
    prepared = api.prepare(plan, api.WriteOptions(overwrite=True))
    out = api.execute(prepared, folder / "big").out
    axis = plan.maps.get(plan.hidden_axis or "")
    matrix = torch.from_numpy(axis.read.matrix()) if axis else None
    big = small.outputs_of(out)
    if axis:
        big = {k: v @ matrix if k == "last_hidden_state" else v for k, v in big.items()}
    return tiny.difference(small.outputs, big)


@pytest.mark.parametrize("name", zoo.by_speed(every=3))
def test_symmetries(tmp_path: Path, name: str) -> None:
    """Every axis that has a symmetry: the function stays, though tensors do change."""
    small, model = read(name, tmp_path)
    changes = symmetries(model)
    assert changes
    moved = {}
    for axis, maps in changes.items():
        plan = symmetry_plan(model, maps)
        assert any(f.copied is None for f in plan.formulas)
        moved[axis] = change(small, plan, tmp_path)
    assert max(moved.values()) < SAME, moved


def turned(size: int) -> AxisMap:
    """Every unit one place on."""
    return AxisMap.of(Kernel.gather([(i + 1) % size for i in range(size)], old=size))


@pytest.mark.parametrize(
    ("name", "axes"),
    [("qwen3/causal", "qk"), ("gpt_neox/causal", "qk"), ("bloom/causal", ["heads"])],
)
def test_what_is_no_symmetry_shows(tmp_path: Path, name: str, axes: str | list[str]) -> None:
    """Rotary coordinates and ALiBi heads stand where they must: moving them is seen."""
    small, model = read(name, tmp_path)
    maps = {a: turned(model.sizes[a]) for a in axes}
    assert change(small, symmetry_plan(model, maps), tmp_path) > OTHER


SLOPED = ("bloom/causal", "mpt/causal", "falcon/rw")


@pytest.mark.parametrize("name", SLOPED)
def test_sloped_heads_have_no_symmetry(tmp_path: Path, name: str) -> None:
    """Every head has its own slope: in another place it computes something else."""
    small, model = read(name, tmp_path)
    assert "heads" not in symmetries(model)
    plan = symmetry_plan(model, {"heads": turned(model.sizes["heads"])})
    assert change(small, plan, tmp_path) > OTHER


@pytest.mark.parametrize(("name", "ratio"), [(n, r) for n in SLOPED for r in ("3/2x", "2x")])
def test_heads_grow_with_hidden_by_nested_slopes(tmp_path: Path, name: str, ratio: str) -> None:
    """Old heads stand where their slopes are among the new ones; the size of heads stays."""
    small = tiny.Saved.at(tmp_path / "small", name)
    before = read_model(open_checkpoint(small.folder))
    cell = growths.try_growth(small, f"width {ratio}", tmp_path / "big")
    after = read_model(open_checkpoint(tmp_path / "big"))
    assert cell is not None
    assert after.sizes["heads"] > before.sizes["heads"]
    assert after.sizes["q"] == before.sizes["q"]
    whole = ratio == "2x" or not name.startswith("bloom")  # its embeddings' norm writes the stream
    assert (cell.claim == EXACT) is whole, cell.why
    assert cell.measured is not None
    assert (cell.measured < 1e-9) is whole
