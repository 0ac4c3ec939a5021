"""What a step keeps of the function, proved from the family file and the maps, without a weight.

A claim (`growkit.facts`) is derived: from
what each axis is, from the norms on it, from what those norms feed, from the tie of the head, and
from the numbers in the kernels. Never from the name of a family or of a map. Each condition below
is sufficient; where one fails, the claim says which and on what axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil, frexp
from typing import Literal

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.families.family import Family
from growkit.ops.operator import LayerMap, Noising
from growkit.planning.formula import Formula, Noise, Stored
from growkit.planning.proof.attention import one_source, prove_attention
from growkit.planning.proof.facts import APPROXIMATE, EPS, NEAR, Claim, Facts, approximate


@dataclass(frozen=True, slots=True)
class StepClaim:
    """The claim of one step of the recipe."""

    op: str
    claim: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Storage:
    """Whether the storage dtype holds every factor exactly."""

    dtype: str  # "float32", "bfloat16", …
    claim: Literal["exact", "rounded"]


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
    reasons += _tied(facts, maps)
    return approximate(reasons)


def _norms(facts: Facts, maps: Mapping[str, AxisMap], norm_scale: Mapping[str, float]) -> list[str]:
    """Why norms, or factors per coordinate, would put out what nobody expects."""
    out = []
    for over, kinds in sorted(facts.norms.items(), key=str):
        m = over.map(maps, facts.sizes)
        if m is None or m.is_identity or m.new < m.old:
            continue
        scale = next((norm_scale[a] for a in sorted(over.axes) if a in norm_scale), 1.0)
        for norm, target in sorted(kinds):
            found = _norm(m, norm, target, scale)
            out += [f"{over} {m.old} → {m.new}: {r}" for r in found]
    for over in sorted(facts.factors, key=str):
        m = over.map(maps, facts.sizes)
        if m and not m.is_identity and m.new >= m.old and not one_source(m.write):
            out.append(f"{over} {m.old} → {m.new}: mean rows do not pass a factor per coordinate")
    for over in sorted(facts.bent, key=str):
        m = over.map(maps, facts.sizes)
        if m and not m.is_identity and m.new >= m.old and not m.selective:
            out.append(f"{over} {m.old} → {m.new}: a non-linearity puts it out: only plain copies")
    return out


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


def _constant(values: np.ndarray, target: float) -> bool:
    return bool(np.abs(values - target).max(initial=0.0) <= NEAR * max(1.0, abs(target)))


def _norm(m: AxisMap, norm: str, target: str, scale: float) -> list[str]:
    """Why a norm on this axis would see other statistics, or put out what nobody expects.

    With gains · √s and eps · s, RMSNorm needs writeᵀ·write = s · (new/old)·I. LayerNorm needs that
    of `write_normed`, constant row and column sums of `write`, and that the two differ only by
    rows that vanish when it centres (LEMON, 2310.07999).
    """
    ratio, name = m.new / m.old, _NORM_NAMES[norm]
    gram = m.write_normed.transpose().after(m.write_normed).scalar()
    difference = m.write.plus(m.write_normed.scaled(-1.0)).cleaned()
    same = bool(difference.zero_rows.all())
    out = []
    if gram is None or abs(gram - scale * ratio) > NEAR * ratio:
        out.append(f"{name} sees another mean square (uneven copies)")
    if m.write_normed.mixes:
        out.append(f"{name} has one gain for what is mixed of several coordinates")
    if norm == "rms" and not same:
        out.append("RMSNorm does not centre, so rows that carry the mean do not vanish")
    if norm == "ln":
        rows, columns = m.write.row_sums(), m.write.column_sums()
        if not _constant(rows, float(rows[0])) or not _constant(columns, float(rows[0]) * ratio):
            out.append("LayerNorm sees another mean (uneven copies)")
        if not (same or _rows_are_constant(difference)):
            out.append("LayerNorm does not centre away what `write` adds to `write_normed`")
    if target == "stream" and (out or not same):
        out.append(f"{name} writes the stream (post-norm), where only whole ratios are exact")
    if target == "branch" and not same:
        out.append(f"{name} ends a branch, whose mean the stream would need too")
    return out


def _rows_are_constant(kernel: Kernel) -> bool:
    """Every row is a multiple of (1, 1, …, 1)."""
    if not kernel.rows.size:
        return False
    flat = np.abs(kernel.rows - kernel.rows[:, :1]).max(initial=0.0) <= NEAR
    return bool(flat and not kernel.coef.any() and kernel.dense is None)


_NORM_NAMES = {"rms": "RMSNorm", "ln": "LayerNorm"}


def _tied(facts: Facts, maps: Mapping[str, AxisMap]) -> list[str]:
    """Embeddings that are also the head: writeᵀ·write_normed = ρ·I, and a norm carries 1/ρ."""
    if facts.untold_tie and maps.keys() & {*facts.family.of_kind("stream")}:
        return [
            "config.json ties the head to the embedding, but the family file names no tied head"
        ]
    rho = tie_factor(facts, maps)
    if rho == 1.0:
        return []
    if rho is None:
        return ["tied head: the embedding, grown as a producer, does not read the stream it feeds"]
    if not facts.carrier and not facts.embedding_rule:
        what = "tied head" if facts.read_axis else "head"
        return [f"{what}: logits grow by {rho:g}, and no norm before the head can carry 1/{rho:g}"]
    return []


def prove_norm_scale(facts: Facts, scale: float, others: int) -> Claim:
    """One config key holds the eps of all norms: `others` of them did not ask for it times s."""
    if not others:
        return Claim()
    reason = f"{facts.family.eps} becomes {scale:.4g} of it, also for {others} norms of other axes"
    return Claim(EPS, (reason,), facts.eps, others)


def prove_above(facts: Facts, axis: str, maps: Mapping[str, AxisMap]) -> Claim:
    """Rows taken from the next layer are not copies of this one's, if there is a next one."""
    taken = facts.sizes.get(axis, 1) > 1 and any(m.write.repeats.any() for m in maps.values())
    return approximate(["new rows come from the layer above"] if taken else ())


def prove_scaled_embeddings(facts: Facts, rho: float, total: float) -> Claim:
    """A tied head's factor in the embeddings (2404.07999): harmless if a norm comes at once.

    They are `total` times smaller than at first, so the eps of that norm weighs total² times more.
    """
    patterns = facts.family.patterns.values()
    if any(p.to_stream and not p.slots for p in patterns):
        reason = f"embeddings carry 1/{rho:g}, which the norm after them undoes up to eps"
        return Claim(EPS, (reason,), facts.eps, ceil(max(1.0, total * total)))
    return approximate([f"embeddings carry 1/{rho:g}, branches do not: the stream is mixed anew"])


def tie_factor(facts: Facts, maps: Mapping[str, AxisMap]) -> float | None:
    """ρ, by which the logits grow; 1 if they do not, None if it is no multiple.

    Three things make them: a head that is the embedding, which is grown as a producer; factors of
    the model's own size on embeddings, which the embedding has to undo; and on logits.
    """
    after = {a: m.new for a, m in maps.items()}
    if not facts.headed:
        return 1.0
    factor = level_factor(facts.family, facts.sizes, after, tied=bool(facts.read_axis))
    if not facts.read_axis:
        return factor
    if facts.read_axis not in maps and facts.write_axis not in maps:
        return factor
    read, write = (
        maps.get(a) or AxisMap.identity(facts.sizes[a]) for a in (facts.read_axis, facts.write_axis)
    )
    if read.write.shape != write.write.shape:
        return None
    if write.new < write.old and read.new < read.old:  # what growing back would undo
        small = replace(facts, sizes={**facts.sizes, **after})
        up = tie_factor(small, {a: m.inverse() for a, m in maps.items()})
        return 1.0 / up if up else None
    rho = write.write.transpose().after(read.write_normed).scalar()
    if rho is None:
        return None
    return 1.0 if abs(rho * factor - 1.0) < NEAR else rho * factor


def level_factor(
    family: Family, before: Mapping[str, int], after: Mapping[str, int], *, tied: bool
) -> float:
    """What powers of sizes in the model's own code multiply logits by, when sizes change."""
    head = family.head
    if head is None:
        return 1.0
    factor = embedding_factor(family, before, after, head.tied.rpartition(".")[0]) if tied else 1.0
    for axis, power in head.power.items():
        if axis in before:
            factor *= float((after.get(axis, before[axis]) / before[axis]) ** power)
    return factor


def embedding_factor(
    family: Family, before: Mapping[str, int], after: Mapping[str, int], module: str
) -> float:
    """What a table is multiplied by whose rows the model multiplies by size ** power."""
    if module not in family.multipliers:
        return 1.0
    axis, power = family.multipliers[module]
    return float((after.get(axis, before[axis]) / before[axis]) ** -power)


def prove_depth(facts: Facts, axis: str, layers: LayerMap) -> Claim:
    """The claim of taking layers by `layers`."""
    old = facts.sizes[axis]
    where = f"{axis} {old} → {len(layers)}: "
    loud = [n for n in layers if not n.silent]
    kept = [n.source for n in loud]
    reasons = []
    if any(n.random for n in loud):
        reasons.append("new layers are drawn at random")
    elif any(len(n.mix) > 1 or n.mix[0][1] != 1.0 for n in loud):
        reasons.append("layers are averaged")
    elif kept != list(range(old)):
        repeated = len(kept) > len(set(kept))
        reasons.append("layers run twice" if repeated else "layers are left out or change places")
    if any(n.scale != 1.0 for n in loud):
        reasons.append("what layers add to the stream is scaled")
    if reasons:
        return approximate([where + r for r in reasons])
    added = len(layers) - len(loud)
    post = facts.family.residual == "post"
    if axis in facts.family.joins and any(n.silent for n in layers[: 1 + post]):
        what = f"{facts.family.joins[axis]} joins the stream after layer 0"
        return approximate([f"{where}{what}, which now is not what it was"])
    if not added or not post:
        return Claim()
    passes = added * len(stream_norms(facts.family, axis))
    reason = (
        f"{where}norms write the stream, so an empty layer still normalises what is normal "
        f"already: {passes} passes that differ from 1 by eps"
    )
    return Claim(EPS, (reason,), facts.eps, passes)


def stream_norms(family: Family, axis: str) -> list[str]:
    """The modules inside a layer that are norms whose output is the stream, in running order."""
    return [
        p.module
        for p in family.patterns.values()
        if p.to_stream and axis in p.slots and p.dims[0][1] == "*"
    ]


def prove_noise(before: Claim, noise: Noising) -> Claim:
    """Null-space noise is invisible exactly where the maps so far keep the law."""
    if noise.kind != "null_space":
        shrunk = f"weights shrink to {noise.keep:g} of themselves, and " if noise.keep < 1 else ""
        return approximate([f"{shrunk}noise is added where the network sees it"])
    if before.claim == APPROXIMATE:
        return approximate(["the noise lies in the null space of maps that are approximate"])
    return Claim()


def storage_claim(dtype: str, formulas: Iterable[Formula]) -> Storage:
    """Whether a storage dtype holds every value of these formulas without rounding."""
    return Storage(dtype, "rounded" if _rounded(formulas) else "exact")


def _rounded(formulas: Iterable[Formula]) -> bool:
    """Whether any value has to be rounded on its way into the storage dtype."""
    known: dict[int, bool] = {}

    def plain(kernel: Kernel | None) -> bool:
        if kernel is None:
            return True
        if id(kernel) not in known:
            mantissa = np.frexp(np.abs(kernel.coef[kernel.coef != 0]))[0]
            single = kernel.is_gather and kernel.index.shape[1] <= 1
            known[id(kernel)] = bool(single and (mantissa == 0.5).all())
        return known[id(kernel)]

    wide = {"F64": 3, "F32": 2, "F16": 1, "BF16": 0}
    for formula in formulas:
        stored = [t for t in formula.terms if isinstance(t.source, Stored)]
        if len(stored) > 1 or any(
            isinstance(t.source, Noise) and t.source.signal for t in formula.terms
        ):
            return True
        for term in stored:
            assert isinstance(term.source, Stored)
            narrower = wide[formula.dtype] < wide[term.source.dtype]
            both_short = {formula.dtype, term.source.dtype} == {"F16", "BF16"}
            if (
                term.source.by
                or narrower
                or both_short
                or frexp(term.scale)[0] != 0.5
                or not all(map(plain, term.kernels))
            ):
                return True
    return False
