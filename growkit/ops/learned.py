"""Maps that were made elsewhere: learned by a trainer, or computed by any other program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PrivateAttr, field_serializer

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.expression import parse
from growkit.algebra.layer_map import LayerMap
from growkit.errors import RecipeError, did_you_mean, located
from growkit.ops.derived_axes import follow
from growkit.ops.matrices import (
    AXIS_PARTS,
    LAYER_PARTS,
    THETA,
    given_layers,
    given_map,
    given_power,
)
from growkit.ops.operator import Arrays, Growth, Operator, check_axis

if TYPE_CHECKING:
    from growkit.families.family import Family


class Learned(Operator):
    """Apply matrices from a file, as LiGO (2303.00980) and Mango (2310.10699) learn them.

    For an axis the file holds `AXIS.write` and `AXIS.read`, for layers `layers.mix`;
    `growkit.ops.matrices` lists all names. AXIS is a name that recipes use, or one of the family
    file's own. Axes that the file leaves out keep their size, except those that only have the size
    of another axis, which are copied along. The plan proves what the matrices keep, like for any
    map; where they leave a norm's mean square as it was but for a factor, eps and gains follow.
    What is written of the recipe names the file without its folder.
    """

    op: Literal["learned"] = "learned"
    maps: str = Field(min_length=1)
    _arrays: Arrays = PrivateAttr(default_factory=dict)

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """The maps of the file."""
        with located(self.maps):
            return self._growth(family, sizes)

    def files(self) -> tuple[str, ...]:
        """The file with the maps."""
        return (self.maps,)

    @field_serializer("maps", when_used="json")
    def _name_alone(self, maps: str) -> str:
        return Path(maps).name

    def with_paths_from(self, folder: Path) -> Learned:
        """The file's path, if it is relative, from the folder of the recipe."""
        return self.model_copy(update={"maps": str(folder / self.maps)})

    def with_files(self, files: Mapping[str, Arrays]) -> Learned:
        """With the arrays of the file."""
        step = self.model_copy()
        step._arrays = files[self.maps]
        return step

    def _growth(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        self._check_names(family, sizes)
        layers: dict[str, LayerMap] = {}
        maps: dict[str, AxisMap] = {}
        users = {axis: user for user, axes in family.user_axes.items() for axis in axes}
        for axis in family.of_kind("layers"):
            if axis in sizes and (layer_map := given_layers(self._arrays, axis, sizes[axis])):
                layers[axis] = layer_map
        for axis in (a for a, kind in family.axes.items() if a in sizes and kind != "layers"):
            names = axis, users.get(axis, axis)
            if axis_map := given_map(self._arrays, names, sizes[axis]):
                maps[axis] = axis_map
        for axis in (*maps, *layers):
            if users.get(axis) in family.limits:
                check_axis(family, users[axis], "maps")
        maps = _with_others(family, sizes, maps)
        for axis in family.of_kind("query") if family.rope else ():
            if axis in maps and family.rope and family.rope.turns(maps[axis].new) % 2:
                raise RecipeError(
                    f"{axis}.write: rotary pairs need an even size, found {maps[axis].new} rows"
                )
        power = given_power(self._arrays)
        if power != 1.0 and family.rope is None:
            raise RecipeError(f"{THETA}: family {family.name} has no rotary positions")
        return Growth(
            maps=maps,
            layers=layers,
            theta_power=power,
            norm_scale=_norm_scale(family, maps),
        )

    def _check_names(self, family: Family, sizes: Mapping[str, int]) -> None:
        """Refuse names that mean nothing, and parts of a map without its `write` or `mix`."""
        layers = [a for a in family.of_kind("layers") if a in sizes]
        tables = [a for a in family.of_kind("table") if a not in family.user_axes]
        axes = [a for a in family.axes if a in sizes and a not in layers and a not in tables]
        axes += [u for u in family.user_axes if u not in family.axes]
        names = [f"{a}.{part}" for a in axes for part in AXIS_PARTS]
        names += [f"{a}.{part}" for a in layers for part in LAYER_PARTS]
        for name in self._arrays:
            if name not in names and name != THETA:
                raise RecipeError(
                    f'"{name}" is no map of this model', hint=did_you_mean(name, names)
                )
            axis = name.rpartition(".")[0]
            first = f"{axis}.{'mix' if axis in layers else 'write'}"
            if name != THETA and first not in self._arrays:
                raise RecipeError(
                    f"{first} is missing, and {name} is there",
                    hint="`growkit plan … --maps FILE` writes a file that is whole",
                )
        if not self._arrays:
            raise RecipeError("no map is in it", hint=f"name them {names[0]}, {names[1]}, …")


def _with_others(
    family: Family, sizes: Mapping[str, int], maps: Mapping[str, AxisMap]
) -> dict[str, AxisMap]:
    """The maps, and those of axes that the file leaves out but that go with another."""
    out = dict(maps)
    for attention in family.attentions:
        heads, kv = attention.heads, attention.kv_heads
        if kv and heads in maps and sizes[heads] == sizes[kv]:
            out.setdefault(kv, maps[heads])
        new, new_kv = (out[a].new if a in out else sizes.get(a, 1) for a in (heads, kv))
        if new % new_kv:
            raise RecipeError(
                f"{heads}.write: {new} heads cannot be shared by {new_kv} kv heads",
                hint="heads must be a multiple of kv_heads",
            )
    for axis in family.of_kind("experts"):
        if axis in maps and not maps[axis].write.unit_rows.all():
            raise RecipeError(
                f"{axis}.write: experts are copied whole, one for each row",
                hint="every row holds a single 1",
            )
    return out | follow(family, sizes, out)


def _norm_scale(family: Family, maps: Mapping[str, AxisMap]) -> dict[str, float]:
    """s where maps change the mean square that a norm sees, by a factor and nothing else."""
    out = {}
    norms = {p.over for p in family.patterns.values()} - family.bare_norms.keys()
    for axis in family.of_kind("stream", "latent") if isinstance(family.eps, str) else ():
        m = maps.get(axis)
        if m is None or m.new <= m.old or not family.eps or parse(axis) not in norms:
            continue
        gram = m.write_normed.transpose().after(m.write_normed).scalar()
        scale = (gram or 0.0) * m.old / m.new
        if gram is not None and abs(scale - 1.0) > 1e-9:
            out[axis] = scale
    return out
