"""What pydantic refused in a recipe, as problems with the path that the user wrote.

The law: one problem per place. Where a value may be of several kinds, pydantic complains once per
kind; said is what the kinds that fit best lack, and nothing of the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic_core import ErrorDetails

from growkit.errors import did_you_mean
from growkit.ops import OPERATORS
from growkit.plain_yaml import Problem

KnownKeys = Callable[[tuple[int | str, ...]], Iterable[str]]  # at the place of an unknown one


def sentences(
    details: list[ErrorDetails], data: Mapping[str, Any], known_keys: KnownKeys
) -> list[Problem]:
    """One problem per place; of the branches of a union, those that got deepest."""
    lacking = [d["loc"][:-1] for d in details if d["type"] == "missing" and len(d["loc"]) > 1]
    for branch in lacking:
        union, n = branch[:-1], len(branch) - 1
        others = [d for d in details if d["loc"][:n] == union and d["loc"][n : n + 1] != branch[n:]]
        if any(_where(d, data) != _place(union, data) for d in others):
            details = [d for d in details if d["loc"][: n + 1] != branch]
    by_place: dict[str, list[tuple[str, str]]] = {}
    for detail in details:
        by_place.setdefault(_where(detail, data), []).append(_say(detail, known_keys))
    problems = []
    for where, pairs in by_place.items():
        if any(re.match(rf"{re.escape(where)}[.\[]", other) for other in by_place):
            continue  # a branch that got deeper says more
        for first in ("unknown key", '"'):  # says more than what other branches of a union say
            pairs = [pair for pair in pairs if pair[0].startswith(first)] or pairs
        given = f", found {pairs[-1][0].rpartition(', found ')[2]}"
        whats = dict.fromkeys(what.removesuffix(given) for what, _ in pairs)
        end = given if pairs[-1][0].endswith(given) else ""
        problems.append((where, " or ".join(whats) + end, pairs[0][1]))
    return problems


def _where(detail: ErrorDetails, data: Any) -> str:
    """Where the user wrote what pydantic complains about."""
    match detail["type"]:
        case "missing":
            return f"{_place(detail['loc'][:-1], data)}.{detail['loc'][-1]}".lstrip(".")
        case "union_tag_invalid":
            return f"{_place(detail['loc'], data)}.op"
    return _place(detail["loc"], data)


def _place(loc: tuple[int | str, ...], data: Any) -> str:
    """The path as the user wrote it: without the names that pydantic gives to union branches."""
    out = ""
    for part in loc:
        if isinstance(data, list) and isinstance(part, int):
            out, data = f"{out}[{part}]", data[part]
        elif isinstance(data, Mapping) and part in data:
            out, data = f"{out}.{part}", data[part]
    return out.lstrip(".")


def _say(detail: ErrorDetails, known_keys: KnownKeys) -> tuple[str, str]:
    """One of pydantic's findings as (what, hint)."""
    kind, loc, given = detail["type"], detail["loc"], detail["input"]
    context = detail.get("ctx", {})
    match kind:
        case "extra_forbidden":
            return "unknown key", did_you_mean(str(loc[-1]), known_keys(loc))
        case "missing":
            return "missing", ""
        case "union_tag_invalid":
            tag = str(context["tag"])
            return f'unknown op "{tag}"', did_you_mean(tag, OPERATORS)
        case "union_tag_not_found":
            named = next((key for key in given if key in OPERATORS), None)
            hint = f"write op: {named}" if named else f"known: {', '.join(sorted(OPERATORS))}"
            return "a step needs the key op", hint
        case "literal_error" | "enum":
            options = re.findall(r"'([^']*)'", str(context["expected"]))
            hint = did_you_mean(given, options) if isinstance(given, str) else ""
            return f"{kind_of(given)} is not one of {', '.join(options)}", hint
        case "value_error":
            return str(context["error"]), ""
        case "too_short" if not given:
            return "needs at least one entry", ""
        case "too_long":
            return f"has more than {context['max_length']} entries", ""
        case "string_pattern_mismatch":
            return f"{kind_of(given)} is not a name (letters, digits, - and _)", ""
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"should be a mapping, found {kind_of(given)}", ""
        case "tuple_type" | "list_type":
            return f"should be a list, found {kind_of(given)}", ""
    message = (
        detail["msg"]
        .removeprefix("Input ")
        .replace("a valid integer", "a whole number")
        .replace("a valid ", "a ")
    )
    return f"{message}, found {kind_of(given)}", ""


def kind_of(value: object) -> str:
    """A value as a user would say it."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
