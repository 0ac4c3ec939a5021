"""Tensors that have a number in their name: layers taken by a layer map, experts by an axis map.

The law: a new tensor has the name of an old one with another number, and what a silent layer adds
to the stream is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.errors import RecipeError
from growkit.families.family import Family
from growkit.families.model import spell
from growkit.ops.operator import Layer, LayerMap
from growkit.planning.formula import Noise, Shape, Term
from growkit.planning.proof.width import stream_norms
from growkit.planning.width import Composer, Draw, Part, Parts, grow_axes, ones


def grow_layers(
    parts: Parts,
    family: Family,
    axis: str,
    layers: LayerMap,
    sizes: Mapping[str, int],
    random: Draw,
) -> dict[str, Part]:
    """Layers taken by the layer map: mixed, drawn anew, scaled or made silent."""
    members: dict[int, list[Part]] = {}
    for part in parts.values():
        if axis in part.pattern.slots:
            number = part.numbers[part.pattern.slots.index(axis)]
            members.setdefault(number, []).append(part)
    grown: dict[str, Part] = {}
    adds = _adders(parts, family, axis)
    for new, layer in enumerate(layers):
        for part in _members(members, axis, (layer.source, new), sizes):
            slot = part.pattern.slots.index(axis)
            mixed = _mix(part, slot, layer, parts)
            one = mixed.renumbered(slot, new)
            if layer.random:
                one = _draw(one, sizes, random)
            if part.pattern.name in adds:
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


def _draw(part: Part, sizes: Mapping[str, int], random: Draw) -> Part:
    """A tensor as an initialiser makes it: weights drawn, gains 1, biases and shifts 0."""
    if part.pattern.norm:
        return _unit(part, sizes)
    shape = part.shape(sizes)
    terms = (Term(random(part, shape), (None,) * len(shape)),) if len(shape) > 1 else ()
    return replace(part, terms=terms, zeroed=False)


def _unit(part: Part, sizes: Mapping[str, int]) -> Part:
    """A norm's tensor that does nothing: gain 1, shift 0."""
    gain = part.pattern.dims[-1][1] == "*"
    return replace(part, terms=ones(part.shape(sizes), 1.0) if gain else (), zeroed=False)


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
    here = [p for p in members.get(source, ()) if p.pattern.first <= new]
    yield from here
    for part in members.get(max(members, default=0), ()):
        if part.pattern.norm and source < part.pattern.first <= new:
            yield _unit(part, sizes).renumbered(part.pattern.slots.index(axis), source)


def _adders(parts: Parts, family: Family, axis: str) -> set[str]:
    """Names of the patterns that hold what a layer adds to the stream.

    They are the norms or gains that end its branches, if it has any, else what writes the stream.
    """
    inside = {p.pattern.name: p.pattern for p in parts.values() if axis in p.pattern.slots}
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
            out |= {k: _unit(parts[k], sizes) for k in at(module, number)}
        if number + 1 == len(layers) or not layers[number + 1].silent:
            for old, new in zip(at(norms[-1], carrier), at(norms[-1], number), strict=True):
                out[new] = replace(parts[new], terms=parts[old].terms)
                out[old] = _unit(parts[old], sizes)
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
        here = {
            k: p
            for k, p in parts.items()
            if axis in p.pattern.slots and p.numbers[p.pattern.slots.index(axis)] == new
        }
        out |= grow_axes(here, composer, _no_random, sizes)
    return out


def _no_random(part: Part, shape: Shape) -> Noise:
    raise AssertionError("scaling makes no new rows")


def grow_numbered(
    parts: Parts,
    axis: str,
    m: AxisMap,
    random: Draw,
    sizes_after: Mapping[str, int],
) -> dict[str, Part]:
    """Tensors that have a unit's number in their name (experts, a norm per head), unit by unit."""

    def family_of(part: Part) -> tuple[str, tuple[int, ...]]:
        slot = part.pattern.slots.index(axis)
        return part.pattern.name, (*part.numbers[:slot], *part.numbers[slot + 1 :])

    members: dict[Any, dict[int, Part]] = {}
    for part in parts.values():
        if axis in part.pattern.slots:
            number = part.numbers[part.pattern.slots.index(axis)]
            members.setdefault(family_of(part), {})[number] = part
    out: dict[str, Part] = {}
    for key, part in parts.items():
        if axis not in part.pattern.slots:
            out[key] = part
            continue
        siblings = members.pop(family_of(part), {})  # all of them stand where the first one stood
        if not siblings:
            continue
        matrix = (m.gain if part.pattern.dims[-1][1] == "*" else m.write).matrix()
        for unit in range(m.new):
            mix = np.flatnonzero(matrix[unit])
            one = part.renumbered(part.pattern.slots.index(axis), unit)
            terms = [t for n in mix for t in siblings[int(n)].scaled(matrix[unit, n]).terms]
            one = replace(one, terms=tuple(terms)) if terms else _draw(one, sizes_after, random)
            out[one.key] = one
    return out
