"""The named maps of one axis, from an old size to a new one; growing ones keep the function.

The law: readᵀ·write = I for every map but `select`, which leaves units out. Which map fits which
axis is decided by the operator (`growkit.ops.width`), and what it preserves is proved by the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import BoolArray, Kernel
from growkit.errors import RecipeError


def tile(old: int, new: int) -> AxisMap:
    """Whole copies one after the other, consumers divided by their number (2409.12903)."""
    return uneven(old, new, (1.0,) * whole_ratio("tile", old, new))


def uneven(old: int, new: int, weights: tuple[float, ...]) -> AxisMap:
    """Tiles whose consumers are split by `weights`, which breaks the symmetry (2310.07999)."""
    k = whole_ratio("uneven", old, new)
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
    return _filled(old, kept, scale, scale, mean=mean)


def _filled(
    old: int, kept: BoolArray, factor: float, divisor: float, *, mean: bool = False
) -> AxisMap:
    """Copies in turn times `factor`, and zero or the mean of all where a unit is not `kept`."""
    index = np.arange(len(kept)) % old
    normed = Kernel.gather(index, kept * factor, old=old)
    read = Kernel.gather(index, kept / divisor, old=old)
    if not mean or kept.all():
        return AxisMap.of(normed, read)
    rows = Kernel.shared(np.full(old, 1.0 / old), np.where(kept, 0.0, factor))
    return AxisMap.of(normed.plus(rows), read, normed)


def fresh(old: int, new: int, *, pairs: bool = False) -> AxisMap:
    """Old units, then units with random producers and zero consumers (2308.06103).

    In `pairs`, neighbours have the same producers and consumers Z and -Z, so that both sides have
    a gradient at once.
    """
    kept, unit = pad(old, new), np.arange(new)
    if not pairs:
        return AxisMap.of(kept.write, kept.read, fresh=unit >= old)
    if (new - old) % 2:
        raise RecipeError(f"fresh: {new - old} new units do not make pairs")
    second = (unit - old) % 2
    twin = Kernel.gather(
        np.maximum(unit - second, 0), (unit >= old) * (1.0 - 2.0 * second), old=new
    )
    return AxisMap.of(kept.write, kept.read, fresh=unit >= old, pairs=twin)


def random(old: int, new: int, seed: int = 0, counts: Sequence[int] = ()) -> AxisMap:
    """All units, then copies of units drawn at random, consumers divided by the count (1511.05641).

    `counts` says instead how often each old unit stands. The draw depends on `seed` and the two
    sizes alone.
    """
    if not counts:
        draw = np.random.Philox(key=seed, counter=[0, 0, old, new]).random_raw(new - old)
        return copies(np.concatenate([np.arange(old), (draw % np.uint64(old)).astype(int)]), old)
    if len(counts) != old or min(counts) < 1 or sum(counts) != new:
        raise RecipeError(
            f"random: expected {old} counts of at least 1 with sum {new}, found {list(counts)}"
        )
    more = np.repeat(np.arange(old), np.asarray(counts) - 1)
    return copies(np.concatenate([np.arange(old), more]), old)


def lemon(old: int, new: int, *, mean: bool) -> AxisMap:
    """⌊new/old⌋ tiles, then rows that are the mean of all units (for LayerNorm), or zero.

    Unlike `pad` it copies without a factor; the norm's eps and gain follow by `lemon_scale`
    (LEMON, 2310.07999).
    """
    tiles = new // old
    return _filled(old, np.arange(new) < tiles * old, 1.0, tiles, mean=mean)


def lemon_scale(old: int, new: int) -> float:
    """s: `lemon` multiplies the mean square by it, so eps becomes s·eps and gains √s·gain."""
    return (new // old) * old / new


def select(old: int, new: int, index: Sequence[int]) -> AxisMap:
    """The listed units and no others: rows of producers, columns of consumers."""
    if len(index) != new:
        raise RecipeError(f"select: {len(index)} units are listed, but the new size is {new}")
    if len(set(index)) != new or not 0 <= min(index) <= max(index) < old:
        raise RecipeError(
            "select: every unit once and in range",
            hint=f"units are numbered 0 to {old - 1}",
        )
    return AxisMap.of(Kernel.gather(index, old=old))


def place(
    old: int, new: int, position: np.ndarray, fresh_rest: bool, *, mean: bool = False
) -> AxisMap:
    """Old unit i goes to `position[i]`; the rest is zero, fresh, or (for LayerNorm) the mean."""
    index = np.zeros(new, dtype=np.int64)
    used: BoolArray = np.zeros(new, dtype=bool)
    index[position], used[position] = np.arange(old), True
    kernel = Kernel.gather(index, used.astype(float), old=old)
    if mean and not used.all():
        rows = Kernel.shared(np.full(old, 1.0 / old), (~used).astype(float))
        return AxisMap.of(kernel.plus(rows), kernel, kernel)
    return AxisMap.of(kernel, fresh=~used if fresh_rest else None)


def whole_ratio(name: str, old: int, new: int) -> int:
    if new % old:
        raise RecipeError(
            f"{name}: {old} → {new} is not a whole multiple",
            hint="use auto, or pad or isometric for hidden, circular for mlp, fresh for heads",
        )
    return new // old
