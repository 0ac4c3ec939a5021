"""What a step in width keeps of the function, proved from the family file and the maps alone.

    consumers undo producers        readᵀ·write = I, on every axis
    units behind a non-linearity    plain copies of one unit, or read by nobody
    norms                           see the same statistics, up to a factor that gains carry
    attention, and tied heads       in files of their own

A claim is derived: from what each axis is, from the norms on it, from what those norms feed, from
the tie of the head, and from the numbers in the kernels. Never from the name of a family or of a
map. The law: each condition is sufficient; where one fails, the claim says which, on what axis.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import FloatArray, Kernel
from growkit.planning.proof.attention import one_source, prove_attention
from growkit.planning.proof.claim import EPS, NEAR, Claim, approximate
from growkit.planning.proof.facts import Facts
from growkit.planning.proof.tied_head import tied_head_reasons

_NORM_NAMES = {"rms": "RMSNorm", "ln": "LayerNorm"}


def prove_width(
    facts: Facts, maps: Mapping[str, AxisMap], norm_scale: Mapping[str, float] | None = None
) -> Claim:
    """The claim of growing axes by `maps`, attention and tied-head factors included.

    `norm_scale` gives s for axes whose norms get gains times √s and an eps times s.
    """
    reasons: list[str] = []
    for axis, m in maps.items():
        kind = facts.family.axes[axis]
        if m.is_identity or kind in ("query", "key", "kv_heads", "choices"):
            continue
        where = f"{axis} {m.old} → {m.new}"
        if kind == "table" and m.new > m.old:  # rows are looked up, nobody computes on the axis
            if not _starts_as_before(m.write):
                reasons.append(f"{where}: old rows are not what they were")
            continue
        if m.new < m.old:
            reasons.append(f"{where}: units are merged or left out")
            continue
        if kind == "experts":
            reasons += [f"{where}: {r}" for r in _experts(facts, maps, m)]
            continue
        if not m.keeps:
            reasons.append(f"{where}: consumers do not undo producers (readᵀ·write ≠ 1)")
        if kind in ("neurons", "heads") and not m.selective:
            what = "a non-linearity" if kind == "neurons" else "a softmax per head"
            reasons.append(f"{where}: units behind {what} must be plain copies, or read by nobody")
    reasons += _norms(facts, maps, norm_scale or {})
    reasons += prove_attention(facts, maps)
    reasons += tied_head_reasons(facts, maps)
    return approximate(reasons)


def _norms(facts: Facts, maps: Mapping[str, AxisMap], norm_scale: Mapping[str, float]) -> list[str]:
    """Why norms, or factors per coordinate, would put out what nobody expects."""
    reasons = []
    for over, kinds in sorted(facts.norms.items(), key=str):
        m = over.map(maps, facts.sizes)
        if m is None or m.is_identity or m.new < m.old:
            continue
        scale = next((norm_scale[a] for a in sorted(over.axes) if a in norm_scale), 1.0)
        for norm, target in sorted(kinds):
            reasons += [
                f"{over} {m.old} → {m.new}: {r}" for r in _norm_reasons(m, norm, target, scale)
            ]
    for over in sorted(facts.factors, key=str):
        m = over.map(maps, facts.sizes)
        if m and not m.is_identity and m.new >= m.old and not one_source(m.write):
            reasons.append(
                f"{over} {m.old} → {m.new}: mean rows do not pass a factor per coordinate"
            )
    for over in sorted(facts.nonlinear, key=str):
        m = over.map(maps, facts.sizes)
        if m and not m.is_identity and m.new >= m.old and not m.selective:
            reasons.append(
                f"{over} {m.old} → {m.new}: a non-linearity puts it out: only plain copies"
            )
    return reasons


def _experts(facts: Facts, maps: Mapping[str, AxisMap], m: AxisMap) -> list[str]:
    """A router that takes k of n experts takes c·k of c·n, if each has c copies."""
    counts = np.bincount(m.write.matrix().argmax(axis=1), minlength=m.old)
    if not m.write.unit_rows.all() or (counts != counts[0]).any():
        return ["a router without bias meets every expert equally often only with whole copies"]
    choices = facts.family.of_kind("choices")
    ratio = m.new // m.old
    return [
        f"{c} must grow {ratio} times too"
        for c in choices
        if c in facts.sizes and not (c in maps and maps[c].new == ratio * maps[c].old)
    ]


def _starts_as_before(write: Kernel) -> bool:
    """The first rows are the old ones."""
    old = write.old
    if write.dense is not None:
        return np.array_equal(write.dense[:old], np.eye(old))
    return bool(write.unit_rows[:old].all()) and np.array_equal(
        write.index[:old, 0], np.arange(old)
    )


def _norm_reasons(m: AxisMap, norm: str, target: str, scale: float) -> list[str]:
    """Why a norm on this axis would see other statistics, or put out what nobody expects.

    With gains · √s and eps · s, RMSNorm needs writeᵀ·write = s · (new/old)·I. LayerNorm needs that
    of `write_normed`, constant row and column sums of `write`, and that the two differ only by
    rows that vanish when it centres (LEMON, 2310.07999).
    """
    ratio, name = m.new / m.old, _NORM_NAMES[norm]
    gram = m.write_normed.transpose().after(m.write_normed).scalar()
    difference = m.write.plus(m.write_normed.scaled(-1.0)).cleaned()
    same = bool(difference.zero_rows.all())
    reasons = []
    if gram is None or abs(gram - scale * ratio) > NEAR * ratio:
        reasons.append(f"{name} sees another mean square (uneven copies)")
    if m.write_normed.mixes:
        reasons.append(f"{name} has one gain for what is mixed of several coordinates")
    if norm == "rms" and not same:
        reasons.append("RMSNorm does not centre, so rows that carry the mean do not vanish")
    if norm == "ln":
        rows, columns = m.write.row_sums(), m.write.column_sums()
        each = float(rows[0])
        if not _all_are(rows, each) or not _all_are(columns, each * ratio):
            reasons.append("LayerNorm sees another mean (uneven copies)")
        if not (same or _rows_are_constant(difference)):
            reasons.append("LayerNorm does not centre away what `write` adds to `write_normed`")
    if target == "stream" and (reasons or not same):
        reasons.append(f"{name} writes the stream (post-norm), where only whole ratios are exact")
    if target == "branch" and not same:
        reasons.append(f"{name} ends a branch, whose mean the stream would need too")
    return reasons


def _all_are(values: FloatArray, target: float) -> bool:
    return bool(np.abs(values - target).max(initial=0.0) <= NEAR * max(1.0, abs(target)))


def _rows_are_constant(kernel: Kernel) -> bool:
    """Every row is a multiple of (1, 1, …, 1)."""
    if not kernel.right.size:
        return False
    flat = np.abs(kernel.right - kernel.right[:, :1]).max(initial=0.0) <= NEAR
    return bool(flat and not kernel.coef.any() and kernel.dense is None)


def prove_norm_scale(facts: Facts, scale: float, others: int) -> Claim:
    """One config key holds the eps of all norms: `others` of them did not ask for it times s."""
    if not others:
        return Claim()
    reason = f"{facts.family.eps} becomes {scale:.4g} of it, also for {others} norms of other axes"
    return Claim(EPS, (reason,), facts.eps, others)


def prove_above(facts: Facts, axis: str, maps: Mapping[str, AxisMap]) -> Claim:
    """Rows taken from the next layer are not copies of this one's, if there is a next one."""
    copies = facts.sizes.get(axis, 1) > 1 and any(m.write.repeats.any() for m in maps.values())
    return approximate(["new rows come from the layer above"] if copies else ())
