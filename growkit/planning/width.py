"""Apply growths to tensors: the terms of every tensor, after each step.

A `Part` is one tensor on its way. Each function takes the parts before a step and returns the parts
after it; nothing is mutated, no weight is read, no claim is made (that is `growkit.planning.proof`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.expression import Expression
from growkit.algebra.kernel import TOLERANCE, BoolArray, Kernel
from growkit.errors import RecipeError
from growkit.families.family import Family, Pattern
from growkit.families.model import spell
from growkit.planning.formula import Kernels, Noise, Ones, Shape, Stored, Term

_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
Parts = Mapping[str, "Part"]
Draw = Callable[["Part", Shape], Noise]  # random numbers for a new tensor


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor between two steps."""

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
        pairs = zip(self.terms, scales, strict=True)
        return replace(self, terms=tuple(replace(t, scale=s) for t, s in pairs))

    def renumbered(self, slot: int, number: int) -> Part:
        """The same tensor under another number; its spelling on disk stays what it was."""
        numbers = (*self.numbers[:slot], number, *self.numbers[slot + 1 :])
        spans = list(_NUMBER.finditer(self.name))[-len(numbers) :]
        name = self.name
        for span, value in reversed(list(zip(spans, numbers, strict=True))):
            name = f"{name[: span.start()]}{value}{name[span.end() :]}"
        return replace(self, numbers=numbers, name=name)


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
        still: frozenset[Expression] = frozenset(),
    ) -> None:
        self.maps, self.sizes, self.dual = maps, sizes, dual
        self.still = still  # fresh units of these axes stay zero
        self._dims: dict[tuple[Expression, str], DimKernel | None] = {}
        self._kinds: dict[str, tuple[DimKernel | None, ...]] = {}
        self._chains: dict[tuple[str, Kernels], Kernels] = {}
        self._products: dict[tuple[Kernel, Kernel], Kernel] = {}
        self._halves: dict[Kernel, tuple[Kernel, Kernel]] = {}

    def dim(self, expression: Expression, role: str) -> DimKernel | None:
        """The kernel for a dim with these axes in this role; None if it does not change."""
        found = (expression, role)
        if found not in self._dims:
            self._dims[found] = self._build(expression, role)
        return self._dims[found]

    def dims(self, pattern: Pattern) -> tuple[DimKernel | None, ...]:
        """The same for all dims of a tensor of this kind."""
        if pattern.name not in self._kinds:
            self._kinds[pattern.name] = tuple(self.dim(e, role) for e, role in pattern.dims)
        return self._kinds[pattern.name]

    def grown(self, pattern: Pattern, term: Term) -> Term:
        """A term of a tensor of this kind, after this step."""
        known = (pattern.name, term.kernels)
        if known not in self._chains:
            kernels = (d.kernel if d else None for d in self.dims(pattern))
            self._chains[known] = self.products(kernels, term.kernels)
        return term.through(self._chains[known])

    def _build(self, expression: Expression, role: str) -> DimKernel | None:
        m = expression.map(self.maps, self.sizes)
        if m is None or role == "=" or m.is_identity:
            return None
        if self.dual:
            dual = m.dual()
            return DimKernel({"-": dual.read, "*": m.gain_dual}.get(role, dual.write))
        if role == "*":
            lacking = m.gain.zero_rows
            return DimKernel(m.gain, ones=_ones(lacking) if lacking.any() else None)
        if role == "+" and m.fresh.any() and expression not in self.still:
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


def shapes(parts: Parts, sizes: Mapping[str, int]) -> dict[str, Shape]:
    """The shape of each kind of tensor for these axis sizes, by the name of its pattern."""
    kinds = {part.pattern.name: part for part in parts.values()}
    return {name: part.shape(sizes) for name, part in kinds.items()}


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
    made = dims[row] if row is not None else None
    if row is None or made is None or upper is part:
        return grown
    own, again = composer.halves(made.kernel)
    terms = []
    for source, first in ((part, own), (upper, again)):
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
        return [Term(Ones((1,)), (_ones(lacking[0]),))]
    there = tuple(_ones(~mask) for mask in lacking)
    return [*ones(shape, 1.0), Term(Ones((1,) * len(shape)), there, -1.0)]


def _ones(where: BoolArray) -> Kernel:
    """The map from the number 1 to these places."""
    return Kernel.gather(np.zeros(len(where)), where.astype(float), old=1)


def ones(shape: Shape, value: float) -> tuple[Term, ...]:
    """A tensor of this value; no term for 0."""
    if not value:
        return ()
    every = tuple(_ones(np.ones(size, dtype=bool)) for size in shape)
    return (Term(Ones((1,) * len(shape)), every, value),)


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


def scale_modules(parts: Parts, modules: Iterable[str], factor: float) -> dict[str, Part]:
    """All tensors of these modules times a factor; only weights of modules that consume.

    Of a module that every layer has, the last layer's is meant.
    """
    mine = [
        p
        for p in parts.values()
        if p.pattern.module in set(modules) and (p.pattern.norm or p.pattern.consumed)
    ]
    last: dict[str, tuple[int, ...]] = {}
    for part in mine:
        last[part.pattern.name] = max(part.numbers, last.get(part.pattern.name, ()))
    return dict(parts) | {
        p.key: p.scaled(factor) for p in mine if p.numbers == last[p.pattern.name]
    }


def fold_factors(
    parts: Parts, family: Family, sizes: Mapping[str, int], folds: Callable[[Expression], bool]
) -> dict[str, Part]:
    """Factors per coordinate (LayerScale) moved into the projections before them, and become 1.

    `folds` says on which axes. A factor acts on what the modules before it in its layer put out;
    it stays where these are no longer plain enough for it.
    """
    if not any(pattern.is_factor for pattern in family.patterns.values()):
        return dict(parts)
    order = {name: place for place, name in enumerate(family.patterns)}
    out, before = dict(parts), list[Part]()
    for part in sorted(parts.values(), key=lambda p: (p.numbers, order[p.pattern.name])):
        before = [p for p in before if p.numbers == part.numbers]
        over = part.pattern.dims[-1][0] if part.pattern.is_factor else None
        if over is None:
            before.append(part)
            continue
        makers = [p for p in before if p.pattern.dims[0] == (over, "+")] if folds(over) else []
        folded = [_times(p, part) for p in makers]
        if folded and all(folded):
            out |= {p.key: p for p in folded if p}
            out[part.key] = replace(part, terms=ones(part.shape(sizes), 1.0), zeroed=False)
        before = []
    return out


def _times(part: Part, factors: Part) -> Part | None:
    """A tensor with its rows multiplied; None if that is no product of stored tensors."""
    if not factors.terms:
        return replace(part, terms=(), zeroed=True)
    factor = factors.terms[0]
    if len(factors.terms) > 1 or not isinstance(factor.source, Stored):
        return None
    terms = []
    for term in part.terms:
        source = term.source
        if not isinstance(source, Stored) or source.by or not _same_rows(term, factor):
            return None
        times = replace(source, by=factor.source)
        terms.append(replace(term, source=times, scale=term.scale * factor.scale))
    return replace(part, terms=tuple(terms))


def _same_rows(term: Term, factor: Term) -> bool:
    """Whether each new row comes from the one source row that its factor comes from."""
    a, b = term.kernels[0], factor.kernels[0]
    if a is None or b is None:
        return a is b
    single = a.is_gather and b.is_gather and a.index.shape[1] == b.index.shape[1] == 1
    return single and bool(b.unit_rows.all()) and np.array_equal(a.index, b.index)


def scale_norms(parts: Parts, factors: Mapping[str, float], roles: str = "*") -> dict[str, Part]:
    """Gains of the norms on these axes times a factor; with the role ~ among `roles` shifts too."""
    out = dict(parts)
    for key, part in parts.items():
        axis, role = part.pattern.dims[-1] if part.pattern.norm else (None, "")
        for name in axis.axes & factors.keys() if axis and role in roles else ():
            out[key] = out[key].scaled(factors[name])
    return out


def scale_embeddings(
    parts: Parts, family: Family, factor: float, module: str = ""
) -> dict[str, Part]:
    """Every table whose rows are added to the stream, or that of one module, times a factor."""
    streams = set(family.of_kind("stream", "latent"))

    def is_embedding(part: Part) -> bool:
        if module:
            return part.pattern.module == module
        roles = [role for _, role in part.pattern.dims]
        return "#" in roles and any(r == "+" and e.axes & streams for e, r in part.pattern.dims)

    return {k: p.scaled(factor) if is_embedding(p) else p for k, p in parts.items()}


def add_noise(
    parts: Parts,
    only: tuple[str, ...],
    null_space: Callable[[Expression], Kernel | None],
    make: Callable[[Part, float], Noise],
) -> dict[str, Part]:
    """Null-space noise on every weight that reads a grown axis; silent parts stay zero."""
    out = dict(parts)
    known: dict[str, tuple[Kernel | None, Kernels]] = {}  # by kind of tensor
    for key, part in parts.items():
        pattern = part.pattern
        if part.zeroed or not chosen(part, only):
            continue
        if pattern.name not in known:
            kernel = null_space(pattern.consumed) if pattern.consumed else None
            kernels = tuple(kernel if role == "-" else None for _, role in pattern.dims)
            known[pattern.name] = kernel, kernels
        kernel, kernels = known[pattern.name]
        if kernel is not None:
            noise = make(part, kernel.square_norm / kernel.new)
            out[key] = part.made_of((*part.terms, Term(noise, kernels)))
    return out


def blend(parts: Parts, other: Parts, alpha: float, only: tuple[str, ...]) -> dict[str, Part]:
    """(1 − alpha) · other + alpha · current."""
    out = dict(parts)
    for key, part in parts.items():
        if chosen(part, only):
            mine = part.scaled(alpha).terms if alpha else ()
            rest = other[key].scaled(1.0 - alpha).terms if alpha < 1 else ()
            out[key] = replace(part, terms=(*mine, *rest), zeroed=part.zeroed and not rest)
    return out


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
