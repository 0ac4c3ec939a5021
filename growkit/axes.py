"""Linear maps on one axis: the algebra that every growth operator is written in.

A `Kernel` is one linear map, shape (new, old). An `AxisMap` says how one axis grows, with one kernel
for the tensors that *write* the axis (produce activations on it), one for the tensors that *read* it
(consume them), and one for what leaves a norm on it:

    W_new = write_out · W · read_inᵀ          b_new = write_out · b

The law: growing an axis keeps the function iff `readᵀ · write = I` (with `write_normed` in place of
`write` behind a norm). The *inverse* transposes and swaps, the *dual* swaps (gradients live there),
composition composes all. *Selective*: each row of `write` has one entry equal to 1, or is zero where
its `read` row is zero; an axis that passes an elementwise non-linearity needs it. A tied head needs
`writeᵀ · write_normed = ρ·I`; the norm that feeds the head then carries 1/ρ.

Everything here is true for any linear map on one axis: no tensor, no model, no file, numpy only.
Nothing mutates an argument. Source of the rules: Net2Net (1511.05641), LEMON (2310.07999),
HyperCloning (2409.12903), and the derivations checked in this project's tests.
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


@dataclass(frozen=True, eq=False)
class Kernel:
    """A linear map on one axis, shape (new, old), kept sparse.

        row i  =  Σ_j coef[i, j] · e[index[i, j]]  +  Σ_m share[i, m] · rows[m]

    The first part, *gather*, takes few sources per new row. The second holds rows that many new rows
    share and that need every source (the mean row under LayerNorm): each is stored once.
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
            return ~self.dense.any(axis=1)
        return ~(self.coef.any(axis=1) | self.share.any(axis=1))

    @cached_property
    def unit_rows(self) -> BoolArray:
        """Which new rows are a plain copy of one source row, shape (new,)."""
        if self.dense is not None:
            return np.asarray((self.dense != 0).sum(axis=1) == 1) & (self.dense.sum(axis=1) == 1)
        single = (self.coef != 0).sum(axis=1) == 1
        return np.asarray(single & (self.coef.sum(axis=1) == 1.0) & ~self.share.any(axis=1))

    def scalar(self) -> float | None:
        """ρ if this kernel is ρ·I, else None."""
        if self.new != self.old:
            return None
        if self.dense is not None:
            rho = float(self.dense[0, 0]) if self.new else 1.0
            return rho if np.allclose(self.dense, rho * np.eye(self.new), atol=TOLERANCE) else None
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

    def rows_needed(self, start: int, stop: int) -> IntArray:
        """Sorted source rows that new rows [start, stop) are made of."""
        if self.dense is not None or self.share[start:stop].any():
            return np.arange(self.old)
        used = self.index[start:stop][self.coef[start:stop] != 0]
        return np.unique(used)

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


@dataclass(frozen=True, eq=False)
class AxisMap:
    """How one axis grows.

    `fresh` marks new units that get random producers and zero consumers: the function cannot see
    them, so their `write` and `read` rows are zero, but what flows through them is not.
    """

    write: Kernel  # of tensors that produce the axis
    read: Kernel  # of tensors that consume it
    write_normed: Kernel  # of what leaves a norm on the axis, and of norm shifts
    fresh: BoolArray  # (new,)

    @classmethod
    def of(
        cls,
        write: Kernel,
        read: Kernel | None = None,
        write_normed: Kernel | None = None,
        fresh: BoolArray | None = None,
    ) -> AxisMap:
        """An axis map from its kernels; `read` defaults to `write` (an isometry)."""
        read = write if read is None else read
        normed = write if write_normed is None else write_normed
        assert write.shape == read.shape == normed.shape
        return cls(write, read, normed, np.zeros(write.new, dtype=bool) if fresh is None else fresh)

    @classmethod
    def identity(cls, size: int) -> AxisMap:
        """The map that changes nothing."""
        return cls.of(Kernel.identity(size))

    @property
    def new(self) -> int:
        """Size after."""
        return self.write.new

    @property
    def old(self) -> int:
        """Size before."""
        return self.write.old

    @property
    def is_identity(self) -> bool:
        """Nothing changes on this axis."""
        return self.write.is_identity and self.read.is_identity and self.write_normed.is_identity

    @cached_property
    def keeps(self) -> bool:
        """The law: readᵀ · write = I and readᵀ · write_normed = I."""
        back = self.read.transpose()
        return all(_near_one(back.after(k)) for k in (self.write, self.write_normed))

    @cached_property
    def selective(self) -> bool:
        """May pass an elementwise non-linearity: unit copies, or rows that nobody reads."""
        unread = self.write.zero_rows & self.read.zero_rows
        return bool((self.write.unit_rows | unread).all())

    @cached_property
    def gain(self) -> Kernel:
        """The map of norm gains: each new gain is the (weighted) mean of its sources' gains.

        Its zero rows (coordinates with no source) take the gain 1.
        """
        sums = self.write_normed.row_sums()
        safe = np.where(sums != 0, sums, 1.0)
        k = self.write_normed
        dense = None if k.dense is None else k.dense / safe[:, None]
        return Kernel(
            k.old, k.index, k.coef / safe[:, None], k.share / safe[:, None], k.rows, dense
        )

    def then(self, later: AxisMap) -> AxisMap:
        """This growth followed by `later`."""
        copied = later.write.masked(~later.write.zero_rows)
        return AxisMap(
            later.write.after(self.write),
            later.read.after(self.read),
            later.write_normed.after(self.write_normed),
            later.fresh | (copied.apply(self.fresh.astype(float)) != 0),
        )

    def inverse(self) -> AxisMap:
        """The way back: `m.then(m.inverse())` is the identity whenever `m.keeps`."""
        back, forth = self.read.transpose(), self.write.transpose()
        return AxisMap.of(back, forth, back)

    def dual(self) -> AxisMap:
        """The map that gradients follow: G_new = read_out · G · write_inᵀ."""
        return AxisMap(self.read, self.write_normed, self.read, self.fresh)

    def scaled(self, factor: float) -> AxisMap:
        """The stream times `factor`: producers carry it, consumers divide by it."""
        return AxisMap(
            self.write.scaled(factor),
            self.read.scaled(1.0 / factor),
            self.write_normed.scaled(factor),
            self.fresh,
        )

    def kron(self, inner: AxisMap) -> AxisMap:
        """The map of the composite axis `outer.inner`."""
        fresh = (self.fresh[:, None] | inner.fresh[None, :]).ravel()
        return AxisMap(
            self.write.kron(inner.write),
            self.read.kron(inner.read),
            self.write_normed.kron(inner.write_normed),
            fresh,
        )

    def direct_sum(self, other: AxisMap) -> AxisMap:
        """The map of the concatenated axis `self | other`."""
        return AxisMap(
            self.write.direct_sum(other.write),
            self.read.direct_sum(other.read),
            self.write_normed.direct_sum(other.write_normed),
            np.concatenate([self.fresh, other.fresh]),
        )

    def null_space(self, *, behind_norm: bool) -> Kernel:
        """The projector onto input directions that the grown network never visits.

        `X · (I − write · readᵀ)` may be added to any tensor that reads this axis without changing the
        function. Returned transposed, as the kernel that acts on the tensor's reading dim. Fresh
        units do carry activations, so their rows are zero.
        """
        seen = self.write_normed if behind_norm else self.write
        inside = self.read.after(seen.transpose())
        outside = Kernel.identity(self.new).plus(inside.scaled(-1.0))
        if outside.dense is None:
            coef = np.where(np.abs(outside.coef) > TOLERANCE, outside.coef, 0.0)
            index, coef = _tidy(outside.index, coef)
            outside = Kernel(self.new, index, coef, outside.share, outside.rows)
        return outside.masked(~self.fresh)


def _near_one(kernel: Kernel) -> bool:
    rho = kernel.scalar()
    return rho is not None and abs(rho - 1.0) <= TOLERANCE * 100
