"""Depth growth: more layers, copied from the ones there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from growkit.errors import RecipeError
from growkit.ops.contract import Growth, LayerMap, Operator, Size, check_axis, target_size

if TYPE_CHECKING:
    from growkit.family import Family


MOST_LAYERS = 10_000


def stack(old: int, new: int) -> list[int]:
    """0…old-1 repeated, the remainder from the top (StackBERT, G_stack 2405.15319).

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


class Depth(Operator):
    """Grow the number of layers.

    `stack` and `interleave` repeat layers and change the function. `insert` takes interleave's
    list and makes every repeat *silent*, so the function stays: its output projections are zero
    (LLaMA-Pro 2401.02415, LEMON 2310.07999), or, where norms write the stream (post-LN), its
    branches are zero and the gain and shift of the norm before it move into its last norm. An
    explicit list `layers` says which old layer each new one copies.
    """

    op: Literal["depth"] = "depth"
    to: dict[str, Size] = Field(default_factory=dict)
    how: Literal["stack", "interleave", "insert"] = "insert"
    layers: tuple[int, ...] = ()
    new: Literal["copy", "silent"] | None = None

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """The layer map of every layer axis."""
        axes = family.of_kind("layers")
        for axis in self.to:
            check_axis(family, axis)
            if axis not in axes:
                raise RecipeError(f"to.{axis}: depth only grows layers", hint="use the op width")
        if not axes or not (self.to or self.layers):
            raise RecipeError("depth: no target", hint="give to: {layers: N}, or a list of layers")
        return Growth(
            layers={
                a: self._map(sizes[a], self.to.get(a, len(self.layers) or sizes[a])) for a in axes
            }
        )

    def _map(self, old: int, size: Size) -> LayerMap:
        new = target_size("layers", size, old, MOST_LAYERS)
        if self.layers:
            source = list(self.layers)
            bad = [i for i in source if not 0 <= i < old]
            if bad:
                raise RecipeError(
                    f"layers: layer {bad[0]} is out of range, the model has {old} layers",
                    hint=f"layers are numbered 0 to {old - 1}",
                )
            if len(source) != new:
                raise RecipeError(f"layers: {len(source)} listed, but to.layers is {new}")
        else:
            if new < old:
                raise RecipeError(
                    f"to.layers: {old} → {new} shrinks the model", hint="depth only grows"
                )
            source = stack(old, new) if self.how == "stack" else interleave(old, new)
        copies = "silent" if self.how == "insert" and not self.layers else "copy"
        silent = (self.new or copies) == "silent"
        repeats = [silent and i in source[:n] for n, i in enumerate(source)]
        return LayerMap(tuple(source), tuple(repeats))
