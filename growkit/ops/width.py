"""Width growth: more hidden coordinates, heads, head coordinates or MLP neurons.

Every map is a pair (write, read) with readᵀ·write = I, so that producers and consumers agree; see
`growkit.axes`. Which map fits which axis, and what it preserves, is proved by the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd, inf, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from growkit.axes import AxisMap, BoolArray, Kernel
from growkit.errors import RecipeError
from growkit.ops.contract import Growth, Operator, Size, check_axis, target_size

if TYPE_CHECKING:
    from growkit.family import Family

MapName = Literal[
    "auto",
    "tile",
    "repeat",
    "uneven",
    "circular",
    "pad",
    "isometric",
    "ropestride",
    "ropetheta",
    "fresh",
]


class MapOptions(BaseModel):
    """A map with options: `{map: uneven, weights: [2, 1]}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    map: MapName
    weights: tuple[float, ...] = ()


How = MapName | MapOptions


# -- maps of one axis ----------------------------------------------------------------------------


def tile(old: int, new: int) -> AxisMap:
    """Whole copies one after the other, consumers divided by their number (2409.12903)."""
    return uneven(old, new, (1.0,) * _ratio("tile", old, new))


def uneven(old: int, new: int, weights: tuple[float, ...]) -> AxisMap:
    """Tiles whose consumers are split by `weights`, which breaks the symmetry (2310.07999)."""
    k = _ratio("uneven", old, new)
    if len(weights) != k or not 0 < sum(weights) < inf:
        raise RecipeError(
            f"uneven: expected {k} weights with a positive sum, found {list(weights)}"
        )
    index = np.arange(new) % old
    share = np.repeat(np.asarray(weights) / sum(weights), old)
    return AxisMap.of(Kernel.gather(index, old=old), Kernel.gather(index, share, old=old))


def repeat(old: int, new: int) -> AxisMap:
    """Copies next to their original: new unit i copies ⌊i·old/new⌋ (μpscaling, 2602.10545)."""
    return copies(np.arange(new) * old // new, old)


def circular(old: int, new: int) -> AxisMap:
    """Unit i copies i mod old, consumers divided by the count (1511.05641, 2110.07143)."""
    return copies(np.arange(new) % old, old)


def copies(index: np.ndarray, old: int) -> AxisMap:
    """New unit i copies `index[i]`, consumers divided by the count."""
    counts = np.bincount(index, minlength=old)
    return AxisMap.of(
        Kernel.gather(index, old=old), Kernel.gather(index, 1.0 / counts[index], old=old)
    )


def isometric(old: int, new: int, scale: float = 1.0) -> AxisMap:
    """Copies weighted 1/√count, times `scale`: the write map is a scaled isometry at any size.

    On an RMSNorm stream `scale` = √(new/old) keeps the root mean square, so gains and eps stay.
    """
    index = np.arange(new) % old
    root = 1.0 / np.sqrt(np.bincount(index, minlength=old))[index]
    return AxisMap.of(
        Kernel.gather(index, root * scale, old=old), Kernel.gather(index, root / scale, old=old)
    )


def pad(old: int, new: int, *, scale: float = 1.0, mean: bool = False) -> AxisMap:
    """Old units times `scale`, then new units that are zero, or the mean of all (for LayerNorm).

    With `scale` = √(new/old) this is the uniform scaled pad: the norm's statistic is unchanged, so
    gains and eps stay as they are. The mean rows vanish when LayerNorm centres (LEMON, 2310.07999).
    """
    kept = np.arange(new) < old
    index = np.where(kept, np.arange(new), 0)
    normed = Kernel.gather(index, kept * scale, old=old)
    read = Kernel.gather(index, kept / scale, old=old)
    if not mean or new == old:
        return AxisMap.of(normed, read)
    rows = Kernel.shared(np.full(old, 1.0 / old), np.where(kept, 0.0, scale))
    return AxisMap.of(normed.plus(rows), read, normed)


def fresh(old: int, new: int) -> AxisMap:
    """Old units, then units with random producers and zero consumers (2308.06103)."""
    kept = pad(old, new)
    return AxisMap.of(kept.write, kept.read, fresh=np.arange(new) >= old)


def place(old: int, new: int, position: np.ndarray, fresh_rest: bool) -> AxisMap:
    """Old unit i goes to `position[i]`; the rest is zero, or fresh."""
    index = np.zeros(new, dtype=np.int64)
    used: BoolArray = np.zeros(new, dtype=bool)
    index[position], used[position] = np.arange(old), True
    kernel = Kernel.gather(index, used.astype(float), old=old)
    return AxisMap.of(kernel, fresh=~used if fresh_rest else None)


def rope_positions(old: int, new: int, stride: int) -> np.ndarray:
    """Where coordinates go when rotary pair i becomes pair stride·i (halves layout)."""
    pairs = np.arange(old // 2) * stride
    return np.concatenate([pairs, new // 2 + pairs])


def _ratio(name: str, old: int, new: int) -> int:
    if new % old:
        raise RecipeError(
            f"{name}: {old} → {new} is not a whole multiple",
            hint="use auto, or pad or isometric for hidden, circular for mlp, fresh for heads",
        )
    return new // old


# -- the operator --------------------------------------------------------------------------------


class Width(Operator):
    """Grow axes to a size: copies, padding or fresh units, by the map that `how` names.

    Published as Net2WiderNet (1511.05641), bert2BERT (2110.07143), LEMON (2310.07999), HyperCloning
    (2409.12903) and function-preserving expansions (2308.06103).
    """

    op: Literal["width"] = "width"
    to: dict[str, Size]
    how: How | dict[str, How] = "auto"

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """The axis maps from `sizes` to the sizes asked for."""
        target = self._targets(family, sizes)
        maps: dict[str, AxisMap] = {}
        power = 1.0
        for axis, size in target.items():
            kind = family.axes[family.user_axes[axis][0]]
            if kind == "stream":
                maps[axis] = self._stream(family, axis, sizes[axis], size)
            elif kind == "neurons":
                maps[axis] = self._neurons(axis, sizes[axis], size)
            elif axis == "head_dim":
                found, power = self._head_dim(family, sizes, size)
                maps |= found
        maps |= self._heads(family, sizes, target)
        for axis, leader in family.followers.items():
            if leader in maps and axis in sizes:
                like = family.like.get(axis)
                maps[axis] = (
                    maps[like] if like else self._neurons("", sizes[axis], maps[leader].new)
                )
        return Growth(maps=maps, theta_power=power)

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
        if "kv_heads" in now and "heads" in wanted and now["kv_heads"] == now["heads"]:
            wanted.setdefault("kv_heads", target_size("heads", wanted["heads"], now["heads"]))
        if not wanted:
            raise RecipeError("width: no target", hint="give to: {hidden: 1024}, or to: {axes: 2x}")
        out = {}
        for axis, size in wanted.items():
            if family.axes[family.user_axes[axis][0]] in ("table", "layers"):
                raise RecipeError(
                    f"to.{axis}: width does not grow this axis",
                    hint="layers grow by the op depth; tables such as vocab keep their size",
                )
            value = target_size(axis, size, now[axis])
            if value < now[axis]:
                raise RecipeError(
                    f"to.{axis}: {now[axis]} → {value} shrinks the axis",
                    hint="width only grows; leave the axis out to keep its size",
                )
            if value != now[axis]:
                out[axis] = value
        return out

    def _how(self, axis: str) -> MapOptions:
        how = self.how.get(axis, "auto") if isinstance(self.how, dict) else self.how
        return how if isinstance(how, MapOptions) else MapOptions(map=how)

    def _refuse(self, axis: str, name: str, why: str) -> RecipeError:
        return RecipeError(f"how.{axis}: {name} does not fit this axis: {why}", hint="use auto")

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
        if name in ("fresh", "ropestride", "ropetheta"):
            raise self._refuse(
                axis, name, "every new coordinate of the stream is read by all layers"
            )
        return _plain(name, how)(old, new)

    def _neurons(self, axis: str, old: int, new: int) -> AxisMap:
        how = self._how(axis) if axis else MapOptions(map="auto")
        name = how.map if how.map != "auto" else "circular" if new % old else "tile"
        if name in ("ropestride", "ropetheta"):
            raise self._refuse(axis, name, "it has no rotary positions")
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
            stride = _ratio("ropestride", old, new) if name == "ropestride" else 1
            position = rope_positions(old, new, stride)
            values = tile(old, new) if whole else circular(old, new)
            maps = {
                query: place(old, new, position, fresh_rest=True),
                key: place(old, new, position, fresh_rest=False),
                value: values,
            }
            return maps, (new / old if name == "ropetheta" else 1.0)
        if name in ("pad", "fresh"):  # zero keys silence the new query coordinates
            kept = fresh(old, new)
            return {query: kept, key: pad(old, new), value: kept}, 1.0
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
        if "kv_heads" not in family.axes:
            return {"heads": self._units("heads", heads, new_heads)}
        kv = sizes["kv_heads"]
        new_kv = target.get("kv_heads", kv)
        if new_heads % new_kv:
            raise RecipeError(
                f"to.heads: {new_heads} heads cannot be shared by {new_kv} kv heads",
                hint="heads must be a multiple of kv_heads",
            )
        group, new_group = heads // kv, new_heads // new_kv
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
            inside = self._units("heads", group, new_group)
            head_map = head_map.then(AxisMap.identity(kv).kron(inside))
        if new_kv != kv:
            outside = self._units("kv_heads", kv, new_kv)
            kv_map = kv_map.then(outside)
            head_map = head_map.then(outside.kron(AxisMap.identity(new_group)))
        return {"heads": head_map, "kv_heads": kv_map}

    def _units(self, axis: str, old: int, new: int) -> AxisMap:
        how = self._how(axis)
        if how.map == "auto" and axis == "kv_heads":
            how = self._how("heads")
        name = how.map if how.map != "auto" else "fresh" if new % old else "tile"
        if name in ("ropestride", "ropetheta"):
            raise self._refuse(axis, name, "it maps the coordinates inside a head")
        return _plain(name, how)(old, new)


def _plain(name: str, how: MapOptions) -> Callable[[int, int], AxisMap]:
    """The map of that name for an axis without a norm of its own."""
    if name == "uneven":
        return lambda old, new: uneven(old, new, how.weights)
    return {
        "tile": tile,
        "repeat": repeat,
        "circular": circular,
        "pad": pad,
        "isometric": isometric,
        "fresh": fresh,
    }[name]
