"""How many rows at a time, the memory that takes, and the tensors that need no arithmetic.

A block is a range of rows of dim 0 of one output tensor: the unit of work. Its size follows from
the memory budget and is at most `TARGET` bytes; the law is that no output byte depends on it. numpy
only: planning asks for memory, and a growth of copied and constant tensors never loads torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from growkit.algebra.kernel import IntArray, Kernel
from growkit.checkpoints.types import Stored
from growkit.dtypes import DTYPES, FLOATS, ITEM_BYTES
from growkit.errors import ResourceError
from growkit.planning.formula import Formula, Noise, Ones, Source, Term

Rows = Callable[[Stored, int, int], memoryview]  # raw bytes of rows [start, stop) of dim 0

TARGET = 2 << 20  # bytes of output in a block, at most; larger ones fall out of the caches
CHUNK = 1 << 17  # elements in a float64 sum over a whole tensor (1 MiB), whatever the block
TILE = 64  # rows per matrix product of a dense kernel, whatever the block
SLACK = 16 << 20  # bytes that the allocator keeps, or that are used where they cannot be seen
GAP = 4096  # bytes that are rather read over than skipped


@dataclass(frozen=True, slots=True)
class Block:
    """Rows [start, stop) of an output tensor as bytes, little endian, in C order."""

    start: int
    stop: int
    data: memoryview
    nonfinite: int  # NaN and Inf among the elements
    overflowed: int  # of these, finite before they were rounded to the tensor's dtype


# -- tensors without arithmetic --------------------------------------------------------------------


def is_plain(formula: Formula) -> bool:
    """Whether the tensor is a copy of a stored one, or one number throughout."""
    return formula.copied is not None or _constant(formula) is not None


def plain(formula: Formula, rows: Rows, *, budget: int) -> Iterator[Block]:
    """The blocks of a tensor that `is_plain`, without torch."""
    stored, element = formula.copied, _constant(formula)
    for start, stop in ranges(formula, budget):
        if stored is not None:
            data = rows(stored, start, stop)
            yield Block(start, stop, data, nonfinite(data, formula.dtype), 0)
        elif element is not None:
            count = (stop - start) * _width(formula.shape)
            yield Block(start, stop, memoryview(element * count), 0, 0)


def _constant(formula: Formula) -> bytes | None:
    """The bytes of the one number that the tensor is made of, if they are easily told."""
    if not formula.terms:
        return bytes(ITEM_BYTES[formula.dtype])
    term = formula.terms[0]
    if len(formula.terms) > 1 or not isinstance(term.source, Ones) or not moves(term):
        return None
    if any(k is not None and k.zero_rows.any() for k in term.kernels):
        return None
    value = np.float64(factor(term))
    if formula.dtype != "BF16":
        with np.errstate(over="ignore"):
            element = value.astype(DTYPES[formula.dtype].numpy)
        return element.tobytes() if np.isfinite(element) else None
    single = value.astype("<f4")
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


# -- rows ------------------------------------------------------------------------------------------


def ranges(formula: Formula, budget: int) -> Iterator[tuple[int, int]]:
    """The blocks of a tensor in order, as [start, stop)."""
    if not formula.nbytes:
        return
    count, step = _rows(formula.shape), block_rows(formula, budget)
    for start in range(0, count, step):
        yield start, min(start + step, count)


def whole_tiles(rows: IntArray, count: int) -> IntArray:
    """All rows of the aligned tiles that hold these rows, of `count` rows.

    >>> whole_tiles(np.array([3, 130]), 140).tolist() == [*range(64), *range(128, 140)]
    True
    """
    tiles = np.unique(rows // TILE)
    grown = (tiles[:, None] * TILE + np.arange(TILE)).ravel()
    return grown[grown < count]


def runs(rows: IntArray, row_bytes: int) -> list[tuple[int, int]]:
    """Ranges that cover these sorted rows; small gaps are read over.

    >>> runs(np.array([0, 1, 2, 7, 8]), 4096)
    [(0, 3), (7, 9)]
    """
    if not len(rows):
        return []
    far = np.flatnonzero((np.diff(rows) - 1) * row_bytes > GAP)
    starts = rows[np.concatenate([[0], far + 1])]
    stops = rows[np.concatenate([far, [len(rows) - 1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


# -- kernels ---------------------------------------------------------------------------------------

_COMMON: WeakKeyDictionary[Kernel, float] = WeakKeyDictionary()


def common(kernel: Kernel) -> float:
    """The one coefficient of a kernel that gathers; 0 if there are several, or other rows.

    Coefficients are products of a few roundings, so those that differ in the last bits are one.
    """
    if kernel not in _COMMON:
        used = kernel.coef[kernel.coef != 0] if kernel.is_gather else np.zeros(0)
        first = float(used[0]) if len(used) else 1.0
        one = kernel.is_gather and np.abs(used / first - 1.0).max(initial=0.0) <= 1e-14
        _COMMON[kernel] = first if one else 0.0
    return _COMMON[kernel]


def factor(term: Term) -> float:
    """Scale times the coefficients that are common to a whole kernel: one multiplication."""
    product = math.prod([common(k) or 1.0 for k in term.kernels if k is not None], start=term.scale)
    return 1.0 if abs(product - 1.0) <= 1e-14 else product


def moves(term: Term) -> bool:
    """Whether every new element is zero or one source element times the same factor."""
    return (not isinstance(term.source, Stored) or term.source.by is None) and all(
        k is None or (k.is_gather and k.index.shape[1] <= 1 and common(k) != 0)
        for k in term.kernels
    )


# -- memory ----------------------------------------------------------------------------------------


def compute_bytes(formula: Formula) -> int:
    """Bytes per element of the arithmetic: float64 if the tensor or a source is, else float32."""
    sources = [t.source for t in formula.terms]
    double = any(isinstance(s, Stored) and s.dtype == "F64" for s in sources)
    return 8 if double or formula.dtype == "F64" else 4


def block_rows(formula: Formula, budget: int) -> int:
    """Rows per block, so that `working_bytes` stays within `budget` bytes; at least one."""
    count = _rows(formula.shape)
    row_bytes = max(1, formula.nbytes // max(1, count))
    high = max(1, min(count, TARGET // row_bytes))
    if working_bytes(formula, high) <= budget:
        return high
    need = working_bytes(formula, 1)
    if need > budget:
        raise ResourceError(
            f"{formula.name}: one row of {list(formula.shape)} {formula.dtype} takes"
            f" {need:,} bytes of memory, and {budget:,} are allowed",
            hint="allow more memory, or use fewer workers",
        )
    low = 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if working_bytes(formula, middle) <= budget else (low, middle)
    return low


def working_bytes(formula: Formula, rows: int) -> int:
    """Bytes alive at most while one block of `rows` rows is evaluated, kernels aside.

    The block before counts too: who writes it still holds it."""
    stored = rows * _width(formula.shape) * ITEM_BYTES[formula.dtype]
    if is_plain(formula):
        return 4 * stored  # the last block, this one, and the mask that counts what is not finite
    compute = compute_bytes(formula)
    moved = len(formula.terms) == 1 and moves(formula.terms[0])
    item = ITEM_BYTES[formula.dtype] if moved else compute
    return SLACK + 2 * stored + _sum_bytes(formula.terms, rows, item, compute)


def one_of_each(formulas: Iterable[Formula]) -> list[Formula]:
    """Of the formulas that cost the same memory, the first: a model has few kinds of tensors."""
    found: dict[Hashable, Formula] = {}
    for formula in formulas:
        found.setdefault((formula.shape, formula.dtype, _kind(formula.terms)), formula)
    return list(found.values())


def _kind(terms: Iterable[Term]) -> Hashable:
    """All that memory depends on; kernels are looked at once, and known by which they are."""
    return tuple(
        (
            type(t.source),
            t.source.shape,
            (t.source.dtype, t.source.by is None) if isinstance(t.source, Stored) else "",
            _kind(t.source.signal) if isinstance(t.source, Noise) else t.scale,
            t.kernels,
        )
        for t in terms
    )


def dense_bytes(formulas: Iterable[Formula]) -> int:
    """Bytes of the matrices that the kernels of these formulas hold, each counted once."""
    terms = [t for f in formulas for t in f.terms]
    held = {id(k.dense): k.dense.nbytes for t in terms for k in t.kernels
            if k is not None and k.dense is not None}  # fmt: skip
    return sum(held.values())


def _sum_bytes(terms: tuple[Term, ...], rows: int, item: int, compute: int) -> int:
    """Memory for a sum of terms: `item` bytes per element, `compute` where they are made."""
    held = peak = 0
    for i, term in enumerate(terms):
        alive, kept = _term_bytes(term, rows, item, compute)
        total = rows * _new_width(term) * item if i else 0  # the sum so far
        held, peak = held + kept, max(peak, alive + total)
        if isinstance(term.source, Noise) and term.source.snr_db is not None:
            chunk, width = chunk_rows(term.source.shape), _width(term.source.shape)
            signal = _sum_bytes(term.source.signal, chunk, compute, compute)
            peak = max(peak, signal + chunk * width * 16)  # squares in float64
    return held + peak


def _term_bytes(term: Term, rows: int, item: int, compute: int) -> tuple[int, int]:
    """(bytes alive at the worst moment of a term, bytes of it that stay from block to block)."""
    source, (head, *tail) = term.source, term.kernels or (None,)
    old, width, stays = _rows(source.shape), _width(source.shape), 0
    taken = rows * max(1, head.index.shape[1] if head else 1)
    count, scratch = min(old, taken), 64 * taken if head else 0  # indices and coefficients
    if any(k is not None and k.dense is not None for k in tail):
        count = min(old, TILE * count if head else count + 2 * TILE)
    raw = 2 * min(count * (width * item_bytes(source) + GAP), old * width * item_bytes(source))
    if isinstance(source, Noise):
        raw += 4 << 20  # words of the generator
    if head is not None and head.dense is not None:
        count, part = rows + 2 * TILE, chunk_rows(source.shape, TILE) * width
        scratch += (count + TILE) * width * 8 + part * (8 + 2 * item_bytes(source))
    if head is not None and head.share.shape[1]:
        stays = head.share.shape[1] * (width + _new_width(term)) * 8 * 3
        scratch += max(CHUNK, width) * 16 + chunk_rows(source.shape) * width * 2 * item_bytes(
            source
        )
    size = count * width
    peak = size * (item + compute)
    for kernel in tail:
        if kernel is not None:
            width = width // kernel.old * kernel.new
            new = count * width
            if not kernel.is_gather:
                tile = min(count, TILE) if kernel.dense is not None else 1
                scratch += 16 * max(CHUNK, tile * (width + size // max(1, count)))
            peak, size = max(peak, (size + new * _copies(kernel)) * item), new
    if head is not None:
        peak = max(peak, (size + rows * width * _copies(head)) * item)
    return raw + scratch + peak + stays, stays


def _copies(kernel: Kernel) -> int:
    """How often the result of a kernel is held while it is summed up."""
    return 2 if kernel.index.shape[1] > 1 or kernel.share.shape[1] else 1


def chunk_rows(shape: tuple[int, ...], least: int = 1) -> int:
    """Rows per chunk of a pass over a whole tensor: fixed by the shape, never by the budget."""
    return min(_rows(shape), max(least, CHUNK // max(1, _width(shape))))


def item_bytes(source: Source) -> int:
    """Bytes per element as read; what is generated comes as float32."""
    if not isinstance(source, Stored):
        return 4
    return ITEM_BYTES[source.dtype] if source.by is None else 8


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def _width(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def _new_width(term: Term) -> int:
    pairs = zip(term.source.shape[1:], term.kernels[1:], strict=True)
    return math.prod(size if k is None else k.new for size, k in pairs)
