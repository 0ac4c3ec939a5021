"""Rows per block, memory, and tensors that need no arithmetic."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from support.calls import calls

from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Stored
from growkit.engine import row_blocks
from growkit.engine.row_blocks import (
    block_rows,
    is_plain,
    nonfinite,
    plain,
    runs,
    whole_tiles,
    working_bytes,
)
from growkit.errors import ResourceError
from growkit.planning.formula import Formula, Noise, Ones, Term

TILE_2X = Kernel.gather(np.arange(16) % 8, old=8)
WEIGHT = Stored("small", "w", (8, 8), "F32")
GROWN = Formula("w", (16, 16), "F32", (Term(WEIGHT, (TILE_2X, TILE_2X.scaled(0.5))),))


def rows_of(array):
    """The `rows` function of a world with one stored tensor."""

    def rows(stored, start, stop):
        return memoryview(array[start:stop].tobytes())

    return rows


def joined(formula, rows, budget):
    """All bytes of a plain tensor, and how many elements are not finite."""
    found = list(plain(formula, rows, budget=budget))
    assert [b.start for b in found[1:]] == [b.stop for b in found[:-1]]
    return b"".join(b.data for b in found), sum(b.nonfinite for b in found)


@pytest.mark.parametrize("budget", [4 * 32, 300, 1 << 20])
@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        ("F32", np.array([[1.0, -0.0, np.nan, np.inf, 0, 0, 0, 0]] * 8, dtype=np.float32)),
        ("I32", np.arange(64, dtype=np.int32).reshape(8, 8)),
    ],
)
def test_copies_are_the_same_bytes(budget, dtype, array):
    """A copy keeps every bit, in blocks of any size, and its NaN and Inf are counted."""
    stored = Stored("small", "w", (8, 8), dtype)
    formula = Formula("w", (8, 8), dtype, (Term(stored, (None, Kernel.identity(8))),))
    assert is_plain(formula)
    data, bad = joined(formula, rows_of(array), budget)
    assert data == array.tobytes()
    assert bad == (16 if dtype == "F32" else 0)


@pytest.mark.parametrize(
    ("dtype", "element"),
    [("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2"), ("BF16", None)],
)
def test_constants_need_no_arithmetic(dtype, element):
    """Zeros and ones are told from the formula alone."""
    ones = Kernel.gather(np.zeros(6), 0.5, old=1)
    term = Term(Ones((1,)), (ones,), scale=2.0)
    one = b"\x80\x3f" if element is None else np.ones(1, element).tobytes()
    assert joined(Formula("g", (6,), dtype, (term,)), None, 1 << 20) == (one * 6, 0)
    assert joined(Formula("b", (6, 1), dtype), None, 1 << 20) == (bytes(6 * len(one)), 0)
    assert joined(Formula("s", (), dtype), None, 1 << 20) == (bytes(len(one)), 0)
    assert joined(Formula("e", (0, 3), dtype), None, 1 << 20) == (b"", 0)


@pytest.mark.parametrize(
    "terms",
    [
        (Term(Ones((1,)), (Kernel.gather(np.zeros(6), [1, 1, 1, 1, 0, 0], old=1),)),),
        (Term(Ones((1,)), (Kernel.gather(np.zeros(6), 1 / 3, old=1),)),),
        (Term(Noise(0, 0, "g", (6,), std=1.0), (None,)),),
        (Term(Ones((1,)), (Kernel.gather(np.zeros(6), old=1),)),) * 2,
    ],
)
def test_other_formulas_are_not_plain(terms):
    """Zero rows, numbers that bfloat16 rounds, noise and sums are for the engine."""
    assert not is_plain(Formula("g", (6,), "BF16", terms))


def test_plain_tensors_and_planning_do_not_load_torch():
    """A growth of copies alone never imports torch, and neither does asking for memory."""
    code = (
        "import sys, numpy as np; from growkit.engine import row_blocks as blocks;"
        "from growkit.planning.formula import *;"
        "f = Formula('w', (2,), 'BF16', (Term(Stored('s', 'w', (2,), 'BF16'), (None,)),));"
        "print(len(list(blocks.plain(f, lambda s, a, b: memoryview(bytes(4)), budget=1000))));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_budget_decides_rows():
    """As many rows as fit, never above the target, one for a tensor without dims."""
    for rows in (1, 5, 16):
        assert block_rows(GROWN, working_bytes(GROWN, rows)) == rows
    assert block_rows(GROWN, 1 << 40) == 16
    assert block_rows(Formula("s", (), "F32"), 1 << 40) == 1
    wide = Formula("w", (1 << 20, 1024), "F32", (Term(Ones((1, 1)), (None, None), 3.0),) * 2)
    assert block_rows(wide, 1 << 40) * 4096 == row_blocks.TARGET


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

    assert blocks_of(3000)() == {row_blocks.TARGET // (2 * width)}
    assert 0 < calls(blocks_of(3), "numpy") == calls(blocks_of(3000), "numpy")
    assert calls(blocks_of(3000)) < 200 * 3000


def test_runs_read_over_small_gaps():
    """Neighbours are one read, and so are rows with less than a page between them."""
    rows = np.array([0, 1, 3, 9])
    assert runs(rows, 8192) == [(0, 2), (3, 4), (9, 10)]
    assert runs(rows, 4096) == [(0, 4), (9, 10)]
    assert runs(rows, 8) == [(0, 10)]
    assert runs(rows[:0], 8) == []


def test_tiles_are_aligned_to_the_tensor():
    """Dense kernels take whole tiles, the last one as short as the tensor makes it."""
    found = whole_tiles(np.array([70, 129]), 130)
    np.testing.assert_array_equal(found, np.arange(64, 130))


@pytest.mark.parametrize(("dtype", "bits"), [("F64", "u8"), ("F32", "u4"), ("F16", "u2")])
def test_not_finite_is_told_from_the_bits(dtype, bits):
    """Each NaN and Inf of either sign is counted; the largest finite numbers are not."""
    top = np.finfo(bits.replace("u", "f")).max
    values = np.array([0.0, -0.0, top, -top], bits.replace("u", "f"))
    assert nonfinite(memoryview(values.tobytes()), dtype) == 0
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        assert (
            nonfinite(memoryview(np.append(values, bad).astype(values.dtype).tobytes()), dtype) == 1
        )


def test_not_finite_bfloat16():
    """bfloat16 is read by its bits: numpy has no such type."""
    finite = np.array([0x7F7F, 0xFF7F, 0x8000, 0x3F80], "<u2")
    bad = np.array([0x7F80, 0xFF80, 0x7FC0, 0xFFFF], "<u2")
    assert nonfinite(memoryview(finite.tobytes()), "BF16") == 0
    assert nonfinite(memoryview(np.append(finite, bad).tobytes()), "BF16") == 4
