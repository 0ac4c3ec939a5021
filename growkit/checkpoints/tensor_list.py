"""The tensors in growkit.json: layers or experts that are alike are said once; there may be many.

    "layers.3.experts.{0..799}.up.weight": {"from": ["layers.1.experts.{0..799}.up.weight"], …}

stands for 800 tensors, `layers.{0..3,5..8}.norm.weight` for 8. The numbers of `from` are as many,
one for each of them and in their order: `{0..399,0..399}`; where all come from one tensor, its name
is said as it is. `crc32` holds the checksums of all, in order and a space between two, and
`nonfinite` a table by number. The law: what is said once can be told in full, tensor by tensor, and
stands for no more than it has checksums.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

FEWEST = 4  # tensors that are said once
_NUMBER = re.compile(r"(?:(?<=\.)|^)([0-9]+)(?=\.|$)")  # in a name: a whole word between dots
_RANGE = r"[0-9]{1,9}(?:\.\.[0-9]{1,9})?"
_SPANS = re.compile(rf"\{{({_RANGE}(?:,{_RANGE})*)\}}")

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
        head, number, tail = _cut(name, slots[name]) if name in slots else (name, -1, "")
        if number < 0:
            groups[name,] = [(number, [], name)]
            continue
        sources = [_cut(source, slots[name]) for source in entry["from"]]
        rest = {k: v for k, v in entry.items() if k not in ("from", "crc32")}
        key = head, tail, tuple((s[0], s[2]) for s in sources), repr(rest)
        groups.setdefault(key, []).append((number, [s[1] for s in sources], name))
    said: dict[str, Json] = {}
    for key, alike in groups.items():
        said |= _entry(listed, key, sorted(alike))
    return said


def _entry(listed: Mapping[str, Json], key: Any, alike: list[tuple[int, list[int], str]]) -> Any:
    names = [name for _, _, name in alike]
    if len(alike) < FEWEST:
        return {name: listed[name] for name in names}
    head, tail, sources, _ = key
    numbers = zip(*(each for _, each, _ in alike), strict=True)
    from_ = [
        f"{first}{_spelled(each)}{last}"
        for (first, last), each in zip(sources, numbers, strict=True)
    ]
    checksums = " ".join(listed[name]["crc32"] for name in names)
    entry = {**listed[names[0]], "from": from_, "crc32": checksums}
    return {f"{head}{_spelled([number for number, _, _ in alike])}{tail}": entry}


def members(name: str) -> list[str]:
    """The tensors that a name of the list stands for: mostly itself alone.

    >>> members("experts.{2..3,5}.w")
    ['experts.2.w', 'experts.3.w', 'experts.5.w']
    """
    spans = _SPANS.search(name)
    if spans is None:
        return [name]
    head, tail = name[: spans.start()], name[spans.end() :]
    return [f"{head}{number}{tail}" for number in chain(*_ranges(spans[1]))]


def count(name: str) -> int:
    """How many tensors a name of the list stands for."""
    spans = _SPANS.search(name)
    return 1 if spans is None else sum(map(len, _ranges(spans[1])))


def _ranges(text: str) -> list[range]:
    """The numbers of `0..3,5`."""
    pairs = (part.partition("..") for part in text.split(","))
    return [range(int(first), int(last or first) + 1) for first, _, last in pairs]


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
            counts |= {_SPANS.sub(n, name): c for n, c in entry["nonfinite"].items()}
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
        numbers = chain(*_ranges(_SPANS.search(name)[1]))  # type: ignore[index]
        numbered = zip(numbers, names, strict=True)
        measures["nonfinite"] = {str(i): bad[n] for i, n in numbered if n in bad}
    return entry | measures


def _cut(name: str, slot: int) -> tuple[str, int, str]:
    """A name before, at and after one of its numbers; all of it before, where none can be spelled.

    >>> _cut("layers.3.experts.5.w", -1), _cut("layers.03.w", -1)
    (('layers.3.experts.', 5, '.w'), ('layers.03.w', -1, ''))
    """
    parts = _NUMBER.split(name)
    at = len(parts) + 2 * slot
    if at < 1 or parts[at] != str(int(parts[at])) or len(parts[at]) > 9:
        return name, -1, ""
    return "".join(parts[:at]), int(parts[at]), "".join(parts[at + 1 :])


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
