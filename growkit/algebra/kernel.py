"""One linear map on one axis, kept sparse: what an `AxisMap` builds its pairs of maps from.

Shape is always (new, old). The law: a named map never becomes a dense matrix, so planning a width
of 16,384 costs kilobytes. Nothing mutates an argument; numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

TOLERANCE = 1e-12  # coefficients are exact or products of a few roundings of float64
FEW = 16  # sources per row up to which a given matrix is kept as a gather


@dataclass(frozen=True, eq=False)
class RowKinds:
    """What every new row of a kernel is, and the one source row that it takes.

    *old* (the first plain copy of its source row), *copied* (a further one), *scaled* (a source
    row times a factor), *mixed* (several source rows), or *new* (none: a zero row).

    >>> Kernel.gather([0, 1, 0, 1], [1.0, 1.0, 1.0, 0.5], old=2).row_kinds.kind.tolist()
    ['old', 'old', 'copied', 'scaled']
    """

    kind: npt.NDArray[np.str_]  # (new,)
    source: IntArray  # (new,); -1 where a row takes none or several
    first: BoolArray  # (new,); alone in taking its source row, or before all others that do


@dataclass(frozen=True, eq=False)
class Kernel:
    """A linear map on one axis, shape (new, old), kept sparse.

        row i  =  Σ_j coef[i, j] · e[index[i, j]]  +  Σ_m left[i, m] · right[m]

    The first part, *gather*, takes few sources per new row. The second is of low rank: rows that
    many new rows share and that need every source (the mean row under LayerNorm), each stored once.
    `dense` replaces both for learned maps.

    >>> Kernel.gather([0, 1, 0, 1], old=2).apply(np.array([5.0, 7.0]))
    array([5., 7., 5., 7.])
    """

    old: int
    index: IntArray  # (new, sources per row)
    coef: FloatArray  # (new, sources per row); 0 where a row has fewer sources
    left: FloatArray  # (new, rank)
    right: FloatArray  # (rank, old)
    dense: FloatArray | None = None  # (new, old)

    # -- making ----------------------------------------------------------------------------------

    @classmethod
    def gather(cls, index: Any, coef: Any = 1.0, *, old: int) -> Kernel:
        """Row i is `coef[i]` times source row `index[i]` (or a sum, for 2-d arguments)."""
        ix = np.asarray(index, dtype=np.int64)
        ix = ix[:, None] if ix.ndim == 1 else ix
        cf = np.asarray(coef, dtype=np.float64)
        cf = np.broadcast_to(cf[:, None] if cf.ndim == 1 else cf, ix.shape)
        assert ix.size == 0 or (ix.min() >= 0 and ix.max() < old), "gather: source row out of range"
        return cls(old, ix, cf, np.zeros((len(ix), 0)), np.zeros((0, old)))._tidied()

    @classmethod
    def zero(cls, new: int, old: int) -> Kernel:
        """The map to zero, shape (new, old)."""
        return cls.gather(np.zeros((new, 0)), old=old)

    @classmethod
    def identity(cls, size: int, scale: float = 1.0) -> Kernel:
        """`scale` times the identity, shape (size, size)."""
        return cls.gather(np.arange(size), scale, old=size)

    @classmethod
    def shared(cls, row: Any, share: Any) -> Kernel:
        """Row i is `share[i]` times one row, shape (len(share), len(row))."""
        left = np.asarray(share, dtype=np.float64)[:, None]
        right = np.asarray(row, dtype=np.float64)[None, :]
        return replace(cls.zero(len(left), right.shape[1]), left=left, right=right)

    @classmethod
    def from_matrix(cls, matrix: Any) -> Kernel:
        """A dense map, for learned or loaded matrices, shape (new, old)."""
        m = np.array(matrix, dtype=np.float64)
        assert m.ndim == 2, "a kernel has shape (new, old)"
        return replace(cls.zero(*m.shape), dense=m)

    @classmethod
    def found_in(cls, matrix: Any) -> Kernel:
        """A given matrix, kept sparse where it is: few sources per row, or means of all.

        >>> Kernel.found_in([[0.0, 1.0], [2.0, 0.0]]).index
        array([[1],
               [0]])
        """
        m = np.array(matrix, dtype=np.float64)
        means = (m == m[:, :1]).all(axis=1) & (m[:, 0] != 0) & (m.shape[1] > 1)
        few = ((m != 0).sum(axis=1) <= FEW) & ~means
        rest = m[~few]
        row = rest[0] if len(rest) else np.zeros(m.shape[1])
        share = np.zeros(len(m))
        share[~few] = rest @ row / (row @ row) if len(rest) else 0.0
        if np.abs(rest - share[~few, None] * row).max(initial=0.0) > TOLERANCE * np.abs(row).max():
            return cls.from_matrix(m)
        most = int((m[few] != 0).sum(axis=1).max(initial=0))
        index = np.argsort(m == 0, axis=1, kind="stable")[:, :most]
        sparse = cls.gather(index, np.take_along_axis(m, index, 1) * few[:, None], old=m.shape[1])
        return sparse.plus(cls.shared(row, share)) if len(rest) else sparse

    @classmethod
    def from_runs(cls, runs: Any, *, old: int) -> Kernel:
        """The map that `runs` tells; ValueError where they are none."""
        index, coef = [], []
        for count, first, steps, factors in runs:
            index.append(np.array(first) + np.arange(count)[:, None] * np.array(steps))
            coef.append(np.broadcast_to(np.array(factors, dtype=np.float64), index[-1].shape))
        return cls.gather(np.concatenate(index), np.concatenate(coef), old=old)

    # -- looking ---------------------------------------------------------------------------------

    def runs(self) -> list[tuple[int, list[int], list[int], list[float]]]:
        """A kernel that gathers, as rows that go on alike: their number, sources, steps and coefs.

        >>> Kernel.gather([0, 1, 2, 0, 1, 2], 0.5, old=3).runs()
        [(3, [0], [1], [0.5]), (3, [0], [1], [0.5])]
        """
        assert self.is_gather, "runs: not a map that gathers"
        steps = np.diff(self.index, axis=0)
        alike = (np.diff(self.coef, axis=0) == 0).all(axis=1)
        goes_on = alike[1:] & alike[:-1] & (steps[1:] == steps[:-1]).all(axis=1)
        stops = np.append(np.flatnonzero(~goes_on), len(goes_on)) + 2
        runs, start = [], 0
        while start < self.new:
            lone = start + 1 == self.new or not alike[start]
            stop = start + 1 if lone else int(stops[np.searchsorted(stops, start + 2)])
            step = [0] * self.index.shape[1] if lone else steps[start].tolist()
            runs.append((stop - start, self.index[start].tolist(), step, self.coef[start].tolist()))
            start = stop
        return runs

    @property
    def new(self) -> int:
        """Number of rows."""
        return len(self.index)

    @property
    def shape(self) -> tuple[int, int]:
        """(new, old)."""
        return self.new, self.old

    @property
    def is_gather(self) -> bool:
        """No shared rows, not dense: every row needs only its few sources."""
        return self.dense is None and not self.left.shape[1]

    @cached_property
    def is_identity(self) -> bool:
        """Exactly the identity: nothing to compute."""
        return self.new == self.old and self.scalar() == 1.0

    @property
    def _entries(self) -> FloatArray:
        """What stands in its rows, but for shared rows, shape (new, entries)."""
        return self.coef if self.dense is None else self.dense

    @cached_property
    def zero_rows(self) -> BoolArray:
        """Which new rows are zero, shape (new,)."""
        return np.asarray(~(self._entries.any(axis=1) | self.left.any(axis=1)))

    @cached_property
    def unit_rows(self) -> BoolArray:
        """Which new rows are a plain copy of one source row, shape (new,)."""
        single = ((self._entries != 0).sum(axis=1) == 1) & ~self.left.any(axis=1)
        return np.asarray(single & (self._entries.sum(axis=1) == 1.0))

    @cached_property
    def mixes(self) -> bool:
        """Some new row takes more than one source row."""
        return bool(((self._entries != 0).sum(axis=1) > 1).any() or self.left.any())

    @cached_property
    def row_kinds(self) -> RowKinds:
        """What each new row is, and where it comes from; rows of a dense map are mixed."""
        taken = self.coef != 0
        single = (taken.sum(axis=1) == 1) & ~self.left.any(axis=1)
        plain = single & self.unit_rows
        source = np.where(single, np.where(taken, self.index, 0).sum(axis=1), -1)
        kind = np.select(
            [_firsts(source, plain), plain, single, self.zero_rows],
            ["old", "copied", "scaled", "new"],
            default="mixed",
        )
        return RowKinds(kind, source, _firsts(source, single))

    @property
    def repeats(self) -> BoolArray:
        """Which new rows take a source that an earlier row takes already, shape (new,).

        None do in a map that gathers several sources into some row.
        """
        rows = self.row_kinds
        return np.asarray((rows.source >= 0) & ~rows.first & (self.index.shape[1] == 1))

    def scalar(self) -> float | None:
        """ρ if this kernel is ρ·I, else None."""
        if self.new != self.old:
            return None
        if self.dense is not None:
            rho = float(self.dense[0, 0]) if self.new else 1.0
            off = np.abs(self.dense - rho * np.eye(self.new)).max(initial=0.0)
            return rho if rho and off <= 100 * TOLERANCE * max(1.0, abs(rho)) else None
        clean = self.cleaned() if self.index.shape[1] > 1 else self
        if self.left.shape[1] or clean.index.shape[1] > 1:
            return None
        if not clean.index.shape[1]:
            return 0.0 if self.new else 1.0
        rho = float(clean.coef[0, 0])
        same = np.array_equal(clean.index[:, 0], np.arange(self.new))
        near = np.abs(clean.coef[:, 0] - rho).max(initial=0.0) <= TOLERANCE * max(1.0, abs(rho))
        return rho if same and near and rho != 0 else None

    def row_sums(self) -> FloatArray:
        """Kernel · 1, shape (new,)."""
        if self.dense is not None:
            return np.asarray(self.dense.sum(axis=1))
        return np.asarray(self.coef.sum(axis=1) + self.left @ self.right.sum(axis=1))

    def column_sums(self) -> FloatArray:
        """1ᵀ · kernel, shape (old,)."""
        return self.transpose().row_sums()

    @cached_property
    def common(self) -> float:
        """The one coefficient of a kernel that gathers; 0 if there are several, or other rows.

        Coefficients are products of a few roundings, so those that differ in the last bits are one.
        """
        used = self.coef[self.coef != 0] if self.is_gather else np.zeros(0)
        first = float(used[0]) if len(used) else 1.0
        alike = self.is_gather and np.abs(used / first - 1.0).max(initial=0.0) <= 1e-14
        return first if alike else 0.0

    @cached_property
    def square_norm(self) -> float:
        """Sum of the squares of all entries."""
        if self.left.shape[1]:
            return float(self.transpose().after(self).trace())
        return float((self._entries**2).sum())

    def trace(self) -> float:
        """Sum of the diagonal entries."""
        if self.dense is not None:
            return float(np.trace(self.dense))
        diagonal = np.where(self.index == np.arange(self.new)[:, None], self.coef, 0.0).sum()
        return float(diagonal + (self.left * self.right[:, : self.new].T).sum())

    def gathered_rows(self, start: int, stop: int) -> IntArray:
        """Sorted source rows that the gather part of new rows [start, stop) takes."""
        return np.unique(self.index[start:stop][self.coef[start:stop] != 0])

    def matrix(self) -> FloatArray:
        """The same map as a full matrix, shape (new, old); for tests and small learned maps."""
        if self.dense is not None:
            return self.dense
        out = np.asarray(self.left @ self.right)
        row = np.repeat(np.arange(self.new), self.index.shape[1])
        np.add.at(out, (row, self.index.ravel()), self.coef.ravel())
        return out

    def apply(self, values: Any) -> FloatArray:
        """The map applied to dim 0 of `values`, shape (old, …) → (new, …)."""
        x = np.asarray(values, dtype=np.float64)
        if self.dense is not None:
            return np.asarray(np.tensordot(self.dense, x, axes=1))
        tail = (1,) * (x.ndim - 1)
        out = np.tensordot(self.left, np.tensordot(self.right, x, axes=1), axes=1)
        for j in range(self.index.shape[1]):
            out = out + self.coef[:, j].reshape(-1, *tail) * x[self.index[:, j]]
        return np.asarray(out)

    # -- combining -------------------------------------------------------------------------------

    def by_row(self, factor: Any) -> Kernel:
        """Every row times its factor, shape (new,), or all times one."""
        scale = np.broadcast_to(factor, self.new)[:, None]
        dense = None if self.dense is None else self.dense * scale
        return replace(self, coef=self.coef * scale, left=self.left * scale, dense=dense)

    def scaled(self, factor: float) -> Kernel:
        """`factor` times this kernel."""
        return self if factor == 1.0 else self.by_row(factor)

    def masked(self, keep: BoolArray) -> Kernel:
        """The same kernel with every row outside `keep` set to zero."""
        return self.by_row(keep)._tidied()

    def after(self, first: Kernel) -> Kernel:
        """The product self · first: `first` acts on the source, then self."""
        assert self.old == first.new, f"cannot compose {self.shape} after {first.shape}"
        if self.is_identity:
            return first
        if first.is_identity:
            return self
        if self.dense is not None or first.dense is not None:
            return Kernel.from_matrix(self.apply(first.matrix()))
        index = first.index[self.index].reshape(self.new, -1)
        coef = (self.coef[:, :, None] * first.coef[self.index]).reshape(self.new, -1)
        carried = np.einsum("nk,nkm->nm", self.coef, first.left[self.index])
        left, right = np.concatenate([self.left, carried], axis=1), first.right
        if len(self.right):  # its shared rows, taken of what `first` gives
            right = np.concatenate([first.transpose().apply(self.right.T).T, right])
        left, right = _merge(left, right)
        return Kernel(first.old, index, coef, left, right)._tidied()

    def cleaned(self) -> Kernel:
        """The same kernel without the crumbs that rounding leaves where entries cancel."""
        coef = np.where(np.abs(self.coef) > TOLERANCE, self.coef, 0.0)
        dense = self.dense
        if dense is not None:
            dense = np.where(np.abs(dense) > 100 * TOLERANCE, dense, 0.0)
        return replace(self, coef=coef, dense=dense)._tidied()

    def plus(self, other: Kernel) -> Kernel:
        """The sum of two kernels of one shape."""
        assert self.shape == other.shape
        if self.dense is not None or other.dense is not None:
            return Kernel.from_matrix(self.matrix() + other.matrix())
        index = np.concatenate([self.index, other.index], axis=1)
        coef = np.concatenate([self.coef, other.coef], axis=1)
        left = np.concatenate([self.left, other.left], axis=1)
        right = np.concatenate([self.right, other.right])
        return Kernel(self.old, index, coef, *_merge(left, right))._tidied()

    def transpose(self) -> Kernel:
        """The transposed map, shape (old, new)."""
        if self.dense is not None:
            return Kernel.from_matrix(self.dense.T)
        row, slot = np.nonzero(self.coef)
        column = self.index[row, slot]
        order = np.argsort(column, kind="stable")
        column, row, slot = column[order], row[order], slot[order]
        counts = np.bincount(column, minlength=self.old)
        width = int(counts.max(initial=0))
        place = np.arange(len(column)) - np.repeat(np.cumsum(counts) - counts, counts)
        index = np.zeros((self.old, width), dtype=np.int64)
        coef = np.zeros((self.old, width))
        index[column, place] = row
        coef[column, place] = self.coef[row, slot]
        return Kernel(self.new, index, coef, self.right.T, self.left.T)

    def kron(self, inner: Kernel) -> Kernel:
        """The Kronecker product: the map of a composite axis `outer.inner` (row-major)."""
        if not (self.is_gather and inner.is_gather):
            return Kernel.from_matrix(np.kron(self.matrix(), inner.matrix()))
        index = self.index[:, None, :, None] * inner.old + inner.index[None, :, None, :]
        coef = self.coef[:, None, :, None] * inner.coef[None, :, None, :]
        shape = self.new * inner.new, self.index.shape[1] * inner.index.shape[1]
        return Kernel.gather(index.reshape(shape), coef.reshape(shape), old=self.old * inner.old)

    def direct_sum(self, other: Kernel) -> Kernel:
        """The block-diagonal map of a concatenated axis `self | other`."""
        if self.dense is not None or other.dense is not None:
            return Kernel.from_matrix(_diagonal(self.matrix(), other.matrix()))
        width = max(self.index.shape[1], other.index.shape[1])

        def stacked(above: Any, below: Any) -> Any:
            return np.concatenate(
                [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (above, below)]
            )

        coef = stacked(self.coef, other.coef)
        index = np.where(coef != 0, stacked(self.index, other.index + self.old), 0)
        left, right = _diagonal(self.left, other.left), _diagonal(self.right, other.right)
        return Kernel(self.old + other.old, index, coef, left, right)

    def _tidied(self) -> Kernel:
        """One entry per (row, source), zeros last and pointing at 0, unused slots cut off."""
        index, coef = self.index, self.coef
        if index.shape[1] > 1:
            order = np.argsort(index, axis=1, kind="stable")
            index, coef = np.take_along_axis(index, order, 1), np.take_along_axis(coef, order, 1)
            for j in range(1, index.shape[1]):
                same = index[:, j] == index[:, j - 1]
                if same.any():
                    coef[:, j] += np.where(same, coef[:, j - 1], 0.0)
                    coef[same, j - 1] = 0.0
            order = np.argsort(coef == 0, axis=1, kind="stable")
            index, coef = np.take_along_axis(index, order, 1), np.take_along_axis(coef, order, 1)
        used = int((coef != 0).sum(axis=1).max(initial=0))
        index, coef = index[:, :used], coef[:, :used]
        return replace(self, index=np.where(coef != 0, index, 0), coef=np.array(coef))


def _diagonal(first: FloatArray, second: FloatArray) -> FloatArray:
    """The block-diagonal matrix of two."""
    rows, columns = first.shape
    out = np.zeros((rows + len(second), columns + second.shape[1]))
    out[:rows, :columns], out[rows:, columns:] = first, second
    return out


def _firsts(source: IntArray, among: BoolArray) -> BoolArray:
    """Which of the rows `among` are the first to take their source, shape (new,)."""
    rows = np.flatnonzero(among)
    out = np.zeros(len(source), dtype=bool)
    out[rows[np.unique(source[rows], return_index=True)[1]]] = True
    return out


def _merge(left: FloatArray, right: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Drop shared rows that nobody uses, and fold proportional ones into one."""
    kept: list[tuple[FloatArray, FloatArray]] = []
    for weight, row in zip(left.T, right, strict=True):
        if np.abs(weight).max(initial=0.0) <= TOLERANCE or not row.any():
            continue
        for i, (w, r) in enumerate(kept):
            ratio = float(row @ r / (r @ r))
            if np.allclose(row, ratio * r, rtol=0, atol=TOLERANCE * np.abs(r).max()):
                kept[i] = (w + ratio * weight, r)
                break
        else:
            kept.append((weight, row))
    if not kept:
        return np.zeros((len(left), 0)), np.zeros((0, right.shape[1]))
    return np.stack([w for w, _ in kept], axis=1), np.stack([r for _, r in kept])
