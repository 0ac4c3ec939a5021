"""ALiBi heads: their places carry their slopes, so they may not change places, and grow by them."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from test_gauge import gauged
from zoo import cases

from growkit.facts import EXACT
from growkit.model import read_model
from growkit.store import open_checkpoint
from growkit.verify import full_precision

SLOPED = ("bloom/forcausallm", "mpt/forcausallm", "falcon/rw")


def changed(folder: Path, name: str, axis: str) -> float:
    """How much the function changes when an axis gets other coordinates everywhere."""
    tiny = zoo.models()[name]
    model = zoo.build(tiny)
    small = zoo.save(model, folder / "small")
    gauged(small, folder / "big", axis)
    given = zoo.inputs(model)
    with full_precision():
        want, have = (zoo.answer(zoo.load(folder / p, model), given) for p in ("small", "big"))
    return zoo.difference(want, have)


@pytest.mark.parametrize("name", SLOPED)
def test_alibi_heads_fail_the_gauge_as_they_must(tmp_path: Path, name: str) -> None:
    """Every head has its own slope: in another place it computes something else."""
    assert changed(tmp_path, name, "heads") > 1e-3


@pytest.mark.parametrize("axis", ["hidden", "q", "v", "mlp"])
@pytest.mark.parametrize("name", SLOPED)
def test_other_axes_of_alibi_models_pass(tmp_path: Path, name: str, axis: str) -> None:
    """Nothing else in these models depends on the order of coordinates."""
    assert changed(tmp_path, name, axis) < 1e-10


@pytest.mark.parametrize(("name", "ratio"), [(n, r) for n in SLOPED for r in ("3/2x", "2x")])
def test_heads_grow_with_hidden_by_nested_slopes(tmp_path: Path, name: str, ratio: str) -> None:
    """Old heads stand where their slopes are among the new ones; the heads alone are exact."""
    tiny = zoo.models()[name]
    model = zoo.build(tiny)
    small = zoo.save(model, tmp_path / "small")
    before = read_model(open_checkpoint(small))
    cell = cases.measure(small, f"width {ratio}", tmp_path / "big", tiny, model)
    after = read_model(open_checkpoint(tmp_path / "big"))
    assert cell is not None
    assert after.sizes["heads"] > before.sizes["heads"]
    assert after.sizes["q"] == before.sizes["q"]
    assert (cell.claim == EXACT) is (ratio == "2x" or not name.startswith("bloom")), cell.why
    assert cell.measured is not None
    assert (cell.measured < 1e-9) is (cell.claim == EXACT)
