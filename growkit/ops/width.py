"""Width growth: more hidden coordinates, heads, head coordinates or MLP neurons.

Every map is a pair (write, read) with readᵀ·write = I, so that producers and consumers agree; see
`growkit.axes`. Which map fits which axis, and what it preserves, is proved by the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, Literal

from growkit.axes import AxisMap
from growkit.errors import RecipeError
from growkit.ops.contract import Growth, Operator, Size, check_axis, target_size
from growkit.ops.heads import head_dim_maps, head_maps
from growkit.ops.maps import isometric, lemon, lemon_scale, pad, tile
from growkit.ops.options import How, MapOptions, check_map, plain_map, refuse

if TYPE_CHECKING:
    from growkit.family import Family


class Width(Operator):
    """Grow axes to a size: copies, padding or fresh units, by the map that `how` names.

    Published as Net2WiderNet (1511.05641), bert2BERT (2110.07143), LEMON (2310.07999), HyperCloning
    (2409.12903) and function-preserving expansions (2308.06103). With `new_rows: above`, copied
    rows of every layer come from the next layer (AKI of bert2BERT). Only `select` shrinks.
    """

    op: Literal["width"] = "width"
    to: dict[str, Size]
    how: How | dict[str, How] = "auto"
    new_rows: Literal["own", "above"] = "own"

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """The axis maps from `sizes` to the sizes asked for."""
        target = self._targets(family, sizes)
        maps: dict[str, AxisMap] = {}
        scales: dict[str, float] = {}
        power = 1.0
        for axis, size in target.items():
            kind = family.axes[family.user_axes[axis][0]]
            if kind in ("stream", "latent"):
                maps[axis] = self._stream(family, axis, sizes[axis], size)
                if self._how(axis).map == "lemon" and size % sizes[axis]:
                    scales[axis] = lemon_scale(sizes[axis], size)
            elif kind == "neurons":
                maps[axis] = self._neurons(axis, sizes[axis], size)
            elif kind == "experts":
                maps |= self._experts(family, axis, sizes, size)
        for attention in family.attentions:
            if attention.head_dim in target:
                found, power = head_dim_maps(self._how, family, attention, sizes, target)
                maps |= found
            maps |= head_maps(self._how, family, attention, sizes, target)
        after = {**sizes, **{a: m.new for a, m in maps.items()}}
        for axis, leader in family.followers.items():
            if leader in maps and axis in sizes:
                like, led = family.like.get(axis), maps[leader]
                derived = family.derived.get(axis)
                if derived and led.new < led.old:
                    maps[axis] = derived.map(maps, sizes) or AxisMap.identity(sizes[axis])
                elif like or led.new < led.old:
                    maps[axis] = maps[like or leader]
                else:
                    new = family.size_after(axis, after)
                    maps[axis] = self._neurons("", sizes[axis], new)
                if like in scales:
                    scales[axis] = scales[like]
        above = self.new_rows == "above"
        return Growth(maps=maps, theta_power=power, norm_scale=scales, above=above)

    def _targets(self, family: Family, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes asked for, by user axis; only axes that change."""
        now = {u: sizes[axes[0]] for u, axes in family.user_axes.items() if axes[0] in sizes}
        wanted: dict[str, Size] = {}
        if "axes" in self.to:
            wide = family.of_kind("stream", "latent", "heads", "kv_heads", "neurons")
            wanted = {a: self.to["axes"] for a in wide if a in now and a not in family.limits}
        for axis, size in self.to.items():
            if axis != "axes":
                check_axis(family, axis)
                wanted[axis] = size
        for axis in self.how if isinstance(self.how, dict) else ():
            check_axis(family, axis, "how")
            if self._how(axis).map == "select":
                wanted.setdefault(axis, len(self._how(axis).index))
        leaders = {t.kv_heads: t.heads for t in family.attentions}
        for kv, heads in leaders.items():
            if kv in now and heads in wanted and now[kv] == now[heads]:
                wanted.setdefault(kv, target_size(heads, wanted[heads], now[heads]))
        if not wanted:
            raise RecipeError("width: no target", hint="give to: {hidden: 1024}, or to: {axes: 2x}")
        out = {}
        for axis, size in wanted.items():
            if family.axes[family.user_axes[axis][0]] in ("table", "layers"):
                raise RecipeError(
                    f"to.{axis}: width does not grow this axis",
                    hint="layers grow by the op depth, vocab and positions by the op resize",
                )
            value = target_size(axis, size, now[axis])
            names = {self._how(axis).map, self._how(leaders.get(axis, axis)).map}
            if value < now[axis] and "select" not in names:
                raise RecipeError(
                    f"to.{axis}: {now[axis]} → {value} shrinks the axis",
                    hint="only the map select leaves units out; coalesce merges them",
                )
            if value >= now[axis] and self._how(axis).map == "select":
                raise RecipeError(f"to.{axis}: {now[axis]} → {value}: select only shrinks")
            if value != now[axis]:
                out[axis] = value
        return out

    def _how(self, axis: str) -> MapOptions:
        how = self.how.get(axis, "auto") if isinstance(self.how, dict) else self.how
        return how if isinstance(how, MapOptions) else MapOptions(map=how)

    def _stream(self, family: Family, axis: str, old: int, new: int) -> AxisMap:
        how = self._how(axis)
        scale = sqrt(new / old)
        norms = [p for p in family.patterns.values() if p.over and axis in p.over.axes]
        kinds = {p.norm for p in norms}
        kinds |= {norm for over, norm in family.bare_norms.items() if axis in over.axes}
        # Where a LayerNorm writes the stream no uneven map is exact. Copies come closest: MiniLM
        # 384 → 1024 drifts by 0.03 (root mean square, relative), with mean rows by 0.4.
        uneven_map = "isometric" if any(p.norm == "ln" and p.to_stream for p in norms) else "pad"
        name = how.map if how.map != "auto" else uneven_map if new % old else "tile"
        if name == "pad":
            return pad(old, new, scale=scale, mean="ln" in kinds)
        if name == "isometric":
            return isometric(old, new, scale)
        if name == "lemon":
            if not isinstance(family.eps, str) or not family.eps:
                raise refuse(axis, name, "the family file names no config key for eps")
            return lemon(old, new, mean="ln" in kinds)
        check_map(axis, name, "stream")
        return plain_map(name, how)(old, new)

    def _neurons(self, axis: str, old: int, new: int) -> AxisMap:
        how = self._how(axis) if axis else MapOptions(map="auto")
        name = how.map if how.map != "auto" else "circular" if new % old else "tile"
        check_map(axis, name, "neurons")
        return plain_map(name, how)(old, new)

    def _experts(
        self, family: Family, axis: str, sizes: Mapping[str, int], new: int
    ) -> dict[str, AxisMap]:
        """Copies of all experts, and as many times more of them taken by the router."""
        check_map(axis, self._how(axis).map, "experts")
        copies = tile(sizes[axis], new)
        ratio = new // sizes[axis]
        choices = [a for a in family.of_kind("choices") if a in sizes]
        return {axis: copies, **{a: tile(sizes[a], ratio * sizes[a]) for a in choices}}
