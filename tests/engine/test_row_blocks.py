"""Which rows a block reads, and tensors that need no arithmetic."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Stored
from growkit.engine.row_blocks import (
    blocks_without_arithmetic,
    needs_arithmetic,
    nonfinite,
    runs,
    whole_tiles,
)
from growkit.engine.working_memory import block_rows
from growkit.planning.formula import Formula, Noise, Ones, Term


def rows_of(array):
    """The `rows` function of a world with one stored tensor."""

    def rows(stored, start, stop):
        return memoryview(array[start:stop].tobytes())

    return rows


def joined(formula, rows, budget):
    """All bytes of a tensor without arithmetic, and how many elements are not finite."""
    blocks = list(blocks_without_arithmetic(formula, rows, block_rows(formula, budget)))
    assert [b.start for b in blocks[1:]] == [b.stop for b in blocks[:-1]]
    return b"".join(b.data for b in blocks), sum(b.nonfinite for b in blocks)


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
    assert not needs_arithmetic(formula)
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
def test_other_formulas_need_arithmetic(terms):
    """Zero rows, numbers that bfloat16 rounds, noise and sums are for the engine."""
    assert needs_arithmetic(Formula("g", (6,), "BF16", terms))


def test_copies_and_planning_do_not_load_torch():
    """A growth of copies alone never imports torch, and neither does asking for memory."""
    code = (
        "import sys; from growkit.engine.row_blocks import blocks_without_arithmetic;"
        "from growkit.engine.working_memory import block_rows;"
        "from growkit.planning.formula import *;"
        "f = Formula('w', (2,), 'BF16', (Term(Stored('s', 'w', (2,), 'BF16'), (None,)),));"
        "rows = lambda s, a, b: memoryview(bytes(4));"
        "print(len(list(blocks_without_arithmetic(f, rows, block_rows(f, 1000)))));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_runs_read_over_small_gaps():
    """Neighbours are one read, and so are rows with less than a page between them."""
    rows = np.array([0, 1, 3, 9])
    assert runs(rows, 8192) == [(0, 2), (3, 4), (9, 10)]
    assert runs(rows, 4096) == [(0, 4), (9, 10)]
    assert runs(rows, 8) == [(0, 10)]
    assert runs(rows[:0], 8) == []


def test_tiles_are_aligned_to_the_tensor():
    """Dense kernels take whole tiles, the last one as short as the tensor makes it."""
    rows = whole_tiles(np.array([70, 129]), 130)
    np.testing.assert_array_equal(rows, np.arange(64, 130))


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
