"""Settings that name layers, what layers put out, or heads in layers: they follow the growth.

What layers put out is numbered from 0, which stands before the first layer; a name of it ends in
its number (`stage4`), and one without a number stands before the first layer (`stem`). The law: the
last output stays the last, and what a setting names computes after growth what it computed before,
wherever the growth itself keeps that.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.layer_map import LayerMap
from growkit.families.config import get, put
from growkit.families.family import Family

# of any model that transformers runs, in config.json or generation_config.json
OUTPUTS = ("output_hidden_states", "dola_layers", "assistant_early_exit")
_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})")


def follow_layers(
    family: Family,
    settings: Mapping[str, Any],
    layers: Mapping[str, LayerMap],
    heads: Mapping[str, AxisMap],
    before: Mapping[str, int],
) -> dict[str, Any]:
    """Settings of a model, with the layers and heads that they name where these are now.

    `layers` and `heads` are the maps by axis, and `before` the sizes before them.
    """
    out = copy.deepcopy(dict(settings))
    stacks = [axis for axis in family.of_kind("layers") if axis in layers]
    common = dict.fromkeys(OUTPUTS, stacks[-1]) if stacks else {}
    for key, axis in (common | dict(family.outputs)).items():
        value = get(out, key)
        if axis in layers and value is not None:
            put(out, key, _outputs(value, layers[axis], before[axis]))
    for key, axis in family.output_names.items():
        names = get(out, key)
        if axis in layers and isinstance(names, list):
            put(out, key, _every_name(names, len(layers[axis])))
    for key, (axis, inner) in family.layer_heads.items():
        value = get(out, key)
        if axis in layers and isinstance(value, list):
            put(out, key, _pairs(value, layers[axis], heads.get(inner)))
    return out


def _once(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order."""
    return list({repr(value): value for value in values}.values())


def _outputs(value: Any, layers: LayerMap, count: int) -> Any:
    """Numbers or names of outputs after growth, one or a list of them; other values stay."""
    if isinstance(value, list) and len(value) <= count + 1:  # more are no outputs
        return _once(_output(each, layers, count) for each in value)
    return _output(value, layers, count)


def _output(value: Any, layers: LayerMap, count: int) -> Any:
    """One output after growth: it is behind the last layer made of those it was behind."""
    if isinstance(value, str):
        numbered = _NUMBERED.fullmatch(value)
        return numbered[1] + str(_place(int(numbered[2]), layers)) if numbered else value
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if value < 0:  # counted from behind the last
        return _place(count + 1 + value, layers) - len(layers) - 1
    return _place(value, layers)


def _place(number: int, layers: LayerMap) -> int:
    """The number after growth of what this number of layers put out."""
    return max((place for place, n in enumerate(layers, 1) if n.source < number), default=0)


def _every_name(names: list[Any], count: int) -> list[Any]:
    """The names of all outputs of so many layers, in the manner of those there are."""
    first = names[0] if names else None
    last = _NUMBERED.fullmatch(str(names[-1])) if names else None
    return [first, *(f"{last[1]}{n}" for n in range(1, count + 1))] if last else names


def _pairs(value: list[Any], layers: LayerMap, heads: AxisMap | None) -> list[Any]:
    """Pairs [layer, head] after growth; those of layers that are left out are no more."""
    places: dict[int, int] = {}
    for place, layer in enumerate(layers):
        if not (layer.silent or layer.random):  # the first copy sees what the old layer saw
            places.setdefault(layer.source, place)
    copies = abs(heads.write.matrix()).argmax(axis=0).tolist() if heads else []

    def is_pair(pair: Any) -> bool:
        return isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)

    named = [pair for pair in value if not is_pair(pair) or pair[0] in places]
    return _once(
        [places[pair[0]], copies[pair[1]] if 0 <= pair[1] < len(copies) else pair[1]]
        if is_pair(pair)
        else pair
        for pair in named
    )
