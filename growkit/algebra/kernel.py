"""One linear map on one axis, kept sparse: what an `AxisMap` builds its pairs of maps from.

Shape is always (new, old). The law: a named map never becomes a dense matrix, so planning a width
of 16,384 costs kilobytes. Nothing mutates an argument; numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
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
class Kernel:
    """A linear map on one axis, shape (new, old), kept sparse.

        row i  =  Σ_j coef[i, j] · e[index[i, j]]  +  Σ_m share[i, m] · rows[m]

    The first part, *gather*, takes few sources per new row. The second holds rows that many new
    rows share and that need every source (the mean row under LayerNorm): each is stored once.
    `dense` replaces both for learned maps.

    >>> Kernel.gather([0, 1, 0, 1], old=2).apply(np.array([5.0, 7.0]))
    array([5., 7., 5., 7.])
    """

    old: int
    index: IntArray  # (new, sources per row)
    coef: FloatArray  # (new, sources per row); 0 where a row has fewer sources
    share: FloatArray  # (new, shared rows)
    rows: FloatArray  # (shared rows, old)
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
        ix, cf = _tidy(ix, cf)
        return cls(old, ix, cf, np.zeros((len(ix), 0)), np.zeros((0, old)))

    @classmethod
    def identity(cls, size: int, scale: float = 1.0) -> Kernel:
        """`scale` times the identity, shape (size, size)."""
        return cls.gather(np.arange(size), scale, old=size)

    @classmethod
    def shared(cls, row: Any, share: Any) -> Kernel:
        """Row i is `share[i]` times one shared row, shape (len(share), len(row))."""
        rows = np.asarray(row, dtype=np.float64)[None, :]
        weight = np.asarray(share, dtype=np.float64)[:, None]
        empty = np.zeros((len(weight), 0))
        return cls(rows.shape[1], empty.astype(np.int64), empty, weight, rows)

    @classmethod
    def from_matrix(cls, matrix: Any) -> Kernel:
        """A dense map, for learned or loaded matrices, shape (new, old)."""
        m = np.array(matrix, dtype=np.float64)
        assert m.ndim == 2, "a kernel has shape (new, old)"
        empty = np.zeros((len(m), 0))
        return cls(
            m.shape[1], empty.astype(np.int64), empty, empty, np.zeros((0, m.shape[1])), dense=m
        )

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
        found = cls.gather(index, np.take_along_axis(m, index, 1) * few[:, None], old=m.shape[1])
        return found.plus(cls.shared(row, share)) if len(rest) else found

    # -- looking ---------------------------------------------------------------------------------

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
        return self.dense is None and not self.share.shape[1]

    @cached_property
    def is_identity(self) -> bool:
        """Exactly the identity: nothing to compute."""
        return self.new == self.old and self.scalar() == 1.0

    @cached_property
    def zero_rows(self) -> BoolArray:
        """Which new rows are zero, shape (new,)."""
        if self.dense is not None:
            return np.asarray(~self.dense.any(axis=1))
        return np.asarray(~(self.coef.any(axis=1) | self.share.any(axis=1)))

    @cached_property
    def unit_rows(self) -> BoolArray:
        """Which new rows are a plain copy of one source row, shape (new,)."""
        if self.dense is not None:
            single = (self.dense != 0).sum(axis=1) == 1
            return np.asarray(single & (self.dense.sum(axis=1) == 1.0))
        single = (self.coef != 0).sum(axis=1) == 1
        return np.asarray(single & (self.coef.sum(axis=1) == 1.0) & ~self.share.any(axis=1))

    @cached_property
    def mixes(self) -> bool:
        """Some new row takes more than one source row."""
        if self.dense is not None:
            return bool(((self.dense != 0).sum(axis=1) > 1).any())
        return bool(((self.coef != 0).sum(axis=1) > 1).any() or self.share.any())

    @cached_property
    def repeats(self) -> BoolArray:
        """Which new rows take a source that an earlier row takes already, shape (new,)."""
        out = np.zeros(self.new, dtype=bool)
        if self.dense is None and self.index.shape[1] == 1:
            used = np.flatnonzero(self.coef[:, 0])
            first = np.unique(self.index[used, 0], return_index=True)[1]
            out[np.delete(used, first)] = True
        return out

    def scalar(self) -> float | None:
        """ρ if this kernel is ρ·I, else None."""
        if self.new != self.old:
            return None
        if self.dense is not None:
            rho = float(self.dense[0, 0]) if self.new else 1.0
            off = np.abs(self.dense - rho * np.eye(self.new)).max(initial=0.0)
            return rho if rho and off <= 100 * TOLERANCE * max(1.0, abs(rho)) else None
        if self.share.shape[1] or self.index.shape[1] > 1:
            close = _tidy(self.index, np.where(np.abs(self.coef) > TOLERANCE, self.coef, 0.0))
            if self.share.shape[1] or close[0].shape[1] > 1:
                return None
            index, coef = close
        else:
            index, coef = self.index, self.coef
        if not index.shape[1]:
            return 0.0 if self.new else 1.0
        rho = float(coef[0, 0])
        same = np.array_equal(index[:, 0], np.arange(self.new))
        near = np.abs(coef[:, 0] - rho).max(initial=0.0) <= TOLERANCE * max(1.0, abs(rho))
        return rho if same and near and rho != 0 else None

    def row_sums(self) -> FloatArray:
        """Kernel · 1, shape (new,)."""
        if self.dense is not None:
            return np.asarray(self.dense.sum(axis=1))
        return np.asarray(self.coef.sum(axis=1) + self.share @ self.rows.sum(axis=1))

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
        if self.dense is not None:
            return float((self.dense**2).sum())
        if self.is_gather:
            return float((self.coef**2).sum())
        return float(self.transpose().after(self).trace())

    def trace(self) -> float:
        """Sum of the diagonal entries."""
        if self.dense is not None:
            return float(np.trace(self.dense))
        diagonal = np.where(self.index == np.arange(self.new)[:, None], self.coef, 0.0).sum()
        return float(diagonal + (self.share * self.rows[:, : self.new].T).sum())

    def gathered_rows(self, start: int, stop: int) -> IntArray:
        """Sorted source rows that the gather part of new rows [start, stop) takes."""
        return np.unique(self.index[start:stop][self.coef[start:stop] != 0])

    def matrix(self) -> FloatArray:
        """The same map as a full matrix, shape (new, old); for tests and small learned maps."""
        if self.dense is not None:
            return self.dense
        out = np.asarray(self.share @ self.rows)
        row = np.repeat(np.arange(self.new), self.index.shape[1])
        np.add.at(out, (row, self.index.ravel()), self.coef.ravel())
        return out

    def apply(self, values: Any) -> FloatArray:
        """The map applied to dim 0 of `values`, shape (old, …) → (new, …)."""
        x = np.asarray(values, dtype=np.float64)
        if self.dense is not None:
            return np.asarray(np.tensordot(self.dense, x, axes=1))
        tail = (1,) * (x.ndim - 1)
        out = np.tensordot(self.share, np.tensordot(self.rows, x, axes=1), axes=1)
        for j in range(self.index.shape[1]):
            out = out + self.coef[:, j].reshape(-1, *tail) * x[self.index[:, j]]
        return np.asarray(out)

    # -- combining -------------------------------------------------------------------------------

    def scaled(self, factor: float) -> Kernel:
        """`factor` times this kernel."""
        if factor == 1.0:
            return self
        dense = None if self.dense is None else self.dense * factor
        return Kernel(
            self.old, self.index, self.coef * factor, self.share * factor, self.rows, dense
        )

    def masked(self, keep: BoolArray) -> Kernel:
        """The same kernel with every row outside `keep` set to zero."""
        mask = keep[:, None]
        dense = None if self.dense is None else self.dense * mask
        index, coef = _tidy(self.index, self.coef * mask)
        return Kernel(self.old, index, coef, self.share * mask, self.rows, dense)

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
        index, coef = _tidy(index, coef)
        carried = np.einsum("nk,nkm->nm", self.coef, first.share[self.index])
        mixed = first.transpose().apply(self.rows.T).T  # (shared rows of self, old of first)
        share, rows = _merge(
            np.concatenate([self.share, carried], axis=1),
            np.concatenate([mixed.reshape(-1, first.old), first.rows]),
        )
        return Kernel(first.old, index, coef, share, rows)

    def cleaned(self) -> Kernel:
        """The same kernel without the crumbs that rounding leaves where entries cancel."""
        coef = np.where(np.abs(self.coef) > TOLERANCE, self.coef, 0.0)
        index, coef = _tidy(self.index, coef)
        dense = (
            None
            if self.dense is None
            else np.where(np.abs(self.dense) > 100 * TOLERANCE, self.dense, 0.0)
        )
        return Kernel(self.old, index, coef, self.share, self.rows, dense)

    def plus(self, other: Kernel) -> Kernel:
        """The sum of two kernels of one shape."""
        assert self.shape == other.shape
        if self.dense is not None or other.dense is not None:
            return Kernel.from_matrix(self.matrix() + other.matrix())
        index, coef = _tidy(
            np.concatenate([self.index, other.index], axis=1),
            np.concatenate([self.coef, other.coef], axis=1),
        )
        share, rows = _merge(
            np.concatenate([self.share, other.share], axis=1),
            np.concatenate([self.rows, other.rows]),
        )
        return Kernel(self.old, index, coef, share, rows)

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
        return Kernel(self.new, index, coef, self.rows.T, self.share.T)

    def kron(self, inner: Kernel) -> Kernel:
        """The Kronecker product: the map of a composite axis `outer.inner` (row-major)."""
        if not (self.is_gather and inner.is_gather):
            return Kernel.from_matrix(np.kron(self.matrix(), inner.matrix()))
        index = self.index[:, None, :, None] * inner.old + inner.index[None, :, None, :]
        coef = self.coef[:, None, :, None] * inner.coef[None, :, None, :]
        size = self.new * inner.new
        ix, cf = _tidy(index.reshape(size, -1), coef.reshape(size, -1))
        return Kernel(
            self.old * inner.old,
            ix,
            cf,
            np.zeros((size, 0)),
            np.zeros((0, self.old * inner.old)),
        )

    def direct_sum(self, other: Kernel) -> Kernel:
        """The block-diagonal map of a concatenated axis `self | other`."""
        old, new = self.old + other.old, self.new + other.new
        if self.dense is not None or other.dense is not None:
            full = np.zeros((new, old))
            full[: self.new, : self.old] = self.matrix()
            full[self.new :, self.old :] = other.matrix()
            return Kernel.from_matrix(full)
        width = max(self.index.shape[1], other.index.shape[1])

        def widen(array: Any) -> Any:
            return np.pad(array, ((0, 0), (0, width - array.shape[1])))

        index = np.concatenate([widen(self.index), widen(other.index + self.old)])
        coef = np.concatenate([widen(self.coef), widen(other.coef)])
        index = np.where(coef != 0, index, 0)
        share = np.zeros((new, self.share.shape[1] + other.share.shape[1]))
        share[: self.new, : self.share.shape[1]] = self.share
        share[self.new :, self.share.shape[1] :] = other.share
        rows = np.zeros((share.shape[1], old))
        rows[: len(self.rows), : self.old] = self.rows
        rows[len(self.rows) :, self.old :] = other.rows
        return Kernel(old, index, coef, share, rows)


def _tidy(index: IntArray, coef: FloatArray) -> tuple[IntArray, FloatArray]:
    """One entry per (row, source), zeros last and pointing at 0, unused slots cut off."""
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
    return np.where(coef != 0, index, 0), np.array(coef)


def _merge(share: FloatArray, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Drop shared rows that nobody uses, and fold proportional ones into one."""
    kept: list[tuple[FloatArray, FloatArray]] = []
    for weight, row in zip(share.T, rows, strict=True):
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
        return np.zeros((len(share), 0)), np.zeros((0, rows.shape[1]))
    return np.stack([w for w, _ in kept], axis=1), np.stack([r for _, r in kept])
