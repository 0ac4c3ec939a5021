"""How many rows a budget allows, and what they take."""

from __future__ import annotations

import numpy as np
import pytest
from support.calls import calls

from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Stored
from growkit.engine.working_memory import TARGET, block_rows, working_bytes
from growkit.errors import ResourceError
from growkit.planning.formula import Formula, Noise, Ones, Term

TILE_2X = Kernel.gather(np.arange(16) % 8, old=8)
WEIGHT = Stored("small", "w", (8, 8), "F32")
GROWN = Formula("w", (16, 16), "F32", (Term(WEIGHT, (TILE_2X, TILE_2X.scaled(0.5))),))


def test_budget_decides_rows():
    """As many rows as fit, never above the target, one for a tensor without dims."""
    for rows in (1, 5, 16):
        assert block_rows(GROWN, working_bytes(GROWN, rows)) == rows
    assert block_rows(GROWN, 1 << 40) == 16
    assert block_rows(Formula("s", (), "F32"), 1 << 40) == 1
    wide = Formula("w", (1 << 20, 1024), "F32", (Term(Ones((1, 1)), (None, None), 3.0),) * 2)
    assert block_rows(wide, 1 << 40) * 4096 == TARGET


def test_too_small_a_budget_is_refused():
    """Where not even one row fits, the tensor, both numbers and the way out are named."""
    with pytest.raises(
        ResourceError, match=r"w: one row of \[16, 16\] F32 takes .* 1,000 are"
    ) as e:
        block_rows(GROWN, 1000)
    assert "more memory" in e.value.hint


def test_more_rows_take_more_memory():
    """The estimate grows with the rows, which is what the search for a block size relies on."""
    noise = Noise(0, 0, "w", (16, 16), snr_db=3.0, signal=GROWN.terms)
    formula = Formula("w", (16, 16), "F32", (*GROWN.terms, Term(noise, (None, None))))
    sizes = [working_bytes(formula, r) for r in range(1, 17)]
    assert sizes == sorted(sizes)
    assert sizes[0] > working_bytes(GROWN, 1)


def test_kernels_are_looked_at_once():
    """Not once per tensor: numpy is called as often for 3,000 tensors as for three."""
    width = 16384

    def blocks_of(count):
        kernel = Kernel.gather(np.arange(width) % 8192, 0.5, old=8192)
        stored = [Stored("small", f"w{i}", (8192, 8192), "BF16") for i in range(count)]
        formulas = [
            Formula(s.name, (width, width), "BF16", (Term(s, (kernel, kernel)),)) for s in stored
        ]
        return lambda: {block_rows(f, 1 << 31) for f in formulas}

    assert blocks_of(3000)() == {TARGET // (2 * width)}
    assert 0 < calls(blocks_of(3), "numpy") == calls(blocks_of(3000), "numpy")
    assert calls(blocks_of(3000)) < 200 * 3000
