"""Width growth: more hidden coordinates, heads, head coordinates or MLP neurons.

Every map is a pair (write, read) with readᵀ·write = I, so that producers and consumers agree; see
`growkit.algebra.axis_map`. Which map fits which axis, and what it preserves, is proved by the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import PrivateAttr

from growkit.algebra.axis_map import AxisMap
from growkit.errors import RecipeError, located
from growkit.ops.axis_maps import isometric, lemon, lemon_scale, pad, tile
from growkit.ops.derived_axes import follow
from growkit.ops.heads import head_dim_maps, head_maps
from growkit.ops.map_choice import How, Hows, MapOptions, check_map, plain_map, refuse
from growkit.ops.matrices import given_maps
from growkit.ops.operator import (
    Arrays,
    Growth,
    Operator,
    Size,
    asked,
    check_axis,
    is_near,
    ratio_of,
    spread,
    target_size,
)

if TYPE_CHECKING:
    from growkit.families.family import Family


class Width(Operator):
    """Grow axes to a size: copies, padding or fresh units, by the map that `how` names.

    Published as Net2WiderNet (1511.05641), bert2BERT (2110.07143), LEMON (2310.07999), HyperCloning
    (2409.12903) and function-preserving expansions (2308.06103). With `new_rows: above`, copied
    rows of every layer come from the next layer (AKI of bert2BERT). Only `select` shrinks.
    """

    op: Literal["width"] = "width"
    to: dict[str, Size]
    how: Hows = "auto"
    new_rows: Literal["own", "above"] = "own"
    _files: Mapping[str, Arrays] = PrivateAttr(default_factory=dict)

    def files(self) -> tuple[str, ...]:
        """The files of dense maps."""
        return tuple(h.file for h in self._all.values() if isinstance(h, MapOptions) and h.file)

    def with_paths_from(self, folder: Path) -> Width:
        """Relative paths of files from the folder of the recipe."""
        how = {
            axis: h if isinstance(h, str) else h.with_paths_from(folder)
            for axis, h in self._all.items()
        }
        return self.model_copy(update={"how": how.get("", how)})

    def with_files(self, files: Mapping[str, Arrays]) -> Width:
        """With the matrices of the files."""
        step = self.model_copy()
        step._files = files
        return step

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """The axis maps from `sizes` to the sizes asked for."""
        target = self._targets(family, sizes)
        maps: dict[str, AxisMap] = {}
        scales: dict[str, float] = {}
        power = 1.0
        for axis, size in target.items():
            kind = family.axes[family.user_axes[axis][0]]
            if self._how(axis).map == "dense":
                maps |= self._dense(family, axis, sizes, size)
            elif kind in ("stream", "latent"):
                maps[axis] = self._stream(family, axis, sizes[axis], size)
                if self._how(axis).map == "lemon" and size % sizes[axis]:
                    scales[axis] = lemon_scale(sizes[axis], size)
            elif kind == "neurons":
                maps[axis] = self._neurons(axis, sizes[axis], size)
            elif kind == "experts":
                maps |= self._experts(family, axis, sizes, size)
        for attention in family.attentions:
            if attention.head_dim in target.keys() - maps.keys():
                inside, power = head_dim_maps(self._how, family, attention, sizes, target)
                maps |= inside
            heads, kv = attention.heads, attention.kv_heads
            if not maps.keys() & {heads, kv}:
                maps |= head_maps(self._how, family, attention, sizes, target)
            elif kv in target.keys() - maps.keys():  # the map of the heads is dense
                if sizes[heads] != sizes[kv]:
                    why = f"{heads} have a dense map, give one for both"
                    raise refuse(kv, self._how(kv).map, why)
                maps[kv] = maps[heads]
        followers = follow(family, sizes, maps)
        scales |= {a: scales[like] for a, like in family.like.items()
                   if a in followers and like in scales}  # fmt: skip
        maps |= followers
        return Growth(
            maps=maps,
            theta_power=power,
            norm_scale=scales,
            above=self.new_rows == "above",
            notes=self._notes(family, sizes),
        )

    def _notes(self, family: Family, sizes: Mapping[str, int]) -> tuple[str, ...]:
        """Which heads stay as they are, and why."""
        stay = self._staying(family, sizes)
        if not stay:
            return ()
        named = " and ".join(f"{axis} ({sizes[axis]})" for axis in stay)
        why = f"{self.to['axes']} of them is no number of heads that fits"
        return (f"{named} {'stays' if len(stay) == 1 else 'stay'}: {why}",)

    def _staying(self, family: Family, sizes: Mapping[str, int]) -> list[str]:
        """The heads that the ratio for all `axes` leaves alone, as it gives no number that fits.

        Kv heads alone stay where more query heads can share them.
        """
        ratio = self.to.get("axes")
        if not isinstance(ratio, str) or is_near(ratio):
            return []
        times, named = ratio_of("axes", ratio), spread(family, sizes, self.to).keys()
        out = []
        for attention in family.attentions:
            heads, kv = attention.heads, attention.kv_heads
            if heads not in sizes or times < 1:
                continue
            count, shared = times * sizes[heads], sizes.get(kv, 0)
            stay: tuple[str, ...] = (heads, kv)
            if not shared:
                stay = () if count.denominator == 1 else stay
            elif count.denominator == (times * shared).denominator == 1:
                stay = ()
            else:
                whole = shared < sizes[heads] and (count / shared).denominator == 1
                stay = (kv,) if whole else (heads, kv)
            out += [a for a in stay if a in sizes and a not in named and a not in family.limits]
        return out

    def _targets(self, family: Family, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes asked for, by user axis; only axes that change."""
        now = family.user_sizes(sizes)
        wanted = asked(family, sizes, self.to)
        for axis in self._staying(family, sizes):
            del wanted[axis]
        for axis in spread(family, sizes, self.how) if isinstance(self.how, dict) else ():
            check_axis(family, axis, "how")
            if self._how(axis).map == "select":
                wanted.setdefault(axis, len(self._how(axis).index))
            elif self._how(axis).map == "dense" and axis not in self.to:
                wanted[axis] = next(iter(self._dense(family, axis, sizes).values())).new
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
            if value < now[axis] and not names & {"select", "dense"}:
                raise RecipeError(
                    f"to.{axis}: {now[axis]} → {value} shrinks the axis",
                    hint="only the map select leaves units out; coalesce merges them",
                )
            if value >= now[axis] and self._how(axis).map == "select":
                raise RecipeError(f"to.{axis}: {now[axis]} → {value}: select only shrinks")
            if value != now[axis] or self._how(axis).map == "dense":
                out[axis] = value
        return out

    @property
    def _all(self) -> dict[str, How]:
        """`how` by axis; one for all of them stands at ""."""
        return self.how if isinstance(self.how, dict) else {"": self.how}

    def _how(self, axis: str) -> MapOptions:
        how = self.how
        if isinstance(how, dict):
            how = how.get(axis) or how.get(axis.rpartition(".")[2], "auto")
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
            if new % old and any(axis in over.axes for over in family.bare_norms):
                raise refuse(axis, name, "a norm on it has no gain to carry the change of eps")
            return lemon(old, new, mean="ln" in kinds)
        check_map(axis, name, "stream")
        return plain_map(name, how)(old, new)

    def _neurons(self, axis: str, old: int, new: int) -> AxisMap:
        how = self._how(axis)
        name = how.map if how.map != "auto" else "circular" if new % old else "tile"
        check_map(axis, name, "neurons")
        return plain_map(name, how)(old, new)

    def _dense(
        self, family: Family, axis: str, sizes: Mapping[str, int], size: int = 0
    ) -> dict[str, AxisMap]:
        """The matrices of an axis, which must have this size unless it is 0."""
        file = self._how(axis).file
        with located(file):
            return given_maps(self._files[file], axis, family.user_axes[axis], sizes, size)

    def _experts(
        self, family: Family, axis: str, sizes: Mapping[str, int], new: int
    ) -> dict[str, AxisMap]:
        """Copies of all experts, and as many times more of them taken by the router."""
        check_map(axis, self._how(axis).map, "experts")
        copies = tile(sizes[axis], new)
        ratio = new // sizes[axis]
        choices = [a for a in family.of_kind("choices") if a in sizes]
        return {axis: copies, **{a: tile(sizes[a], ratio * sizes[a]) for a in choices}}
