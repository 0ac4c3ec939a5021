"""What a trainer should know of a grown model: copies that nothing separates, parts that are dead.

Two units that every tensor treats alike get equal gradients, and stay equal for ever under
deterministic training (1511.05641, 2409.12903). A unit that is zero on both sides gets no gradient
at all; one that is zero on one side only, such as a silent layer's, learns from the first step.

The law: said of the formulas themselves, not of the steps that made them, so that an uneven split,
noise on a few tensors or a blend count for exactly what they separate.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from growkit.algebra.expression import Expression
from growkit.algebra.kernel import BoolArray, IntArray, Kernel
from growkit.checkpoints.types import Checkpoint, Stored
from growkit.families.family import Family
from growkit.planning.formula import Noise
from growkit.planning.part import Part
from growkit.planning.proof.claim import Claim

KINDS = ("stream", "neurons", "heads", "value")  # kv heads are told apart by query heads
Layers = tuple[tuple[str, int], ...]  # which layer of which stack; empty outside of all
Place = tuple[str, Layers]  # an axis, and the layer that it lies in
Places = dict[Place, dict[Hashable, Part]]  # by what is done to it, the first tensor of each kind


def hints(
    family: Family,
    parts: Mapping[str, Part],
    sizes: Mapping[str, int],
    claim: Claim,
    *,
    filled: bool = False,
) -> Iterator[str]:
    """Hints about what the steps of a recipe have made.

    `filled`: models that stand side by side are different ones.
    """
    units = _Units(sizes)
    locked, dead = Counter[str](), Counter[str]()
    counts: dict[Hashable, tuple[int, bool]] = {}  # dead units, and whether others are alike
    places = _places(family, parts)
    for (axis, _), members in places.items():
        kinds = (axis, *members)
        if kinds not in counts:
            nothing = units.dead(axis, members.values())
            counts[kinds] = int(nothing.sum()), units.alike(axis, members.values(), nothing)
        count, alike = counts[kinds]
        dead[axis] += count
        locked[axis] += alike
    for axis, count in (+locked).items():
        of = sum(a == axis for a, _ in places)
        where = f" in {count} of {of} layers" if count < of else ""
        yield (
            f"{_named(family, axis)}: copies are equal and stay equal{where}: "
            "train with dropout, or add a noise step"
        )
    if not (+locked or filled) and _side_by_side(units, family, parts, places):
        yield (
            "the models side by side are equal and stay equal: "
            "train with dropout, or add a noise step"
        )
    for axis, count in (+dead).items():
        yield (
            f"{_named(family, axis)}: {count} units are zero on both sides and get no gradient; "
            "add a noise step, or choose another map"
        )
    yield from _dead_layers(family, parts)
    for reason in claim.reasons:
        if reason.startswith("tied head: "):
            yield f"{reason}; `tied: untie` gives the head weights of its own"


def side_file_hints(
    checkpoint: Checkpoint, before: Mapping[str, int], after: Mapping[str, int]
) -> Iterator[str]:
    """Which files say sizes of the model before growth to other tools; sizes are by user axis.

    The width and another one in one file, one of which has changed, are not there by chance.
    """
    widths = {size for axis, size in before.items() if axis.rpartition(".")[2] == "hidden"}
    changed = {size for axis, size in before.items() if after.get(axis) != size}
    if checkpoint.descriptions:
        yield (
            f"{', '.join(checkpoint.descriptions)}: left behind, for other tools read there what "
            "the model was before growth; make it anew from config.json"
        )
    for name, numbers in checkpoint.numbers.items():
        stale = sorted(numbers & {*before.values()})
        if len(stale) > 1 and widths & {*stale} and changed & {*stale}:
            yield (
                f"{name}: carried as it is, and seems to say sizes of the model before growth "
                f"({', '.join(map(str, stale))}): look whether it still fits"
            )


def _named(family: Family, axis: str) -> str:
    """The name that recipes use."""
    return next((u for u, axes in family.user_axes.items() if axis in axes), axis)


def _places(family: Family, parts: Mapping[str, Part]) -> Places:
    """The tensors on every axis; axes other than the stream begin anew in each layer."""
    axes = family.of_kind(*KINDS)
    axes_of = {
        name: [
            (a, family.axes[a] == "stream")
            for a in axes
            if any(a in e.axes for e, _ in pattern.dims)
        ]
        for name, pattern in family.patterns.items()
    }
    places: Places = defaultdict(dict)
    for part in parts.values():
        name = part.pattern.name
        if axes_of[name]:
            kind, layer = (name, *[t.kernels for t in part.terms]), _layer(part)
            for axis, is_stream in axes_of[name]:
                places[axis, () if is_stream else layer].setdefault(kind, part)
    inside = {axis for axis, layer in places if layer}  # what lies outside serves these layers
    ordered = sorted(places, key=lambda place: axes.index(place[0]))
    return {place: places[place] for place in ordered if place[1] or place[0] not in inside}


def _layer(part: Part) -> Layers:
    """Which layer a tensor belongs to."""
    slots = zip(part.pattern.slots, part.numbers, strict=True)
    return tuple([(s, n) for s, n in slots if isinstance(s, str)])


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What a kernel does with each unit of an axis."""

    labels: IntArray  # equal where its rows are
    zero: BoolArray


class _Units:
    """What the kernels of tensors do with the units of axes, each kernel looked at once."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self._rows: dict[tuple[Kernel, Expression, str], _Rows] = {}

    def on(self, axis: str, members: Iterable[Part], roles: str) -> set[_Rows] | None:
        """What all kernels do in these roles; None if a tensor takes the axis as it is."""
        treatments: set[_Rows] = set()
        for part in members:
            for dim, (expression, role) in enumerate(part.pattern.dims):
                for term in part.terms if axis in expression.axes and role in roles else ():
                    kernel = term.kernels[dim]
                    if kernel is None:  # no growth, noise or another model: all units differ
                        return None
                    treatments.add(self._look(kernel, expression, axis))
        return treatments

    def dead(self, axis: str, members: Iterable[Part]) -> BoolArray:
        """Which units nobody produces and nobody reads; gains and shifts do not count."""
        treatments = self.on(axis, members, "+-")
        none = np.zeros(self.sizes[axis], dtype=bool)
        return none if not treatments else np.logical_and.reduce([r.zero for r in treatments])

    def alike(self, axis: str, members: Iterable[Part], nothing: BoolArray) -> bool:
        """Whether two units, other than those of `nothing`, are treated alike by every tensor."""
        treatments = self.on(axis, members, "+-*~#=")
        if not treatments:
            return False
        size = self.sizes[axis]
        labels = np.where(nothing, np.arange(size), size)
        for rows in treatments:
            both = labels * size + rows.labels
            labels = np.unique(both, return_inverse=True)[1].reshape(-1)
        return bool(labels.max(initial=0) + 1 < size)

    def _look(self, kernel: Kernel, expression: Expression, axis: str) -> _Rows:
        key = (kernel, expression, axis)
        if key not in self._rows:
            if kernel.dense is not None:
                rows = kernel.dense
            else:
                index = np.where(kernel.coef != 0, kernel.index, -1)
                rows = np.concatenate([index, kernel.coef, kernel.left], axis=1)
            places = expression.units(axis, self.sizes)
            rows = rows[places].reshape(len(places), -1)
            labels = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
            zero = np.asarray(kernel.zero_rows[places].all(axis=1))
            self._rows[key] = _Rows(labels, zero)
        return self._rows[key]


def _side_by_side(units: _Units, family: Family, parts: Mapping[str, Part], places: Places) -> bool:
    """Whether copies of one model stand in blocks of their own, and nothing tells them apart.

    Then no two units of an axis are alike, only whole blocks are.
    """
    streams = family.of_kind("stream")
    members = [places.get((axis, ()), {}).values() for axis in streams]
    if any(units.on(a, m, "+-*~#=") is None for a, m in zip(streams, members, strict=True)):
        return False
    sources = [[t.source for t in part.terms] for part in parts.values()]
    names = [[s.name for s in of_part if isinstance(s, Stored)] for of_part in sources]
    several = any(len({*of_part}) < len(of_part) for of_part in names)
    return several and not any(isinstance(s, Noise) for of_part in sources for s in of_part)


def _dead_layers(family: Family, parts: Mapping[str, Part]) -> Iterator[str]:
    """Layers in which a norm's gain is zero, and what they add to the stream too.

    Either alone gets a gradient from the first step on; both together never.
    """
    streams = set(family.of_kind("stream"))
    dead = {
        _layer(part)
        for part in parts.values()
        if not part.terms and part.pattern.norm and part.pattern.dims[0][1] == "*"
    } - {()}
    for part in parts.values() if dead else ():
        if part.terms and any(r == "+" and e.axes & streams for e, r in part.pattern.dims):
            dead.discard(_layer(part))
    if dead:
        yield (
            f"{len(dead)} layers have a norm with gain zero and add zero to the stream: "
            "they get no gradient"
        )
