"""Depth growth: more layers, made of the ones there are.

Each function says, for `old` layers growing to `new`, which old layer every new one copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from growkit.algebra.layer_map import Layer, LayerMap
from growkit.errors import RecipeError
from growkit.ops.operator import (
    Growth,
    Operator,
    Size,
    check_axis,
    is_near,
    ratio_of,
    spread,
    target_size,
)

if TYPE_CHECKING:
    from growkit.families.family import Family


MOST_LAYERS = 10_000


def stack(old: int, new: int) -> list[int]:
    """0…old-1 repeated, the remainder from the top (StackBERT; G_stack 2405.15319).

    >>> stack(3, 8)
    [0, 1, 2, 0, 1, 2, 1, 2]
    """
    rest = new % old
    return list(range(old)) * (new // old) + list(range(old - rest, old))


def interleave(old: int, new: int) -> list[int]:
    """New layer i is a copy of ⌊i·old/new⌋ (interpolation of AquilaMoE, 2408.06567).

    >>> interleave(3, 6)
    [0, 0, 1, 1, 2, 2]
    """
    return [i * old // new for i in range(new)]


def top(old: int, new: int) -> list[int]:
    """All layers, then the top ones again, at most all of them (bert2BERT 2110.07143; MSLT).

    >>> top(4, 6)
    [0, 1, 2, 3, 2, 3]
    """
    _at_most_twice("top", old, new)
    return [*range(old), *range(2 * old - new, old)]


def middle(old: int, new: int) -> list[int]:
    """The block in the middle twice (MIDAS, 2409.19044).

    >>> middle(4, 6)
    [0, 1, 2, 1, 2, 3]
    """
    _at_most_twice("middle", old, new)
    start = (2 * old - new) // 2
    return [*range(start + new - old), *range(start, old)]


def overlap(old: int, new: int) -> list[int]:
    """All but the last m layers, then all but the first m (depth up-scaling of SOLAR, 2312.15166).

    >>> overlap(4, 6)
    [0, 1, 2, 1, 2, 3]
    """
    _at_most_twice("overlap", old, new)
    if new % 2:
        raise RecipeError(f"overlap: {old} → {new}: the new number of layers must be even")
    return [*range(new // 2), *range(old - new // 2, old)]


def _at_most_twice(name: str, old: int, new: int) -> None:
    if new > 2 * old:
        raise RecipeError(
            f"{name}: {old} → {new} is more than twice", hint="use stack, interleave or insert"
        )


RULES: dict[str, Callable[[int, int], list[int]]] = {
    "stack": stack,
    "interleave": interleave,
    "insert": interleave,
    "top": top,
    "middle": middle,
    "overlap": overlap,
    "average": interleave,
}


def _nearest(axis: str, size: str, old: int, layers: LayerMap) -> str:
    """What came of a ratio that gives no number of layers that fits, and which come again."""
    counts = Counter(layer.source for layer in layers)
    again = ", ".join(str(n) for n, count in sorted(counts.items()) if count > 1)
    exact = float(old * ratio_of(axis, size))
    return (
        f"{axis}: {old} → {len(layers)}, the nearest to {size.strip().removeprefix('~')} "
        f"({exact:g}) that fits: the layers that come again are {again}"
    )


class Depth(Operator):
    """Grow the number of layers.

    Every rule gives a list of old layers; `layers` gives it outright. Where a layer comes again it
    is *new*, and `new` says what it is: a `copy`, `silent` (it adds nothing at first, so the
    function stays), or `random`. `insert` is the list of `interleave` with silent repeats. Silent
    means that output projections are zero (LLaMA-Pro 2401.02415, LEMON 2310.07999) or, where norms
    write the stream (post-LN), that the branches are zero and gain and shift of the norm before
    move into the new layer's last norm. `average` makes each new layer the mean of its neighbours.
    `out_scale` multiplies what every layer adds to the stream, such as 1/2 for halved steps of the
    residual stream read as an ODE (2504.18590). `~5/4x` is the nearest number of layers to 5/4x,
    even where `overlap` wants it so; repeats are spread as evenly as they go.
    """

    op: Literal["depth"] = "depth"
    to: dict[str, Size] = Field(default_factory=dict)
    how: Literal["stack", "interleave", "insert", "top", "middle", "overlap", "average"] = "insert"
    layers: tuple[int, ...] = ()
    new: Literal["copy", "silent", "random"] | None = None
    out_scale: float = Field(default=1.0, gt=0, le=10)

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """The layer maps of the stacks that are named; `layers` names them all."""
        axes = [a for a in family.of_kind("layers") if a in sizes]
        to = spread(family, sizes, self.to)
        for axis in to:
            check_axis(family, axis)
            if family.axes[family.user_axes[axis][0]] != "layers":
                raise RecipeError(f"to.{axis}: depth only grows layers", hint="use the op width")
        if not axes or not (self.to or self.layers):
            raise RecipeError("depth: no target", hint="give to: {layers: N}, or a list of layers")
        target = to or dict.fromkeys(axes, len(self.layers))
        layers = {a: self._map(sizes[a], size) for a, size in target.items()}
        notes = (
            _nearest(a, str(target[a]), sizes[a], layer_map)
            for a, layer_map in layers.items()
            if is_near(target[a]) and sizes[a] * ratio_of(a, str(target[a])) != len(layer_map)
        )
        return Growth(layers=layers, notes=tuple(notes))

    def _map(self, old: int, size: Size) -> LayerMap:
        multiple = 2 if self.how == "overlap" else 1
        new_size = target_size("layers", size, old, MOST_LAYERS, multiple=multiple)
        source = self._source(old, new_size)
        explicit = bool(self.layers)
        new = self.new or ("silent" if self.how == "insert" and not explicit else "copy")
        out = []
        for place, layer in enumerate(source):
            mix: tuple[tuple[int, float], ...] = ((layer, 1.0),)
            repeated = layer in source[:place]
            if repeated and self.how == "average" and not explicit and layer + 1 < old:
                mix = ((layer, 0.5), (layer + 1, 0.5))
            silent, random = repeated and new == "silent", repeated and new == "random"
            out.append(Layer(mix, silent, random, self.out_scale))
        return tuple(out)

    def _source(self, old: int, new: int) -> list[int]:
        if not self.layers:
            if new < old:
                raise RecipeError(
                    f"to.layers: {old} → {new} shrinks the model", hint="depth only grows"
                )
            return RULES[self.how](old, new)
        bad = [i for i in self.layers if not 0 <= i < old]
        if bad:
            raise RecipeError(
                f"layers: layer {bad[0]} is out of range, the model has {old} layers",
                hint=f"layers are numbered 0 to {old - 1}",
            )
        if len(self.layers) != new:
            raise RecipeError(f"layers: {len(self.layers)} listed, but to.layers is {new}")
        return list(self.layers)
