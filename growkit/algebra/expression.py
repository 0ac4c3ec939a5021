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
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import prod

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import IntArray, Kernel
from growkit.errors import FamilyError

MAX_TOKENS = 200
_SIGNS = {"product": " × ", "sum": " | ", "blocks": ": ", "divided": " / ", "rounded": " up to "}
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|[.|():/^]")


@dataclass(frozen=True)
class Expression:
    """A parsed axis expression; hashable, so maps of one expression are built once."""

    kind: str  # "axis" | "number" | "product" | "sum" | "blocks" | "divided" | "rounded"
    name: str = ""
    number: int = 0
    parts: tuple[Expression, ...] = ()

    @cached_property
    def axes(self) -> frozenset[str]:
        """The names of all axes in it."""
        return frozenset([self.name] if self.kind == "axis" else ()).union(
            *(p.axes for p in self.parts)
        )

    def size(self, sizes: Mapping[str, int]) -> int:
        """Its size for these axis sizes; KeyError names an axis without a size."""
        if self.kind == "axis":
            return sizes[self.name]
        values = [p.size(sizes) for p in self.parts]
        if self.kind == "number":
            return self.number
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
        if len(self.axes - sizes.keys()) != 1:
            return None
        (name,) = self.axes - sizes.keys()
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
        places, shape = [], [p.size(sizes) for p in self.parts]
        for i, part in enumerate(self.parts):
            if axis not in part.axes:
                continue
            inside = part.units(axis, sizes)
            if self.kind == "product":
                grid = np.moveaxis(np.arange(prod(shape)).reshape(shape), i, 0)
                places.append(grid[inside].reshape(len(inside), -1))
            else:
                places.append(inside + sum(shape[:i]))
        return np.concatenate(places, axis=1)

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
        parts = tuple(p.renamed(names) for p in self.parts)
        return replace(self, name=names.get(self.name, self.name), parts=parts)

    def __str__(self) -> str:
        words = [f"({p})" if p.kind == "sum" else str(p) for p in self.parts]
        words += [str(self.number)] if self.kind in ("number", "divided", "rounded") else []
        return self.name or _SIGNS.get(self.kind, "").join(words)


@cache
def parse(text: str) -> Expression:
    """`heads.q|2` → Expression; FamilyError if it is not well formed.

    >>> parse("heads.q|heads.k").size({"heads": 4, "q": 8, "k": 8})
    64
    """
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text.replace(" ", "") or not tokens or len(tokens) > MAX_TOKENS:
        raise FamilyError(f'axis expression "{text}": not well formed')
    expression = _sum(tokens, text)
    if tokens:
        raise FamilyError(f'axis expression "{text}": unexpected "{tokens[0]}"')
    return expression


# Each takes the tokens of what it reads from the front of the list.
def _sum(tokens: list[str], text: str) -> Expression:
    parts = [_product(tokens, text)]
    while _take(tokens, "|"):
        parts.append(_product(tokens, text))
    return parts[0] if len(parts) == 1 else Expression("sum", parts=tuple(parts))


def _product(tokens: list[str], text: str) -> Expression:
    parts = [_atom(tokens, text)]
    if _take(tokens, ":"):
        return Expression("blocks", parts=(parts[0], _atom(tokens, text)))
    while _take(tokens, "."):
        parts.append(_atom(tokens, text))
    whole = parts[0] if len(parts) == 1 else Expression("product", parts=tuple(parts))
    while len(tokens) > 1 and tokens[0] in "/^" and tokens[1].isdigit():
        kind = "divided" if tokens.pop(0) == "/" else "rounded"
        whole = Expression(kind, number=int(tokens.pop(0)), parts=(whole,))
    return whole


def _atom(tokens: list[str], text: str) -> Expression:
    if not tokens or tokens[0] in ".|):":
        raise FamilyError(f'axis expression "{text}": an axis is missing')
    head = tokens.pop(0)
    if head == "(":
        inner = _sum(tokens, text)
        if not _take(tokens, ")"):
            raise FamilyError(f'axis expression "{text}": a parenthesis is not closed')
        return inner
    if head.isdigit():
        return Expression("number", number=int(head))
    return Expression("axis", name=head)


def _take(tokens: list[str], sign: str) -> bool:
    """Take this sign if it comes next; whether it did."""
    return tokens[:1] == [sign] and bool(tokens.pop(0))
