"""Axes that only have the size of another, such as a pooler as wide as the stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from growkit.algebra.axis_map import AxisMap
from growkit.ops.axis_maps import circular

if TYPE_CHECKING:
    from growkit.families.family import Family


def follow(
    family: Family, sizes: Mapping[str, int], maps: Mapping[str, AxisMap]
) -> dict[str, AxisMap]:
    """The maps of axes that have none yet, and that follow one that has."""
    after = {**sizes, **{a: m.new for a, m in maps.items()}}
    out: dict[str, AxisMap] = {}
    for axis, leader in family.followers.items():
        if axis in maps or leader not in maps or axis not in sizes:
            continue
        like, led = family.like.get(axis), maps[leader]
        derived = family.derived.get(axis)
        if derived and led.new < led.old:
            out[axis] = derived.map(maps, sizes) or AxisMap.identity(sizes[axis])
        elif like or led.new < led.old:
            out[axis] = maps[like or leader]
        else:  # copies, behind whatever comes
            out[axis] = circular(sizes[axis], family.size_after(axis, after))
    return out
