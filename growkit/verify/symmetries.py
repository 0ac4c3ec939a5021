"""Other coordinates on one axis, the same function: what proves a family file.

Shapes do not prove it, because several axes may have one size. A symmetry is a change of
coordinates that the model cannot see if every tensor is labelled right: a permutation of one axis
everywhere (Git Re-Basin, arXiv 2209.04836), a random invertible matrix on the values of heads, a
change of sign on rotary pairs of queries and keys. The law: what a model could see although it is
labelled right is not among the symmetries.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import IntArray, Kernel
from growkit.algebra.positions import rotary_pairs
from growkit.families.config import clamp
from growkit.families.family import Attention, Family
from growkit.families.model import Model
from growkit.ops.operator import Growth
from growkit.planning.plan import Plan, plan_of

Maps = dict[str, AxisMap]


def symmetries(model: Model) -> dict[str, Maps]:
    """Every symmetry of a model: what is changed → the maps that change it."""
    family, sizes = model.family, model.sizes
    changes: dict[str, Maps] = {}
    axes = {a for e in model.entries.values() for x, _ in e.pattern.dims for a in x.axes}
    for axis, kind in family.axes.items():
        if axis not in axes:  # a config may give sizes that no tensor of this model has
            continue
        if kind in ("stream", "latent") or (kind == "neurons" and axis not in family.like):
            order = _permutation(sizes[axis])
            likes = {a: order for a, leader in family.like.items() if leader == axis and a in sizes}
            changes[axis] = {axis: order, **likes}
        elif kind == "experts" and len([c for c in family.of_kind("choices") if c in sizes]) < 2:
            changes[axis] = {axis: _permutation(sizes[axis])}  # groups of experts are not permuted
    for attention in family.attentions:
        changes |= _head_symmetries(family, attention, sizes)
        if clamp(family, model.config):  # what is clamped may only change places
            changes[attention.value] = {attention.value: _permutation(sizes[attention.value])}
    return {what: maps for what, maps in changes.items() if maps.keys() & axes}


def _head_symmetries(
    family: Family, attention: Attention, sizes: Mapping[str, int]
) -> dict[str, Maps]:
    heads, kv, query, key, value = (
        attention.heads, attention.kv_heads, attention.query, attention.key, attention.value
    )  # fmt: skip
    changes: dict[str, Maps] = {}
    patterns = family.patterns.values()
    if not family.alibi and kv in sizes:
        group = AxisMap.identity(sizes[heads] // sizes[kv])
        order = _permutation(sizes[kv])
        changes[kv] = {kv: order, heads: order.kron(group)}
        inside = AxisMap.identity(sizes[kv]).kron(_permutation(group.new))
        changes |= {heads: {heads: inside}} if group.new > 1 else {}
    elif not family.alibi and heads in sizes:
        changes[heads] = {heads: _permutation(sizes[heads])}
    if query and query in sizes:
        signs = _signs(family, sizes[query])
        signed = AxisMap.of(Kernel.gather(np.arange(sizes[query]), signs, old=sizes[query]))
        change = signed if family.rope else _permutation(sizes[query])
        centred = any(p.norm == "ln" and p.over and query in p.over.axes for p in patterns)
        if not (family.rope and centred):  # a mean does not keep its value under changes of sign
            changes[query] = {query: change, key: change}
    if value and value in sizes:
        changes[value] = {value: _mixing(sizes[value])}
    return changes


def _permutation(size: int) -> AxisMap:
    """A permutation that moves every unit."""
    return AxisMap.of(Kernel.gather(_order(size), old=size))


def _order(size: int) -> IntArray:
    shuffled = np.random.default_rng(size).permutation(size)
    order = np.empty(size, dtype=np.int64)
    order[shuffled] = np.roll(shuffled, 1)
    return order


def _signs(family: Family, size: int) -> np.ndarray:
    """+1 or -1, the same on both coordinates of a rotary pair."""
    pair = np.arange(size)
    if family.rope:
        turned, _ = rotary_pairs(family.rope.pairs, size, family.rope.turns(size))
        pair = np.where(turned >= 0, turned, pair)
    return np.where(np.random.default_rng(7).random(size)[pair] < 0.5, -1.0, 1.0)


def _mixing(size: int) -> AxisMap:
    """A random invertible matrix: consumers undo it."""
    matrix = np.eye(size) + 0.3 * np.random.default_rng(2).standard_normal((size, size))
    return AxisMap.of(Kernel.from_matrix(matrix), Kernel.from_matrix(np.linalg.inv(matrix).T))


def symmetry_plan(model: Model, maps: Maps) -> Plan:
    """The same model in other coordinates."""
    return plan_of("symmetry", model, [Growth(maps=maps)])
