"""Width growth: more hidden coordinates, heads, head coordinates or MLP neurons.

Every map is a pair (write, read) with readᵀ·write = I, so that producers and consumers agree; see
`growkit.axes`. Which map fits which axis, and what it preserves, is proved by the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd, sqrt
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from growkit.axes import AxisMap
from growkit.errors import RecipeError
from growkit.ops.contract import Growth, Operator, Size, check_axis, target_size
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

if TYPE_CHECKING:
    from growkit.family import Family

MapName = Literal[
    "auto",
    "tile",
    "repeat",
    "uneven",
    "circular",
    "random",
    "ingroup",
    "pad",
    "lemon",
    "isometric",
    "ropestride",
    "ropetheta",
    "fresh",
    "select",
]
OPTIONS: Mapping[str, str] = {  # option → the map that it belongs to
    "weights": "uneven",
    "counts": "random",
    "seed": "random",
    "index": "select",
    "pairs": "fresh",
}


class MapOptions(BaseModel):
    """A map with options: `{map: uneven, weights: [2, 1]}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    map: MapName
    weights: tuple[float, ...] = ()  # share of each copy
    counts: tuple[int, ...] = ()  # copies of each old unit
    seed: int = Field(default=0, ge=0, lt=2**64)
    index: tuple[int, ...] = ()  # the units that stay
    pairs: bool = False  # fresh units in twins whose consumers cancel

    @model_validator(mode="after")
    def _own_options(self) -> MapOptions:
        for option, name in OPTIONS.items():
            given = getattr(self, option) != type(self).model_fields[option].default
            if given and self.map != name:
                raise ValueError(f"{option} is an option of the map {name}, not of {self.map}")
        return self


How = MapName | MapOptions

# Maps that do not fit a kind of axis, with the reason.
_NO_ROTARY = dict.fromkeys(("ropestride", "ropetheta"), "it has no rotary positions")
_IN_HEAD = dict.fromkeys(("ropestride", "ropetheta"), "it maps the coordinates inside a head")
_NO_NORM = {"lemon": "no norm on it could carry the change of eps and gain"}
_NO_GROUP = {"ingroup": "only query heads stand in groups"}
_READ = "every new coordinate of the stream is read by all layers"
_SCORES = "attention scores need every coordinate copied equally often"
REFUSED: Mapping[str, Mapping[str, str]] = {
    "stream": {**dict.fromkeys(("fresh", "ropestride", "ropetheta"), _READ), **_NO_GROUP},
    "neurons": {**_NO_ROTARY, **_NO_NORM, **_NO_GROUP},
    "heads": {**_IN_HEAD, **_NO_NORM, "ingroup": "the family has no kv heads"},
    "kv_heads": {**_IN_HEAD, **_NO_NORM, **_NO_GROUP},
    "head_dim": {**_NO_NORM, **_NO_GROUP, "random": _SCORES},
}


# -- the operator --------------------------------------------------------------------------------


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
            if kind == "stream":
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
        if not {"heads", "kv_heads"} & target.keys():
            return {}
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
