"""Depth: layers taken by a layer map, mixed, drawn, scaled or made silent.

The law: a new tensor has the name of an old one with another number, and what a silent layer adds
to the stream is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.algebra.layer_map import Layer, LayerMap
from growkit.checkpoints.types import Shape
from growkit.errors import RecipeError
from growkit.families.family import Family, spell
from growkit.planning.formula import Noise
from growkit.planning.part import Draw, Part, Parts, drawn, patterns_of, unit_norm
from growkit.planning.proof.depth import stream_norms
from growkit.planning.width import Composer, grow_axes


def grow_layers(
    parts: Parts,
    family: Family,
    axis: str,
    layers: LayerMap,
    sizes: Mapping[str, int],
    random: Draw,
) -> dict[str, Part]:
    """Layers taken by the layer map: mixed, drawn anew, scaled or made silent."""
    slots = _slots(parts, axis)
    members: dict[int, list[Part]] = {}
    for part in parts.values():
        if part.pattern.name in slots:
            number = part.numbers[slots[part.pattern.name]]
            members.setdefault(number, []).append(part)
    grown: dict[str, Part] = {}
    adds = _adders(parts, family, axis)
    for new, layer in enumerate(layers):
        for part in _members(members, axis, (layer.source, new), sizes):
            slot = slots[part.pattern.name]
            moved = _mix(part, slot, layer, parts).renumbered(slot, new)
            if layer.random:
                moved = drawn(moved, sizes, random)
            if part.pattern.name in adds and layer.silent:
                moved = replace(moved, terms=(), zeroed=True)
            elif part.pattern.name in adds:
                moved = moved.scaled(layer.scale)
            grown[moved.key] = moved
    every: dict[str, Part] = {}
    for key, part in parts.items():  # all layers stand where the first one stood
        if part.pattern.name not in slots:
            every[key] = part
        elif grown:
            every |= grown
            grown = {}
    if family.residual == "post" and any(n.silent for n in layers):
        every = _move_norms(every, family, axis, layers, sizes)
    return every


def _slots(parts: Parts, axis: str) -> dict[str, int]:
    """Which number in its name is that of the layer, for each kind of tensor that layers have."""
    return {p.name: p.slots.index(axis) for p in patterns_of(parts) if axis in p.slots}


def _mix(part: Part, slot: int, layer: Layer, parts: Parts) -> Part:
    """The weighted sum of one tensor over the layers that a new layer is made of."""
    if len(layer.mix) == 1 and layer.mix[0][1] == 1.0:
        return part
    each = [(parts.get(part.renumbered(slot, n).key), weight) for n, weight in layer.mix]
    if not all(other for other, _ in each):
        raise RecipeError(
            f"layers {', '.join(str(n) for n, _ in layer.mix)} are not of one kind: only some "
            f"have {part.key}",
            hint="a mean needs layers with the same tensors",
        )
    terms = [t for other, weight in each if other for t in other.scaled(weight).terms]
    zeroed = all(other.zeroed for other, _ in each if other)
    return replace(part, terms=tuple(terms), zeroed=zeroed)


def _members(
    members: Mapping[int, list[Part]],
    axis: str,
    numbers: tuple[int, int],
    sizes: Mapping[str, int],
) -> Iterable[Part]:
    """The tensors of a layer, as the layer of a new number has them; `numbers` are (source, new).

    A norm that the first layers lack (its input is normal already) does nothing where it is new.
    """
    source, new = numbers
    yield from (p for p in members.get(source, ()) if p.pattern.first <= new)
    for part in members.get(max(members, default=0), ()):
        if source < part.pattern.first <= new and part.pattern.norm:
            yield unit_norm(part, sizes).renumbered(part.pattern.slots.index(axis), source)


def _adders(parts: Parts, family: Family, axis: str) -> set[str]:
    """Names of the patterns that hold what a layer adds to the stream.

    They are the norms or gains that end its branches, if it has any, else what writes the stream.
    """
    inside = {p.name: p for p in patterns_of(parts) if axis in p.slots}
    streams = set(family.of_kind("stream"))
    return {name for name, pattern in inside.items() if pattern.branch} or {
        name
        for name, pattern in inside.items()
        if any(role == "+" and e.axes & streams for e, role in pattern.dims)
    }


def silent_layers(parts: Parts, family: Family, axis: str) -> frozenset[int]:
    """The layers of a stack that add nothing to the stream: what would add to it is zero."""
    adds = _adders(parts, family, axis)
    silent, loud = set[int](), set[int]()
    for part in parts.values():
        if part.pattern.name in adds and axis in part.pattern.slots:
            number = part.numbers[part.pattern.slots.index(axis)]
            (loud if part.terms else silent).add(number)
    return frozenset(silent - loud)


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
            out |= {k: unit_norm(parts[k], sizes) for k in at(module, number)}
        if number + 1 == len(layers) or not layers[number + 1].silent:
            for old, new in zip(at(norms[-1], carrier), at(norms[-1], number), strict=True):
                out[new] = replace(parts[new], terms=parts[old].terms)
                out[old] = unit_norm(parts[old], sizes)
    return out


def rescale_scores(
    parts: Mapping[str, Part], family: Family, axis: str, layers: LayerMap, sizes: Mapping[str, int]
) -> dict[str, Part]:
    """Queries times (new layer + 1) / (old layer + 1)."""
    out = dict(parts)
    for new, old in enumerate(n.source for n in layers):
        if new == old:
            continue
        factor = (new + 1) / (old + 1)
        scaled = {
            t.query: AxisMap.of(
                Kernel.identity(sizes[t.query], factor), Kernel.identity(sizes[t.query], 1.0)
            )
            for t in family.attentions
        }
        composer = Composer(scaled, sizes)
        layer = {
            k: p
            for k, p in parts.items()
            if axis in p.pattern.slots and p.numbers[p.pattern.slots.index(axis)] == new
        }
        out |= grow_axes(layer, composer, _no_random, sizes)
    return out


def _no_random(part: Part, shape: Shape) -> Noise:
    raise AssertionError("scaling makes no new rows")
