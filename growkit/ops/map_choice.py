"""Which map an axis takes: names and options as recipes give them, and what does not fit.

The law: a map that does not fit an axis is refused with the reason, never replaced by another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from growkit.algebra.axis_map import AxisMap
from growkit.errors import RecipeError
from growkit.ops.axis_maps import (
    circular,
    fresh,
    isometric,
    pad,
    random,
    repeat,
    select,
    tile,
    uneven,
)

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
    "slopes",
    "fresh",
    "select",
    "dense",
]
OPTIONS: Mapping[str, str] = {  # option → the map that it belongs to
    "weights": "uneven",
    "counts": "random",
    "seed": "random",
    "index": "select",
    "pairs": "fresh",
    "file": "dense",
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
    file: str = ""  # of matrices by the names of growkit.ops.matrices

    @model_validator(mode="after")
    def _own_options(self) -> MapOptions:
        for option, name in OPTIONS.items():
            given = getattr(self, option) != type(self).model_fields[option].default
            if given and self.map != name:
                raise ValueError(f"{option} is an option of the map {name}, not of {self.map}")
        if self.map == "dense" and not self.file:
            raise ValueError("dense needs file, the safetensors file that holds its matrices")
        return self

    def with_paths_from(self, folder: Path) -> MapOptions:
        """The file's path, if it is relative, from a folder."""
        return self.model_copy(update={"file": str(folder / self.file)}) if self.file else self


# The form is told before a value is read, so that a mistake is said of that form alone.
How = Annotated[
    Annotated[MapName, Tag("name")] | Annotated[MapOptions, Tag("options")],
    Discriminator(lambda how: "options" if isinstance(how, dict | MapOptions) else "name"),
]
Hows = Annotated[
    Annotated[How, Tag("for all")] | Annotated[dict[str, How], Tag("by axis")],
    Discriminator(lambda h: "by axis" if isinstance(h, dict) and "map" not in h else "for all"),
    # for editors {map: tile} is of both forms
    Field(json_schema_extra=lambda schema: schema.update(anyOf=schema.pop("oneOf"))),
]

# Maps that do not fit a kind of axis, with the reason.
_NO_ROTARY = dict.fromkeys(("ropestride", "ropetheta"), "it has no rotary positions")
_IN_HEAD = dict.fromkeys(("ropestride", "ropetheta"), "it maps the coordinates inside a head")
_NO_NORM = {"lemon": "no norm on it could carry the change of eps and gain"}
_NO_GROUP = {"ingroup": "only query heads stand in groups"}
_NO_SLOPES = {"slopes": "only heads have ALiBi slopes"}
_BEHIND = "units behind a non-linearity or a softmax must be plain copies, or read by nobody"
_READ = "every new coordinate of the stream is read by all layers"
_SCORES = "attention scores need every coordinate copied equally often"
REFUSED: Mapping[str, Mapping[str, str]] = {
    "stream": {
        **dict.fromkeys(("fresh", "ropestride", "ropetheta"), _READ),
        **_NO_GROUP,
        **_NO_SLOPES,
    },
    "neurons": {**_NO_ROTARY, **_NO_NORM, **_NO_GROUP, **_NO_SLOPES, "isometric": _BEHIND},
    "heads": {
        **_IN_HEAD,
        **_NO_NORM,
        "ingroup": "the family has no kv heads",
        "slopes": "the family has no ALiBi slopes",
        "isometric": _BEHIND,
    },
    "kv_heads": {**_IN_HEAD, **_NO_NORM, **_NO_GROUP, **_NO_SLOPES, "isometric": _BEHIND},
    "head_dim": {**_NO_NORM, **_NO_GROUP, **_NO_SLOPES, "random": _SCORES},
    "experts": dict.fromkeys(get_args(MapName)[2:], "routers need whole copies of all experts"),
}
Choose = Callable[[str], MapOptions]  # the options of a user axis


def refuse(axis: str, name: str, why: str) -> RecipeError:
    """The error for a map that does not fit an axis."""
    return RecipeError(f"how.{axis}: {name} does not fit this axis: {why}", hint="use auto")


def check_map(axis: str, name: str, kind: str) -> None:
    """Refuse a map that does not fit a kind of axis."""
    if name in REFUSED[kind]:
        raise refuse(axis, name, REFUSED[kind][name])


def plain_map(name: str, how: MapOptions) -> Callable[[int, int], AxisMap]:
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
