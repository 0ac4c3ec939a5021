"""Evaluates one formula, block of rows by block of rows: the arithmetic.

The law: no output byte depends on where blocks begin and end, nor on the budget. So every sum has
an order of its own: the sources of a row in the order of the kernel's columns, terms in that of
the formula, long sums (shared rows, mean squares) pairwise in float64 over chunks that the shape
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
import numpy.typing as npt
import torch

from growkit.algebra.kernel import BoolArray, FloatArray, IntArray, Kernel
from growkit.checkpoints.types import Shape, Stored
from growkit.dtypes import FLOATS
from growkit.engine import row_noise
from growkit.engine.row_blocks import (
    CHUNK,
    TILE,
    Block,
    Rows,
    blocks_without_arithmetic,
    chunk_rows,
    item_bytes,
    needs_arithmetic,
    nonfinite,
    ranges,
    row_count,
    row_width,
    runs,
    whole_tiles,
)
from growkit.engine.working_memory import block_rows, compute_bytes
from growkit.planning.formula import Formula, Noise, Ones, Source, Term

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, full) for name, full in FLOATS.items()}
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # what is only moved keeps every bit

# mean length from which stretches of a dim are copied one by one rather than element by element
_STRETCH = 16

Convert = Callable[[torch.Tensor, float, bool], torch.Tensor]
"""convert(rows, factor, owned): rows as read, times a factor, in the dtype in which they go on.

`owned`: nobody else holds this memory, so it may be changed. What is stored may be a caller's.
"""


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


# -- blocks of a tensor ----------------------------------------------------------------------------


def evaluate(formula: Formula, rows: Rows, *, budget: int) -> Iterator[Block]:
    """The blocks of an output tensor, in order.

    `rows` reads stored tensors; `budget` is the number of bytes that may be alive at once. Raises
    ResourceError if one row takes more.
    """
    if not formula.nbytes:
        return
    step = block_rows(formula, budget)
    if not needs_arithmetic(formula):
        yield from blocks_without_arithmetic(formula, rows, step)
        return
    dtype = DTYPES[formula.dtype]
    exact = _converter(torch.float64 if compute_bytes(formula) == 8 else torch.float32)
    terms = [_ReadyTerm.of(t, rows, exact) for t in formula.terms]
    only_moved = len(formula.terms) == 1 and formula.terms[0].moves
    finite = only_moved  # all rows that were read so far: what is moved need not be searched again

    def rounded(x: torch.Tensor, factor: float, owned: bool) -> torch.Tensor:
        """Bits of the output's dtype: what is only moved afterwards is rounded first, and once."""
        nonlocal finite
        if x.dtype != dtype:
            x = _round(exact(x, factor, owned), dtype)
        elif factor != 1.0:
            x = x.mul(factor)  # one pass, in float32 inside where the dtype is smaller
        finite = finite and not nonfinite(bytes_of(x).data, formula.dtype)
        return x.view(_BITS[x.element_size()])

    for start, stop in ranges(row_count(formula.shape), step):
        if only_moved:
            out = terms[0].block(start, stop, rounded)
        else:
            out = _round(_sum_of_terms(terms, start, stop, exact), dtype)
        data = bytes_of(out).data
        bad = overflowed = 0 if finite else nonfinite(data, formula.dtype)
        if bad:  # rare enough to compute the block again
            overflowed -= int((~_sum_of_terms(terms, start, stop, exact).isfinite()).sum())
        yield Block(start, stop, data, bad, overflowed)
        del out, data


def bytes_of(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _converter(compute: torch.dtype) -> Convert:
    """To the dtype of the arithmetic."""

    def exact(x: torch.Tensor, factor: float, owned: bool) -> torch.Tensor:
        x = x.to(compute, copy=not owned)
        return x if factor == 1.0 else x.mul_(factor)

    return exact


def _sum_of_terms(terms: list[_ReadyTerm], start: int, stop: int, convert: Convert) -> torch.Tensor:
    """Rows [start, stop) of all terms, added in order."""
    total = terms[0].block(start, stop, convert)
    for term in terms[1:]:
        total.add_(term.block(start, stop, convert))
    return total


# -- one term --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _ReadyTerm:
    """A term, with what takes a pass over its whole source: shared rows and the noise's std."""

    source: Source
    shape: Shape  # of the source; a tensor without dims is one row
    kernels: tuple[Kernel | None, ...]
    factor: float
    rows: Rows
    shared: torch.Tensor | None = None  # (shared rows of dim 0, …), later dims mapped, converted

    @classmethod
    def of(cls, term: Term, rows: Rows, convert: Convert) -> _ReadyTerm:
        source, factor = term.source, term.factor
        if isinstance(source, Noise):
            factor *= _std(source, rows, convert) * row_noise.UNIT
        ready = cls(source, source.shape or (1,), term.kernels or (None,), factor, rows)
        head = ready.kernels[0]
        if head is None or not head.left.shape[1]:
            return ready
        sums = ready._map_later_dims(ready._shared_sums(head.right))
        return replace(ready, shared=convert(sums.mul_(factor), 1.0, True))

    def block(self, start: int, stop: int, convert: Convert) -> torch.Tensor:
        """New rows [start, stop) of this term; the caller's to change if `convert` makes copies.

        In four stages: source rows are read, converted, mapped on dims 1, 2, …, and then on dim 0.
        Dim 0 is last because it is what makes rows: until then only those of the source are held,
        each once. Only a dense kernel has to be first.
        """
        head = self.kernels[0]
        if head is not None and head.dense is not None:
            return self._dense_block(head.dense, start, stop, convert)
        needed = self._needed_rows(start, stop)
        x = self._read(needed)
        x = convert(x, self.factor, not isinstance(self.source, Stored))
        x = self._map_later_dims(x)
        return self._map_first_dim(x, needed, start, stop)

    def _dense_block(
        self, dense: FloatArray, start: int, stop: int, convert: Convert
    ) -> torch.Tensor:
        """The same where the kernel of dim 0 is dense.

        Each new row needs all of the source, which is not to be held: a pass over it comes first.
        In aligned tiles of new rows, as the last bits of a product depend on its shape.
        """
        first = start // TILE * TILE
        last = min(len(dense), -(-stop // TILE) * TILE)
        x = convert(self._dense_rows(dense, first, last), self.factor, True)
        return self._map_later_dims(x)[start - first : stop - first]

    # stage 1: source rows are read

    def _needed_rows(self, start: int, stop: int) -> IntArray:
        """Sorted source rows for new rows [start, stop): whole tiles where a product takes them."""
        head = self.kernels[0]
        needed = head.gathered_rows(start, stop) if head else np.arange(start, stop)
        if any(k is not None and k.dense is not None for k in self.kernels[1:]):
            return whole_tiles(needed, self.shape[0])
        return needed

    def _read(self, needed: IntArray) -> torch.Tensor:
        """These rows of the source, as they are stored: few reads, and rows in between dropped."""
        if not len(needed):
            dtype = self.source.dtype if isinstance(self.source, Stored) else "F32"
            return torch.zeros(0, *self.shape[1:], dtype=DTYPES[dtype])
        spans = runs(needed, row_width(self.shape) * item_bytes(self.source))
        parts = [_source_rows(self.source, a, b, self.rows) for a, b in spans]
        x = parts[0] if len(parts) == 1 else torch.cat(parts)
        if len(x) == len(needed):
            return x
        read = np.concatenate([np.arange(a, b) for a, b in spans])
        return x.index_select(0, torch.from_numpy(np.searchsorted(read, needed)))

    # stage 2 is `convert`; stage 3: dims 1, 2, …

    def _map_later_dims(self, x: torch.Tensor) -> torch.Tensor:
        """Their kernels, one after the other, applied to rows of the source."""
        for dim, kernel in enumerate(self.kernels[1:], start=1):
            if kernel is not None and not kernel.is_identity:
                apply = _apply_sparse if kernel.dense is None else _apply_dense
                x = apply(x, dim, kernel)
        return x

    # stage 4: dim 0

    def _map_first_dim(
        self, x: torch.Tensor, needed: IntArray, start: int, stop: int
    ) -> torch.Tensor:
        """New rows from the rows read: gathered, and what is shared by all added."""
        head = self.kernels[0]
        if head is None:
            first = start - int(needed[0])  # whole tiles begin before the block
            return x[first : first + stop - start]
        places = np.searchsorted(needed, head.index[start:stop])  # of sources among the rows read
        coef, common = head.coef[start:stop], head.common != 0
        if coef.all() and np.array_equal(places, np.arange(len(x))[:, None]):
            # as they were read, each once: x is not used again, and serves as the result
            out = x if common else x.mul_(_along(coef[:, 0], 0, x))
        else:
            out = _gather(x, 0, places, coef, common=common)
        if self.shared is not None:
            for weight, row in zip(head.left[start:stop].T, self.shared, strict=True):
                taking = np.flatnonzero(weight)
                out.index_add_(0, torch.from_numpy(taking), _along(weight[taking], 0, out) * row)
        return out

    # passes over the whole source

    def _shared_sums(self, weights: FloatArray) -> torch.Tensor:
        """weights · source in float64, shape (shared rows, …)."""
        sums = torch.zeros(len(weights), *self.shape[1:], dtype=torch.float64)
        for start, stop in _chunks(self.shape):
            x = _source_rows(self.source, start, stop, self.rows).to(torch.float64)
            for total, weight in zip(sums, weights[:, start:stop], strict=True):
                total.add_(_pairwise_sum(x * _along(weight, 0, x), 0)[0])
        return sums

    def _dense_rows(self, dense: FloatArray, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of dense · source in float64, one matrix product per tile of rows."""
        matrix = torch.from_numpy(dense)
        sums = torch.zeros(stop - start, row_width(self.shape), dtype=torch.float64)
        for first, last in _chunks(self.shape, TILE):
            x = _source_rows(self.source, first, last, self.rows).to(torch.float64)
            for row in range(start, stop, TILE):
                tile = matrix[row : min(row + TILE, stop), first:last]
                sums[row - start : row - start + len(tile)].add_(tile @ x.reshape(len(x), -1))
        return sums.reshape(stop - start, *self.shape[1:])


def _source_rows(source: Source, start: int, stop: int, rows: Rows) -> torch.Tensor:
    """Rows [start, stop) of a source, in the dtype they are stored in; what is made is float32."""
    if isinstance(source, Ones):
        return torch.ones(stop - start, *source.shape[1:])
    if isinstance(source, Noise):
        return torch.from_numpy(row_noise.draw(source, start, stop))
    data = rows(source, start, stop)
    writable = bytearray(data) if data.readonly else data  # what torch insists on
    values = torch.frombuffer(writable, dtype=DTYPES[source.dtype])
    values = values.reshape(stop - start, *source.shape[1:])
    if source.by is None:
        return values
    factors = _source_rows(source.by, start, stop, rows).double()
    return values.double() * factors.reshape(-1, *[1] * (values.ndim - 1))


def _chunks(shape: Shape, least: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of rows for a pass over a whole tensor."""
    return ranges(shape[0], chunk_rows(shape, least))


# -- a kernel on one dim of a tensor ---------------------------------------------------------------


def _apply_sparse(x: torch.Tensor, dim: int, kernel: Kernel) -> torch.Tensor:
    """A kernel without a dense part on dim ≥ 1: gathered, and its shared rows added."""
    out = _gather(x, dim, kernel.index, kernel.coef, common=kernel.common != 0)
    for weight, row in zip(kernel.left.T, kernel.right, strict=True):
        out.add_(_weighted_sum(x, dim, row).to(x.dtype) * _along(weight, dim, x))
    return out


def _apply_dense(x: torch.Tensor, dim: int, kernel: Kernel) -> torch.Tensor:
    """A dense kernel on dim ≥ 1; x holds whole tiles of rows, and each is one matrix product."""
    matrix = torch.from_numpy(kernel.dense).T
    out = x.new_empty(_resized(x, dim, kernel.new))
    for start, stop in ranges(len(x), TILE):
        tile = x[start:stop].to(torch.float64)
        out[start:stop] = (tile.movedim(dim, -1) @ matrix).movedim(-1, dim)
    return out


def _gather(
    x: torch.Tensor, dim: int, index: IntArray, coef: FloatArray, *, common: bool
) -> torch.Tensor:
    """Σ_j coef[:, j] · x[index[:, j]] along `dim`, in fresh memory.

    `common`: all coefficients that are not 0 are one, which x is multiplied by already.
    """
    used = coef != 0
    total = None
    for j in np.flatnonzero(used.any(axis=0)):
        part = _take(x, dim, index[:, j], used[:, j])
        if not common:
            part.mul_(_along(coef[:, j], dim, part))
        if total is not None:
            total.add_(part)
        elif index.shape[1] > 1:
            # a column that no row of this block uses is left out, where a larger block adds its
            # zeros, which turn −0 into 0: so does this
            total = part.add_(0.0)
        else:
            total = part
    return x.new_zeros(_resized(x, dim, len(index))) if total is None else total


def _take(x: torch.Tensor, dim: int, index: IntArray, used: BoolArray) -> torch.Tensor:
    """x[index] along `dim` in fresh memory; 0 where not used. The fastest of three ways."""
    if not dim:
        out = x.index_select(0, torch.from_numpy(index))
    else:
        breaks = np.flatnonzero((used[1:] & (np.diff(index) != 1)) | (used[1:] != used[:-1])) + 1
        if _STRETCH * len(breaks) < len(index):  # as in a tiling
            return _copy_stretches(x, dim, index, used, breaks)
        # numpy takes single columns several times faster than torch. No index is out of range:
        # "wrap" only spares the search for one
        out = torch.from_numpy(np.take(x.numpy(), index, axis=dim, mode="wrap"))
    if not used.all():
        out.index_fill_(dim, torch.from_numpy(np.flatnonzero(~used)), 0)
    return out


def _copy_stretches(
    x: torch.Tensor, dim: int, index: IntArray, used: BoolArray, breaks: IntArray
) -> torch.Tensor:
    """x[index] along `dim` where `index` counts up, or is not used, from one break to the next."""
    out = x.new_empty(_resized(x, dim, len(index)))
    for start, stop in pairwise([0, *breaks.tolist(), len(index)]):
        stretch = out.narrow(dim, start, stop - start)
        if used[start]:
            stretch.copy_(x.narrow(dim, int(index[start]), stop - start))
        else:
            stretch.zero_()
    return out


def _weighted_sum(x: torch.Tensor, dim: int, weight: FloatArray) -> torch.Tensor:
    """Σ_i weight[i] · x[i] along dim ≥ 1 in float64, row by row of dim 0; keeps the dim."""
    out = x.new_empty(_resized(x, dim, 1), dtype=torch.float64)
    for start, stop in ranges(len(x), max(1, CHUNK // max(1, row_width(x.shape)))):
        wide = x[start:stop].to(torch.float64)
        out[start:stop] = _pairwise_sum(wide * _along(weight, dim, wide), dim)
    return out


def _pairwise_sum(x: torch.Tensor, dim: int) -> torch.Tensor:
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


def _resized(x: torch.Tensor, dim: int, size: int) -> tuple[int, ...]:
    """The shape of x with another size of one dim."""
    return (*x.shape[:dim], size, *x.shape[dim + 1 :])


# -- the standard deviation of noise ---------------------------------------------------------------


def _std(source: Noise, rows: Rows, convert: Convert) -> float:
    """The standard deviation of the noise before its kernels; 0 where there is no signal."""
    if source.snr_db is None:
        assert source.std is not None, "noise has a std or an snr_db"
        return source.std
    if not source.signal or not source.spread > 0:
        return 0.0
    mean_square = sum(_square_sums(source, rows, convert)) / math.prod(source.shape)
    return math.sqrt(mean_square / 10.0 ** (source.snr_db / 10.0) / source.spread)


def _square_sums(source: Noise, rows: Rows, convert: Convert) -> Iterator[float]:
    """Sums of the squares of a noise's signal in float64, chunk by chunk."""
    first, *more = source.signal
    single = all(k is None or (k.is_gather and k.index.shape[1] <= 1) for k in first.kernels)
    if more or not single or not isinstance(first.source, Stored) or first.source.by:
        terms = [_ReadyTerm.of(t, rows, convert) for t in source.signal]
        for start, stop in _chunks(source.shape or (1,)):
            yield _square_sum(_sum_of_terms(terms, start, stop, convert), [])
        return
    # every element is one stored element times a factor: squared where it is stored
    head, *later = [None if k is None else _square_weights(k) for k in first.kernels or (None,)]
    for start, stop in _chunks(first.source.shape or (1,)):
        weights = [None if head is None else head[start:stop], *later]
        x = _source_rows(first.source, start, stop, rows)
        yield first.scale**2 * _square_sum(x, weights)


def _square_weights(kernel: Kernel) -> FloatArray:
    """What the square of each old element counts in the sum of the squares of the new ones."""
    coef = kernel.coef.ravel()
    weights = np.bincount(kernel.index.ravel(), weights=coef * coef, minlength=kernel.old)
    return weights.astype(np.float64)  # whole numbers where there is nothing to count


def _square_sum(x: torch.Tensor, weights: list[FloatArray | None]) -> float:
    """The sum of the squares of x, with a weight for each place on each dim."""
    wide = x.to(torch.float64).square()
    for dim, weight in enumerate(weights):
        if weight is not None:
            wide.mul_(_along(weight, dim, wide))
    total = _pairwise_sum(wide.reshape(-1), 0).item()
    if math.isfinite(total):
        return total
    return _square_sum(x.nan_to_num(0.0, 0.0, 0.0), weights)  # carried over, NaN must not spread


# -- rounding --------------------------------------------------------------------------------------


def _round(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x in a dtype, rounded once to nearest even."""
    if x.dtype == torch.float64 and dtype in (torch.float16, torch.bfloat16):
        x = _round_to_odd(x)  # torch goes by float32, and would round twice
    return x.to(dtype)


def _round_to_odd(x: torch.Tensor) -> torch.Tensor:
    """float64 to float32, cut towards zero with the last bit set where anything was cut.

    What is left rounds to 16 bits as x itself would (Boldo & Melquiond, IEEE TC 57(4), 2008).
    """
    y = x.to(torch.float32)
    bits = y.view(torch.int32)
    cut = (y.to(torch.float64) != x) & x.isfinite()
    too_far = y.to(torch.float64).abs() > x.abs()
    return (bits - (cut & too_far).int() | cut.int()).view(torch.float32)
