"""What a proof may know about a model, and what it says: nouns only.

A claim is one of `exact`, `exact up to norm eps`, `approximate`, with reasons. The law: of two
claims that hold one after the other, the weaker one counts, and no reason is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from growkit.algebra.expression import Expression
from growkit.families.family import Family

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
class Facts:
    """What a proof may know about a model."""

    family: Family
    config: Mapping[str, Any]
    sizes: Mapping[str, int]  # before the step
    norms: Mapping[Expression, frozenset[tuple[str, str]]]  # over what → (kind, where it goes)
    factors: frozenset[Expression] = frozenset()  # what is multiplied elementwise (LayerScale)
    bent: frozenset[Expression] = frozenset()  # what passes a non-linearity on its way
    read_axis: str = ""  # the axis that a tied head reads; empty if no head is tied
    write_axis: str = ""  # the axis that its embedding writes
    headed: bool = False  # there is a head: logits come out
    carrier: bool = False  # a norm that feeds the tied head, and only it, can carry a factor
    thetas: tuple[float, ...] = ()  # RoPE bases, before
    thetas_after: tuple[float, ...] = ()
    rope_type: str = "default"
    gains: Mapping[str, float] = field(default_factory=dict)  # of query and key norms, by axis
    eps: float = 0.0
    embedding_rule: bool = False  # the embeddings carry a tied head's factor
    untold_tie: bool = False  # config.json ties a head that the family file does not name


def approximate(reasons: Iterable[str]) -> Claim:
    """`approximate` if there is any reason, else `exact`."""
    found = tuple(dict.fromkeys(reasons))
    return Claim(APPROXIMATE if found else EXACT, found)
