"""Linear maps on one axis: the algebra that every growth operator is written in.

A `Kernel` is one linear map, shape (new, old). An `AxisMap` says how one axis grows, with one
kernel for the tensors that *write* the axis (produce activations on it), one for the tensors that
*read* it (consume them), and one for what leaves a norm on it:

    W_new = write_out · W · read_inᵀ          b_new = write_out · b

The law: growing an axis keeps the function iff `readᵀ · write = I` (with `write_normed` in place
of `write` behind a norm). The *inverse* transposes and swaps, the *dual* swaps (gradients live
there), composition composes all. *Selective*: each row of `write` has one entry equal to 1, or is
zero where its `read` row is zero; an axis that passes an elementwise non-linearity needs it. A
tied head needs `writeᵀ · write_normed = ρ·I`; the norm that feeds the head then carries 1/ρ.

Everything here is true for any linear map on one axis: no tensor, no model, no file, numpy only.
Nothing mutates an argument. Source of the rules: Net2Net (1511.05641), LEMON (2310.07999),
HyperCloning (2409.12903), and the derivations checked in this project's tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from growkit.algebra.kernel import TOLERANCE, BoolArray, FloatArray, IntArray, Kernel

__all__ = ["AxisMap", "BoolArray", "FloatArray", "IntArray", "Kernel", "chained"]


@dataclass(frozen=True, eq=False)
class AxisMap:
    """How one axis grows.

    `fresh` marks new units that get random producers and zero consumers: the function cannot see
    them, so their `write` and `read` rows are zero, but what flows through them is not. In `pairs`
    they do have random consumers, which cancel: twins have the same producers, and consumers Z and
    -Z. Row i of `pairs` is ±1 times the row of random values that unit i takes.
    """

    write: Kernel  # of tensors that produce the axis
    read: Kernel  # of tensors that consume it
    write_normed: Kernel  # of what leaves a norm on the axis, and of norm shifts
    fresh: BoolArray  # (new,)
    pairs: Kernel | None = None  # (new, new)

    @classmethod
    def of(
        cls,
        write: Kernel,
        read: Kernel | None = None,
        write_normed: Kernel | None = None,
        fresh: BoolArray | None = None,
        pairs: Kernel | None = None,
    ) -> AxisMap:
        """An axis map from its kernels; `read` defaults to `write` (an isometry)."""
        read = write if read is None else read
        normed = write if write_normed is None else write_normed
        assert write.shape == read.shape == normed.shape
        fresh = np.zeros(write.new, dtype=bool) if fresh is None else fresh
        return cls(write, read, normed, fresh, pairs)

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
    def kernels(self) -> tuple[Kernel, Kernel, Kernel]:
        """`write`, `read` and `write_normed`."""
        return self.write, self.read, self.write_normed

    @property
    def is_identity(self) -> bool:
        """Nothing changes on this axis."""
        return all(k.is_identity for k in self.kernels)

    @cached_property
    def keeps(self) -> bool:
        """The law: readᵀ · write = I and readᵀ · write_normed = I, and pairs cancel."""
        back = self.read.transpose()
        left = self.draws.transpose().after(self.pairs).cleaned() if self.pairs else None
        if left is not None and not left.zero_rows.all():
            return False
        return all(_near_one(back.after(k)) for k in (self.write, self.write_normed))

    @cached_property
    def selective(self) -> bool:
        """May pass an elementwise non-linearity: unit copies, or rows that nobody reads."""
        unread = self.write.zero_rows & self.read.zero_rows
        return bool((self.write.unit_rows | unread).all())

    @cached_property
    def draws(self) -> Kernel:
        """Which row of random values each fresh unit takes for its producers, shape (new, new)."""
        alone = Kernel.identity(self.new).masked(self.fresh)
        if self.pairs is None:
            return alone
        twins = replace(self.pairs, coef=np.abs(self.pairs.coef))
        return alone.masked(self.pairs.zero_rows).plus(twins)

    @cached_property
    def gain(self) -> Kernel:
        """The map of norm gains: each new gain is the mean of its sources' gains.

        Weighted by the squares of their coefficients, which is closest where sources are mixed.
        Its zero rows (coordinates with no source) take the gain 1.
        """
        k = self.write_normed
        k = Kernel.from_matrix(k.matrix()) if k.left.shape[1] else k
        dense = None if k.dense is None else k.dense**2
        sums = replace(k, coef=k.coef**2, dense=dense).row_sums()[:, None]
        sums[sums == 0] = 1.0
        return replace(k, coef=k.coef**2 / sums, dense=None if dense is None else dense / sums)

    @cached_property
    def gain_dual(self) -> Kernel:
        """The map that gradients of norm gains follow: what reads a coordinate times what it holds.

        For rows with one source, which is where a gain has a gradient of its own.
        """
        return self.read.by_row(self.write_normed.row_sums())

    def then(self, later: AxisMap) -> AxisMap:
        """This growth followed by `later`."""
        copied = later.write.masked(~later.write.zero_rows)
        fresh = later.fresh | (copied.apply(self.fresh.astype(float)) != 0)
        write, read, normed = (b.after(a) for a, b in zip(self.kernels, later.kernels, strict=True))
        return AxisMap(write, read, normed, fresh, later.pairs)

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
        pairs = None
        if self.pairs or inner.pairs:
            kept = Kernel.identity(self.new).masked(~self.fresh)
            pairs = self._twins.kron(Kernel.identity(inner.new)).plus(kept.kron(inner._twins))
        write, read, normed = map(Kernel.kron, self.kernels, inner.kernels)
        return AxisMap(write, read, normed, fresh, pairs)

    def direct_sum(self, other: AxisMap) -> AxisMap:
        """The map of the concatenated axis `self | other`."""
        fresh = np.concatenate([self.fresh, other.fresh])
        pairs = self._twins.direct_sum(other._twins) if self.pairs or other.pairs else None
        write, read, normed = map(Kernel.direct_sum, self.kernels, other.kernels)
        return AxisMap(write, read, normed, fresh, pairs)

    def reordered(self, after: IntArray, before: IntArray) -> AxisMap:
        """The map between coordinates in another order: new place i holds what was at order[i]."""
        rows = Kernel.gather(after, old=self.new)
        columns = Kernel.gather(before, old=self.old).transpose()
        pairs = rows.after(self.pairs).after(rows.transpose()) if self.pairs else None
        write, read, normed = (rows.after(k).after(columns) for k in self.kernels)
        return AxisMap(write, read, normed, self.fresh[after], pairs)

    @property
    def _twins(self) -> Kernel:
        """`pairs`, or a map without any."""
        return self.pairs or Kernel.zero(self.new, self.new)

    def null_space(self, *, behind_norm: bool) -> Kernel:
        """The projector onto input directions that the grown network never visits.

        `X · (I − write · readᵀ)` may be added to any tensor that reads this axis without changing
        the function. Returned transposed, as the kernel that acts on the tensor's reading dim.
        Fresh units do carry activations, so their rows are zero.
        """
        seen = self.write_normed if behind_norm else self.write
        inside = self.read.after(seen.transpose())
        outside = Kernel.identity(self.new).plus(inside.scaled(-1.0))
        return outside.cleaned().masked(~self.fresh)


def chained(first: Mapping[str, AxisMap], later: Mapping[str, AxisMap]) -> dict[str, AxisMap]:
    """The maps of several axes, and after them those of a further step."""
    return {**first, **{a: first[a].then(m) if a in first else m for a, m in later.items()}}


def _near_one(kernel: Kernel) -> bool:
    rho = kernel.scalar()
    return rho is not None and abs(rho - 1.0) <= 100 * TOLERANCE
