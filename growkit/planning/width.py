"""Width: the maps of a step on the dims of every tensor.

    W' = write_out · W · read_inᵀ    + random rows of fresh units    + 1 for gains without a source

Each function takes the parts before a step and returns those after it. The law: nothing is mutated,
no weight is read, no claim is made (`proof` makes it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.expression import Expression
from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Shape
from growkit.families.family import Pattern
from growkit.planning.formula import Kernels, Ones, Term
from growkit.planning.part import Draw, Part, Parts, drawn, ones, ones_at, shapes


@dataclass(frozen=True, slots=True)
class DimKernel:
    """What one step does to one dim of a tensor."""

    kernel: Kernel
    ones: Kernel | None = None  # gains without a source, as a map from the number 1
    fresh: Kernel | None = None  # rows that get random values


class Composer:
    """Kernels of one step, each built once: tensors of one kind share them.

    With `dual` the kernels are those that gradients follow. Of a tensor that the plan scales by s,
    such as the norm before a tied head, the gradient is scaled by 1/s.
    """

    def __init__(
        self,
        maps: Mapping[str, AxisMap],
        sizes: Mapping[str, int],
        *,
        dual: bool = False,
        no_fresh: frozenset[Expression] = frozenset(),
    ) -> None:
        self.maps, self.sizes, self.dual = maps, sizes, dual
        self.no_fresh = no_fresh  # fresh units of these axes stay zero
        self._dims: dict[tuple[Expression, str], DimKernel | None] = {}
        self._kinds: dict[str, tuple[DimKernel | None, ...]] = {}
        self._chains: dict[tuple[str, Kernels], Kernels] = {}
        self._products: dict[tuple[Kernel, Kernel], Kernel] = {}
        self._halves: dict[Kernel, tuple[Kernel, Kernel]] = {}

    def dim(self, expression: Expression, role: str) -> DimKernel | None:
        """The kernel for a dim with these axes in this role; None if it does not change."""
        if (expression, role) not in self._dims:
            self._dims[expression, role] = self._build(expression, role)
        return self._dims[expression, role]

    def dims(self, pattern: Pattern) -> tuple[DimKernel | None, ...]:
        """The same for all dims of a tensor of this kind."""
        if pattern.name not in self._kinds:
            self._kinds[pattern.name] = tuple(self.dim(e, role) for e, role in pattern.dims)
        return self._kinds[pattern.name]

    def grown(self, pattern: Pattern, term: Term) -> Term:
        """A term of a tensor of this kind, after this step."""
        key = (pattern.name, term.kernels)
        if key not in self._chains:
            kernels = (d.kernel if d else None for d in self.dims(pattern))
            self._chains[key] = self.products(kernels, term.kernels)
        return term.through(self._chains[key])

    def _build(self, expression: Expression, role: str) -> DimKernel | None:
        m = expression.map(self.maps, self.sizes)
        if m is None or role == "=" or m.is_identity:
            return None
        if self.dual:
            dual = m.dual()
            return DimKernel({"-": dual.read, "*": m.gain_dual}.get(role, dual.write))
        if role == "*":
            lacking = m.gain.zero_rows
            return DimKernel(m.gain, ones=ones_at(lacking) if lacking.any() else None)
        if role == "+" and m.fresh.any() and expression not in self.no_fresh:
            return DimKernel(m.write, fresh=m.draws)
        if role == "-" and m.pairs:
            return DimKernel(m.read, fresh=m.pairs)
        return DimKernel({"-": m.read, "~": m.write_normed}.get(role, m.write))

    def product(self, later: Kernel | None, first: Kernel | None) -> Kernel | None:
        """later · first, remembered."""
        if later is None or first is None:
            return later or first
        if (later, first) not in self._products:
            self._products[later, first] = later.after(first)
        return self._products[later, first]

    def products(self, later: Iterable[Kernel | None], first: Kernels) -> Kernels:
        """The same dim by dim."""
        return tuple(self.product(k, old) for k, old in zip(later, first, strict=True))

    def halves(self, kernel: Kernel) -> tuple[Kernel, Kernel]:
        """The first row that takes each source, and the rows that take one again."""
        if kernel not in self._halves:
            again = kernel.repeats
            self._halves[kernel] = (kernel.masked(~again), kernel.masked(again))
        return self._halves[kernel]


def grow_axes(
    parts: Parts,
    composer: Composer,
    random: Draw,
    sizes_after: Mapping[str, int],
    above: tuple[str, ...] = (),
) -> dict[str, Part]:
    """Every tensor with the step's kernels on its dims.

    `above` are layer axes: copied rows of a layer are then made of the next layer's tensor.
    """
    after = shapes(parts, sizes_after)
    grown = {k: _grow_part(p, composer, random, after[p.pattern.name]) for k, p in parts.items()}
    for key, part in parts.items() if above else ():
        slot = next((i for i, s in enumerate(part.pattern.slots) if s in above), None)
        if slot is not None and not part.zeroed:
            upper = parts.get(part.renumbered(slot, part.numbers[slot] + 1).key, part)
            grown[key] = _from_above(part, upper, composer, grown[key])
    return grown


def _from_above(part: Part, upper: Part, composer: Composer, grown: Part) -> Part:
    """AKI of bert2BERT (2110.07143): own rows, and below them copies of the next layer's rows."""
    dims = composer.dims(part.pattern)
    row = next((i for i, (_, role) in enumerate(part.pattern.dims) if role == "+"), None)
    rows = dims[row] if row is not None else None
    if row is None or rows is None or upper is part:
        return grown
    first_copies, further_copies = composer.halves(rows.kernel)
    terms = []
    for source, first in ((part, first_copies), (upper, further_copies)):
        kernels = [d.kernel if d else None for d in dims]
        kernels[row] = first
        terms += [t.through(composer.products(kernels, t.kernels)) for t in source.terms]
    return grown.made_of((*terms, *grown.terms[len(part.terms) :]))


def _grow_part(part: Part, composer: Composer, random: Draw, shape: Shape) -> Part:
    dims = composer.dims(part.pattern)
    if not any(dims):
        return part
    terms = [composer.grown(part.pattern, t) for t in part.terms]
    terms += _new_gains(dims, shape)
    for i, dim in enumerate(dims):
        if dim and dim.fresh and len(dims) > 1 and not part.zeroed:
            mask = tuple(dim.fresh if j == i else None for j in range(len(dims)))
            terms.append(Term(random(part, shape), mask))
    return part.made_of(terms)


def _new_gains(dims: Sequence[DimKernel | None], shape: Shape) -> list[Term]:
    """1 for every gain that has no source."""
    if not any(d and d.ones for d in dims):
        return []
    lacking = [
        d.ones.coef[:, 0] != 0 if d and d.ones else np.zeros(size, dtype=bool)
        for d, size in zip(dims, shape, strict=True)
    ]
    if len(shape) == 1:
        return [Term(Ones((1,)), (ones_at(lacking[0]),))]
    sourced = tuple(ones_at(~mask) for mask in lacking)
    return [*ones(shape, 1.0), Term(Ones((1,) * len(shape)), sourced, -1.0)]


def grow_numbered(
    parts: Parts,
    axis: str,
    m: AxisMap,
    random: Draw,
    sizes_after: Mapping[str, int],
) -> dict[str, Part]:
    """Tensors that have a unit's number in their name (experts, a norm per head), unit by unit.

    A new unit is the sum of old ones by its row of the map; one without a source is drawn.
    """

    def siblings_of(part: Part) -> tuple[str, tuple[int, ...]]:
        slot = part.pattern.slots.index(axis)
        return part.pattern.name, (*part.numbers[:slot], *part.numbers[slot + 1 :])

    units: dict[tuple[str, tuple[int, ...]], dict[int, Part]] = {}
    for part in parts.values():
        if axis in part.pattern.slots:
            number = part.numbers[part.pattern.slots.index(axis)]
            units.setdefault(siblings_of(part), {})[number] = part
    grown: dict[str, Part] = {}
    for key, part in parts.items():
        if axis not in part.pattern.slots:
            grown[key] = part
            continue
        old = units.pop(siblings_of(part), {})  # all of them stand where the first one stood
        if not old:
            continue
        matrix = (m.gain if part.pattern.dims[-1][1] == "*" else m.write).matrix()
        for number in range(m.new):
            unit = part.renumbered(part.pattern.slots.index(axis), number)
            mix = np.flatnonzero(matrix[number])
            terms = [t for n in mix for t in old[int(n)].scaled(matrix[number, n]).terms]
            unit = replace(unit, terms=tuple(terms)) if terms else drawn(unit, sizes_after, random)
            grown[unit.key] = unit
    return grown
