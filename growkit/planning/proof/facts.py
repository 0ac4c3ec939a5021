"""What a proof may know about a model: its family and sizes, and what config and tensors say.

The law: nouns only, and no weight. `growkit.planning.state.facts_of` reads them off a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from growkit.algebra.expression import Expression
from growkit.families.family import Family


@dataclass(frozen=True, slots=True)
class Facts:
    """What a proof may know about a model."""

    family: Family
    sizes: Mapping[str, int]  # before the step
    norms: Mapping[Expression, frozenset[tuple[str, str]]]  # over what → (kind, where it goes)
    factors: frozenset[Expression] = frozenset()  # what is multiplied elementwise (LayerScale)
    nonlinear: frozenset[Expression] = frozenset()  # what passes a non-linearity on its way
    read_axis: str = ""  # the axis that a tied head reads; empty if no head is tied
    write_axis: str = ""  # the axis that its embedding writes
    has_head: bool = False  # there is a head: logits come out
    carrier: bool = False  # a norm that feeds the tied head, and only it, can carry a factor
    thetas: tuple[float, ...] = ()  # RoPE bases, before
    thetas_after: tuple[float, ...] = ()
    rope_type: str = "default"
    score_power: float = 0.0  # attention scores carry head_dim ** power
    clamp: str = ""  # the config key by which queries, keys and values are clamped, if they are
    gains: Mapping[str, float] = field(default_factory=dict)  # of query and key norms, by axis
    eps: float = 0.0
    embedding_rule: bool = False  # the embeddings carry a tied head's factor
    unnamed_tie: bool = False  # config.json ties a head that the family file does not name
