"""How much memory a block of rows takes, and so how many rows fit into a budget.

A model of what `evaluate` holds at its worst moment. It is a bound from above, and not far above:
tests measure processes, which take at most this and at least a quarter of it. numpy only: planning
asks for it, tensor by tensor. A block of one formula takes

    SLACK                       what no formula shows
    + 2 × block                 the block that is made, and the one before: its writer still has it
    + max over terms of         the terms are added one after the other, so at one time there is
        the sum so far          in the dtype of the arithmetic
        + the term's own        see below
    + what stays                of a term from block to block: the sums of its shared rows

and one term, by the stages of `evaluate`,

    read        the source rows that the block needs, twice: as read piece by piece, and joined
    generator   for noise: its table of numbers, and the words that choose from it
    converted   the same rows in the dtype of the arithmetic, beside those that are moved on
    later dims  before and after one kernel, whichever kernel is the worst
    dim 0       the rows so far and the block's own, which are summed up in a second copy
    scratch     indices of gathers; chunks of long sums and tiles of matrix products, in float64

A tensor without arithmetic holds blocks only. A dense matrix is held once for all tensors, so it is
no part of a block: `dense_bytes`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Stored
from growkit.dtypes import ITEM_BYTES
from growkit.engine.row_blocks import (
    CHUNK,
    GAP,
    TILE,
    chunk_rows,
    item_bytes,
    needs_arithmetic,
    row_count,
    row_width,
)
from growkit.errors import ResourceError
from growkit.planning.formula import Formula, Noise, Term

TARGET = 2 << 20  # bytes of output in a block, at most: larger ones fall out of the caches

# what the allocator keeps of freed memory, and what is used where no formula shows it
SLACK = 16 << 20

# the generator's table of 65,536 numbers as it is made, of Python's numbers of some 40 bytes each;
# later as float32 (256 KiB), beside the words of one draw (64 KiB)
GENERATOR = 4 << 20

# for each source row that a new row takes: eight arrays of eight bytes, which are its index (as
# given, masked, sorted, unique, as a place among the rows read, as a column of its own), its
# coefficient, and masks
GATHER_ENTRY = 64

DOUBLE = 8  # bytes of a float64, in which long sums and matrix products are made
SHARED_COPIES = 3  # of the sums of shared rows: of source rows, with later dims mapped, converted


def compute_bytes(formula: Formula) -> int:
    """Bytes per element of the arithmetic: float64 if the tensor or a source is, else float32."""
    sources = [t.source for t in formula.terms]
    double = any(isinstance(s, Stored) and s.dtype == "F64" for s in sources)
    return 8 if double or formula.dtype == "F64" else 4


# -- blocks and budgets ----------------------------------------------------------------------------


def block_rows(formula: Formula, budget: int) -> int:
    """Rows per block, so that `working_bytes` stays within `budget` bytes; at least one.

    Raises ResourceError if one row does not fit.
    """
    count = row_count(formula.shape)
    row_bytes = max(1, formula.nbytes // max(1, count))
    high = max(1, min(count, TARGET // row_bytes))
    if working_bytes(formula, high) <= budget:
        return high
    least = working_bytes(formula, 1)
    if least > budget:
        raise ResourceError(
            f"{formula.name}: one row of {list(formula.shape)} {formula.dtype} takes"
            f" {least:,} bytes of memory, and {budget:,} are allowed",
            hint="allow more memory, or use fewer workers",
        )
    low = 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if working_bytes(formula, middle) <= budget else (low, middle)
    return low


def working_bytes(formula: Formula, rows: int) -> int:
    """Bytes alive at most while one block of `rows` rows is evaluated, dense matrices aside."""
    block = rows * row_width(formula.shape) * ITEM_BYTES[formula.dtype]
    if not needs_arithmetic(formula):
        return 4 * block  # the last block, this one, and the bits and the mask that count its NaN
    compute = compute_bytes(formula)
    moved = len(formula.terms) == 1 and formula.terms[0].moves  # is rounded before it is moved
    item = ITEM_BYTES[formula.dtype] if moved else compute
    return SLACK + 2 * block + _sum_bytes(formula.terms, rows, item, compute)


def dense_bytes(formulas: Iterable[Formula]) -> int:
    """Bytes of the matrices that the kernels of these formulas hold, each counted once."""
    kernels = (k for f in formulas for t in f.terms for k in t.kernels if k is not None)
    matrices = {id(k.dense): k.dense for k in kernels if k.dense is not None}
    return sum(matrix.nbytes for matrix in matrices.values())


def one_per_cost(formulas: Iterable[Formula]) -> list[Formula]:
    """Of the formulas that cost the same memory, the first: a model has few kinds of tensors."""
    first: dict[Hashable, Formula] = {}
    for formula in formulas:
        first.setdefault((formula.shape, formula.dtype, _cost_key(formula.terms)), formula)
    return list(first.values())


def _cost_key(terms: Iterable[Term]) -> Hashable:
    """All that memory depends on; kernels are looked at once, and known by which they are."""
    return tuple(
        (
            type(t.source),
            t.source.shape,
            (t.source.dtype, t.source.by is None) if isinstance(t.source, Stored) else "",
            _cost_key(t.source.signal) if isinstance(t.source, Noise) else t.scale,
            t.kernels,
        )
        for t in terms
    )


# -- one sum, one term -----------------------------------------------------------------------------


def _sum_bytes(terms: tuple[Term, ...], rows: int, item: int, compute: int) -> int:
    """Memory for a sum of terms: `item` bytes per element that is moved, `compute` as converted."""
    held = peak = 0
    for i, term in enumerate(terms):
        alive, stays = _term_bytes(term, rows, item, compute)
        total = rows * _new_width(term) * item if i else 0  # the sum so far
        held, peak = held + stays, max(peak, alive + total)
        if isinstance(term.source, Noise) and term.source.snr_db is not None:
            # before the first block, a pass over the signal: a chunk of it, and its squares
            chunk, width = chunk_rows(term.source.shape), row_width(term.source.shape)
            signal = _sum_bytes(term.source.signal, chunk, compute, compute)
            peak = max(peak, signal + chunk * width * 2 * DOUBLE)
    return held + peak


def _term_bytes(term: Term, rows: int, item: int, compute: int) -> tuple[int, int]:
    """(bytes alive at the worst moment of a term, bytes of it that stay from block to block)."""
    source, (head, *later) = term.source, term.kernels or (None,)
    old, width, as_read = row_count(source.shape), row_width(source.shape), item_bytes(source)

    # rows that are read: as many as are gathered, in whole tiles where a later dim asks for them
    gathered = rows * max(1, head.index.shape[1] if head else 1)
    count, scratch, stays = min(old, gathered), GATHER_ENTRY * gathered if head else 0, 0
    if any(k is not None and k.dense is not None for k in later):
        count = min(old, TILE * count if head else count + 2 * TILE)
    # twice, with the gaps that are read over; never more than the source has
    read = 2 * min(count * (width * as_read + GAP), old * width * as_read)
    if isinstance(source, Noise):
        read += GENERATOR

    if head is not None and head.dense is not None:
        # the block in whole tiles, and one product, in float64; a chunk of the source, as read
        # (twice) and in float64. The product's rows go on to the later dims
        chunk = chunk_rows(source.shape, TILE) * width
        count = rows + 2 * TILE
        scratch += (count + TILE) * width * DOUBLE + chunk * (DOUBLE + 2 * as_read)
    if head is not None and head.left.shape[1]:
        stays = head.left.shape[1] * (width + _new_width(term)) * DOUBLE * SHARED_COPIES
        # a chunk in float64, and times its weights; the rows of a chunk as read
        scratch += max(CHUNK, width) * 2 * DOUBLE + chunk_rows(source.shape) * width * 2 * as_read

    size = count * width
    peak = size * (item + compute)  # as converted, and as it goes on
    for kernel in later:
        if kernel is not None:
            width = width // kernel.old * kernel.new
            mapped = count * width
            if not kernel.is_gather:  # a chunk, or a tile and its product, in float64, twice
                tile = min(count, TILE) if kernel.dense is not None else 1
                scratch += 2 * DOUBLE * max(CHUNK, tile * (width + size // max(1, count)))
            peak, size = max(peak, (size + mapped * _copies(kernel)) * item), mapped
    if head is not None:
        peak = max(peak, (size + rows * width * _copies(head)) * item)
    return read + scratch + peak + stays, stays


def _copies(kernel: Kernel) -> int:
    """How often the result of a kernel is held: what is summed up is made beside the sum."""
    return 2 if kernel.index.shape[1] > 1 or kernel.left.shape[1] else 1


def _new_width(term: Term) -> int:
    """Elements in a row once the later dims are mapped."""
    pairs = zip(term.source.shape[1:], term.kernels[1:], strict=True)
    return math.prod(size if kernel is None else kernel.new for size, kernel in pairs)
