"""The tensors in growkit.json: experts that are alike are said once, so that a model may have many.

    "layers.3.experts.{0..799}.up.weight": {"from": ["layers.1.experts.{0..799}.up.weight"], …}

stands for 800 tensors. The numbers of `from` are as many, one for each of them and in their order:
`{0..399,0..399}`; where all come from one tensor, its name is said as it is. `crc32` holds the
checksums of all, in order and a space between two, and `nonfinite` a table by number. The law: what
is said once can be told in full, tensor by tensor, and stands for no more than it has checksums.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

FEWEST = 8  # tensors that are said once
_NUMBER = re.compile(r"(?:(?<=\.)|^)([0-9]+)(?=\.|$)")  # in a name: a whole word between dots
_SPAN = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")

Json = dict[str, Any]


def said_once(listed: Mapping[str, Json], slots: Mapping[str, int]) -> dict[str, Json]:
    """The same list, in which tensors that differ in one number alone are one entry.

    `slots` says which of the numbers of a name that is, from the end: -1 is the last.

    >>> names = [f"experts.{i}.w" for i in range(8)]
    >>> list(said_once({n: {"from": [n], "crc32": "0"} for n in names}, dict.fromkeys(names, -1)))
    ['experts.{0..7}.w']
    """
    groups: dict[Any, list[tuple[int, list[int], str]]] = {}
    for name, entry in listed.items():
        if name not in slots:
            groups[name,] = []
            continue
        head, number, tail = _cut(name, slots[name])
        sources = [_cut(source, slots[name]) for source in entry["from"]]
        rest = {k: v for k, v in entry.items() if k not in ("from", "crc32")}
        key = head, tail, tuple((s[0], s[2]) for s in sources), repr(rest)
        groups.setdefault(key, []).append((number, [s[1] for s in sources], name))
    said: dict[str, Json] = {}
    for key, members in groups.items():
        if not members:
            said[key[0]] = listed[key[0]]
        for run in _runs(members):
            said |= _entry(listed, key, run)
    return said


def _entry(listed: Mapping[str, Json], key: Any, run: list[tuple[int, list[int], str]]) -> Any:
    names = [name for _, _, name in run]
    if len(run) < FEWEST:
        return {name: listed[name] for name in names}
    head, tail, sources, _ = key
    numbers = zip(*(each for _, each, _ in run), strict=True)
    from_ = [
        f"{first}{_spelled(each)}{last}"
        for (first, last), each in zip(sources, numbers, strict=True)
    ]
    checksums = " ".join(listed[name]["crc32"] for name in names)
    entry = {**listed[names[0]], "from": from_, "crc32": checksums}
    return {f"{head}{{{run[0][0]}..{run[-1][0]}}}{tail}": entry}


def members(name: str) -> list[str]:
    """The tensors that a name of the list stands for: mostly itself alone.

    >>> members("experts.{2..4}.w")
    ['experts.2.w', 'experts.3.w', 'experts.4.w']
    """
    span = _SPAN.search(name)
    if span is None:
        return [name]
    head, tail = name[: span.start()], name[span.end() :]
    return [f"{head}{number}{tail}" for number in range(int(span[1]), int(span[2]) + 1)]


def count(name: str) -> int:
    """How many tensors a name of the list stands for."""
    span = _SPAN.search(name)
    return 1 if span is None else max(0, int(span[2]) - int(span[1]) + 1)


def checksums(listed: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Name, file and crc32 of every tensor; what is not as it should be stands for no tensor."""
    for name, entry in listed.items():
        each = str(entry.get("crc32")).split(" ")
        names = members(name) if count(name) == len(each) else [name]
        for member, crc32 in zip(names, each, strict=False):
            yield member, str(entry.get("file")), crc32


def nonfinite(listed: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How many values of a tensor are NaN or infinite, where there are any."""
    counts: dict[str, int] = {}
    for name, entry in listed.items():
        if isinstance(entry.get("nonfinite"), dict):
            counts |= {_SPAN.sub(n, name): c for n, c in entry["nonfinite"].items()}
        elif "nonfinite" in entry:
            counts[name] = entry["nonfinite"]
    return counts


def measured(name: str, entry: Json, crc32: Mapping[str, str], values: Mapping[str, int]) -> Json:
    """An entry with checksums and with counts of values that are not finite, both by tensor."""
    names = members(name)
    bad = {n: values[n] for n in names if n in values}
    measures: Json = {"crc32": " ".join(crc32[n] for n in names)}
    if bad and len(names) == 1:
        measures["nonfinite"] = bad[name]
    elif bad:
        first = int(_SPAN.search(name)[1])  # type: ignore[index]
        numbered = zip(range(first, first + len(names)), names, strict=True)
        measures["nonfinite"] = {str(i): bad[n] for i, n in numbered if n in bad}
    return entry | measures


def _cut(name: str, slot: int) -> tuple[str, int, str]:
    """A name before, at and after one of its numbers; all of it before, where it has not so many.

    >>> _cut("layers.3.experts.5.w", -1)
    ('layers.3.experts.', 5, '.w')
    """
    parts = _NUMBER.split(name)
    at = len(parts) + 2 * slot
    if at < 1:
        return name, -1, ""
    return "".join(parts[:at]), int(parts[at]), "".join(parts[at + 1 :])


def _runs(group: list[tuple[int, list[int], str]]) -> Iterator[list[tuple[int, list[int], str]]]:
    """Those of a group whose numbers follow each other, in order."""
    ordered = sorted(group)
    starts = [i for i, (a, b) in enumerate(pairwise(ordered), 1) if b[0] != a[0] + 1]
    for start, stop in pairwise([0, *starts, len(ordered)]):
        yield ordered[start:stop]


def _spelled(numbers: Sequence[int]) -> str:
    """Numbers in a name.

    >>> _spelled([0, 1, 2, 0, 1, 2]), _spelled([3, 3, 3]), _spelled([-1, -1])
    ('{0..2,0..2}', '3', '')
    """
    if len({*numbers}) == 1:
        return str(numbers[0]) if numbers[0] >= 0 else ""
    starts = [i for i, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1]
    spans = [(numbers[a], numbers[b - 1]) for a, b in pairwise([0, *starts, len(numbers)])]
    return "{" + ",".join(f"{a}..{b}" if b > a else f"{a}" for a, b in spans) + "}"
