"""What one output tensor is made of: nouns only, no decisions and no values.

    out  =  Σ_terms  scale · (kernel_0 ⊗ kernel_1 ⊗ …) · source

A term takes one source (a tensor of a checkpoint, seeded noise, or ones) and applies one kernel
per dim of the tensor. Width growth is one term; depth growth decides which layer's tensor the term
takes; noise and new rows are terms whose source is a generator; a blend has one term per
checkpoint.

The law: the digest of a plan is made of the fields of these classes and of their values, so a field
more, less or renamed is another format. Methods are free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from growkit.algebra.expression import Expression
from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Shape, Stored
from growkit.dtypes import ITEM_BYTES

Kernels = tuple[Kernel | None, ...]  # one per dim; None is the identity


@dataclass(frozen=True, slots=True)
class Ones:
    """The number 1 with shape (1, 1, …): gains of coordinates that have no source."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class Noise:
    """Seeded random numbers of mean 0, the same for every row whoever asks for it.

    Keyed by (seed, step, tensor, row of dim 0). Its standard deviation is `std`, or, with `snr_db`,
    set so that the noise lies `snr_db` decibels below the mean square of `signal`:

        std² = mean_square(signal) / 10^(snr_db / 10) / spread
    """

    seed: int
    step: int
    tensor: str
    shape: Shape
    std: float | None = None
    snr_db: float | None = None
    signal: tuple[Term, ...] = ()
    spread: float = 1.0  # mean square of the projected noise for std = 1


Source = Stored | Ones | Noise


@dataclass(frozen=True, slots=True)
class Term:
    """`scale` times a source with one kernel per dim."""

    source: Source
    kernels: Kernels
    scale: float = 1.0

    def through(self, kernels: Kernels) -> Term:
        """The same source and scale, through other kernels."""
        return Term(self.source, kernels, self.scale)

    @property
    def is_copy(self) -> bool:
        """The source tensor itself, unchanged."""
        return (
            isinstance(self.source, Stored)
            and self.source.by is None
            and self.scale == 1.0
            and all(k is None or k.is_identity for k in self.kernels)
        )

    @property
    def factor(self) -> float:
        """Scale times the coefficients that are common to a whole kernel: one multiplication.

        Those of producers and consumers cancel on paper (c · 1/c); within 1e-14 of 1, it is 1.
        """
        common = [kernel.common or 1.0 for kernel in self.kernels if kernel is not None]
        product = math.prod(common, start=self.scale)
        return 1.0 if abs(product - 1.0) <= 1e-14 else product

    @property
    def moves(self) -> bool:
        """Whether every new element is zero or one source element times `factor`."""
        multiplied = isinstance(self.source, Stored) and self.source.by is not None
        return not multiplied and all(
            k is None or (k.is_gather and k.index.shape[1] <= 1 and k.common != 0)
            for k in self.kernels
        )


@dataclass(frozen=True, slots=True)
class Formula:
    """One output tensor. No terms means zeros."""

    name: str
    shape: Shape
    dtype: str
    terms: tuple[Term, ...] = field(default=())
    dims: tuple[tuple[Expression, str], ...] = ()  # axes and role of each dim, for people
    numbers: tuple[tuple[str | int, int], ...] = ()  # axis and number of each slot of its name

    @property
    def copied(self) -> Stored | None:
        """The stored tensor that this one equals byte for byte, if there is one."""
        if len(self.terms) != 1 or not self.terms[0].is_copy:
            return None
        source = self.terms[0].source
        assert isinstance(source, Stored)
        return source if source.dtype == self.dtype else None

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]
