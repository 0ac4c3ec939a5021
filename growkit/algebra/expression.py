"""Axis expressions: how the dims of real tensors are composed of axes.

    hidden                one axis
    heads.q               a product, row-major: for each head its query coordinates
    heads.q|heads.k       a concatenation, such as a fused projection
    heads.(q|k|v)         parentheses: one fused block per head
    kv_heads:(heads.q|kv_heads.k)   blocks: every part is cut into as many pieces as there are
                          kv heads, and the pieces of one kv head stand together
    2                     a plain number
    2.hidden/3^8          a third, rounded up to a multiple of 8: for sizes that code derives

The size of an expression, and the map that grows it, follow from those of its axes: Kronecker
products for `.`, direct sums for `|`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import IntArray, Kernel
from growkit.errors import FamilyError

MAX_TOKENS = 200
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|[.|():/^]")


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed axis expression; hashable, so maps of one expression are built once."""

    kind: str  # "axis" | "number" | "product" | "sum" | "blocks" | "divided" | "rounded"
    name: str = ""
    number: int = 0
    parts: tuple[Expression, ...] = ()
    axes: frozenset[str] = field(init=False, compare=False, repr=False)  # the names of all in it

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", self._axes())

    def _axes(self) -> frozenset[str]:
        if self.kind == "axis":
            return frozenset([self.name])
        return frozenset().union(*(p.axes for p in self.parts))

    def size(self, sizes: Mapping[str, int]) -> int:
        """Its size for these axis sizes; KeyError names an axis without a size."""
        if self.kind == "axis":
            return sizes[self.name]
        if self.kind == "number":
            return self.number
        values = [p.size(sizes) for p in self.parts]
        if self.kind == "blocks":
            return values[1]
        if self.kind == "divided":
            return values[0] // self.number
        if self.kind == "rounded":
            return -(-values[0] // self.number) * self.number
        return prod(values) if self.kind == "product" else sum(values)

    def solve(self, value: int, sizes: Mapping[str, int]) -> tuple[str, int] | None:
        """The one axis without a size, and the size that makes the expression equal `value`.

        None if that is not one axis, or no whole number.
        """
        unknown = [a for a in sorted(self.axes) if a not in sizes]
        if len(unknown) != 1:
            return None
        name = unknown[0]
        at_one, at_two = (self.size({**sizes, name: n}) for n in (1, 2))
        if at_one == at_two:
            return None
        count, rest = divmod(value - at_one, at_two - at_one)
        return (name, count + 1) if rest == 0 and count >= 0 else None

    def map(self, maps: Mapping[str, AxisMap], sizes: Mapping[str, int]) -> AxisMap | None:
        """The map of the whole expression, from those of its axes; None if none of them grows."""
        if not self.axes & maps.keys():
            return None
        if self.kind == "axis":
            return maps[self.name]
        if self.kind in ("divided", "rounded"):  # no longer made of the axes: copies in turn
            new = self.size({**sizes, **{a: m.new for a, m in maps.items()}})
            index = np.arange(new) % self.size(sizes)
            share = 1.0 / np.bincount(index)[index]
            write, read = (Kernel.gather(index, c, old=self.size(sizes)) for c in (1.0, share))
            return AxisMap.of(write, read)
        grown = [p.map(maps, sizes) or AxisMap.identity(p.size(sizes)) for p in self.parts]
        if self.kind == "blocks":
            after = {a: m.new for a, m in maps.items()}
            return grown[1].reordered(self._order({**sizes, **after}), self._order(sizes))
        whole = grown[0]
        for part in grown[1:]:
            whole = whole.kron(part) if self.kind == "product" else whole.direct_sum(part)
        return whole

    def units(self, axis: str, sizes: Mapping[str, int]) -> IntArray:
        """The places that belong to each unit of one of its axes, shape (units, places).

        >>> parse("heads.q|heads.k").units("heads", {"heads": 2, "q": 2, "k": 1})
        array([[0, 1, 4],
               [2, 3, 5]])
        """
        if self.kind == "axis":
            return np.arange(sizes[axis])[:, None]
        if self.kind == "blocks":
            place = np.argsort(self._order(sizes))
            return place[self.parts[1].units(axis, sizes)]
        found, shape = [], [p.size(sizes) for p in self.parts]
        for i, part in enumerate(self.parts):
            if axis not in part.axes:
                continue
            inside = part.units(axis, sizes)
            if self.kind == "product":
                places = np.moveaxis(np.arange(prod(shape)).reshape(shape), i, 0)[inside]
                found.append(places.reshape(len(inside), -1))
            else:
                found.append(inside + sum(shape[:i]))
        return np.concatenate(found, axis=1)

    def _order(self, sizes: Mapping[str, int]) -> IntArray:
        """Of blocks: the place in the plain concatenation that every coordinate comes from."""
        count, body = self.parts[0].size(sizes), self.parts[1]
        pieces, start = [], 0
        for part in body.parts if body.kind == "sum" else (body,):
            size = part.size(sizes)
            pieces.append((start + np.arange(size)).reshape(count, -1))
            start += size
        return np.concatenate(pieces, axis=1).ravel()

    def renamed(self, names: Mapping[str, str]) -> Expression:
        """The same expression with other names for some axes."""
        if self.kind == "axis":
            return Expression("axis", names.get(self.name, self.name))
        return replace(self, parts=tuple(p.renamed(names) for p in self.parts))

    def __str__(self) -> str:
        if self.kind == "axis":
            return self.name
        if self.kind == "number":
            return str(self.number)
        inner = [f"({p})" if p.kind == "sum" else str(p) for p in self.parts]
        if self.kind in ("divided", "rounded"):
            return inner[0] + (" / " if self.kind == "divided" else " up to ") + str(self.number)
        return {"product": " × ", "sum": " | ", "blocks": ": "}[self.kind].join(inner)


@cache
def parse(text: str) -> Expression:
    """`heads.q|2` → Expression; FamilyError if it is not well formed.

    >>> parse("heads.q|heads.k").size({"heads": 4, "q": 8, "k": 8})
    64
    """
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text.replace(" ", "") or not tokens or len(tokens) > MAX_TOKENS:
        raise FamilyError(f'axis expression "{text}": not well formed')
    expression, rest = _sum(tokens, text)
    if rest:
        raise FamilyError(f'axis expression "{text}": unexpected "{rest[0]}"')
    return expression


def _sum(tokens: list[str], text: str) -> tuple[Expression, list[str]]:
    part, rest = _product(tokens, text)
    parts = [part]
    while rest and rest[0] == "|":
        part, rest = _product(rest[1:], text)
        parts.append(part)
    return (parts[0] if len(parts) == 1 else Expression("sum", parts=tuple(parts))), rest


def _product(tokens: list[str], text: str) -> tuple[Expression, list[str]]:
    part, rest = _atom(tokens, text)
    if rest and rest[0] == ":":
        body, rest = _atom(rest[1:], text)
        return Expression("blocks", parts=(part, body)), rest
    parts = [part]
    while rest and rest[0] == ".":
        part, rest = _atom(rest[1:], text)
        parts.append(part)
    whole = parts[0] if len(parts) == 1 else Expression("product", parts=tuple(parts))
    while len(rest) > 1 and rest[0] in "/^" and rest[1].isdigit():
        kind = "divided" if rest[0] == "/" else "rounded"
        whole, rest = Expression(kind, number=int(rest[1]), parts=(whole,)), rest[2:]
    return whole, rest


def _atom(tokens: list[str], text: str) -> tuple[Expression, list[str]]:
    if not tokens or tokens[0] in ".|):":
        raise FamilyError(f'axis expression "{text}": an axis is missing')
    head, rest = tokens[0], tokens[1:]
    if head == "(":
        inner, rest = _sum(rest, text)
        if not rest or rest[0] != ")":
            raise FamilyError(f'axis expression "{text}": a parenthesis is not closed')
        return inner, rest[1:]
    if head.isdigit():
        return Expression("number", number=int(head)), rest
    return Expression("axis", name=head), rest
