"""The Multi-Level framework: merge units and layers, and take them apart again (2404.07999).

Both operators are written with one map: the one that copies every small unit to its big ones.
De-coalescing applies it (eq. 8-12 of the paper), coalescing applies its inverse, so that producers
are averaged and consumers summed (eq. 1-7), and `coalesce` undoes `decoalesce` to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.layer_map import Layer, LayerMap
from growkit.errors import RecipeError
from growkit.ops.axis_maps import copies
from growkit.ops.operator import Growth, Operator, Size, asked, check_axis, target_size
from growkit.ops.width import Width

if TYPE_CHECKING:
    from growkit.families.family import Attention, Family


class Pairing(BaseModel):
    """Which units belong together: `half` pairs i with i + n/2, `adjacent` 2i with 2i + 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Literal["half", "adjacent"] = "half"
    depth: Literal["half", "adjacent"] = "adjacent"


class _Level(Operator):
    """What both directions share: sizes, pairing, explicit groups of big units."""

    to: dict[str, Size] = Field(default_factory=dict)
    pairing: Pairing = Pairing()
    groups: dict[str, tuple[tuple[int, ...], ...]] = Field(default_factory=dict)

    def _targets(self, family: Family, sizes: Mapping[str, int]) -> dict[str, int]:
        """New sizes by user axis, those of the groups left out."""
        now = family.user_sizes(sizes)
        wanted = asked(family, sizes, self.to)
        for axis in self.groups:
            check_axis(family, axis)
        for t in family.attentions:
            if t.kv_heads in now and t.heads in wanted and now[t.kv_heads] == now[t.heads]:
                wanted.setdefault(t.kv_heads, wanted[t.heads])
        if not wanted and not self.groups:
            raise RecipeError(f"{self.op}: no target", hint="give to: {axes: 1/2x, layers: 1/2x}")
        out = {}
        for axis, size in wanted.items():
            if family.axes[family.user_axes[axis][0]] == "table":
                raise RecipeError(f"to.{axis}: a table is not merged", hint="leave the axis out")
            if axis in self.groups:
                raise RecipeError(f"to.{axis}: given twice, groups.{axis} says the size")
            out[axis] = target_size(axis, size, now[axis])
        return out

    def _up(
        self, family: Family, small: Mapping[str, int], big: Mapping[str, int]
    ) -> dict[str, AxisMap]:
        """The maps that copy small units to big ones; sizes by family axis."""
        maps = self._by_pairing(family, small, big)
        for user_axis, groups in self.groups.items():
            axes = family.user_axes[user_axis]
            if family.axes[axes[0]] != "layers":
                index = _index(user_axis, groups, big[axes[0]])
                maps |= {axis: copies(index, len(groups)) for axis in axes}
        for attention in family.attentions:
            if {attention.heads, attention.kv_heads} & self.groups.keys():
                _check_together(attention, maps, big)
        for axis, leader in family.followers.items():
            if leader in maps and axis in small:
                derived = family.derived.get(axis)
                axis_map = derived.map(maps, small) if derived else maps[leader]
                maps |= {axis: axis_map} if axis_map else {}
        return maps

    def _by_pairing(
        self, family: Family, small: Mapping[str, int], big: Mapping[str, int]
    ) -> dict[str, AxisMap]:
        """The maps of the axes that have another size and no groups: those of a width step."""
        grown: dict[str, int] = {}
        for user_axis, (axis, *_) in family.user_axes.items():
            if axis in small and family.axes[axis] != "layers" and user_axis not in self.groups:
                grown |= {user_axis: big[axis]} if big[axis] != small[axis] else {}
        if not grown:
            return {}
        copied: Literal["tile", "repeat"] = "tile" if self.pairing.width == "half" else "repeat"
        alone = {t.kv_heads for t in family.attentions if t.heads not in grown}  # follow no heads
        how = {u: "auto" if u == "head_dim" or u in alone else copied for u in grown}
        growth = Width.model_validate({"to": grown, "how": how}).grow(family, small)
        return {axis: m for axis, m in growth.maps.items() if axis not in family.followers}

    def _whole(self, family: Family, sizes: Mapping[str, int]) -> Self:
        """With groups of kv heads like those of the heads, where there are as many."""
        groups = dict(self.groups)
        for attention in family.attentions:
            heads, kv = attention.heads, attention.kv_heads
            if heads in groups and kv in sizes and sizes[kv] == sizes[heads]:
                groups.setdefault(kv, groups[heads])
        return self.model_copy(update={"groups": groups})

    def _layer_groups(self, axis: str, few: int, many: int) -> list[tuple[int, ...]]:
        """The big layers that belong to each small one."""
        if axis in self.groups:
            _index(axis, self.groups[axis], many)
            return list(self.groups[axis])
        if many % few:
            raise RecipeError(
                f"to.{axis}: {many} layers do not pair to {few}",
                hint=f"say which belong together: groups: {{{axis}: [[0, 1], …]}}",
            )
        k = many // few
        if self.pairing.depth == "adjacent":
            return [tuple(range(i * k, (i + 1) * k)) for i in range(few)]
        return [tuple(range(i, many, few)) for i in range(few)]


def _check_together(
    attention: Attention, maps: Mapping[str, AxisMap], big: Mapping[str, int]
) -> None:
    """Query heads that are merged must share a kv head, or kv heads that are merged too."""
    names = attention.heads, attention.kv_heads
    if names[1] not in big:
        return
    heads, kv = (maps.get(a) or AxisMap.identity(big[a]) for a in names)
    if heads.new % kv.new == heads.old % kv.old == 0:
        shared = heads.write.index[:, 0] // (heads.old // kv.old)
        meets = np.arange(heads.new) // (heads.new // kv.new)
        if np.array_equal(shared, kv.write.index[meets, 0]):
            return
    raise RecipeError(
        f"groups.{names[0]}: query heads would meet the keys of another kv head",
        hint=f"merge heads that share a kv head, or give groups for {names[1]} that fit",
    )


def _index(axis: str, groups: tuple[tuple[int, ...], ...], size: int) -> np.ndarray:
    """For every big unit the group it is in; each must be in exactly one."""
    listed = sorted(i for group in groups for i in group)
    if listed != list(range(size)) or not all(groups):
        raise RecipeError(
            f"groups.{axis}: every one of 0 to {size - 1} must be in exactly one group",
            hint="nothing is dropped silently",
        )
    index = np.empty(size, dtype=np.int64)
    for number, group in enumerate(groups):
        index[list(group)] = number
    return index


def _sizes_after(
    family: Family, sizes: Mapping[str, int], target: Mapping[str, int]
) -> dict[str, int]:
    after = dict(sizes)
    for axis, size in target.items():
        after |= dict.fromkeys(family.user_axes[axis], size)
    for axis, leader in family.followers.items():
        if axis in after and leader in after:
            after[axis] = family.size_after(axis, after)
    return after


class Coalesce(_Level):
    """Down-leg of the V-cycle: a group becomes one, producers averaged, consumers summed."""

    op: Literal["coalesce"] = "coalesce"

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """The inverse of the maps that copy, and the means of layers."""
        self = self._whole(family, sizes)
        target = self._targets(family, sizes) | {a: len(g) for a, g in self.groups.items()}
        for axis, size in target.items():
            if size > sizes[family.user_axes[axis][0]]:
                raise RecipeError(f"to.{axis}: coalesce does not grow", hint="use decoalesce")
        small = _sizes_after(family, sizes, target)
        maps = {a: m.inverse() for a, m in self._up(family, small, sizes).items()}
        layers: dict[str, LayerMap] = {}
        for axis in (a for a in family.of_kind("layers") if a in target):
            groups = self._layer_groups(axis, target[axis], sizes[axis])
            layers[axis] = tuple(Layer(tuple((i, 1 / len(g)) for i in g)) for g in groups)
        return Growth(maps=maps, layers=layers)


class Decoalesce(_Level):
    """Up-leg of the V-cycle: every unit and layer is copied to its group, consumers divided."""

    op: Literal["decoalesce"] = "decoalesce"

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """The maps that copy."""
        self = self._whole(family, sizes)
        counts = {a: sum(map(len, g)) for a, g in self.groups.items()}
        target = self._targets(family, sizes) | counts
        for axis, size in target.items():
            now = sizes[family.user_axes[axis][0]]
            if size < now:
                raise RecipeError(f"to.{axis}: decoalesce does not shrink", hint="use coalesce")
            if axis in self.groups and len(self.groups[axis]) != now:
                raise RecipeError(
                    f"groups.{axis}: {len(self.groups[axis])} groups for {now} units",
                    hint="one group for every unit there is",
                )
        maps = self._up(family, sizes, _sizes_after(family, sizes, target))
        layers: dict[str, LayerMap] = {}
        for axis in (a for a in family.of_kind("layers") if a in target):
            groups = self._layer_groups(axis, sizes[axis], target[axis])
            owner = {i: number for number, group in enumerate(groups) for i in group}
            layers[axis] = tuple(Layer.copy(owner[i]) for i in range(target[axis]))
        return Growth(maps=maps, layers=layers)
