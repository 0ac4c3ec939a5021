"""What a recipe may say of an axis's map: its name, its options, and where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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

    def located(self, folder: Path) -> MapOptions:
        """The file's path, if it is relative, from a folder."""
        return self.model_copy(update={"file": str(folder / self.file)}) if self.file else self


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
