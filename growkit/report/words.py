"""Formulas and maps in words, for whoever asks what one tensor is made of or what a map does.

`plan --tensor` prints them as lines, `plan --json` and the page have them as phrases.

The law: words are exact where they can be; what has no short word is told as sizes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import IntArray, Kernel
from growkit.checkpoints.types import Stored
from growkit.errors import UsageError, did_you_mean
from growkit.planning.formula import Formula, Ones, Term
from growkit.planning.plan import Plan
from growkit.report.provenance import origin

WIDTH = 80  # columns, on wider terminals too: text of one shape can be compared and pasted
RUNS = 4  # ranges of a map that are spelled out
ROWS = 3  # first rows of a map that are spelled out


def explain(plan: Plan, name: str) -> str:
    """What one output tensor is made of, term by term, and the maps of the axes behind it.

    Raises UsageError for a tensor that the plan does not write.
    """
    formulas = {f.name: f for f in plan.formulas}
    if name not in formulas:
        raise UsageError(
            f"--tensor {name}: the plan writes no such tensor", hint=did_you_mean(name, formulas)
        )
    formula = formulas[name]
    kind, _, new_rows = origin(formula)
    lines = [
        name,
        f"  {shape_text(formula.shape)} {formula.dtype}, {kind}, {count(new_rows, 'new row')}",
    ]
    lines += [] if formula.terms else ["", "  = 0"]
    for i, term in enumerate(formula.terms):
        scale = "" if term.scale == 1.0 else f"{term.scale:.6g} × "
        lines += ["", *wrapped(f"{'+' if i else '='} {scale}{source_text(term)}", "  ")]
        for dim, kernel in enumerate(term.kernels):
            lines += wrapped(f"dim {dim}: {_dim(formula, dim)}{in_words(kernel)}", "    ")
            if kernel is not None and kernel.scalar() is None:
                lines += wrapped(first_rows(kernel), "      ")
    behind = {a for expression, _ in formula.dims for a in expression.axes}
    for axis, m in plan.maps.items():
        if not m.is_identity and axis in behind:
            lines += ["", f"  {axis}: {m.old} → {m.new}"]
            for role, kernel in _roles(m).items():
                lines += wrapped(f"{role}: {in_words(kernel)}", "    ")
    return "\n".join(lines)


def maps_json(plan: Plan) -> dict[str, Any]:
    """Every axis that grows, and its maps in words."""
    return {
        axis: {"old": m.old, "new": m.new} | {role: in_words(k) for role, k in _roles(m).items()}
        for axis, m in plan.maps.items()
        if not m.is_identity
    }


def terms_json(formula: Formula) -> list[dict[str, Any]]:
    """What an output tensor is the sum of; an empty list is zeros."""

    def dim(number: int, kernel: Kernel | None) -> dict[str, str]:
        expression, role = formula.dims[number] if formula.dims else ("", "")
        role_word = ROLES.get(role, "kept")
        return {"axes": str(expression), "role": role_word, "map": in_words(kernel)}

    return [
        {
            "source": source_text(term),
            "scale": term.scale,
            "dims": [dim(i, kernel) for i, kernel in enumerate(term.kernels)],
        }
        for term in formula.terms
    ]


ROLES = {"+": "write", "-": "read", "*": "gain", "~": "shift", "#": "table"}


def _dim(formula: Formula, number: int) -> str:
    """What a dim is: its axes, and what the tensor does with them."""
    if number >= len(formula.dims):
        return ""
    expression, role = formula.dims[number]
    return f"{expression}, {ROLES[role]}: " if role in ROLES else f"{expression}: "


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


def _roles(m: AxisMap) -> dict[str, Kernel]:
    """The kernels of an axis, by what a tensor does with it."""
    roles = {"write": m.write, "read": m.read}
    if in_words(m.write_normed) != in_words(m.write):
        roles["write normed"] = m.write_normed
    return roles


def shape_text(shape: Sequence[int]) -> str:
    """A shape as a tuple."""
    return f"({', '.join(map(str, shape))})"


def wrapped(text: str, indent: str, hang: int = 2) -> list[str]:
    """Lines of at most 80 columns; a longer word, such as a path, stays whole to be copied."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + " " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
