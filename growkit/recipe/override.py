"""`--set PATH=VALUE`: one value of a recipe changed, before the recipe is checked.

The law: the path must lead somewhere, to a key of the recipe or to one step of it, and the value is
plain YAML. Whether the two make sense together is for validation to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from growkit.errors import RecipeError, did_you_mean
from growkit.plain_yaml import Problem, parse


def override(data: dict[str, Any], change: str, keys: Iterable[str]) -> dict[str, Any]:
    """The recipe `data` with one value changed, as `--set PATH=VALUE` asks.

    The path is one of `keys`, or STEP.KEY… with STEP the op of a step or its index from 0.
    Raises RecipeError for a path that leads nowhere, or to several steps.
    """
    where = f"--set {change}"
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise RecipeError(f"{where}: expected PATH=VALUE", hint="for example --set seed=1")
    problems: list[Problem] = []
    value = parse(text, where, problems)
    if problems:
        raise RecipeError(f"{where}: {problems[0][0]}: {problems[0][1]}")
    first, *rest = path.split(".")
    steps = [] if first in keys else ["steps", str(_step(data, first, keys, where))]
    if steps and not rest:
        raise RecipeError(
            f"{where}: {first} is a step, and a step has keys",
            hint=f"for example --set {first}.KEY=VALUE",
        )
    if rest[:1] == ["to"] and len(rest) > 2:  # an axis of one stack has a dot in its name
        rest = ["to", ".".join(rest[1:])]
    changed: dict[str, Any] = _changed(data, [*(steps or [first]), *rest], value, where)
    return changed


def _step(data: Mapping[str, Any], word: str, keys: Iterable[str], where: str) -> int:
    """The index of the step called `word`: its op, or the index itself."""
    steps = data.get("steps")
    steps = steps if isinstance(steps, list) else []
    if word.isdecimal():
        return _index(word, steps, where)
    ops = [str(s.get("op")) if isinstance(s, dict) else "" for s in steps]
    places = [i for i, op in enumerate(ops) if op == word]
    if len(places) > 1:
        raise RecipeError(
            f"{where}: {word} is ambiguous, steps {' and '.join(map(str, places))} have this op",
            hint=f"name the step by its index, such as {places[0]}",
        )
    if not places:
        raise RecipeError(
            f'{where}: "{word}" is neither a step of this recipe nor one of its keys',
            hint=did_you_mean(word, {*ops, *keys} - {""}),
        )
    return places[0]


def _changed(data: Any, path: Sequence[str], value: Any, where: str) -> Any:
    """`data` with `value` at `path`; mappings on the way are made where they lack."""
    if not path:
        return value
    key, *rest = path
    if isinstance(data, list):
        i = _index(key, data, where)
        return [*data[:i], _changed(data[i], rest, value, where), *data[i + 1 :]]
    if not isinstance(data, dict):
        raise RecipeError(
            f"{where}: {key} would be a key of {data!r}, which is no mapping",
            hint="leave the last key out and set a whole mapping",
        )
    return data | {key: _changed(data.get(key, {}), rest, value, where)}


def _index(word: str, items: Sequence[Any], where: str) -> int:
    if not word.isdecimal() or int(word) >= len(items):
        raise RecipeError(
            f'{where}: "{word}" is not one of {len(items)} entries', hint="they count from 0"
        )
    return int(word)
