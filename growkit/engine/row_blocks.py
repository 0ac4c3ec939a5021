"""What a block of rows is, which rows it covers and reads, and the tensors that need no arithmetic.

A block is a range of rows of dim 0 of one output tensor: the unit of work. The law: no output byte
depends on where blocks begin and end. So whatever is summed over more rows than one (tiles of a
matrix product, passes over a whole tensor) is cut by the tensor's shape alone. numpy only: a growth
of copied and constant tensors never loads torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from growkit.algebra.kernel import IntArray
from growkit.checkpoints.types import Shape, Stored
from growkit.dtypes import DTYPES, FLOATS, ITEM_BYTES
from growkit.planning.formula import Formula, Ones, Source

Rows = Callable[[Stored, int, int], memoryview]
"""rows(stored, start, stop): the raw bytes of rows [start, stop) of dim 0 of a stored tensor.

Little endian, in C order; the whole of a tensor without dims. `SourceRows` reads them from files,
`rows_of` takes them from a state_dict. The caller keeps them, and changes none.
"""

CHUNK = 1 << 17  # elements in one step of a pass over a whole tensor: 1 MiB of float64, in a cache
TILE = 64  # rows per matrix product of a dense kernel: few read in vain, many enough to be fast
GAP = 4096  # bytes, a page of the page cache, that are rather read over than skipped


@dataclass(frozen=True, slots=True)
class Block:
    """Rows [start, stop) of an output tensor as bytes, little endian, in C order."""

    start: int
    stop: int
    data: memoryview
    nonfinite: int  # NaN and Inf among the elements
    overflowed: int  # of these, finite before they were rounded to the tensor's dtype


# -- which rows ------------------------------------------------------------------------------------


def row_count(shape: Shape) -> int:
    """Rows of dim 0; a tensor without dims is one row."""
    return shape[0] if shape else 1


def row_width(shape: Shape) -> int:
    """Elements in a row of dim 0."""
    return math.prod(shape[1:])


def ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    """All of `count` rows in order, as [start, stop) of `step` rows each but for the last.

    >>> list(ranges(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, count, step):
        yield start, min(start + step, count)


def chunk_rows(shape: Shape, least: int = 1) -> int:
    """Rows per chunk of a pass over a whole tensor: fixed by the shape, never by the budget."""
    return min(row_count(shape), max(least, CHUNK // max(1, row_width(shape))))


def whole_tiles(rows: IntArray, count: int) -> IntArray:
    """All rows of the aligned tiles that hold these rows, of `count` rows.

    >>> whole_tiles(np.array([3, 130]), 140).tolist() == [*range(64), *range(128, 140)]
    True
    """
    tiles = np.unique(rows // TILE)
    grown = (tiles[:, None] * TILE + np.arange(TILE)).ravel()
    return grown[grown < count]


def runs(rows: IntArray, row_bytes: int) -> list[tuple[int, int]]:
    """Ranges that cover these sorted rows; gaps of up to `GAP` bytes are read over.

    >>> runs(np.array([0, 1, 2, 7, 8]), 4096)
    [(0, 3), (7, 9)]
    """
    if not len(rows):
        return []
    far = np.flatnonzero((np.diff(rows) - 1) * row_bytes > GAP)
    starts = rows[np.concatenate([[0], far + 1])]
    stops = rows[np.concatenate([far, [len(rows) - 1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def item_bytes(source: Source) -> int:
    """Bytes per element as read; what is generated comes as float32."""
    if not isinstance(source, Stored):
        return 4
    return ITEM_BYTES[source.dtype] if source.by is None else 8


# -- tensors without arithmetic --------------------------------------------------------------------


def needs_arithmetic(formula: Formula) -> bool:
    """Whether the tensor is more than a copy of a stored one, or one number throughout."""
    return formula.copied is None and _constant(formula) is None


def blocks_without_arithmetic(formula: Formula, rows: Rows, step: int) -> Iterator[Block]:
    """The blocks of a tensor that needs none, of `step` rows each, without torch."""
    if not formula.nbytes:
        return
    stored, element = formula.copied, _constant(formula)
    for start, stop in ranges(row_count(formula.shape), step):
        if stored is not None:
            data = rows(stored, start, stop)
            yield Block(start, stop, data, nonfinite(data, formula.dtype), 0)
        elif element is not None:
            count = (stop - start) * row_width(formula.shape)
            yield Block(start, stop, memoryview(element * count), 0, 0)


def _constant(formula: Formula) -> bytes | None:
    """The bytes of the one number that the tensor is made of, if they are easily told."""
    if not formula.terms:
        return bytes(ITEM_BYTES[formula.dtype])
    term = formula.terms[0]
    if len(formula.terms) > 1 or not isinstance(term.source, Ones) or not term.moves:
        return None
    if any(k is not None and k.zero_rows.any() for k in term.kernels):
        return None
    value = np.float64(term.factor)
    if formula.dtype != "BF16":
        with np.errstate(over="ignore"):
            element = value.astype(DTYPES[formula.dtype].numpy)
        return element.tobytes() if np.isfinite(element) else None
    single = value.astype("<f4")  # bfloat16 is its upper half, where the lower one is empty
    exact = float(single) == value and not single.view(np.uint32) & 0xFFFF
    return single.tobytes()[2:] if exact else None


def nonfinite(data: memoryview, dtype: str) -> int:
    """How many elements are NaN or infinite.

    >>> nonfinite(memoryview(np.array([1.0, np.nan, -np.inf])), "F64")
    2
    """
    if dtype not in FLOATS or not data.nbytes:
        return 0
    infinity, size = DTYPES[dtype].infinity, ITEM_BYTES[dtype]
    bits = np.frombuffer(data, f"<u{size}")  # all not-finite values are from infinity on
    negative = infinity | 1 << (8 * bits.itemsize - 1)
    if bits.view(f"<i{size}").max() < infinity and bits.max() < negative:
        return 0  # two passes without a temporary: the usual case
    return int(np.count_nonzero((bits & bits.dtype.type(infinity)) == infinity))
