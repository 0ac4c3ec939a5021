"""What an operator is: options in, a `Growth` of maps out, and what these may say of sizes.

The law: an operator sees a family and sizes, never a tensor; what its maps preserve is for the plan
to prove.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import FloatArray
from growkit.algebra.layer_map import LayerMap
from growkit.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from growkit.families.family import Family


Arrays = Mapping[str, FloatArray]  # what a file of maps holds, by name
NoiseKind = Literal["null_space", "gaussian", "shrink_perturb"]


@dataclass(frozen=True, slots=True)
class Noising:
    """Random numbers for weights: where nobody sees them, or everywhere; `snr_db` or `std` is set.

    null_space is for every weight that reads a grown axis, the other kinds are for all weights:
    result = keep · W + noise.
    """

    kind: NoiseKind = "null_space"
    snr_db: float | None = None
    std: float | None = None
    keep: float = 1.0
    only: tuple[str, ...] = ()  # patterns of tensor names; empty means all
    new_only: bool = False  # only rows of new units, and new layers


@dataclass(frozen=True, slots=True)
class Blending:
    """result = (1 - alpha) · other + alpha · current, elementwise."""

    other: str  # a source of the recipe
    alpha: float
    only: tuple[str, ...]  # patterns of tensor names; empty means all


@dataclass(frozen=True, slots=True)
class Growth:
    """What one step does. Axes that are not named keep their size."""

    maps: Mapping[str, AxisMap] = field(default_factory=dict)
    layers: Mapping[str, LayerMap] = field(default_factory=dict)
    theta_power: float = 1.0  # the RoPE base becomes theta ** theta_power
    norm_scale: Mapping[str, float] = field(default_factory=dict)  # axis → s: eps · s, gain · √s
    above: bool = False  # copied rows of a layer come from the next layer
    noise: Noising | None = None
    blend: Blending | None = None
    fuse: tuple[str, ...] = ()  # sources that stand side by side with the current model
    notes: tuple[str, ...] = ()  # what the sizes at hand made of the options


class Operator(BaseModel, ABC):
    """One step of a recipe: the options of an operator, validated and frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    op: str

    @abstractmethod
    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """What this step does to a model with these sizes (by the family's axis names).

        Raises RecipeError where the options contradict the sizes.
        """

    def sources(self) -> tuple[str, ...]:
        """Names of further checkpoints that this step reads."""
        return ()

    def files(self) -> tuple[str, ...]:
        """Paths of files with maps that this step applies."""
        return ()

    def with_paths_from(self, folder: Path) -> Self:
        """The same step with relative paths made to start from the folder of the recipe."""
        return self

    def with_files(self, files: Mapping[str, Arrays]) -> Self:
        """The same step with what its files hold."""
        return self


Size = StrictInt | StrictStr  # 1024, or a ratio of the present size such as "2x" or "4/3x"
LARGEST = 1_000_000  # units of an axis; no model comes near, and a slip of the hand shows at once


def target_size(
    axis: str, size: Size, now: int, largest: int = LARGEST, *, multiple: int = 1
) -> int:
    """The whole number that a recipe's size means for an axis of size `now`.

    A ratio after `~` means the nearest multiple of `multiple`, of two as near the smaller one; but
    what is to grow does grow.

    >>> target_size("mlp", "3/2x", 64)
    96
    >>> target_size("layers", "~5/4x", 22), target_size("layers", "~3/2x", 26, multiple=2)
    (27, 38)
    """
    if isinstance(size, int):
        return _bounded(axis, size, largest)
    exact, text = now * ratio_of(axis, size), str(size).strip()
    if is_near(size):
        below, least = floor(exact / multiple) * multiple, now + 1 if exact > now else 1
        near = [n for n in (below, below + multiple) if n >= least]
        return _bounded(axis, min(near, key=lambda n: abs(n - exact)), largest)
    if exact.denominator != 1:
        raise RecipeError(
            f"to.{axis}: {text} of {now} is {float(exact):g}, not a whole number",
            hint=f"give a number such as {floor(exact) or 1} or {floor(exact) + 1}, or a ratio "
            f"whose denominator divides {now}",
        )
    return _bounded(axis, int(exact), largest)


def is_near(size: Size) -> bool:
    """Whether a size is only about a ratio: `~5/4x`."""
    return isinstance(size, str) and size.strip().startswith("~")


def ratio_of(axis: str, size: str) -> Fraction:
    """The ratio of a size that is one, such as `3/2x`. Raises RecipeError if it is none."""
    text = size.strip().removeprefix("~")
    try:
        ratio = Fraction(text[:-1]) if text.endswith("x") and len(text) < 20 else None
    except (ValueError, ZeroDivisionError):
        ratio = None
    if ratio is None or ratio <= 0:
        raise RecipeError(
            f'to.{axis}: "{size}" is not a size',
            hint='a number such as 1024, or a ratio of the present size such as "2x" or "3/2x"',
        )
    return ratio


def _bounded(axis: str, size: int, largest: int) -> int:
    if not 1 <= size <= largest:
        raise RecipeError(
            f"to.{axis}: expected a positive size of at most {largest:,}, found {size:.4g}",
            hint="give the size that the axis is to have",
        )
    return size


Given = TypeVar("Given")


def spread(
    family: Family, sizes: Mapping[str, int], given: Mapping[str, Given]
) -> dict[str, Given]:
    """What a recipe gives by axis, with `layers` meant for the layers of every stack there is.

    An axis that is named in full keeps what it is given.
    """
    out: dict[str, Given] = {}
    for axis, value in given.items():
        each = [
            u
            for u, members in family.user_axes.items()
            if u.endswith("." + axis) and members[0] in sizes and u not in given
        ]
        out |= dict.fromkeys([axis] if axis in family.user_axes else each or [axis], value)
    return out


def asked(family: Family, sizes: Mapping[str, int], to: Mapping[str, Size]) -> dict[str, Size]:
    """The size that `to` asks of each user axis; `axes` is short for all that make a model wide."""
    named = spread(family, sizes, {axis: size for axis, size in to.items() if axis != "axes"})
    for axis in named:
        check_axis(family, axis)
    wide = family.of_kind("stream", "latent", "heads", "kv_heads", "neurons")
    there = family.user_sizes(sizes).keys() - family.limits.keys()
    return {a: to["axes"] for a in wide if a in there and "axes" in to} | named


def check_axis(family: Family, axis: str, where: str = "to") -> None:
    """Refuse an axis name that this family does not have."""
    if axis not in family.user_axes:
        raise RecipeError(
            f'{where}: family {family.name} has no axis "{axis}"',
            hint=did_you_mean(axis, family.user_axes),
        )
    if axis in family.limits:
        raise RecipeError(
            f"{where}.{axis}: does not grow in family {family.name}: {family.limits[axis]}",
            hint="leave it out",
        )
