"""What attention keeps when heads grow: scores, rotary pairs, groups of heads, ALiBi slopes.

    score = head_dim^power · (write_q·q)·(write_k·k)        kept if (new/old)^power · ρ · c² = 1

where write_qᵀ·write_k = ρ·I, and query and key rows, or the gains of norms after them, each carry c
(`fit_scores`). The law: a score is the same number before and after; a rotary pair goes as a whole
to a pair of its own frequency; a query head meets a copy of its own kv head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from typing import NamedTuple

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.expression import Expression
from growkit.algebra.kernel import Kernel
from growkit.algebra.positions import SLOPES, frequencies, rotary_pairs
from growkit.families.family import Attention
from growkit.planning.proof.claim import NEAR
from growkit.planning.proof.facts import Facts


def prove_attention(facts: Facts, maps: Mapping[str, AxisMap]) -> list[str]:
    """Why heads would attend otherwise after growing axes by `maps`."""
    return [
        reason
        for attention in facts.family.attentions
        for prove in (_scores, _groups, _alibi, _clamp)
        for reason in prove(facts, attention, maps)
    ]


class FittedScores(NamedTuple):
    """What keeps attention scores."""

    maps: dict[str, AxisMap]  # with the factors that query and key rows carry
    gains: dict[str, float]  # axis → the factor on gains of query or key norms over it
    no_fresh: frozenset[Expression]  # norms over several heads would see random rows: none here


def fit_scores(facts: Facts, maps: Mapping[str, AxisMap]) -> FittedScores:
    """The maps, with the factors on query and key that keep scores.

    Their rows carry the factor, unless a norm follows that would take it away: then the rows keep
    that norm's mean square, and its gains carry the rest.
    """
    fitted, gains, no_fresh = dict(maps), dict[str, float](), set[Expression]()
    for attention in facts.family.attentions:
        axes = (attention.query, attention.key)
        factor = 1.0
        if all(a in maps for a in axes):
            factor = _score_factor(maps[attention.query], maps[attention.key], facts.score_power)
        for axis in axes:
            over = next((e for e in facts.norms if axis in e.axes), None)
            if over is None:
                if axis in maps:
                    fitted[axis] = maps[axis].scaled(factor)
                continue
            normed = over.map(maps, facts.sizes)
            if normed is None or normed.is_identity:
                continue
            gram = normed.write_normed.transpose().after(normed.write_normed).scalar()
            level = sqrt(normed.new / normed.old / gram) if gram else 1.0
            rows = maps.get(axis) or AxisMap.identity(facts.sizes[axis])
            fitted[axis] = replace(rows, fresh=np.zeros(rows.new, dtype=bool)).scaled(level)
            if fitted[axis].is_identity and axis not in maps:
                del fitted[axis]
            gains[axis] = factor / level
            if over.kind != "axis":
                no_fresh.add(over)
    gains = {axis: gain for axis, gain in gains.items() if gain != 1.0}
    return FittedScores(fitted, gains, frozenset(no_fresh))


def _score_factor(query: AxisMap, key: AxisMap, power: float) -> float:
    """What q and k are multiplied by so that scores stay: (new/old)^power · ρ · factor² = 1.

    On the way down it is one over what growing back would need.
    """
    if query.new < query.old:
        return 1.0 / _score_factor(query.inverse(), key.inverse(), power)
    rho = query.write_normed.transpose().after(key.write_normed).scalar() or 1.0
    return float((query.new / query.old) ** (-power / 2) / sqrt(abs(rho)))


def _scores(facts: Facts, attention: Attention, maps: Mapping[str, AxisMap]) -> list[str]:
    """Scores stay: write_qᵀ·write_k·(new/old)^power = I, and rotary pairs keep their speed."""
    family, axes = facts.family, (attention.query, attention.key)
    same_base = facts.thetas == facts.thetas_after
    if not any(a in maps for a in axes):
        turned = family.rope and not same_base
        return ["the rotary base changes, the heads do not"] if turned else []
    q, k = (maps.get(a) or AxisMap.identity(facts.sizes[a]) for a in axes)
    where = f"{attention.head_dim} {q.old} → {q.new}"
    reasons = []
    gain = facts.gains.get(axes[0], 1.0) * facts.gains.get(axes[1], 1.0)
    normed = {a for e in facts.norms for a in e.axes}
    meet = [m.write_normed if a in normed else m.write for a, m in zip(axes, (q, k), strict=True)]
    rho = meet[0].transpose().after(meet[1]).scalar()
    if rho is None or abs(rho * gain * (q.new / q.old) ** facts.score_power - 1.0) > NEAR:
        reasons.append(
            f"{where}: attention scores change (writeᵀ·write of q and k is not a multiple of 1)"
        )
    for axis, m in zip(axes, (q, k), strict=True):
        mean = m.write.plus(m.write_normed.scaled(-1.0)).cleaned()
        if not mean.zero_rows.all() and not any(axis in e.axes for e in facts.norms):
            reasons.append(
                f"{where}: {axis} gets rows that carry the mean, and no norm takes it away"
            )
    if family.rope and not (q.is_identity and k.is_identity and same_base):
        if facts.rope_type in family.rope.refuse and (q.old != q.new or not same_base):
            reasons.append(
                f"{where}: rotary frequencies of type {facts.rope_type} are more than theta"
            )
        elif not all(_turns(kernel, facts) for kernel in meet):
            reasons.append(f"{where}: a rotary pair would turn at another frequency")
    return reasons


class _PairCopy(NamedTuple):
    """A coordinate of a rotary pair, and what it is a multiple of."""

    pair: int
    old_pair: int
    coef: float


def _turns(kernel: Kernel, facts: Facts) -> bool:
    """Each rotary pair goes, as a whole, to a pair of its own frequency."""
    rope = facts.family.rope
    assert rope is not None
    if not one_source(kernel):
        return False
    new_turned, old_turned = (rope.turns(size) for size in kernel.shape)
    rows = np.flatnonzero(kernel.coef[:, 0])  # new coordinates, and the old ones that they take
    sources, coefs = kernel.index[rows, 0], kernel.coef[rows, 0]
    for before, after in zip(facts.thetas, facts.thetas_after, strict=True):
        frequency = frequencies(rope.pairs, kernel.new, new_turned, after)[rows]
        old_frequency = frequencies(rope.pairs, kernel.old, old_turned, before)[sources]
        if not np.allclose(frequency, old_frequency, rtol=0, atol=NEAR, equal_nan=True):
            return False
    pair, half = (x[rows] for x in rotary_pairs(rope.pairs, kernel.new, new_turned))
    old_pair, old_half = (x[sources] for x in rotary_pairs(rope.pairs, kernel.old, old_turned))
    if not np.array_equal(half, old_half):
        return False
    if rope.numbered and not np.array_equal(pair, old_pair):
        return False

    def copies(of_half: int) -> set[_PairCopy]:
        at = np.flatnonzero((pair >= 0) & (half == of_half)).tolist()
        return {_PairCopy(int(pair[i]), int(old_pair[i]), round(float(coefs[i]), 9)) for i in at}

    return copies(0) == copies(1)


def _alibi(facts: Facts, attention: Attention, maps: Mapping[str, AxisMap]) -> list[str]:
    """Every head that is read stands where its slope is."""
    alibi = facts.family.alibi
    if alibi is None:
        return []
    reasons = []
    heads = maps.get(attention.heads)
    if heads and not heads.is_identity and heads.new >= heads.old:
        seen = np.flatnonzero(~heads.read.zero_rows)
        now, then = SLOPES[alibi.slopes](heads.old), SLOPES[alibi.slopes](heads.new)
        if not np.allclose(then[seen], now[heads.write.index[seen, 0]], rtol=NEAR):
            reasons.append(f"heads {heads.old} → {heads.new}: a head would get another ALiBi slope")
    query = maps.get(attention.query)
    if alibi.scaled and query and query.new != query.old:
        reasons.append(f"head_dim {query.old} → {query.new}: ALiBi biases are divided by √head_dim")
    return reasons


def _clamp(facts: Facts, attention: Attention, maps: Mapping[str, AxisMap]) -> list[str]:
    """What is clamped is copied as it is."""
    if not facts.clamp:
        return []
    axes = (attention.heads, attention.query, attention.key, attention.value)
    grown = [(a, maps[a]) for a in axes if a in maps and maps[a].new >= maps[a].old]
    return [
        f"{a} {m.old} → {m.new}: {facts.clamp} clamps what carries a factor"
        for a, m in grown
        if not m.selective
    ]


def _groups(facts: Facts, attention: Attention, maps: Mapping[str, AxisMap]) -> list[str]:
    """A copied query head meets a copy of its own kv head."""
    sizes, names = facts.sizes, (attention.heads, attention.kv_heads)
    if not attention.kv_heads or not set(names) & maps.keys():
        return []
    heads, kv = (maps.get(a) or AxisMap.identity(sizes[a]) for a in names)
    wrong = f"heads {heads.old} → {heads.new}: a query head would meet the keys of another kv head"
    if heads.new % kv.new or not (heads.write.is_gather and kv.write.is_gather):
        return [wrong]
    seen = np.flatnonzero(~heads.read.zero_rows)
    meets = seen // (heads.new // kv.new)
    if heads.write.index.shape[1] != 1 or not kv.write.unit_rows[meets].all():
        return [wrong]
    met_before = heads.write.index[seen, 0] // (heads.old // kv.old)
    return [] if np.array_equal(kv.write.index[meets, 0], met_before) else [wrong]


def one_source(kernel: Kernel) -> bool:
    """Every row is a multiple of one source."""
    return kernel.is_gather and kernel.index.shape[1] <= 1
