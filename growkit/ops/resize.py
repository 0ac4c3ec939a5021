"""Longer tables: more tokens in the vocabulary, more learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.errors import CheckpointError, RecipeError
from growkit.ops.operator import LARGEST, Growth, Operator, check_axis

if TYPE_CHECKING:
    from growkit.families.family import Family


def extend(old: int, new: int, *, mean: bool) -> AxisMap:
    """Old rows, then rows that are the mean of all old ones, or zero.

    >>> extend(2, 3, mean=True).write.matrix()
    array([[1. , 0. ],
           [0. , 1. ],
           [0.5, 0.5]])
    """
    kept = np.arange(new) < old
    read = Kernel.gather(np.where(kept, np.arange(new), 0), kept.astype(float), old=old)
    rows = Kernel.shared(np.full(old, 1.0 / old), (~kept).astype(float))
    return AxisMap.of(read.plus(rows) if mean else read, read)


def wrap(old: int, new: int, first: int = 0) -> AxisMap:
    """Old rows, then the same rows again from the row `first`.

    >>> wrap(3, 5, first=1).write.index[:, 0]
    array([0, 1, 2, 1, 2])
    """
    kept = np.arange(new) < old
    index = np.where(kept, np.arange(new), first + (np.arange(new) - first) % (old - first))
    return AxisMap.of(
        Kernel.gather(index, old=old), Kernel.gather(index, kept.astype(float), old=old)
    )


def interpolate(old: int, new: int, first: int = 0) -> AxisMap:
    """The table read at places evenly spaced from its row `first` to its last.

    Rows before `first` stay. Nobody computes on an axis of positions, so there is no way back to
    prove: `read` takes the nearest row.
    """
    steps, after = old - 1 - first, new - 1 - first
    place = np.arange(new).astype(float)
    place[first:] = first + np.arange(after + 1) * steps / after
    low = np.minimum(place.astype(np.int64), max(old - 2, 0))
    high = np.minimum(low + 1, old - 1)
    part = place - low
    write = Kernel.gather(np.stack([low, high], 1), np.stack([1 - part, part], 1), old=old)
    nearest = np.arange(old)
    nearest[first:] = first + np.round(np.arange(steps + 1) * after / max(steps, 1))
    return AxisMap.of(write, Kernel.gather(nearest, old=new).transpose())


class Resize(Operator):
    """Lengthen the vocabulary, or the table of learned positions.

    `vocab` is the new number of tokens; `multiple_of` rounds the present one up, as fast kernels
    like it. New rows of the embedding, of an untied head and of the head's bias are the `mean` of
    the old ones (Hewitt 2021: no token starts with an outlying logit) or `zero`. The logits of old
    tokens stay as they are; new tokens get logits of their own, which take a share of the
    probability.
    `positions` is the new number of learned positions. `copy` repeats the old rows from the start,
    which keeps the function at old positions; `interpolate` stretches the table over the new
    length, ends on ends, which changes it. Rows that are no positions, such as those up to the
    padding token's in RoBERTa, stay as they are and are not repeated.
    """

    op: Literal["resize"] = "resize"
    vocab: int | None = Field(default=None, ge=1, le=LARGEST)
    multiple_of: int | None = Field(default=None, ge=1, le=LARGEST)
    new: Literal["mean", "zero"] = "mean"
    positions: int | None = Field(default=None, ge=1, le=LARGEST)
    positions_how: Literal["copy", "interpolate"] = "copy"

    @model_validator(mode="after")
    def _one_target(self) -> Resize:
        if self.vocab is not None and self.multiple_of is not None:
            raise ValueError("vocab and multiple_of both say how many tokens: give one")
        if self.vocab is None and self.multiple_of is None and self.positions is None:
            raise ValueError("resize needs vocab, multiple_of or positions")
        return self

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """The maps of the tables that get longer."""
        maps: dict[str, AxisMap] = {}
        vocab = self.vocab
        if self.multiple_of is not None:
            vocab = -(-_size(family, sizes, "vocab") // self.multiple_of) * self.multiple_of
        rows = partial(extend, mean=self.new == "mean")
        first = family.padding.get("positions", 0)
        places = partial(interpolate if self.positions_how == "interpolate" else wrap, first=first)
        for axis, new, how in (("vocab", vocab, rows), ("positions", self.positions, places)):
            if new is None:
                continue
            old = _size(family, sizes, axis)
            if new < old:
                raise RecipeError(
                    f"{axis}: {old} → {new} would drop rows", hint="resize only makes tables longer"
                )
            if axis == "positions" and old <= first:
                raise CheckpointError(
                    f"config.json: the table of positions has {old} rows, and the first {first} "
                    "are no positions",
                    hint="mend pad_token_id, up to which rows are left out",
                )
            if new > old:
                maps[axis] = how(old, new)
        return Growth(maps=maps)


def _size(family: Family, sizes: Mapping[str, int], axis: str) -> int:
    if axis in family.limits:
        check_axis(family, axis, "resize")
    if axis in sizes:
        return sizes[axis]
    raise RecipeError(
        f"{axis}: family {family.name} has no table of {axis}",
        hint="rotary positions are computed: set the longest input in config.json when training"
        if family.rope
        else "leave it out",
    )
