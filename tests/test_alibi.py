"""ALiBi heads: their places carry their slopes, so they may not change places, and grow by them."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from test_gauge import OTHER, change, read, turned
from zoo import cases

from growkit.checkpoints.open import open_checkpoint
from growkit.families.model import read_model
from growkit.planning.proof.claim import EXACT
from growkit.verify.symmetries import gauge_plan, gauges

SLOPED = ("bloom/causal", "mpt/causal", "falcon/rw")


@pytest.mark.parametrize("name", SLOPED)
def test_heads_fail_the_gauge_as_they_must(tmp_path: Path, name: str) -> None:
    """Every head has its own slope: in another place it computes something else."""
    model, small = read(name, tmp_path)
    assert "heads" not in gauges(small)
    plan = gauge_plan(small, {"heads": turned(small.sizes["heads"])})
    assert change(model, name, plan, tmp_path) > OTHER


@pytest.mark.parametrize(("name", "ratio"), [(n, r) for n in SLOPED for r in ("3/2x", "2x")])
def test_heads_grow_with_hidden_by_nested_slopes(tmp_path: Path, name: str, ratio: str) -> None:
    """Old heads stand where their slopes are among the new ones; the size of heads stays."""
    tiny = zoo.models()[name]
    model = zoo.build(tiny)
    small = zoo.save(model, tmp_path / "small")
    before = read_model(open_checkpoint(small))
    cell = cases.measure(small, f"width {ratio}", tmp_path / "big", tiny, model)
    after = read_model(open_checkpoint(tmp_path / "big"))
    assert cell is not None
    assert after.sizes["heads"] > before.sizes["heads"]
    assert after.sizes["q"] == before.sizes["q"]
    whole = ratio == "2x" or not name.startswith("bloom")  # its embeddings' norm writes the stream
    assert (cell.claim == EXACT) is whole, cell.why
    assert cell.measured is not None
    assert (cell.measured < 1e-9) is whole
