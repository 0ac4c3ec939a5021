"""What keeps logits as they were when the stream grows, above all those of a tied head.

A tied head is the embedding, and grows as a producer: logits become (write·e)·(write_normed·x),
which is ρ·(e·x) if writeᵀ·write_normed = ρ·I. They stay if the norm before the head, or the
embeddings, carry 1/ρ. Powers of sizes in the model's own code are part of ρ, also where no head is
tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil

from growkit.algebra.axis_map import AxisMap
from growkit.families.family import Family
from growkit.planning.proof.claim import EPS, NEAR, Claim, approximate
from growkit.planning.proof.facts import Facts


def tied_head_reasons(facts: Facts, maps: Mapping[str, AxisMap]) -> list[str]:
    """Embeddings that are also the head: writeᵀ·write_normed = ρ·I, and a norm carries 1/ρ."""
    if facts.unnamed_tie and maps.keys() & {*facts.family.of_kind("stream")}:
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
    if not facts.has_head:
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
