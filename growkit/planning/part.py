"""One tensor on its way through the steps of a recipe, and tensors of a given value.

The law: a part knows what it is made of (terms) and which tensor of the family it is (pattern and
numbers). Gains are here as they act: those that are stored as w with gain 1 + w have their 1 added,
and `as_stored` takes it away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from growkit.algebra.kernel import TOLERANCE, BoolArray, Kernel
from growkit.checkpoints.types import Shape
from growkit.errors import RecipeError
from growkit.families.family import Pattern, renumber, spell
from growkit.planning.formula import Noise, Ones, Term

Parts = Mapping[str, "Part"]  # by key
Draw = Callable[["Part", Shape], Noise]  # random numbers for a new tensor


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor between two steps. No terms means zeros."""

    pattern: Pattern
    numbers: tuple[int, ...]
    name: str  # on disk
    dtype: str
    terms: tuple[Term, ...]
    zeroed: bool = False  # silent on purpose: later noise leaves it zero

    @property
    def key(self) -> str:
        """The family's name for it."""
        return spell(self.pattern.name, self.numbers)

    def shape(self, sizes: Mapping[str, int]) -> Shape:
        """Its shape for these axis sizes."""
        return tuple(e.size(sizes) for e, _ in self.pattern.dims)

    def made_of(self, terms: Iterable[Term]) -> Part:
        """The same tensor made of other terms."""
        return Part(self.pattern, self.numbers, self.name, self.dtype, tuple(terms), self.zeroed)

    def scaled(self, factor: float) -> Part:
        """The tensor times a factor; what undoes an earlier factor leaves no rounding behind."""
        scales = [t.scale * factor for t in self.terms]
        scales = [1.0 if abs(s - 1.0) < TOLERANCE else s for s in scales]
        pairs = [*zip(self.terms, scales, strict=True)]
        if all(term.scale == scale for term, scale in pairs):
            return self
        return self.made_of(Term(t.source, t.kernels, scale) for t, scale in pairs)

    def renumbered(self, slot: int, number: int) -> Part:
        """The same tensor under another number; its spelling on disk stays what it was."""
        if self.numbers[slot] == number:
            return self
        numbers = (*self.numbers[:slot], number, *self.numbers[slot + 1 :])
        name = renumber(self.name, numbers)
        return Part(self.pattern, numbers, name, self.dtype, self.terms, self.zeroed)


def patterns_of(parts: Parts) -> list[Pattern]:
    """Each kind of tensor that there is, once."""
    return [*{part.pattern.name: part.pattern for part in parts.values()}.values()]


def shapes(parts: Parts, sizes: Mapping[str, int]) -> dict[str, Shape]:
    """The shape of each kind of tensor for these axis sizes, by the name of its pattern."""
    kinds = {part.pattern.name: part for part in parts.values()}
    return {name: part.shape(sizes) for name, part in kinds.items()}


def ones_at(where: BoolArray) -> Kernel:
    """The map from the number 1 to these places."""
    return Kernel.gather(np.zeros(len(where)), where.astype(float), old=1)


def ones(shape: Shape, value: float) -> tuple[Term, ...]:
    """A tensor of this value; no term for 0."""
    if not value:
        return ()
    kernels = tuple(ones_at(np.ones(size, dtype=bool)) for size in shape)
    return (Term(Ones((1,) * len(shape)), kernels, value),)


def as_stored(part: Part, shape: Shape) -> tuple[Term, ...]:
    """The terms of what goes to disk: gains stored as 1 + w lose the 1 that `begin` added."""
    if not part.pattern.offset:
        return part.terms
    rest = [t for t in part.terms if not isinstance(t.source, Ones)]
    constant = np.full(shape, -part.pattern.offset)
    for term in part.terms:
        if isinstance(term.source, Ones) and term.kernels[0]:
            constant += term.scale * term.kernels[0].matrix()[:, 0]
    if np.abs(constant).max(initial=0.0) > TOLERANCE:
        rest.append(Term(Ones((1,)), (Kernel.gather(np.zeros(len(constant)), constant, old=1),)))
    return tuple(rest)


def check_only(parts: Parts, only: tuple[str, ...]) -> None:
    """Refuse a pattern that no tensor fits: it would change nothing without a word."""
    for pattern in only:
        if not any(chosen(p, (pattern,)) for p in parts.values()):
            raise RecipeError(
                f'only: no tensor fits "{pattern}"',
                hint="names as `growkit plan --json` lists them",
            )


def chosen(part: Part, only: tuple[str, ...]) -> bool:
    """Whether a part's name, on disk or in the family, fits one of the patterns (none: all fit)."""
    return not only or any(fnmatchcase(n, p) for n in (part.name, part.key) for p in only)


def drawn(part: Part, sizes: Mapping[str, int], random: Draw) -> Part:
    """A tensor as an initialiser makes it: weights drawn, gains 1, biases and shifts 0."""
    if part.pattern.norm:
        return unit_norm(part, sizes)
    shape = part.shape(sizes)
    terms = (Term(random(part, shape), (None,) * len(shape)),) if len(shape) > 1 else ()
    return replace(part, terms=terms, zeroed=False)


def unit_norm(part: Part, sizes: Mapping[str, int]) -> Part:
    """A norm's tensor that does nothing: gain 1, shift 0."""
    gain = part.pattern.dims[-1][1] == "*"
    return replace(part, terms=ones(part.shape(sizes), 1.0) if gain else (), zeroed=False)
