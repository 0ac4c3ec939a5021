"""Maps of attention heads and of the coordinates inside them.

The law: every query head stays with its kv head, every rotary pair with its frequency, every head
with its ALiBi slope.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.expression import Expression
from growkit.algebra.positions import nested_places, rotary_places
from growkit.errors import RecipeError
from growkit.ops.axis_maps import circular, fresh, pad, place, repeat, select, tile, whole_ratio
from growkit.ops.map_choice import Choose, check_map, plain_map, refuse

if TYPE_CHECKING:
    from growkit.families.family import Attention, Family


def head_dim_maps(
    choose: Choose,
    family: Family,
    attention: Attention,
    sizes: Mapping[str, int],
    target: Mapping[str, int],
) -> tuple[dict[str, AxisMap], float]:
    """Maps of the query, key and value axes, and the power that the RoPE base is raised to."""
    axis = attention.head_dim
    new, how = target[axis], choose(axis)
    query, key, value = attention.query, attention.key, attention.value
    if not query:  # only values have a size of their own
        return {value: (circular if new % sizes[value] else tile)(sizes[value], new)}, 1.0
    old = sizes[query]
    whole = new % old == 0
    name = how.map
    coordinates = Expression("axis", query)
    centred = any(p.norm == "ln" and p.over == coordinates for p in family.patterns.values())
    if name == "auto" and family.rope:
        name = "ropestride" if whole and not family.rope.numbered else "ropetheta"
    elif name == "auto":
        name = "tile" if whole else "isometric"
    if name in ("ropestride", "ropetheta"):
        if not family.rope:
            raise refuse(axis, name, "the family has no rotary positions")
        places, power = _rotary(family, name, old, new)
        fresh_rest = not any(p.over and query in p.over.axes for p in family.patterns.values())
        return {
            query: place(old, new, places, fresh_rest=fresh_rest, mean=centred),
            key: place(old, new, places, fresh_rest=False, mean=centred),
            value: tile(old, new) if whole else circular(old, new),
        }, power
    check_map(axis, name, "head_dim")
    rope = family.rope
    unturned = name in ("pad", "fresh") and rope and rope.turns(old) == rope.turns(new)
    if rope and rope.turns(old) and not unturned:
        raise refuse(axis, name, "a rotary pair would turn at another frequency")
    if how.pairs:
        raise refuse(axis, "fresh in pairs", "twins are whole heads or neurons")
    if name in ("pad", "fresh"):  # zero keys silence the new query coordinates
        kept = fresh(old, new)
        return {query: kept, key: pad(old, new), value: kept}, 1.0
    same = plain_map(name, how)(old, new)
    return {query: same, key: same, value: same}, 1.0


def _rotary(family: Family, name: str, old: int, new: int) -> tuple[np.ndarray, float]:
    """Where coordinates go so that rotary pairs keep their speed, and the power of the base."""
    rope = family.rope
    assert rope is not None
    turned, after = (rope.turns(n) for n in (old, new))
    if turned % 2 or after % 2:
        raise RecipeError(
            f"to.head_dim: rotary pairs need even sizes, found {turned} → {after}",
            hint="give an even size",
        )
    stride = 1
    if name == "ropestride" and after != turned:
        stride = whole_ratio("ropestride", turned, after)
    power = after / turned if name == "ropetheta" and turned else 1.0
    if power != 1.0 and not rope.theta:
        raise refuse("head_dim", name, "the rotary base is not in the config")
    return rotary_places(rope.pairs, old, turned, after, stride), power


def head_maps(
    choose: Choose,
    family: Family,
    attention: Attention,
    sizes: Mapping[str, int],
    target: Mapping[str, int],
) -> dict[str, AxisMap]:
    """Maps of heads and kv heads that keep every query head with its kv head."""
    heads_axis, kv_axis = attention.heads, attention.kv_heads
    if not {heads_axis, kv_axis} & target.keys():
        return {}
    heads = sizes[heads_axis]
    new_heads = target.get(heads_axis, heads)
    if family.alibi:
        return {heads_axis: _sloped(choose, family.alibi.slopes, heads_axis, heads, new_heads)}
    if not kv_axis:
        return {heads_axis: _units(choose, heads_axis, heads, new_heads)}
    kv = sizes[kv_axis]
    new_kv = target.get(kv_axis, kv)
    _refuse_torn(choose, attention, (kv, new_kv), new_heads)
    if choose(heads_axis).map == "select":
        return _select_heads(choose, (heads_axis, kv_axis), heads, kv, new_heads, new_kv)
    group, new_group = heads // kv, new_heads // new_kv  # query heads per kv head
    # 1. Groups that get smaller: each part of a group first has its own copy of the kv head.
    parts = 1 if new_group >= group else group // gcd(group, new_group)
    if kv * parts > new_kv:
        raise RecipeError(
            f"to.{kv_axis}: {kv} → {new_kv} with heads {heads} → {new_heads} changes "
            f"{group} heads per kv head to {new_group}, for which there is no map",
            hint=f"make kv_heads a multiple of {kv * parts}, or keep {group} heads per kv head",
        )
    if parts > 1 and kv * parts == new_kv and choose(kv_axis).map not in ("auto", "repeat"):
        why = "kv heads that their query heads have to share less are repeated"
        raise refuse(kv_axis, choose(kv_axis).map, why)
    kv_map, head_map = repeat(kv, kv * parts), AxisMap.identity(heads)
    kv, group = kv * parts, group // parts
    # 2. Groups that get larger: each grows inside, under its own kv head.
    if new_group != group:
        inside = _units(choose, heads_axis, group, new_group, inside=True)
        head_map = head_map.then(AxisMap.identity(kv).kron(inside))
    # 3. More kv heads: whole groups are copied with them.
    if new_kv != kv:
        outside = _units(choose, kv_axis, kv, new_kv, leader=heads_axis)
        kv_map = kv_map.then(outside)
        head_map = head_map.then(outside.kron(AxisMap.identity(new_group)))
    return {heads_axis: head_map, kv_axis: kv_map}


def _refuse_torn(
    choose: Choose, attention: Attention, kv_sizes: tuple[int, int], new_heads: int
) -> None:
    """Raise RecipeError where query heads and kv heads cannot stay together."""
    heads_axis, kv_axis, (kv, new_kv) = attention.heads, attention.kv_heads, kv_sizes
    name = choose(heads_axis).map
    if choose(kv_axis).map == "select" != name:
        raise refuse(kv_axis, "select", "list the query heads, kv heads follow them")
    if name == "ingroup" and new_kv != kv:
        raise refuse(heads_axis, "ingroup", f"kv_heads grow too, {kv} → {new_kv}")
    if new_heads % new_kv:
        raise RecipeError(
            f"to.{heads_axis}: {new_heads} heads cannot be shared by {new_kv} kv heads",
            hint="heads must be a multiple of kv_heads",
        )


def _sloped(choose: Choose, kind: str, axis: str, old: int, new: int) -> AxisMap:
    """Heads where their ALiBi slopes are; other maps only as the user asks for them."""
    how = choose(axis)
    if how.map not in ("auto", "slopes"):
        return _units(choose, axis, old, new)
    places = nested_places(kind, old, new) if new >= old else None
    if places is None:
        raise refuse(axis, "slopes", f"the slopes of {old} heads are not among {new}")
    return place(old, new, places, fresh_rest=True)


def _select_heads(
    choose: Choose, names: tuple[str, str], heads: int, kv: int, new_heads: int, new_kv: int
) -> dict[str, AxisMap]:
    """The listed query heads and the kv heads that they meet."""
    head_map = select(heads, new_heads, choose(names[0]).index)
    meets = (head_map.write.index[:, 0] // (heads // kv)).reshape(new_kv, -1)
    if (meets != meets[:, :1]).any() or len(set(meets[:, 0])) != new_kv:
        raise refuse(names[0], "select", "heads of one kv head would be torn apart")
    return {names[0]: head_map, names[1]: select(kv, new_kv, meets[:, 0].tolist())}


def _units(
    choose: Choose, axis: str, old: int, new: int, *, inside: bool = False, leader: str = ""
) -> AxisMap:
    how = choose(axis)
    if how.map == "auto" and leader:
        how = choose(leader)
    name = how.map if how.map != "auto" else "fresh" if new % old else "tile"
    if inside and name == "ingroup":
        return circular(old, new)
    check_map(axis, name, "kv_heads" if leader else "heads")
    return plain_map(name, how)(old, new)
