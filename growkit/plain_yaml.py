"""YAML text → plain data, and `PATH=VALUE` changes to it.

The law: what users write is data. Tags, anchors, aliases, merge keys and duplicate keys do not
exist here, a key is a word, and nothing is nested deeply. What the keys mean is for others to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from growkit.errors import GrowkitError, RecipeError, did_you_mean

MAX_DEPTH = 20  # nested mappings and lists
MAX_NUMBER = 100  # characters; YAML has numbers whose value takes minutes to compute
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Problem = tuple[str, str, str]  # where, what, hint


def parse(
    text: str, name: str, problems: list[Problem], refuse: type[GrowkitError] = RecipeError
) -> Any:
    """Plain data from YAML; duplicate keys are added to `problems`, all else is a `refuse`."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            refused = ""
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                refused = "anchors and aliases are not read"
            elif getattr(event, "tag", None):
                refused = f"tags such as {event.tag} are not read"  # type: ignore[attr-defined]
            elif depth > MAX_DEPTH:
                refused = f"nested more than {MAX_DEPTH} deep"
            if refused:
                line = event.start_mark.line + 1  # type: ignore[union-attr]
                raise refuse(
                    f"{name}: line {line}: {refused}", hint="write the value out, as plain data"
                )
        node = yaml.compose(text, Loader=LOADER)
        return None if node is None else _plain(node, "", problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = f"{line}not valid YAML: {error.problem}"
        raise refuse(f"{name}: {what}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise refuse(f"{name}: not valid YAML: {error}".splitlines()[0]) from error


def _plain(node: yaml.Node, path: str, problems: list[Problem]) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, f"{path}[{i}]", problems) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append((path, f"line {line}: a key is a single word", ""))
                continue
            key = str(key_node.value)
            where = f"{path}.{key}" if path else key
            if key in out:
                problems.append((where, f"given twice, in lines {lines[key]} and {line}", ""))
            else:
                lines[key] = line
                out[key] = _plain(value_node, where, problems)
        return out
    if node.tag.rpartition(":")[2] in {"null", "bool", "int", "float"}:
        if len(node.value) > MAX_NUMBER:
            line = node.start_mark.line + 1
            raise ValueError(f"line {line}: a number of {len(node.value)} characters")
        return yaml.constructor.SafeConstructor().construct_object(node)
    return node.value


# -- PATH=VALUE ----------------------------------------------------------------------------------


def override(data: dict[str, Any], change: str, keys: Iterable[str]) -> dict[str, Any]:
    """The recipe `data` with one value changed, as `--set PATH=VALUE` asks.

    The path is one of `keys`, or STEP.KEY… with STEP the op of a step or its index from 0. Whether
    key and value make sense is for validation to say.
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
    found = [i for i, op in enumerate(ops) if op == word]
    if len(found) > 1:
        raise RecipeError(
            f"{where}: {word} is ambiguous, steps {' and '.join(map(str, found))} have this op",
            hint=f"name the step by its index, such as {found[0]}",
        )
    if not found:
        raise RecipeError(
            f'{where}: "{word}" is neither a step of this recipe nor one of its keys',
            hint=did_you_mean(word, {*ops, *keys} - {""}),
        )
    return found[0]


def _changed(here: Any, path: Sequence[str], value: Any, where: str) -> Any:
    """`here` with `value` at `path`; mappings on the way are made where they lack."""
    if not path:
        return value
    key, *rest = path
    if isinstance(here, list):
        i = _index(key, here, where)
        return [*here[:i], _changed(here[i], rest, value, where), *here[i + 1 :]]
    if not isinstance(here, dict):
        raise RecipeError(
            f"{where}: {key} would be a key of {here!r}, which is no mapping",
            hint="leave the last key out and set a whole mapping",
        )
    return here | {key: _changed(here.get(key, {}), rest, value, where)}


def _index(word: str, items: Sequence[Any], where: str) -> int:
    if not word.isdecimal() or int(word) >= len(items):
        raise RecipeError(
            f'{where}: "{word}" is not one of {len(items)} entries', hint="they count from 0"
        )
    return int(word)
