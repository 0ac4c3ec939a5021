"""What a proof may know about a model, and what it says: nouns only.

A claim is one of `exact`, `exact up to norm eps`, `approximate`, with reasons. The law: of two
claims that hold one after the other, the weaker one counts, and no reason is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from growkit.algebra.expression import Expression
from growkit.families.family import Family


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
