"""Apply growths to tensors: the terms of every tensor, after each step.

A `Part` is one tensor on its way. Each function takes the parts before a step and returns the parts
after it; nothing is mutated, no weight is read, no claim is made (that is `growkit.proof`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import sqrt

import numpy as np

from growkit.axes import AxisMap, Kernel
from growkit.errors import RecipeError
from growkit.expression import Expression
from growkit.family import Family, Pattern
from growkit.formula import Noise, Ones, Shape, Term
from growkit.model import spell
from growkit.ops.contract import Layer, LayerMap
from growkit.proof import stream_norms

_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
Parts = Mapping[str, "Part"]


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

    def scaled(self, factor: float) -> Part:
        """The tensor times a factor."""
        return replace(self, terms=tuple(replace(t, scale=t.scale * factor) for t in self.terms))

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
        self, maps: Mapping[str, AxisMap], sizes: Mapping[str, int], *, dual: bool = False
    ) -> None:
        self.maps, self.sizes, self.dual = maps, sizes, dual
        self._dims: dict[tuple[Expression, str], DimKernel | None] = {}
        self._products: dict[tuple[int, int], tuple[Kernel, Kernel, Kernel]] = {}
        self._halves: dict[int, tuple[Kernel, Kernel, Kernel]] = {}

    def dim(self, expression: Expression, role: str) -> DimKernel | None:
        """The kernel for a dim with these axes in this role; None if it does not change."""
        found = (expression, role)
        if found not in self._dims:
            self._dims[found] = self._build(expression, role)
        return self._dims[found]

    def _build(self, expression: Expression, role: str) -> DimKernel | None:
        m = expression.map(self.maps, self.sizes)
        if m is None or role == "=" or m.is_identity:
            return None
        if self.dual:
            dual = m.dual()
            return DimKernel({"-": dual.read, "*": m.gain_dual}.get(role, dual.write))
        if role == "*":
            lacking = m.gain.zero_rows
            ones = Kernel.gather(np.zeros(m.new), lacking.astype(float), old=1)
            return DimKernel(m.gain, ones=ones if lacking.any() else None)
        if role == "+" and m.fresh.any():
            return DimKernel(m.write, fresh=m.draws)
        if role == "-" and m.pairs:
            return DimKernel(m.read, fresh=m.pairs)
        return DimKernel({"-": m.read, "~": m.write_normed}.get(role, m.write))

    def product(self, later: Kernel | None, first: Kernel | None) -> Kernel | None:
        """later · first, remembered."""
        if later is None or first is None:
            return later or first
        found = (id(later), id(first))
        if found not in self._products:  # keep the factors alive, or their ids could be used again
            self._products[found] = (later.after(first), later, first)
        return self._products[found][0]

    def halves(self, kernel: Kernel) -> tuple[Kernel, Kernel]:
        """The first row that takes each source, and the rows that take one again."""
        if id(kernel) not in self._halves:
            again = kernel.repeats
            self._halves[id(kernel)] = (kernel.masked(~again), kernel.masked(again), kernel)
        return self._halves[id(kernel)][:2]


def grow_axes(
    parts: Parts,
    composer: Composer,
    random: Callable[[Part, Shape], Noise],
    sizes_after: Mapping[str, int],
    above: str = "",
) -> dict[str, Part]:
    """Every tensor with the step's kernels on its dims.

    `above` is a layer axis: copied rows of a layer are then made of the next layer's tensor.
    """
    grown = {k: _grow_part(p, composer, random, sizes_after) for k, p in parts.items()}
    for key, part in parts.items() if above else ():
        if above in part.pattern.slots and not part.zeroed:
            slot = part.pattern.slots.index(above)
            upper = parts.get(part.renumbered(slot, part.numbers[slot] + 1).key, part)
            grown[key] = _from_above(part, upper, composer, grown[key])
    return grown


def _from_above(part: Part, upper: Part, composer: Composer, grown: Part) -> Part:
    """AKI of bert2BERT (2110.07143): own rows, and below them copies of the next layer's rows."""
    dims = [composer.dim(e, role) for e, role in part.pattern.dims]
    row = next((i for i, (_, role) in enumerate(part.pattern.dims) if role == "+"), None)
    made = dims[row] if row is not None else None
    if row is None or made is None or upper is part:
        return grown
    own, again = composer.halves(made.kernel)
    terms = []
    for source, first in ((part, own), (upper, again)):
        kernels = [d.kernel if d else None for d in dims]
        kernels[row] = first
        terms += [_after(composer, kernels, t) for t in source.terms]
    return replace(grown, terms=(*terms, *grown.terms[len(part.terms) :]))


def _after(composer: Composer, kernels: list[Kernel | None], term: Term) -> Term:
    pairs = zip(kernels, term.kernels, strict=True)
    return replace(term, kernels=tuple(composer.product(k, old) for k, old in pairs))


def _grow_part(
    part: Part,
    composer: Composer,
    random: Callable[[Part, Shape], Noise],
    sizes_after: Mapping[str, int],
) -> Part:
    dims = [composer.dim(e, role) for e, role in part.pattern.dims]
    if not any(dims):
        return part
    kernels = [d.kernel if d else None for d in dims]
    terms = [_after(composer, kernels, t) for t in part.terms]
    for i, dim in enumerate(dims):
        if dim and dim.ones:
            terms.append(Term(Ones((1,)), (dim.ones,)))
        if dim and dim.fresh and len(dims) > 1 and not part.zeroed:
            mask = tuple(dim.fresh if j == i else None for j in range(len(dims)))
            terms.append(Term(random(part, part.shape(sizes_after)), mask))
    return replace(part, terms=tuple(terms))


def scale_modules(parts: Parts, modules: Iterable[str], factor: float) -> dict[str, Part]:
    """All tensors of these modules times a factor; only weights of modules that consume."""
    chosen = set(modules)
    return {
        k: p.scaled(factor)
        if p.pattern.module in chosen and (p.pattern.norm or p.pattern.consumed)
        else p
        for k, p in parts.items()
    }


def scale_norms(parts: Parts, scale: Mapping[str, float]) -> dict[str, Part]:
    """Gains of the norms on these axes times √s, which an eps times s asks for."""
    out = dict(parts)
    for key, part in parts.items():
        expression, role = part.pattern.dims[0]
        for axis in expression.axes & scale.keys() if role == "*" else ():
            out[key] = part.scaled(sqrt(scale[axis]))
    return out


def scale_embeddings(parts: Parts, family: Family, factor: float) -> dict[str, Part]:
    """Every table whose rows are added to the stream times a factor."""
    streams = set(family.of_kind("stream"))

    def is_embedding(part: Part) -> bool:
        roles = [role for _, role in part.pattern.dims]
        return "#" in roles and any(r == "+" and e.axes & streams for e, r in part.pattern.dims)

    return {k: p.scaled(factor) if is_embedding(p) else p for k, p in parts.items()}


def grow_layers(
    parts: Parts,
    family: Family,
    axis: str,
    layers: LayerMap,
    sizes: Mapping[str, int],
    random: Callable[[Part, Shape], Noise],
) -> dict[str, Part]:
    """Layers taken by the layer map: mixed, drawn anew, scaled or made silent."""
    members: dict[int, list[Part]] = {}
    for part in parts.values():
        if axis in part.pattern.slots:
            number = part.numbers[part.pattern.slots.index(axis)]
            members.setdefault(number, []).append(part)
    grown: dict[str, Part] = {}
    for new, layer in enumerate(layers):
        for part in members.get(layer.source, ()):
            slot = part.pattern.slots.index(axis)
            mixed = _mix(part, slot, layer, parts)
            one = mixed.renumbered(slot, new)
            if layer.random:
                one = _draw(one, sizes, random)
            if _adds(part, family):
                one = (
                    replace(one, terms=(), zeroed=True) if layer.silent else one.scaled(layer.scale)
                )
            grown[one.key] = one
    out: dict[str, Part] = {}
    for key, part in parts.items():  # all layers stand where the first one stood
        out |= grown if axis in part.pattern.slots else {key: part}
        grown = {} if axis in part.pattern.slots else grown
    if family.residual == "post" and any(n.silent for n in layers):
        out = _move_norms(out, family, axis, layers, sizes)
    return out


def _mix(part: Part, slot: int, layer: Layer, parts: Parts) -> Part:
    """The weighted sum of one tensor over the layers that a new layer is made of."""
    if len(layer.mix) == 1 and layer.mix[0][1] == 1.0:
        return part
    each = [(parts[part.renumbered(slot, n).key], weight) for n, weight in layer.mix]
    terms = [t for other, weight in each for t in other.scaled(weight).terms]
    return replace(part, terms=tuple(terms), zeroed=all(other.zeroed for other, _ in each))


def _draw(part: Part, sizes: Mapping[str, int], random: Callable[[Part, Shape], Noise]) -> Part:
    """A tensor as an initialiser makes it: weights drawn, gains 1, biases and shifts 0."""
    shape = part.shape(sizes)
    if part.pattern.norm:
        return _unit(part, shape)
    terms = (Term(random(part, shape), (None,) * len(shape)),) if len(shape) > 1 else ()
    return replace(part, terms=terms, zeroed=False)


def _unit(part: Part, shape: Shape) -> Part:
    """A norm's tensor that does nothing: gain 1, shift 0."""
    if part.pattern.dims[0][1] == "~":
        return replace(part, terms=())
    return replace(part, terms=(Term(Ones((1,)), (Kernel.gather(np.zeros(shape[0]), old=1),)),))


def _adds(part: Part, family: Family) -> bool:
    """Whether a tensor is what its layer adds to the stream."""
    streams = set(family.of_kind("stream"))
    return any(role == "+" and e.axes & streams for e, role in part.pattern.dims)


def _move_norms(
    parts: Parts, family: Family, axis: str, layers: LayerMap, sizes: Mapping[str, int]
) -> dict[str, Part]:
    """Where norms write the stream, a silent layer is the identity up to eps if it normalises last.

    norm(norm(x)) = norm(x) up to eps, so the gain and shift of the layer before move into the last
    norm of the silent layers that follow it, and every norm between gets gain 1 and shift 0.
    """
    norms = stream_norms(family, axis)
    out = dict(parts)

    def at(module: str, layer: int) -> list[str]:
        return [
            spell(p.name, [layer])
            for p in family.patterns.values()
            if p.module == module and spell(p.name, [layer]) in parts
        ]

    carrier = 0  # the layer whose norm the silent layers after it take over
    for number, layer in enumerate(layers):
        if not layer.silent:
            carrier = number
            continue
        for module in norms:
            out |= {k: _unit(parts[k], parts[k].shape(sizes)) for k in at(module, number)}
        if number + 1 == len(layers) or not layers[number + 1].silent:
            for old, new in zip(at(norms[-1], carrier), at(norms[-1], number), strict=True):
                out[new] = replace(parts[new], terms=parts[old].terms)
                out[old] = _unit(parts[old], parts[old].shape(sizes))
    return out


def add_noise(
    parts: Parts,
    only: tuple[str, ...],
    null_space: Callable[[Expression], Kernel | None],
    make: Callable[[Part, float], Noise],
) -> dict[str, Part]:
    """Null-space noise on every weight that reads a grown axis; silent parts stay zero."""
    out = dict(parts)
    for key, part in parts.items():
        reads = part.pattern.consumed
        if part.zeroed or reads is None or not chosen(part, only):
            continue
        kernel = null_space(reads)
        if kernel is None:
            continue
        kernels = tuple(kernel if role == "-" else None for _, role in part.pattern.dims)
        noise = make(part, kernel.square_norm() / kernel.new)
        out[key] = replace(part, terms=(*part.terms, Term(noise, kernels)))
    return out


def blend(
    parts: Parts, other: Mapping[str, Term], alpha: float, only: tuple[str, ...]
) -> dict[str, Part]:
    """(1 − alpha) · other + alpha · current."""
    out = dict(parts)
    for key, part in parts.items():
        if chosen(part, only):
            mine = part.scaled(alpha).terms if alpha else ()
            rest = (replace(other[key], scale=1.0 - alpha),) if alpha < 1 else ()
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
    names = (part.name, part.key)
    return not only or any(fnmatchcase(n, p) for n in names for p in only)
