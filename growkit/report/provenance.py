"""Which layers and units of the source each one of the grown model comes from.

A layer or a unit is *old* (the first that one of the source becomes), *copied* (one more of it),
*scaled* (one, times a factor), *mixed* (several), *silent* (a layer that adds nothing to the
stream), or *new* (none at all). The law: read off the formulas and the composed maps, so that it
holds whatever the steps were; nothing is decided here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from growkit.algebra.kernel import BoolArray, IntArray, Kernel
from growkit.checkpoints.types import Stored
from growkit.planning.formula import Formula, Kernels
from growkit.planning.plan import Plan

Kind = Literal["old", "copied", "scaled", "mixed", "silent", "new"]
KINDS: tuple[Kind, ...] = ("old", "copied", "scaled", "mixed", "silent", "new")
Place = tuple[str, int]  # a source of the recipe, and the number of a layer or a unit of it

FEW = 4  # sources of one unit that are told one by one
MOST = 64  # runs of units up to which they are told one by one
_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Run:
    """New layers or units [start, stop) that come from old ones in step."""

    kind: Kind
    start: int
    stop: int
    places: tuple[Place, ...] = ()  # what the first comes from; empty for none, or for too many


@dataclass(frozen=True, slots=True)
class Descent:
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


def descents(plan: Plan) -> dict[str, Descent]:
    """Of every axis: those with a size that the user sees first, as the plan lists them.

    Several axes of a family that are one to the user (head_dim) are one where they grow alike.
    """
    out: dict[str, Descent] = {}
    users = {axis: user for user, axes in plan.axes.items() for axis in axes}
    for user, axes in plan.axes.items():
        every = [descent(plan, a) for a in axes]
        for found in every:
            alike = [a for a, other in zip(axes, every, strict=True) if other == found]
            out[user if len(alike) == len(axes) else f"{user} ({', '.join(alike)})"] = found
    rest = [a for a, m in plan.maps.items() if a not in users and not m.is_identity]
    return out | {a: descent(plan, a) for a in rest}


def descent(plan: Plan, axis: str) -> Descent:
    """Of the layers of a stack, or the units of another axis, by the family's name."""
    if axis in plan.layers:
        found = _of_layers(plan, axis)
    elif axis in plan.maps:
        beside = {name: maps[axis] for name, maps in plan.other_maps.items() if axis in maps}
        found = of_units({n: m.write for n, m in {plan.main: plan.maps[axis], **beside}.items()})
    else:
        found = _without_map(plan, next(u for u, axes in plan.axes.items() if axis in axes))
    return replace(found, axis=axis)


def _without_map(plan: Plan, user: str) -> Descent:
    """Of an axis that does not grow, or that no tensor of this model has."""
    before, after = plan.sizes_before[user], plan.sizes_after[user]
    kept = min(before, after)
    runs = [Run("old", 0, kept, ((plan.main, 0),))]
    runs += [Run("new", kept, after)] if after > kept else []
    return Descent({plan.main: before}, after, _counts(runs), tuple(runs), before - kept)


def descent_json(found: Descent) -> dict[str, Any]:
    """As JSON: sizes and counts, and runs as [kind, start, stop, [[source, old], …]]."""
    return {
        "before": dict(found.before),
        "after": found.after,
        "counts": dict(found.counts),
        "left_out": found.left_out,
        "runs": [[r.kind, r.start, r.stop, [*map(list, r.places)]] for r in found.runs],
    }


# -- layers --------------------------------------------------------------------------------------


def _of_layers(plan: Plan, axis: str) -> Descent:
    made: list[dict[Place, None]] = [{} for _ in plan.layers[axis]]
    for formula in plan.formulas:
        numbers = [n for a, n in formula.numbers if a == axis]
        for stored in _stored(formula) if numbers else ():
            made[numbers[0]][stored.source, _number(stored.name, formula, axis)] = None
    if not any(made):  # the class has no such stack, only its config
        made = [{(plan.main, old): None} for old in plan.layers[axis]]
    user = next(u for u, axes in plan.axes.items() if axis in axes)
    before = {plan.main: plan.sizes_before[user]}
    seen, taken = set[Place](), set[Place]()
    runs: list[Run] = []
    for number, places in enumerate(made):
        kind = _kind_of_layer(places, number in plan.silent.get(axis, ()), seen)
        seen |= places.keys() if kind == "old" else set()
        taken |= places.keys()
        for source, old in places:
            before[source] = max(before.get(source, 0), old + 1)
        _join(runs, Run(kind, number, number + 1, tuple(places)))
    left_out = sum(before.values()) - len(taken)
    return Descent(before, len(made), _counts(runs), tuple(runs), left_out)


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


def _number(name: str, formula: Formula, axis: str) -> int:
    """The number on a layer axis in the name of a tensor that a formula is made of."""
    found = _NUMBER.findall(name)[-len(formula.numbers) :]
    return int(found[[a for a, _ in formula.numbers].index(axis)])


def _join(runs: list[Run], run: Run) -> None:
    """Append a run of one, or lengthen the last one that it continues."""
    last = runs[-1] if runs else None
    if last and last.kind == run.kind:
        length = last.stop - last.start
        if run.places == tuple((source, n + length) for source, n in last.places):
            runs[-1] = Run(last.kind, last.start, run.stop, last.places)
            return
    runs.append(run)


# -- units ---------------------------------------------------------------------------------------


def of_units(kernels: Mapping[str, Kernel]) -> Descent:
    """What units come from, by the kernel of every source.

    >>> of_units({"small": Kernel.gather([0, 1, 0], old=2)}).counts
    {'old': 2, 'copied': 1}
    """
    kernels = {n: k if k.dense is None else Kernel.found_in(k.dense) for n, k in kernels.items()}
    new = next(iter(kernels.values())).new
    names: list[str] = []
    columns: list[IntArray] = []  # the old unit that each new one takes there; -1 for none
    coef, many = np.zeros(new), np.zeros(new, dtype=bool)
    for name, kernel in kernels.items():
        many |= kernel.share.any(axis=1) | ((kernel.coef != 0).sum(axis=1) > FEW)
        many |= np.zeros(new, dtype=bool) if kernel.dense is None else kernel.dense.any(axis=1)
        for j in range(min(FEW, kernel.index.shape[1])):
            names.append(name)
            columns.append(np.where(kernel.coef[:, j] != 0, kernel.index[:, j], -1))
            coef += kernel.coef[:, j]
    taken = np.stack(columns, axis=1) if columns else np.full((new, 1), -1)
    taken[many] = -1
    kinds = _kindsof_units(taken, coef, many, names)
    here = taken >= 0
    steps = np.where(here[1:] & here[:-1], taken[1:] - taken[:-1] == 1, ~here[1:] & ~here[:-1])
    cuts = np.flatnonzero((kinds[1:] != kinds[:-1]) | ~steps.all(axis=1)) + 1
    ends = [0, *cuts.tolist(), new] if len(cuts) < MOST else []
    runs = tuple(
        Run(
            KINDS[kinds[start]],
            start,
            stop,
            tuple((n, o) for n, o in zip(names, taken[start].tolist(), strict=False) if o >= 0),
        )
        for start, stop in pairwise(ends)
    )
    before = {name: kernel.old for name, kernel in kernels.items()}
    used = {(n, o) for j, n in enumerate(names) for o in np.unique(taken[here[:, j], j]).tolist()}
    counts = {kind: n for i, kind in enumerate(KINDS) if (n := int((kinds == i).sum()))}
    left_out = 0 if many.any() else sum(before.values()) - len(used)
    return Descent(before, new, counts, runs, left_out)


def _kindsof_units(taken: IntArray, coef: Any, many: BoolArray, names: list[str]) -> IntArray:
    """The kind of every new unit, as an index into KINDS."""
    count = (taken >= 0).sum(axis=1)
    kinds = np.full(len(taken), KINDS.index("new"))
    kinds[many | (count > 1)] = KINDS.index("mixed")
    single = (count == 1) & ~many
    kinds[single] = KINDS.index("scaled")
    units = np.flatnonzero(single & (coef == 1.0))
    kinds[units] = KINDS.index("copied")
    column = (taken[units] >= 0).argmax(axis=1)
    source = np.array([names.index(n) for n in names] or [0])[column]
    old = taken[units, column]
    first = np.unique(source * (old.max(initial=0) + 1) + old, return_index=True)[1]
    kinds[units[first]] = KINDS.index("old")
    return kinds


def _counts(runs: list[Run]) -> dict[Kind, int]:
    found = Counter[Kind]()
    for run in runs:
        found[run.kind] += run.stop - run.start
    return {kind: found[kind] for kind in KINDS if found[kind]}


TensorKind = Literal["copied", "scaled", "mixed", "new"]


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
    stored = [t for t in formula.terms if isinstance(t.source, Stored)]
    if not stored:
        return Origin("new", (), rows)
    sources = dict.fromkeys(t.source for t in stored) if len(stored) > 1 else (stored[0].source,)
    made = tuple(t.kernels for t in formula.terms if not isinstance(t.source, Stored))
    unscaled = all(t.scale == 1.0 and getattr(t.source, "by", None) is None for t in stored)
    kind, reached = _made_of(tuple(t.kernels for t in stored), made, unscaled)
    new_rows = 0 if reached is None else rows - reached
    return Origin(kind, tuple(s for s in sources if isinstance(s, Stored)), new_rows)


@lru_cache(maxsize=1024)
def _made_of(
    stored: tuple[Kernels, ...], made: tuple[Kernels, ...], unscaled: bool
) -> tuple[TensorKind, int | None]:
    """Kind by the kernels of the terms, which many tensors share; rows reached, None for all."""
    masks = [_reached(kernels[0]) for kernels in stored if kernels]
    partial = [m for m in masks if m is not None]
    all_rows = not masks or len(partial) < len(masks)  # some term reaches every row
    reached = None if all_rows else int(np.logical_or.reduce(partial).sum())
    kernels = [k for term in stored for k in term if k is not None]
    several = any(not k.is_gather or k.index.shape[1] > 1 for k in kernels)
    if several or any(_overlap(a, b) for a, b in combinations((*stored, *made), 2)):
        return "mixed", reached
    units = all((k.unit_rows | k.zero_rows).all() for k in kernels)
    return "copied" if units and unscaled else "scaled", reached


def _overlap(a: Kernels, b: Kernels) -> bool:
    """Some element takes from both terms."""
    for left, right in zip(a, b, strict=True):
        x, y = _reached(left), _reached(right)
        if x is not None and y is not None and not (x & y).any():
            return False
    return True


def _reached(kernel: Kernel | None) -> BoolArray | None:
    """Which rows are not zero; None is all of them."""
    return None if kernel is None else ~kernel.zero_rows


def further_copies(formulas: Sequence[Formula]) -> set[str]:
    """Tensors whose sources an earlier tensor already carries: those of added layers, mostly."""
    seen: set[tuple[Stored, ...]] = set()
    further = set()
    for formula in sorted(formulas, key=lambda f: _natural(f.name)):
        sources = origin(formula).sources
        if sources in seen:
            further.add(formula.name)
        elif sources:
            seen.add(sources)
    return further


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
