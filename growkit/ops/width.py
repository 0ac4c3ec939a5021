"""Width growth: more hidden coordinates, heads, head coordinates or MLP neurons.

Every map is a pair (write, read) with readᵀ·write = I, so that producers and consumers agree; see
`growkit.axes`. Which map fits which axis, and what it preserves, is proved by the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import PrivateAttr

from growkit.axes import AxisMap
from growkit.errors import RecipeError
from growkit.ops.contract import Arrays, Growth, Operator, Size, check_axis, target_size
from growkit.ops.how import REFUSED, How, MapOptions
from growkit.ops.maps import (
    circular,
    fresh,
    isometric,
    lemon,
    lemon_scale,
    pad,
    place,
    random,
    repeat,
    rope_positions,
    select,
    tile,
    uneven,
    whole_ratio,
)
from growkit.ops.matrices import given_maps

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
    _files: Mapping[str, Arrays] = PrivateAttr(default_factory=dict)

    def files(self) -> tuple[str, ...]:
        """The files of dense maps."""
        return tuple(h.file for h in self._all.values() if isinstance(h, MapOptions) and h.file)

    def located(self, folder: Path) -> Width:
        """Relative paths of files from the folder of the recipe."""
        found = {a: h if isinstance(h, str) else h.located(folder) for a, h in self._all.items()}
        return self.model_copy(update={"how": found.get("", found)})

    def given(self, files: Mapping[str, Arrays]) -> Width:
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
            elif kind == "stream":
                maps[axis] = self._stream(family, axis, sizes[axis], size)
                if self._how(axis).map == "lemon" and size % sizes[axis]:
                    scales[axis] = lemon_scale(sizes[axis], size)
            elif kind == "neurons":
                maps[axis] = self._neurons(axis, sizes[axis], size)
            elif axis == "head_dim":
                found, power = self._head_dim(family, sizes, size)
                maps |= found
        maps |= self._heads(family, sizes, target)
        for axis, leader in family.followers.items():
            if leader in maps and axis in sizes:
                like, led = family.like.get(axis), maps[leader]
                if like or led.new < led.old:
                    maps[axis] = maps[like or leader]
                else:
                    maps[axis] = self._neurons("", sizes[axis], led.new)
                if like in scales:
                    scales[axis] = scales[like]
        above = self.new_rows == "above"
        return Growth(maps=maps, theta_power=power, norm_scale=scales, above=above)

    @property
    def _all(self) -> dict[str, How]:
        """`how` by axis; one for all of them stands at ""."""
        return self.how if isinstance(self.how, dict) else {"": self.how}

    def _targets(self, family: Family, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes asked for, by user axis; only axes that change."""
        now = {u: sizes[axes[0]] for u, axes in family.user_axes.items() if axes[0] in sizes}
        wanted: dict[str, Size] = {}
        if "axes" in self.to:
            both = {"hidden", "heads", "kv_heads", "mlp"} & now.keys()
            wanted = dict.fromkeys(sorted(both), self.to["axes"])
        for axis, size in self.to.items():
            if axis != "axes":
                check_axis(family, axis)
                wanted[axis] = size
        for axis in self.how if isinstance(self.how, dict) else ():
            check_axis(family, axis, "how")
            if self._how(axis).map == "select":
                wanted.setdefault(axis, len(self._how(axis).index))
            elif self._how(axis).map == "dense" and axis not in self.to:
                wanted[axis] = next(iter(self._dense(family, axis, sizes).values())).new
        if "kv_heads" in now and "heads" in wanted and now["kv_heads"] == now["heads"]:
            wanted.setdefault("kv_heads", target_size("heads", wanted["heads"], now["heads"]))
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
            names = {self._how(axis).map, self._how("heads" if axis == "kv_heads" else axis).map}
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

    def _how(self, axis: str) -> MapOptions:
        how = self.how.get(axis, "auto") if isinstance(self.how, dict) else self.how
        return how if isinstance(how, MapOptions) else MapOptions(map=how)

    def _refuse(self, axis: str, name: str, why: str) -> RecipeError:
        return RecipeError(f"how.{axis}: {name} does not fit this axis: {why}", hint="use auto")

    def _check(self, axis: str, name: str, kind: str) -> None:
        if name in REFUSED[kind]:
            raise self._refuse(axis, name, REFUSED[kind][name])

    def _stream(self, family: Family, axis: str, old: int, new: int) -> AxisMap:
        how = self._how(axis)
        scale = sqrt(new / old)
        norms = [p for p in family.patterns.values() if p.norm and axis in p.dims[0][0].axes]
        kinds = {p.norm for p in norms}
        # Where a LayerNorm writes the stream no uneven map is exact. Copies come closest: MiniLM
        # 384 → 1024 drifts by 0.03 (root mean square, relative), with mean rows by 0.4.
        uneven_map = "isometric" if any(p.norm == "ln" and p.to_stream for p in norms) else "pad"
        name = how.map if how.map != "auto" else uneven_map if new % old else "tile"
        if name == "pad":
            return pad(old, new, scale=scale, mean="ln" in kinds)
        if name == "isometric":
            return isometric(old, new, scale)
        if name == "lemon":
            if not family.eps:
                raise self._refuse(axis, name, "the family file names no config key for eps")
            return lemon(old, new, mean="ln" in kinds)
        self._check(axis, name, "stream")
        return _plain(name, how)(old, new)

    def _neurons(self, axis: str, old: int, new: int) -> AxisMap:
        how = self._how(axis) if axis else MapOptions(map="auto")
        name = how.map if how.map != "auto" else "circular" if new % old else "tile"
        self._check(axis, name, "neurons")
        return _plain(name, how)(old, new)

    def _head_dim(
        self, family: Family, sizes: Mapping[str, int], new: int
    ) -> tuple[dict[str, AxisMap], float]:
        """Maps of the query, key and value axes, and the power that the RoPE base is raised to."""
        how = self._how("head_dim")
        query, key, value = (family.of_kind(k)[0] for k in ("query", "key", "value"))
        old = sizes[query]
        whole = new % old == 0
        name = how.map
        if name == "auto" and family.rope:
            name = "ropestride" if whole else "ropetheta"
        elif name == "auto":
            name = "tile" if whole else "isometric"
        if name in ("ropestride", "ropetheta"):
            if not family.rope:
                raise self._refuse("head_dim", name, "the family has no rotary positions")
            if old % 2 or new % 2:
                raise RecipeError(f"to.head_dim: rotary pairs need even sizes, found {old} → {new}")
            stride = whole_ratio("ropestride", old, new) if name == "ropestride" else 1
            position = rope_positions(old, new, stride)
            values = tile(old, new) if whole else circular(old, new)
            maps = {
                query: place(old, new, position, fresh_rest=True),
                key: place(old, new, position, fresh_rest=False),
                value: values,
            }
            return maps, (new / old if name == "ropetheta" else 1.0)
        if how.pairs:
            raise self._refuse("head_dim", "fresh in pairs", "twins are whole heads or neurons")
        if name in ("pad", "fresh"):  # zero keys silence the new query coordinates
            kept = fresh(old, new)
            return {query: kept, key: pad(old, new), value: kept}, 1.0
        self._check("head_dim", name, "head_dim")
        if name == "select" and family.rope:
            raise self._refuse("head_dim", name, "a rotary pair would turn at another frequency")
        one = _plain(name, how)(old, new)
        return {query: one, key: one, value: one}, 1.0

    def _heads(
        self, family: Family, sizes: Mapping[str, int], target: Mapping[str, int]
    ) -> dict[str, AxisMap]:
        """Maps of heads and kv heads that keep every query head with its kv head."""
        asked = {"heads", "kv_heads"} & target.keys()
        if not asked or any(self._how(a).map == "dense" for a in asked):
            return self._dense_heads(family, sizes, asked)
        heads = sizes["heads"]
        new_heads = target.get("heads", heads)
        how = self._how("heads")
        if "kv_heads" not in family.axes:
            return {"heads": self._units("heads", heads, new_heads)}
        kv = sizes["kv_heads"]
        new_kv = target.get("kv_heads", kv)
        if self._how("kv_heads").map == "select" != how.map:
            raise self._refuse("kv_heads", "select", "list the query heads, kv heads follow them")
        if how.map == "ingroup" and new_kv != kv:
            raise self._refuse("heads", "ingroup", f"kv_heads grow too, {kv} → {new_kv}")
        if new_heads % new_kv:
            raise RecipeError(
                f"to.heads: {new_heads} heads cannot be shared by {new_kv} kv heads",
                hint="heads must be a multiple of kv_heads",
            )
        group, new_group = heads // kv, new_heads // new_kv
        if how.map == "select":
            return self._select_heads(heads, kv, new_heads, new_kv)
        # Groups that get smaller: first give each part of a group its own copy of the kv head.
        split = 1 if new_group >= group else group // gcd(group, new_group)
        if kv * split > new_kv:
            raise RecipeError(
                f"to.kv_heads: {kv} → {new_kv} with heads {heads} → {new_heads} changes "
                f"{group} heads per kv head to {new_group}, for which there is no map",
                hint=f"make kv_heads a multiple of {kv * split}, or keep {group} heads per kv head",
            )
        kv_map, head_map = repeat(kv, kv * split), AxisMap.identity(heads)
        kv, group = kv * split, group // split
        if new_group != group:
            inside = self._units("heads", group, new_group, inside=True)
            head_map = head_map.then(AxisMap.identity(kv).kron(inside))
        if new_kv != kv:
            outside = self._units("kv_heads", kv, new_kv)
            kv_map = kv_map.then(outside)
            head_map = head_map.then(outside.kron(AxisMap.identity(new_group)))
        return {"heads": head_map, "kv_heads": kv_map}

    def _dense(
        self, family: Family, axis: str, sizes: Mapping[str, int], size: int = 0
    ) -> dict[str, AxisMap]:
        """The matrices of an axis, which must have this size unless it is 0."""
        file = self._how(axis).file
        try:
            return given_maps(self._files[file], axis, family.user_axes[axis], sizes, size)
        except RecipeError as error:
            raise RecipeError(f"{file}: {error.message}", hint=error.hint) from None

    def _dense_heads(
        self, family: Family, sizes: Mapping[str, int], asked: set[str]
    ) -> dict[str, AxisMap]:
        """Both maps from a file; kv heads as the heads, where there are as many."""
        maps: dict[str, AxisMap] = {}
        for axis in sorted(asked):
            if self._how(axis).map == "dense":
                maps |= self._dense(family, axis, sizes)
            elif axis == "kv_heads" and sizes["heads"] == sizes["kv_heads"]:
                maps[axis] = maps["heads"]
            else:
                raise self._refuse(axis, self._how(axis).map, "the other heads' map is dense")
        return maps

    def _select_heads(self, heads: int, kv: int, new_heads: int, new_kv: int) -> dict[str, AxisMap]:
        """The listed query heads and the kv heads that they meet."""
        head_map = select(heads, new_heads, self._how("heads").index)
        own = (head_map.write.index[:, 0] // (heads // kv)).reshape(new_kv, -1)
        if (own != own[:, :1]).any() or len(set(own[:, 0])) != new_kv:
            raise self._refuse("heads", "select", "heads of one kv head would be torn apart")
        return {"heads": head_map, "kv_heads": select(kv, new_kv, own[:, 0].tolist())}

    def _units(self, axis: str, old: int, new: int, *, inside: bool = False) -> AxisMap:
        how = self._how(axis)
        if how.map == "auto" and axis == "kv_heads":
            how = self._how("heads")
        name = how.map if how.map != "auto" else "fresh" if new % old else "tile"
        if inside and name == "ingroup":
            return circular(old, new)
        self._check(axis, name, axis)
        return _plain(name, how)(old, new)


def _plain(name: str, how: MapOptions) -> Callable[[int, int], AxisMap]:
    """The map of that name for an axis without a norm of its own."""
    if name == "uneven":
        return lambda old, new: uneven(old, new, how.weights)
    if name == "random":
        return lambda old, new: random(old, new, how.seed, how.counts)
    if name == "select":
        return lambda old, new: select(old, new, how.index)
    if name == "fresh":
        return lambda old, new: fresh(old, new, pairs=how.pairs)
    return {
        "tile": tile,
        "repeat": repeat,
        "circular": circular,
        "pad": pad,
        "isometric": isometric,
    }[name]
