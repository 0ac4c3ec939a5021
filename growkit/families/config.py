"""config.json: the numbers in it that a family names, read and, after growth, written.

The law: a key that growth does not concern keeps its value, and an absent key is written only where
its default would be wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from growkit.algebra.expression import Expression
from growkit.algebra.layer_map import LayerMap
from growkit.errors import CheckpointError, RecipeError
from growkit.families.family import Family, Period, Threshold


def get(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a config, or None."""
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def holds(config: Mapping[str, Any], key: str, want: Any) -> bool:
    """Whether a config's key has the value wanted: one of a list, `*` for any text, or `{not: …}`.

    The key `class` is the end of the name of a class that config.json says the model is of.
    """
    negated = isinstance(want, Mapping)
    given = want["not"] if negated else want
    words = given if isinstance(given, list) else [given]
    if key == "class":
        return any(name.endswith(word) for name in classes(config) for word in words) is not negated
    return any(_fits(get(config, key), word) for word in words) is not negated


def classes(config: Mapping[str, Any]) -> list[str]:
    """The classes of transformers that config.json names; none where it has something else."""
    names = config.get("architectures")
    return [n for n in names if isinstance(n, str)] if isinstance(names, list) else []


def _fits(value: Any, want: Any) -> bool:
    """Whether a config value, or one of a list, is the one wanted; `*` is any text."""
    if isinstance(value, list):
        return any(_fits(v, want) for v in value)
    texts = isinstance(value, str) and isinstance(want, str)
    return fnmatchcase(value, want) if texts else value == want


def number(config: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path of a config; None where it is absent."""
    value = get(config, path) if path else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        raise CheckpointError(
            f"config.json: {path}: expected a number, found {value!r}", hint="mend config.json"
        )
    return float(value)


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path of a config."""
    *parents, last = path.split(".")
    for part in parents:
        config = config.setdefault(part, {})
    config[last] = value


def put_bases(
    config: dict[str, Any], keys: Sequence[Sequence[str]], bases: Sequence[float]
) -> None:
    """Write the bases of rotary positions where the config has them, else under the last key.

    Where one can only be written into a mapping that is not there yet, the others go there too: a
    mapping that lacks one of them is not read.
    """
    paths = [[k for k in names if get(config, k) is not None] or [names[-1]] for names in keys]
    parents = {p.partition(".")[0] for each in paths for p in each if "." in p} - config.keys()
    for names, each, base in zip(keys, paths, bases, strict=True):
        for path in dict.fromkeys([*each, *(k for k in names if k.partition(".")[0] in parents)]):
            put(config, path, base)


def rope_bases(family: Family, config: Mapping[str, Any]) -> tuple[float, ...]:
    """The bases of rotary positions, one for each way that the config has to say one."""
    rope, bases = family.rope, list[float]()
    for keys, base in zip(rope.theta, rope.base, strict=True) if rope else ():
        written = [number(config, key) for key in keys]
        bases.append(next((theta for theta in written if theta), base))
    return tuple(bases)


def rope_type(family: Family, config: Mapping[str, Any]) -> str:
    """The kind of rotary frequencies, `default` where the config says none."""
    kinds = [get(config, key) for key in family.rope.type] if family.rope else []
    return next(filter(None, kinds), "default")


def score_power(family: Family, config: Mapping[str, Any]) -> float:
    """Attention scores carry head_dim ** power."""
    instead = family.scores.get("unless")  # a config key that says the scale itself
    if instead and get(config, instead) is not None:
        return 0.0
    switch = family.scores.get("unless_false")
    if switch and config.get(switch) is False:
        return 0.0
    return float(family.scores.get("power", 0.0))


def clamp(family: Family, config: Mapping[str, Any]) -> str:
    """The config key by which queries, keys and values are clamped; empty where they are not."""
    key = family.scores.get("clamp")
    return key if key and get(config, key) else ""


def whole(config: Mapping[str, Any], key: str, value: Any) -> int:
    """The value of this key, which must be a size; CheckpointError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise CheckpointError(
            f"config.json: {key}: expected a positive whole number, found {value!r}"
        )
    return value


def written(config: Mapping[str, Any], names: str) -> list[str]:
    """Which of the spellings of a config key, `new|old`, this config uses."""
    return [name for name in names.split("|") if get(config, name) is not None]


def spelling(config: Mapping[str, Any], names: str) -> str:
    """The first spelling of a config key that this config uses; else the first there is."""
    return next(iter(written(config, names)), names.partition("|")[0])


def default(family: Family, config: Mapping[str, Any], key: str) -> int | None:
    """What a missing config key means: `4 * n_embd`, `hidden_size // heads`, or another key."""
    words = family.defaults.get(key, "").split()
    if not words:
        return None

    def operand(word: str) -> int | None:
        if word.isdigit():
            return int(word)
        names = next((n for n in family.config if word in n.split("|")), word)
        key = spelling(config, names)
        value = get(config, key)
        return default(family, config, names) if value is None else whole(config, key, value)

    left = operand(words[0])
    if len(words) == 1 or left is None:
        return left
    right = operand(words[2])
    if right is None:
        return None
    return left * right if words[1] == "*" else left // right


def check_sizes(family: Family, sizes: Mapping[str, int]) -> None:
    """Refuse sizes that no config of this family can express, with the repair in the hint."""
    derived = [(Expression("axis", a), e) for a, e in family.derived.items() if a in sizes]
    for expressions in (*family.config.values(), *derived):
        sized = [e for e in expressions if e.axes <= sizes.keys()]
        if len({e.size(sizes) for e in sized}) > 1:
            stream, other = (
                sized[0],
                next(e for e in sized if e.size(sizes) != sized[0].size(sizes)),
            )
            names = {a: u for u, axes in family.user_axes.items() for a in axes}
            want = stream.size(sizes)
            label = " × ".join(
                f"{names.get(p.name, p.name)} ({p.size(sizes)})" for p in other.parts
            )
            repairs = []
            for axis in sorted(other.axes):
                solved = other.solve(want, {a: n for a, n in sizes.items() if a != axis})
                if solved:
                    repairs.append(f"{names.get(axis, axis)}: {solved[1]}")
            repairs.append(f"{names.get(stream.name, stream.name)}: {other.size(sizes)}")
            raise RecipeError(
                f"sizes: {stream} ({want}) must equal {label or other} = {other.size(sizes)} "
                f"in family {family.name}",
                hint="set " + ", or ".join(repairs),
            )
    for rule in family.require:
        left, _, right = rule.split()
        if left in sizes and right in sizes and sizes[left] % sizes[right]:
            raise RecipeError(
                f"sizes: {left} ({sizes[left]}) must be a multiple of {right} ({sizes[right]}) "
                f"in family {family.name}",
                hint=f"set {left}: {-(-sizes[left] // sizes[right]) * sizes[right]}, "
                f"or another {right}",
            )


def resize_config(
    family: Family, config: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """The config with these sizes; an absent key is written only if its default is wrong."""
    out = copy.deepcopy(dict(config))
    for names, expressions in family.config.items():
        if not expressions[0].axes <= sizes.keys():
            continue
        value = expressions[0].size(sizes)
        for key in written(out, names) or (
            [] if names in family.defaults else [spelling(out, names)]
        ):
            put(out, key, value)
    for names in family.defaults:  # after the keys that the defaults are made of
        expression = family.config[names][0] if names in family.config else None
        key = spelling(out, names)
        if expression and get(out, key) is None and expression.axes <= sizes.keys():
            value = expression.size(sizes)
            if default(family, out, names) != value:
                put(out, key, value)
    for key, expression in family.mirrors.items():
        if get(out, key) is not None and expression.axes <= sizes.keys():
            put(out, key, expression.size(sizes))
    return out


def scale_eps(family: Family, config: dict[str, Any], factor: float) -> None:
    """Multiply the norm eps in a config, where it must be."""
    eps = get(config, str(family.eps))
    if not isinstance(eps, int | float):
        raise RecipeError(
            f"the norm eps has to change, but config.json has no {family.eps}",
            hint="add it, or use a map that leaves eps as it is, such as pad",
        )
    put(config, str(family.eps), eps * factor)


def norm_eps(family: Family, config: Mapping[str, Any]) -> float:
    """The eps of the norms; 0 where neither family nor config says it."""
    if isinstance(family.eps, float):
        return family.eps
    return number(config, family.eps) or 0.0


def remap_layers(
    family: Family, config: Mapping[str, Any], layers: Mapping[str, LayerMap]
) -> dict[str, Any]:
    """Config entries that count or list layers follow the layer map; RecipeError if they cannot.

    Each new layer is of the kind of the layer that it comes from. Where a number cannot say so, the
    list that may stand in its place does.
    """
    out = copy.deepcopy(dict(config))
    for axis, layer_map in layers.items():
        source = [n.source for n in layer_map]
        count = max(source) + 1
        kinds = layer_values(family, config, axis, count)  # as they were: one may replace another
        for key in (k for k, a in family.lists.items() if a == axis):
            old = get(out, key)
            if isinstance(old, list):
                entries = _unrolled(old)
                if len(entries) < count:
                    raise CheckpointError(f"config.json: {key}: {len(entries)} entries are too few")
                new = [entries[n] for n in source]
                put(out, key, new if entries is old else [[new, 1]])
        for key in (k for k, a in family.indices.items() if a == axis):
            old = get(out, key)
            if isinstance(old, list):
                put(out, key, [new for new, n in enumerate(source) if n in old])
        for key, period in family.periods.items():
            if period.axis == axis and key in kinds:
                _remap_period(out, key, period, [kinds[key][n] for n in source], source)
        for key, threshold in family.thresholds.items():
            if threshold.axis == axis:
                _remap_threshold(family, out, key, threshold, source)
    return out


def layer_kinds(family: Family, config: Mapping[str, Any], axis: str, count: int) -> list[Any]:
    """What the config says of each of the first layers: equal entries are layers of one kind."""
    each = layer_values(family, config, axis, count).values()
    return [[entries[i] for entries in each] for i in range(count)]


def layer_values(
    family: Family, config: Mapping[str, Any], axis: str, count: int
) -> dict[str, list[Any]]:
    """What each config key says of each of the first layers; a key that says nothing is left out.

    A list says its entries. A period says whether a layer is the special one, a list of numbers
    whether it is one of them, and a threshold whether it comes before.
    """
    values: dict[str, list[Any]] = {}
    for key, period in family.periods.items():
        n = get(config, key) or period.default
        if period.axis == axis and not _replaced(config, period) and isinstance(n, int) and n > 0:
            values[key] = [(i + period.start) % n == 0 for i in range(count)]
    for key in (k for k, a in family.lists.items() if a == axis):
        entries = get(config, key)
        if isinstance(entries, list) and len(entries := _unrolled(entries)) >= count:
            values[key] = entries[:count]
    for key in (k for k, a in family.indices.items() if a == axis):
        numbers = get(config, key)
        if isinstance(numbers, list):
            values[key] = [i in numbers for i in range(count)]
    for key, threshold in family.thresholds.items():
        first = _first_of_kind(family, config, key)
        if threshold.axis == axis and first is not None and not _replaced(config, threshold):
            values[key] = [i < first for i in range(count)]
    return values


def layers_with(family: Family, config: Mapping[str, Any], word: str, count: int) -> frozenset[int]:
    """The layers, of so many, that have the modules which a family file marks with this word."""
    presence = family.presence[word]
    values = layer_values(family, config, presence.axis, count)
    named = frozenset(
        i
        for key, want in presence.layers
        for i, value in enumerate(values.get(key, ()))
        if value == want
    )
    return frozenset(range(count)) - named if presence.others else named


def _replaced(config: Mapping[str, Any], rule: Period | Threshold) -> bool:
    """Whether a list stands in the place of a number that would say which layers are of a kind."""
    return bool(rule.unless and get(config, rule.unless))


def _first_of_kind(family: Family, config: Mapping[str, Any], key: str) -> int | None:
    """The number at a threshold's key, or what its absence means."""
    first = get(config, key)
    if first is None:
        return default(family, config, key)
    return first if isinstance(first, int) and not isinstance(first, bool) else None


def _unrolled(entries: list[Any]) -> list[Any]:
    """A per-layer list, written out where it is one of [[kind, …], times]."""
    if not all(isinstance(e, list) and len(e) == 2 and isinstance(e[0], list) for e in entries):
        return entries
    return [kind for kinds, times in entries for _ in range(times) for kind in kinds]


def _remap_period(
    out: dict[str, Any], key: str, period: Period, special: list[bool], source: list[int]
) -> None:
    """A number that makes every n-th layer special, or the list that says which layers are."""
    if period.values:  # what the number means, spelt out as the list that may replace it
        put(out, period.unless, [period.values[kind] for kind in special])
        return
    n = get(out, key) or period.default
    wrong = [new for new, kind in enumerate(special) if ((new + period.start) % n == 0) is not kind]
    if not wrong:
        return
    if period.others:
        others = {new for new, kind in enumerate(special) if not kind}
        put(out, key, 1)
        put(out, period.others, sorted(others.union(get(out, period.others) or ())))
        return
    raise RecipeError(
        f"layers: {key} = {n} makes layer {wrong[0]} of another kind than layer "
        f"{source[wrong[0]]}, which it copies",
        hint="list layers in whole periods, such as layers: [0, 1, 0, 1]",
    )


def _remap_threshold(
    family: Family, out: dict[str, Any], key: str, threshold: Threshold, source: list[int]
) -> None:
    """The number of the first layer of another kind, or the list that says each layer's."""
    old = _first_of_kind(family, out, key)
    if old is None:
        return
    before = [n < old for n in source]
    top = max(source) + 1
    new = sum(before) if old <= top else old - top + len(source)
    sorted_out = all(kind is (layer < new) for layer, kind in enumerate(before))
    says = not _replaced(out, threshold) and (not threshold.only or get(out, threshold.only))
    if says and not sorted_out:
        if not threshold.values:
            wrong = next(n for n, kind in enumerate(before) if kind is not (n < new))
            first = sorted(source, key=lambda n: n >= old)
            raise RecipeError(
                f"layers: {key} puts layers of one kind before all others, and layer {wrong} would "
                f"not be of the kind of layer {source[wrong]}, which it copies",
                hint=f"list those first: layers: {first}",
            )
        put(out, threshold.unless, [threshold.values[kind] for kind in before])
    if get(out, key) is not None or default(family, out, key) != new:
        put(out, key, new)
