"""What a step keeps of the function, proved from the family file and the maps, without a weight.

A claim is one of `exact`, `exact up to norm eps`, `approximate`, with reasons. It is derived: from
what each axis is, from the norms on it, from what those norms feed, from the tie of the head, and
from the numbers in the kernels. Never from the name of a family or of a map. Each condition below
is sufficient; where one fails, the claim says which and on what axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import frexp
from typing import Any, Literal

import numpy as np

from growkit.axes import AxisMap, Kernel
from growkit.family import Family
from growkit.formula import Formula, Noise, Stored
from growkit.ops.contract import LayerMap, Noising

EXACT = "exact"
EPS = "exact up to norm eps"
APPROXIMATE = "approximate"
LEVELS = (EXACT, EPS, APPROXIMATE)
NEAR = 1e-9  # products of a few float64 roundings


@dataclass(frozen=True, slots=True)
class Claim:
    """What is kept, and why not more."""

    claim: str = EXACT
    reasons: tuple[str, ...] = ()
    eps: float = 0.0  # the norm eps that an "up to norm eps" claim depends on
    passes: int = 0  # how many norm passes were added, through which that eps acts

    def also(self, other: Claim) -> Claim:
        """Both hold one after the other: the weaker of the two, with the reasons of both."""
        weaker = max(self.claim, other.claim, key=LEVELS.index)
        reasons = dict.fromkeys((*self.reasons, *other.reasons))
        return Claim(weaker, tuple(reasons), max(self.eps, other.eps), self.passes + other.passes)


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


@dataclass(frozen=True, slots=True)
class Facts:
    """What a proof may know about a model."""

    family: Family
    config: Mapping[str, Any]
    sizes: Mapping[str, int]  # before the step
    norms: Mapping[str, frozenset[tuple[str, bool]]]  # axis → (kind, writes the stream)
    read_axis: str = ""  # the axis that a tied head reads; empty if no head is tied
    carrier: bool = False  # a norm that feeds the tied head, and only it, can carry a factor
    theta: float = 0.0  # RoPE base, before
    theta_after: float = 0.0
    rope_type: str = "default"
    eps: float = 0.0
    embedding_rule: bool = False  # the embeddings carry a tied head's factor
    untold_tie: bool = False  # config.json ties a head that the family file does not name


def approximate(reasons: Iterable[str]) -> Claim:
    """`approximate` if there is any reason, else `exact`."""
    found = tuple(dict.fromkeys(reasons))
    return Claim(APPROXIMATE if found else EXACT, found)


def prove_width(
    facts: Facts, maps: Mapping[str, AxisMap], norm_scale: Mapping[str, float] | None = None
) -> Claim:
    """The claim of growing axes by `maps`, attention and tied-head factors included.

    `norm_scale` gives s for axes whose norms get gains times √s and an eps times s.
    """
    reasons: list[str] = []
    for axis, m in maps.items():
        kind = facts.family.axes[axis]
        if m.is_identity or kind in ("query", "key", "kv_heads"):
            continue
        where = f"{axis} {m.old} → {m.new}"
        if kind == "table" and m.new > m.old:  # rows are looked up, nobody computes on the axis
            if not _starts_as_before(m.write):
                reasons.append(f"{where}: old rows are not what they were")
            continue
        if m.new < m.old:
            reasons.append(f"{where}: units are merged or left out")
            continue
        if not m.keeps:
            reasons.append(f"{where}: consumers do not undo producers (readᵀ·write ≠ 1)")
        if kind in ("neurons", "heads") and not m.selective:
            what = "a non-linearity" if kind == "neurons" else "a softmax per head"
            reasons.append(f"{where}: units behind {what} must be plain copies, or read by nobody")
        for norm, to_stream in sorted(facts.norms.get(axis, ())):
            scale = (norm_scale or {}).get(axis, 1.0)
            reasons += [f"{where}: {r}" for r in _norm(m, norm, to_stream, scale)]
    reasons += _attention(facts, maps)
    reasons += _groups(facts, maps)
    reasons += _tied(facts, maps)
    return approximate(reasons)


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


def _norm(m: AxisMap, norm: str, to_stream: bool, scale: float) -> list[str]:
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
    if to_stream and (out or not same):
        out.append(f"{name} writes the stream (post-norm), where only whole ratios are exact")
    return out


def _rows_are_constant(kernel: Kernel) -> bool:
    """Every row is a multiple of (1, 1, …, 1)."""
    if not kernel.rows.size:
        return False
    flat = np.abs(kernel.rows - kernel.rows[:, :1]).max(initial=0.0) <= NEAR
    return bool(flat and not kernel.coef.any() and kernel.dense is None)


_NORM_NAMES = {"rms": "RMSNorm", "ln": "LayerNorm"}


def _attention(facts: Facts, maps: Mapping[str, AxisMap]) -> list[str]:
    """Scores stay: write_qᵀ·write_k·(new/old)^power = I, and rotary pairs keep their speed."""
    family = facts.family
    out = []
    for query, key in zip(family.of_kind("query"), family.of_kind("key"), strict=True):
        if query not in maps and key not in maps:
            if facts.theta_after != facts.theta:
                out.append("the rotary base changes, the heads do not")
            continue
        q, k = (maps.get(a) or AxisMap.identity(facts.sizes[a]) for a in (query, key))
        where = f"head_dim {q.old} → {q.new}"
        power = score_power(family, facts.config)
        rho = q.write.transpose().after(k.write).scalar()
        if rho is None or abs(rho * (q.new / q.old) ** power - 1.0) > NEAR:
            out.append(
                f"{where}: attention scores change (writeᵀ·write of q and k is not a multiple of 1)"
            )
        if family.rope and not (
            q.is_identity and k.is_identity and facts.theta == facts.theta_after
        ):
            if facts.rope_type in family.rope.refuse:
                out.append(
                    f"{where}: rotary frequencies of type {facts.rope_type} are more than theta"
                )
            elif not all(_turns(m.write, facts) for m in (q, k)):
                out.append(f"{where}: a rotary pair would turn at another frequency")
    return out


def _turns(kernel: Kernel, facts: Facts) -> bool:
    """Each rotary pair goes to pairs of its own frequency, as a whole (halves layout)."""
    old, new = kernel.old // 2, kernel.new // 2
    if kernel.old % 2 or kernel.new % 2 or not kernel.is_gather or kernel.index.shape[1] != 1:
        return False
    used = kernel.coef[:, 0] != 0
    source, coef = kernel.index[:, 0], kernel.coef[:, 0]
    first, second = np.arange(new), np.arange(new) + new
    if not np.array_equal(used[first], used[second]):
        return False
    rows = first[used[first]]
    if (source[rows] >= old).any() or not np.array_equal(source[rows] + old, source[rows + new]):
        return False
    if np.abs(coef[rows] - coef[rows + new]).max(initial=0.0) > NEAR:
        return False
    before = source[rows] / old * np.log(facts.theta)
    after = rows / new * np.log(facts.theta_after)
    return bool(np.abs(before - after).max(initial=0.0) < NEAR)


def score_power(family: Family, config: Mapping[str, Any]) -> float:
    """Attention scores carry head_dim ** power."""
    switch = family.scores.get("unless_false")
    if switch and config.get(switch) is False:
        return 0.0
    return float(family.scores.get("power", 0.0))


def _groups(facts: Facts, maps: Mapping[str, AxisMap]) -> list[str]:
    """A copied query head meets a copy of its own kv head."""
    sizes = facts.sizes
    if "kv_heads" not in facts.family.axes or not {"heads", "kv_heads"} & maps.keys():
        return []
    heads = maps.get("heads") or AxisMap.identity(sizes["heads"])
    kv = maps.get("kv_heads") or AxisMap.identity(sizes["kv_heads"])
    wrong = f"heads {heads.old} → {heads.new}: a query head would meet the keys of another kv head"
    if heads.new % kv.new or not (heads.write.is_gather and kv.write.is_gather):
        return [wrong]
    seen = np.flatnonzero(~heads.read.zero_rows)
    meets = seen // (heads.new // kv.new)
    if heads.write.index.shape[1] != 1 or not kv.write.unit_rows[meets].all():
        return [wrong]
    own = heads.write.index[seen, 0] // (heads.old // kv.old)
    return [] if np.array_equal(kv.write.index[meets, 0], own) else [wrong]


def _tied(facts: Facts, maps: Mapping[str, AxisMap]) -> list[str]:
    """Embeddings that are also the head: writeᵀ·write_normed = ρ·I, and a norm carries 1/ρ."""
    if facts.untold_tie and facts.family.of_kind("stream")[0] in maps:
        return [
            "config.json ties the head to the embedding, but the family file names no tied head"
        ]
    rho = tie_factor(facts, maps)
    if rho == 1.0:
        return []
    if rho is None:
        return ["tied head: the embedding, grown as a producer, does not read the stream it feeds"]
    if not facts.carrier and not facts.embedding_rule:
        return [
            f"tied head: logits grow by {rho:g}, and no norm before the head can carry 1/{rho:g}"
        ]
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


def prove_scaled_embeddings(facts: Facts, rho: float) -> Claim:
    """A tied head's factor in the embeddings (2404.07999): harmless if a norm comes at once."""
    patterns = facts.family.patterns.values()
    if any(p.to_stream and not p.slots for p in patterns):
        reason = f"embeddings carry 1/{rho:g}, which the norm after them undoes up to eps"
        return Claim(EPS, (reason,), facts.eps, 1)
    return approximate([f"embeddings carry 1/{rho:g}, branches do not: the stream is mixed anew"])


def tie_factor(facts: Facts, maps: Mapping[str, AxisMap]) -> float | None:
    """ρ, by which a tied head scales its logits; 1 if none is tied, None if it is no multiple."""
    if not facts.read_axis:
        return 1.0
    streams = [a for a in facts.family.of_kind("stream") if a in maps]
    if facts.read_axis not in maps and not streams:
        return 1.0
    read = maps.get(facts.read_axis) or AxisMap.identity(facts.sizes[facts.read_axis])
    write = maps[streams[0]] if streams else AxisMap.identity(facts.sizes[facts.read_axis])
    if read.write.shape != write.write.shape:
        return None
    if write.new < write.old and read.new < read.old:  # what growing back would undo
        up = tie_factor(facts, {streams[0]: write.inverse(), facts.read_axis: read.inverse()})
        return 1.0 / up if up else None
    rho = write.write.transpose().after(read.write_normed).scalar()
    return 1.0 if rho is not None and abs(rho - 1.0) < NEAR else rho


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
    if not added or facts.family.residual == "pre":
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


def storage(dtype: str, formulas: Iterable[Formula]) -> Storage:
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
                narrower
                or both_short
                or frexp(term.scale)[0] != 0.5
                or not all(map(plain, term.kernels))
            ):
                return True
    return False
