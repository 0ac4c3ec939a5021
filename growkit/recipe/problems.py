"""What pydantic refused in a recipe, as problems with the path that the user wrote.

The law: one problem per place, which says what was expected and what was found; unknown words get
the nearest known one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import ErrorDetails

from growkit.errors import did_you_mean
from growkit.ops import OPERATORS
from growkit.ops.coalesce import Pairing
from growkit.ops.map_choice import MapOptions
from growkit.plain_yaml import Problem

NESTED = {"how": MapOptions.model_fields, "pairing": Pairing.model_fields}  # in a step
PYTHON = re.compile(r"^(Input|String|Tuple) | (or instance|or object|after validation).*")
YAML = {"valid integer": "whole number", "valid ": "", "dictionary": "mapping", "tuple": "list"}


def sentences(
    details: Iterable[ErrorDetails], data: Mapping[str, Any], keys: Iterable[str]
) -> list[Problem]:
    """One problem per place, in pydantic's order; `keys` are those of a recipe."""
    problems: dict[str, Problem] = {}
    for detail in details:
        where, (what, hint) = _place(detail, data), _say(detail, keys)
        if where in problems:  # a value of one kind or another
            what = f"{problems[where][1].rpartition(', found ')[0]} or {what}"
        problems[where] = (where, what, hint)
    outer = {place[: m.start()] for place in problems for m in re.finditer(r"[.\[]", place)}
    return [problem for where, problem in problems.items() if where not in outer]


def _place(detail: ErrorDetails, data: Any) -> str:
    """The path as the user wrote it: without the names that pydantic gives to union branches."""
    loc, path = detail["loc"], ""
    for part in (*loc[:2], *loc[3:]) if loc[:1] == ("steps",) else loc:  # the third is the op
        if isinstance(data, list) and isinstance(part, int):
            path, data = f"{path}[{part}]", data[part]
        elif isinstance(data, Mapping) and part in data:
            path, data = f"{path}.{part}", data[part]
    if detail["type"] in ("missing", "union_tag_invalid"):
        path += f".{loc[-1] if detail['type'] == 'missing' else 'op'}"
    return path.lstrip(".")


def _say(detail: ErrorDetails, keys: Iterable[str]) -> tuple[str, str]:
    """One of pydantic's findings as (what, hint)."""
    loc, given, context = detail["loc"], detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            if len(loc) > 1:
                fields = OPERATORS[str(loc[2])].model_fields
                fields = NESTED[str(loc[3])] if len(loc) > 4 else fields
                keys = [field.alias or name for name, field in fields.items()]
            return "unknown key", did_you_mean(str(loc[-1]), keys)
        case "missing":
            return "missing", ""
        case "union_tag_invalid":
            return f'unknown op "{context["tag"]}"', did_you_mean(context["tag"], OPERATORS)
        case "union_tag_not_found":
            named = next((f"write op: {key}" for key in given if key in OPERATORS), None)
            return "a step needs the key op", named or did_you_mean("", OPERATORS)
        case "literal_error":
            options = re.findall("'([^']*)'", context["expected"])
            hint = did_you_mean(given, options) if isinstance(given, str) else ""
            return f"{kind_of(given)} is not one of {', '.join(options)}", hint
        case "value_error":
            return str(context["error"]), ""
        case "string_pattern_mismatch":
            return f"{kind_of(given)} is not a name (letters, digits, - and _)", ""
    what = PYTHON.sub("", detail["msg"])
    for python, yaml in YAML.items():
        what = what.replace(python, yaml)
    return f"{what}, found {kind_of(given)}", ""


def kind_of(value: object) -> str:
    """A value as a user would say it."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
