"""Phrases: what a map does, where the numbers of a term come from, counts and shapes.

`report.text` makes lines of them for terminals, `report.as_json` and the page have them as they
are. The law: words are exact where they can be; what has no short word is told as sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import IntArray, Kernel
from growkit.checkpoints.types import Stored
from growkit.planning.formula import Ones, Term

RUNS = 4  # ranges of a map that are spelled out
ROWS = 3  # first rows of a map that are spelled out


# what a tensor does with the axis of a dim; any other axis is kept as it is
ROLES = {"+": "write", "-": "read", "*": "gain", "~": "shift", "#": "table"}


@lru_cache(maxsize=1024)
def in_words(kernel: Kernel | None) -> str:
    """A kernel as a person would say it.

    >>> in_words(Kernel.gather([0, 1, 0, 1], 0.5, old=2))
    'tile ×2 (coef 0.5)'
    """
    if kernel is None or kernel.is_identity:
        return "identity"
    if kernel.dense is not None:
        return f"dense, {kernel.old} → {kernel.new}"
    rho = kernel.scalar()
    if rho is not None:
        return f"× {rho:.6g}"
    parts = []
    if kernel.index.shape[1] > 1:
        most = int((kernel.coef != 0).sum(axis=1).max())
        parts.append(f"up to {most} of {kernel.old} per row{_coefs(kernel)}")
    elif kernel.coef.any():
        parts.append(_pattern(kernel) + _coefs(kernel))
    if kernel.left.shape[1]:
        shared = int(kernel.left.any(axis=1).sum())
        parts.append(f"{count(shared, 'row')} of a mean of all {kernel.old}")
    zeros = int(kernel.zero_rows.sum())
    if zeros:
        parts.append(count(zeros, "zero row"))
    return ", ".join(parts)


def first_rows(kernel: Kernel) -> str:
    """The first rows of a kernel that are not zero, as sums of source rows."""

    def row(i: int) -> str:
        if kernel.dense is not None:
            return "dense"
        terms = [
            f"{'' if c == 1 else f'{c:.6g}·'}old {j}"
            for j, c in zip(kernel.index[i].tolist(), kernel.coef[i].tolist(), strict=True)
            if c
        ]
        terms += ["shared"] if kernel.left[i].any() else []
        more = " + …" if len(terms) > RUNS else ""
        return " + ".join(terms[:RUNS]).replace("+ -", "- ") + more

    rows = np.flatnonzero(~kernel.zero_rows).tolist()
    shown = [f"row {i} = {row(i)}" for i in rows[:ROWS]]
    return ", ".join([*shown, "…"] if len(rows) > ROWS else shown)


def _pattern(kernel: Kernel) -> str:
    """Which source row each new row takes, for at most one source per row."""
    old, used = kernel.old, np.flatnonzero(kernel.coef[:, 0])
    new, index = len(used), kernel.index[used, 0]
    if used[-1] == new - 1:  # zero rows only at the end
        ratio = new // old
        if new == ratio * old and ratio > 1 and np.array_equal(index, used % old):
            return f"tile ×{ratio}"
        if new == ratio * old and ratio > 1 and np.array_equal(index, used // ratio):
            return f"repeat ×{ratio}"
        blocks = _blocks(index, old)
        if 1 < blocks < min(new, old):
            block = Kernel.gather(index[: new // blocks], old=old // blocks)
            return f"in each of {blocks} blocks: {_pattern(block)}"
    cuts = np.flatnonzero((np.diff(index) != 1) | (np.diff(used) != 1)) + 1
    runs = [
        f"{_range(rows)} from {_range(old_rows)}"
        for rows, old_rows in zip(np.split(used, cuts), np.split(index, cuts), strict=True)
    ]
    more = f", … ({len(runs)} ranges)" if len(runs) > RUNS else ""
    return ", ".join(runs[:RUNS]) + more


def _blocks(index: IntArray, old: int) -> int:
    """The number of equal blocks on the diagonal: heads, where the map acts inside each."""
    for n in range(min(len(index), old), 1, -1):
        if len(index) % n == 0 == old % n:
            inside = index.reshape(n, -1) - np.arange(n)[:, None] * (old // n)
            if (inside == inside[0]).all() and 0 <= inside[0].min() <= inside[0].max() < old // n:
                return n
    return 1


def _range(rows: Any) -> str:
    return f"{rows[0]}" if len(rows) == 1 else f"{rows[0]}–{rows[-1]}"


def count(number: int, word: str) -> str:
    """`2 files`, `1 file`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _coefs(kernel: Kernel) -> str:
    coef = kernel.coef[kernel.coef != 0]
    low, high = float(coef.min()), float(coef.max())
    if low == high == 1.0:
        return ""
    return f" (coef {low:.6g})" if low == high else f" (coefs {low:.6g} to {high:.6g})"


def source_text(term: Term) -> str:
    """Where the numbers of a term come from."""
    source = term.source
    if isinstance(source, Stored):
        times = f", rows × {source.by.name}" if source.by else ""
        return f"{source.source}: {source.name} {shape_text(source.shape)} {source.dtype}{times}"
    if isinstance(source, Ones):
        return "ones"
    level = f"{source.snr_db:g} dB" if source.snr_db is not None else f"std {source.std:g}"
    return f"noise of step {source.step}, seed {source.seed}, {level}"


def roles(m: AxisMap) -> dict[str, Kernel]:
    """The kernels of an axis, by what a tensor does with it."""
    roles = {"write": m.write, "read": m.read}
    if in_words(m.write_normed) != in_words(m.write):
        roles["write normed"] = m.write_normed
    return roles


def shape_text(shape: Sequence[int]) -> str:
    """A shape as a tuple."""
    return f"({', '.join(map(str, shape))})"
