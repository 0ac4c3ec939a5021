"""YAML files → plain data: how recipes and family files are read.

The law: what users write is data. Tags, anchors, aliases, merge keys and duplicate keys do not
exist here, a key is a word, and nothing is large or nested deeply. What the keys mean is for others
to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from growkit.errors import GrowkitError, RecipeError

MAX_BYTES = 1_000_000  # of one file
MAX_DEPTH = 20  # nested mappings and lists
MAX_NUMBER = 100  # characters; YAML has numbers whose value takes minutes to compute
UTF_16 = b"\xff\xfe", b"\xfe\xff"  # what such text begins with
AS_UTF_8 = "save it as UTF-8, as in PowerShell by: … | Out-File -Encoding utf8 FILE"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Problem = tuple[str, str, str]  # where, what, hint


def read(path: Path, what: str, refuse: type[GrowkitError], *, hint: str = "") -> str:
    """The text of a file, which errors call a `what`; raises `refuse` if it is none or too long."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)  # a device has no size, and no end
        if len(raw) > MAX_BYTES:
            raise refuse(f"{path}: a {what} has at most {MAX_BYTES:,} bytes")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if raw.startswith(UTF_16):
            raise refuse(f"{path}: UTF-16 text, not UTF-8", hint=AS_UTF_8) from error
        raise refuse(f"{path}: not UTF-8 text (byte {error.start})") from error
    except (OSError, ValueError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise refuse(f"{path}: cannot read the {what}: {why}", hint=hint) from error


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
