"""Where a grown model comes from: the layers of its stacks, the units of its axes, its tensors.

Each is of one *kind*:

    old      the first plain copy of a layer or unit of the source
    copied   one more of it; of a tensor: every value is one source value
    scaled   one source, times a factor
    mixed    several sources
    silent   a layer that adds nothing to the stream
    new      no source at all

`provenance` tells it of every axis, in runs of layers or units that come from old ones in step, and
`origin` of one tensor. The law: read off the formulas and the composed maps, so that it holds
whatever the steps were; nothing is decided here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from itertools import combinations, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from growkit.algebra.kernel import BoolArray, Kernel
from growkit.checkpoints.types import Stored
from growkit.families.family import numbered
from growkit.planning.depth import silent_layers
from growkit.planning.formula import Formula, Kernels
from growkit.planning.plan import Plan

Kind = Literal["old", "copied", "scaled", "mixed", "silent", "new"]
KINDS: tuple[Kind, ...] = ("old", "copied", "scaled", "mixed", "silent", "new")
TensorKind = Literal["copied", "scaled", "mixed", "new"]
Place = tuple[str, int]  # a source of the recipe, and the number of a layer or a unit of it

FEW = 4  # sources of one unit that are told one by one
MOST = 64  # runs of units up to which they are told one by one


@dataclass(frozen=True, slots=True)
class Run:
    """New layers or units [start, stop) that come from old ones in step."""

    kind: Kind
    start: int
    stop: int
    places: tuple[Place, ...] = ()  # what the first comes from; empty for none, or for too many


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the layers of a stack, or the units of an axis, come from."""

    before: Mapping[str, int]  # source → size
    after: int
    counts: Mapping[Kind, int]  # adds up to `after`
    runs: tuple[Run, ...]  # from 0 to `after`; empty where they are too many to tell
    left_out: int = 0  # old ones that nothing comes from
    axis: str = field(default="", compare=False)  # as the family names it

    @property
    def same(self) -> bool:
        """Whether every layer or unit is where it was, and nothing else."""
        whole = [Run("old", 0, self.after, ((name, 0),)) for name in self.before]
        return [*self.runs] == whole and not self.left_out

    @property
    def singles(self) -> Iterator[Run]:
        """The same for each layer or unit by itself."""
        for run in self.runs:
            for i in range(run.stop - run.start):
                places = tuple((source, n + i) for source, n in run.places)
                yield Run(run.kind, run.start + i, run.start + i + 1, places)


def provenance(plan: Plan) -> dict[str, Provenance]:
    """Of every axis: those with a size that the user sees first, as the plan lists them.

    Several axes of a family that are one to the user (head_dim) are one where they grow alike.
    """
    out: dict[str, Provenance] = {}
    users = {axis: user for user, axes in plan.axes.items() for axis in axes}
    for user, axes in plan.axes.items():
        each = {axis: axis_provenance(plan, axis) for axis in axes}
        for entry in each.values():
            alike = [axis for axis, other in each.items() if other == entry]
            out[user if len(alike) == len(axes) else f"{user} ({', '.join(alike)})"] = entry
    rest = [a for a, m in plan.maps.items() if a not in users and not m.is_identity]
    return out | {a: axis_provenance(plan, a) for a in rest}


def axis_provenance(plan: Plan, axis: str) -> Provenance:
    """Of the layers of a stack, or the units of another axis, by the family's name."""
    if axis in plan.layer_maps:
        entry = _layer_provenance(plan, axis)
    elif axis in plan.maps:
        every = {plan.main: plan.maps, **plan.other_maps}
        entry = unit_provenance({n: maps[axis].write for n, maps in every.items() if axis in maps})
    else:
        entry = _without_map(plan, next(u for u, axes in plan.axes.items() if axis in axes))
    return replace(entry, axis=axis)


def _without_map(plan: Plan, user: str) -> Provenance:
    """Of an axis that does not grow, or that no tensor of this model has."""
    before, after = plan.sizes_before[user], plan.sizes_after[user]
    kept = min(before, after)
    runs = [Run("old", 0, kept, ((plan.main, 0),))]
    runs += [Run("new", kept, after)] if after > kept else []
    counts = _counts({"old": kept, "new": after - kept})
    return Provenance({plan.main: before}, after, counts, tuple(runs), before - kept)


def provenance_json(entry: Provenance) -> dict[str, Any]:
    """As JSON: sizes and counts, and runs as [kind, start, stop, [[source, old], …]]."""
    return {
        "before": dict(entry.before),
        "after": entry.after,
        "counts": dict(entry.counts),
        "left_out": entry.left_out,
        "runs": [[r.kind, r.start, r.stop, [*map(list, r.places)]] for r in entry.runs],
    }


# -- layers --------------------------------------------------------------------------------------


def _layer_provenance(plan: Plan, axis: str) -> Provenance:
    layers = plan.layer_maps[axis]
    places_of: list[dict[Place, None]] = [{} for _ in layers]
    for formula in plan.formulas:
        for slot, (slot_axis, layer) in enumerate(formula.numbers, -len(formula.numbers)):
            for stored in _stored(formula) if slot_axis == axis else ():
                places_of[layer][stored.source, numbered(stored.name)[1][slot]] = None
    if not any(places_of):  # the class has no such stack, only its config
        places_of = [{(plan.main, layer.source): None} for layer in layers]
    user = next(u for u, axes in plan.axes.items() if axis in axes)
    before = {plan.main: plan.sizes_before[user]}
    silent = silent_layers(plan.state.parts, plan.state.model.family, axis)
    seen, taken = set[Place](), set[Place]()
    runs: list[Run] = []
    kinds = Counter[Kind]()
    for number, places in enumerate(places_of):
        kind = _kind_of_layer(places, number in silent, seen)
        kinds[kind] += 1
        seen |= places.keys() if kind == "old" else set()
        taken |= places.keys()
        for source, old in places:
            before[source] = max(before.get(source, 0), old + 1)
        _join(runs, Run(kind, number, number + 1, tuple(places)))
    left_out = sum(before.values()) - len(taken)
    return Provenance(before, len(layers), _counts(kinds), tuple(runs), left_out)


def _kind_of_layer(places: Mapping[Place, None], silent: bool, seen: set[Place]) -> Kind:
    if silent:
        return "silent"
    if len(places) != 1:
        return "mixed" if places else "new"
    return "copied" if places.keys() & seen else "old"


def _stored(formula: Formula) -> Iterator[Stored]:
    for term in formula.terms:
        if isinstance(term.source, Stored):
            yield term.source


def _join(runs: list[Run], run: Run) -> None:
    """Append a run of one, or lengthen the last one that it continues."""
    last = runs[-1] if runs else None
    if last and last.kind == run.kind:
        length = last.stop - last.start
        if run.places == tuple((source, n + length) for source, n in last.places):
            runs[-1] = Run(last.kind, last.start, run.stop, last.places)
            return
    runs.append(run)


def _counts(counts: Mapping[Any, int]) -> dict[Kind, int]:
    """Counts by kind, in the order of KINDS; no zeros."""
    return {kind: counts[kind] for kind in KINDS if counts.get(kind)}


# -- units ---------------------------------------------------------------------------------------


def unit_provenance(kernels: Mapping[str, Kernel]) -> Provenance:
    """What units come from, by the kernel of every source, all of shape (new, old of the source).

    >>> unit_provenance({"small": Kernel.gather([0, 1, 0], old=2)}).counts
    {'old': 2, 'copied': 1}
    """
    before = {name: kernel.old for name, kernel in kernels.items()}
    names, starts = [*before], np.cumsum([0, *before.values()])
    sparse = [_sparse(kernel) for kernel in kernels.values()]
    joined = reduce(_side_by_side, sparse)
    kinds: list[Any] = joined.row_kinds.kind.tolist()
    taken = np.where(joined.coef != 0, joined.index, -1)  # units of all sources, one after another
    many = np.logical_or.reduce(  # rows that take more than are told one by one
        [k.left.any(axis=1) | ((k.coef != 0).sum(axis=1) > FEW) for k in sparse]
    )
    taken[many] = -1
    owner = np.searchsorted(starts, taken, side="right") - 1  # whose unit it is; -1 where none is
    step = (np.diff(owner, axis=0) == 0) & ((np.diff(taken, axis=0) == 1) | (owner[1:] < 0))
    changes = joined.row_kinds.kind[1:] != joined.row_kinds.kind[:-1]
    cuts = np.flatnonzero(changes | ~step.all(axis=1)) + 1
    ends = [0, *cuts.tolist(), joined.new] if len(cuts) < MOST else []

    def places(unit: int) -> tuple[Place, ...]:
        pairs = zip(owner[unit].tolist(), taken[unit].tolist(), strict=True)
        return tuple((names[o], old - int(starts[o])) for o, old in pairs if o >= 0)

    runs = [Run(kinds[start], start, stop, places(start)) for start, stop in pairwise(ends)]
    left_out = 0 if many.any() else joined.old - len(np.unique(taken[taken >= 0]))
    return Provenance(before, joined.new, _counts(Counter(kinds)), tuple(runs), left_out)


def _sparse(kernel: Kernel) -> Kernel:
    """The same map where it is sparse; of a dense one, only which rows take anything."""
    sparse = kernel if kernel.dense is None else Kernel.found_in(kernel.dense)
    if sparse.dense is None:
        return sparse
    return Kernel.shared(np.ones(kernel.old), (~kernel.zero_rows).astype(float))


def _side_by_side(left: Kernel, right: Kernel) -> Kernel:
    """The map from the units of two sources, one after another."""
    rows = np.arange(left.new)
    both = Kernel.gather(np.stack([rows, rows + left.new], axis=1), old=2 * left.new)
    return both.after(left.direct_sum(right))


# -- tensors -------------------------------------------------------------------------------------


class Origin(NamedTuple):
    """Where the values of one output tensor come from."""

    kind: TensorKind
    sources: tuple[Stored, ...]
    new_rows: int  # rows of dim 0 that no source tensor reaches


def origin(formula: Formula) -> Origin:
    """Where an output tensor comes from, read off its terms.

    >>> origin(Formula("w", (4, 2), "F32"))  # no terms: zeros
    Origin(kind='new', sources=(), new_rows=4)
    """
    rows = formula.shape[0] if formula.shape else 0
    terms = [(t, t.source) for t in formula.terms if isinstance(t.source, Stored)]
    if not terms:
        return Origin("new", (), rows)
    plain, kernels, other_kernels = True, [], []
    sources = (terms[0][1],) if len(terms) == 1 else tuple(dict.fromkeys([s for _, s in terms]))
    for term, source in terms:
        plain = plain and term.scale == 1.0 and source.by is None
        kernels.append(term.kernels)
    if len(terms) < len(formula.terms):
        other_kernels = [t.kernels for t in formula.terms if not isinstance(t.source, Stored)]
    kind, reached = _made_of(tuple(kernels), tuple(other_kernels), plain)
    return Origin(kind, sources, 0 if reached is None else rows - reached)


@lru_cache(maxsize=1024)
def _made_of(
    stored: tuple[Kernels, ...], others: tuple[Kernels, ...], plain: bool
) -> tuple[TensorKind, int | None]:
    """Kind by the kernels of the terms, which many tensors share; rows reached, None for all."""
    heads = [_reached(kernels[0]) if kernels else None for kernels in stored]
    partial = [rows for rows in heads if rows is not None]
    reached = None if len(partial) < len(heads) else int(np.logical_or.reduce(partial).sum())
    kinds = [k.row_kinds.kind for kernels in stored for k in kernels if k is not None]
    if any((kind == "mixed").any() for kind in kinds) or any(
        _overlap(a, b) for a, b in combinations((*stored, *others), 2)
    ):
        return "mixed", reached
    plain = plain and not any((kind == "scaled").any() for kind in kinds)
    return "copied" if plain else "scaled", reached


def _overlap(a: Kernels, b: Kernels) -> bool:
    """Some element takes from both terms."""
    dims = [(_reached(x), _reached(y)) for x, y in zip(a, b, strict=True)]
    return all(x is None or y is None or bool((x & y).any()) for x, y in dims)


def _reached(kernel: Kernel | None) -> BoolArray | None:
    """Which rows are not zero; None is all of them."""
    return None if kernel is None else ~kernel.zero_rows


def further_copies(formulas: Sequence[Formula]) -> set[str]:
    """Tensors whose sources an earlier tensor already carries: those of added layers, mostly."""
    seen: set[tuple[Stored, ...]] = set()
    further = set()
    for formula in sorted(formulas, key=lambda f: numbered(f.name)):
        sources = origin(formula).sources
        if sources in seen:
            further.add(formula.name)
        elif sources:
            seen.add(sources)
    return further
