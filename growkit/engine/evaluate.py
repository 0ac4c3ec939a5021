"""Evaluates one formula, block of rows by block of rows.

The law: no output byte depends on where blocks begin and end, nor on the budget. So every sum has
an order of its own: the sources of a row in the order of the kernel's columns, terms in that of
the formula, long sums (shared rows, mean squares) by halving in float64 over chunks that the shape
alone decides. Products and sums are separate elementwise steps, which IEEE fixes on every CPU. The
exception are dense kernels: one matrix product per aligned tile of `TILE` rows of the tensor, the
same for every budget, but its last bits may differ between CPUs or numbers of threads.

Precision: float32, or float64 where a source or the output is; rounded once, to nearest even. What
is only moved, or scaled by one number and moved, is rounded first and moved in the storage dtype.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
import torch

from growkit.algebra.kernel import BoolArray, FloatArray, IntArray, Kernel
from growkit.checkpoints.types import Shape, Stored
from growkit.dtypes import FLOATS
from growkit.engine import row_blocks, row_noise
from growkit.engine.row_blocks import Block, Rows
from growkit.planning.formula import Formula, Noise, Source, Term

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, full) for name, full in FLOATS.items()}
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Convert = Callable[[torch.Tensor, float, bool], torch.Tensor]
"""(values, factor, whether these values are ours to change) → values that are."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside: gathers are bound by memory, and a second thread only waits.

    Measured on two shared cores: 3.4 GB of bf16 by one thread 5 s of CPU, by two 33 s.
    """
    _keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep what a block frees for the next one: a new page costs more than its sums."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD


def evaluate(formula: Formula, rows: Rows, *, budget: int) -> Iterator[Block]:
    """The blocks of an output tensor, in order.

    `rows(stored, start, stop)` gives the raw bytes of these rows of a stored tensor, of the whole
    where it has no dims; `budget` is the number of bytes that may be alive at once.
    """
    if row_blocks.is_plain(formula):
        yield from row_blocks.plain(formula, rows, budget=budget)
        return
    dtype = DTYPES[formula.dtype]
    exact = _converter(torch.float64 if row_blocks.compute_bytes(formula) == 8 else torch.float32)
    only_moved = len(formula.terms) == 1 and row_blocks.moves(formula.terms[0])
    pieces = [_Piece.of(t, rows, exact) for t in formula.terms]
    finite = only_moved  # all that was moved so far

    def rounded(x: torch.Tensor, factor: float, ours: bool) -> torch.Tensor:
        nonlocal finite
        if x.dtype != dtype:
            x = _rounded(exact(x, factor, ours), dtype)
        elif factor != 1.0:
            x = x.mul(factor)  # one pass, in float32 inside where the dtype is smaller
        finite = finite and not row_blocks.nonfinite(_memory(x), formula.dtype)
        return x.view(_BITS[x.element_size()])

    for start, stop in row_blocks.ranges(formula, budget):
        if only_moved:
            out = pieces[0].block(start, stop, rounded)
        else:
            out = _rounded(_sum(pieces, start, stop, exact), dtype)
        data = _memory(out)
        bad = overflowed = 0 if finite else row_blocks.nonfinite(data, formula.dtype)
        if bad:  # rare enough to compute the block again
            overflowed -= int((~_sum(pieces, start, stop, exact).isfinite()).sum())
        yield Block(start, stop, data, bad, overflowed)
        del out, data


def _memory(x: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    return x.reshape(-1).view(torch.uint8).numpy().data


def _converter(compute: torch.dtype) -> Convert:
    def exact(x: torch.Tensor, factor: float, ours: bool) -> torch.Tensor:
        x = x.to(compute, copy=not ours)
        return x if factor == 1.0 else x.mul_(factor)

    return exact


def _sum(pieces: list[_Piece], start: int, stop: int, convert: Convert) -> torch.Tensor:
    total = pieces[0].block(start, stop, convert)
    for piece in pieces[1:]:
        total.add_(piece.block(start, stop, convert))
    return total


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """A term, with what needs a pass over its whole source: shared rows and the noise's std."""

    source: Source
    shape: Shape  # of the source; a tensor without dims is one row
    kernels: tuple[Kernel | None, ...]
    factor: float
    rows: Rows
    shared: torch.Tensor | None = None  # (shared rows of dim 0, …) in the output's other dims

    @classmethod
    def of(cls, term: Term, rows: Rows, convert: Convert) -> _Piece:
        source, factor = term.source, row_blocks.factor(term)
        if isinstance(source, Noise):
            factor *= _std(source, rows, convert) * row_noise.UNIT
        piece = cls(source, source.shape or (1,), term.kernels or (None,), factor, rows)
        head = piece.kernels[0]
        if head is None or not head.share.shape[1]:
            return piece
        sums = piece._tail(piece._shared_sums(head))
        return replace(piece, shared=convert(sums.mul_(factor), 1.0, True))

    def block(self, start: int, stop: int, convert: Convert) -> torch.Tensor:
        """New rows [start, stop) of this term; the caller's to change if `convert` makes copies."""
        head = self.kernels[0]
        if head is not None and head.dense is not None:
            first = start // row_blocks.TILE * row_blocks.TILE
            last = min(head.new, -(-stop // row_blocks.TILE) * row_blocks.TILE)
            x = self._tail(convert(self._dense_rows(head.dense, first, last), self.factor, True))
            return x[start - first : stop - first]
        needed = head.gathered_rows(start, stop) if head else np.arange(start, stop)
        if any(k is not None and k.dense is not None for k in self.kernels[1:]):
            needed = row_blocks.whole_tiles(needed, self.shape[0])
        made = not isinstance(self.source, Stored)  # what is stored may be a caller's own memory
        x = self._tail(convert(self._read(needed), self.factor, made))
        if head is None:
            first = start - int(needed[0])
            return x[first : first + stop - start]
        index = np.searchsorted(needed, head.index[start:stop])
        out = _gathered(x, 0, index, head.coef[start:stop], plain=row_blocks.common(head) != 0)
        if self.shared is not None:
            for weight, row in zip(head.share[start:stop].T, self.shared, strict=True):
                taking = np.flatnonzero(weight)
                added = _along(weight[taking], 0, out) * row
                out.index_add_(0, torch.from_numpy(taking), added)
        return out

    def _tail(self, x: torch.Tensor) -> torch.Tensor:
        """The kernels of dims 1, 2, …, applied to rows of the source."""
        for dim, kernel in enumerate(self.kernels[1:], start=1):
            if kernel is not None and not kernel.is_identity:
                apply = _mapped if kernel.dense is None else _dense
                x = apply(x, dim, kernel)
        return x

    def _read(self, needed: IntArray) -> torch.Tensor:
        """Rows of the source, in the dtype they are stored in."""
        shape = self.shape
        if not len(needed):
            dtype = self.source.dtype if isinstance(self.source, Stored) else "F32"
            return torch.zeros(0, *shape[1:], dtype=DTYPES[dtype])
        width = math.prod(shape[1:])
        spans = row_blocks.runs(needed, width * row_blocks.item_bytes(self.source))
        parts = [self._span(a, b) for a, b in spans]
        x = parts[0] if len(parts) == 1 else torch.cat(parts)
        if len(x) == len(needed):
            return x
        read = np.concatenate([np.arange(a, b) for a, b in spans])
        return x.index_select(0, torch.from_numpy(np.searchsorted(read, needed)))

    def _span(self, start: int, stop: int) -> torch.Tensor:
        source = self.source
        if isinstance(source, Stored):
            data = self.rows(source, start, stop)
            writable = bytearray(data) if data.readonly else data  # what torch insists on
            values = torch.frombuffer(writable, dtype=DTYPES[source.dtype])
            values = values.reshape(stop - start, *source.shape[1:])
            if source.by is None:
                return values
            by = replace(self, source=source.by, shape=source.by.shape)._span(start, stop)
            return values.double() * by.double().reshape(-1, *[1] * (values.ndim - 1))
        if isinstance(source, Noise):
            return torch.from_numpy(row_noise.steps(source, start, stop))
        return torch.ones(stop - start, *source.shape[1:])

    def _shared_sums(self, head: Kernel) -> torch.Tensor:
        """head.rows · source in float64, shape (shared rows, …)."""
        sums = torch.zeros(len(head.rows), *self.shape[1:], dtype=torch.float64)
        for start, stop in _chunks(self.shape):
            x = self._span(start, stop).to(torch.float64)
            for total, weight in zip(sums, head.rows[:, start:stop], strict=True):
                total.add_(_fold(x * _along(weight, 0, x), 0)[0])
        return sums

    def _dense_rows(self, dense: FloatArray, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of dense · source in float64, one matrix product per tile of rows."""
        matrix = torch.from_numpy(dense)
        sums = torch.zeros(stop - start, math.prod(self.shape[1:]), dtype=torch.float64)
        step = row_blocks.chunk_rows(self.shape, row_blocks.TILE)
        for at in range(0, self.shape[0], step):
            x = self._span(at, min(at + step, self.shape[0])).to(torch.float64)
            for row in range(start, stop, row_blocks.TILE):
                tile = matrix[row : min(row + row_blocks.TILE, stop), at : at + step]
                sums[row - start : row - start + len(tile)].add_(tile @ x.reshape(len(x), -1))
        return sums.reshape(stop - start, *self.shape[1:])


# -- kernels on tensors ----------------------------------------------------------------------------


def _mapped(x: torch.Tensor, dim: int, kernel: Kernel) -> torch.Tensor:
    """A kernel without a dense part on dim ≥ 1."""
    out = _gathered(x, dim, kernel.index, kernel.coef, plain=row_blocks.common(kernel) != 0)
    for weight, row in zip(kernel.share.T, kernel.rows, strict=True):
        out.add_(_weighted_sum(x, dim, row).to(x.dtype) * _along(weight, dim, x))
    return out


def _gathered(
    x: torch.Tensor, dim: int, index: IntArray, coef: FloatArray, *, plain: bool
) -> torch.Tensor:
    """Σ_j coef[:, j] · x[index[:, j]] along `dim`; `plain`: all coefficients are 1 or 0 here."""
    if dim == 0 and coef.all() and np.array_equal(index, np.arange(len(x))[:, None]):
        return x if plain else x.mul_(_along(coef[:, 0], 0, x))  # in place: x is not used again
    total = None
    for j in range(index.shape[1]):
        used = coef[:, j] != 0
        if j and not used.any():
            continue
        part = _picked(x, dim, index[:, j], used)
        if not plain:
            part.mul_(_along(coef[:, j], dim, part))
        if total is not None:
            total.add_(part)
        else:  # +0 turns −0 into 0: whether a column was left out in this block cannot be seen
            total = part.add_(0.0) if index.shape[1] > 1 else part
    if total is None:
        return x.new_zeros(*x.shape[:dim], len(index), *x.shape[dim + 1 :])
    return total


def _picked(x: torch.Tensor, dim: int, index: IntArray, used: BoolArray) -> torch.Tensor:
    """x[index] along `dim` in fresh memory; 0 where not used."""
    if not used.any():
        return x.new_zeros(*x.shape[:dim], len(index), *x.shape[dim + 1 :])
    jumps = used[1:] & (np.diff(index) != 1)
    ends = np.flatnonzero(jumps | (used[1:] != used[:-1])) + 1
    if dim and 16 * len(ends) < len(index):  # few long stretches, as in a tiling: much the fastest
        out = x.new_empty(*x.shape[:dim], len(index), *x.shape[dim + 1 :])
        for a, b in pairwise([0, *ends.tolist(), len(index)]):
            to = out.narrow(dim, a, b - a)
            if used[a]:
                to.copy_(x.narrow(dim, int(index[a]), b - a))
            else:
                to.zero_()
        return out
    if dim:  # numpy takes single columns several times faster than torch
        out = torch.from_numpy(np.take(x.numpy(), index, axis=dim, mode="wrap"))
    else:
        out = x.index_select(0, torch.from_numpy(index))
    if not used.all():
        out.index_fill_(dim, torch.from_numpy(np.flatnonzero(~used)), 0)
    return out


def _dense(x: torch.Tensor, dim: int, kernel: Kernel) -> torch.Tensor:
    """A dense kernel on dim ≥ 1; x holds whole tiles of rows, and each is one matrix product."""
    matrix = torch.from_numpy(kernel.dense).T
    out = x.new_empty(*x.shape[:dim], kernel.new, *x.shape[dim + 1 :])
    for at in range(0, len(x), row_blocks.TILE):
        tile = x[at : at + row_blocks.TILE].to(torch.float64)
        out[at : at + row_blocks.TILE] = (tile.movedim(dim, -1) @ matrix).movedim(-1, dim)
    return out


def _weighted_sum(x: torch.Tensor, dim: int, weight: FloatArray) -> torch.Tensor:
    """Σ_i weight[i] · x[i] along dim ≥ 1 in float64, row by row of dim 0; keeps the dim."""
    out = x.new_empty(*x.shape[:dim], 1, *x.shape[dim + 1 :], dtype=torch.float64)
    step = max(1, row_blocks.CHUNK // max(1, math.prod(x.shape[1:])))
    for at in range(0, len(x), step):
        wide = x[at : at + step].to(torch.float64)
        out[at : at + step] = _fold(wide * _along(weight, dim, wide), dim)
    return out


def _fold(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The sum along `dim` by halving, in x's own memory: its order depends on the size alone."""
    size = x.shape[dim]
    while size > 1:
        half = size // 2
        x.narrow(dim, 0, half).add_(x.narrow(dim, size - half, half))
        size -= half
    return x.narrow(dim, 0, 1)


def _along(values: FloatArray, dim: int, like: torch.Tensor) -> torch.Tensor:
    """A vector that broadcasts along `dim` of `like`, in its dtype."""
    vector = torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype)
    return vector.reshape(-1, *(1,) * (like.ndim - dim - 1))


# -- numbers ---------------------------------------------------------------------------------------


def _std(source: Noise, rows: Rows, convert: Convert) -> float:
    """The standard deviation of the noise before its kernels; 0 where there is no signal."""
    if source.snr_db is None:
        assert source.std is not None, "noise has a std or an snr_db"
        return source.std
    if not source.signal or not source.spread > 0:
        return 0.0
    mean_square = sum(_squares(source, rows, convert)) / math.prod(source.shape)
    return math.sqrt(mean_square / 10.0 ** (source.snr_db / 10.0) / source.spread)


def _squares(source: Noise, rows: Rows, convert: Convert) -> Iterator[float]:
    """Sums of the squares of a noise's signal in float64, chunk by chunk."""
    first, *more = source.signal
    single = all(k is None or (k.is_gather and k.index.shape[1] <= 1) for k in first.kernels)
    if more or not single or not isinstance(first.source, Stored) or first.source.by:
        pieces = [_Piece.of(t, rows, convert) for t in source.signal]
        for start, stop in _chunks(source.shape or (1,)):
            yield _square_sum(_sum(pieces, start, stop, convert), [])
        return
    # every element is one stored element times a factor: squared where it is stored
    stored = _Piece.of(first, rows, convert)
    head, *tail = [None if k is None else _squared_weight(k) for k in stored.kernels]
    for start, stop in _chunks(stored.shape):
        weights = [None if head is None else head[start:stop], *tail]
        yield first.scale**2 * _square_sum(stored._span(start, stop), weights)


def _chunks(shape: Shape) -> Iterator[tuple[int, int]]:
    """Ranges of rows for a pass over a whole tensor."""
    step = row_blocks.chunk_rows(shape)
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def _squared_weight(kernel: Kernel) -> FloatArray:
    """What the square of each old element counts in the sum of the squares of the new ones."""
    coef = kernel.coef.ravel()
    taken = np.bincount(kernel.index.ravel(), weights=coef * coef, minlength=kernel.old)
    return taken.astype(np.float64)  # whole numbers where there is nothing to count


def _square_sum(x: torch.Tensor, weights: list[FloatArray | None]) -> float:
    """The sum of the squares of x, with a weight for each place on each dim."""
    wide = x.to(torch.float64).square()
    for dim, weight in enumerate(weights):
        if weight is not None:
            wide.mul_(_along(weight, dim, wide))
    total = _fold(wide.reshape(-1), 0).item()
    if math.isfinite(total):
        return total
    return _square_sum(x.nan_to_num(0.0, 0.0, 0.0), weights)  # carried over, NaN must not spread


def _rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x in a dtype, rounded once to nearest even."""
    if x.dtype == torch.float64 and dtype in (torch.float16, torch.bfloat16):
        x = _to_odd(x)  # torch goes by float32, and would round twice
    return x.to(dtype)


def _to_odd(x: torch.Tensor) -> torch.Tensor:
    """float64 to float32, cut towards zero with the last bit set where anything was cut.

    What is left rounds to 16 bits as x itself would.
    """
    y = x.to(torch.float32)
    bits = y.view(torch.int32)
    cut = (y.to(torch.float64) != x) & x.isfinite()
    too_far = y.to(torch.float64).abs() > x.abs()
    return (bits - (cut & too_far).int() | cut.int()).view(torch.float32)
