"""What a step, or a whole recipe, keeps of the function: a claim and its reasons.

A claim is one of `exact`, `exact up to norm eps`, `approximate`. The law: of two claims that hold
one after the other the weaker one counts, and no reason is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

EXACT = "exact"
EPS = "exact up to norm eps"
APPROXIMATE = "approximate"
LEVELS = (EXACT, EPS, APPROXIMATE)  # from the strongest to the weakest
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


def approximate(reasons: Iterable[str]) -> Claim:
    """`approximate` if there is any reason, else `exact`."""
    distinct = tuple(dict.fromkeys(reasons))
    return Claim(APPROXIMATE if distinct else EXACT, distinct)


@dataclass(frozen=True, slots=True)
class StepClaim:
    """The claim of one step of the recipe."""

    op: str
    claim: str
    reasons: tuple[str, ...] = ()
