"""The model between two steps of a recipe, and what proofs may know of it.

The law: a state holds all that later steps, and the plan, need of earlier ones: composed maps, not
the steps. It is made anew by each step, never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.expression import Expression
from growkit.algebra.layer_map import LayerMap, unmoved
from growkit.checkpoints.types import Stored
from growkit.families.config import clamp, norm_eps, rope_bases, rope_type, score_power
from growkit.families.family import Family, Pattern
from growkit.families.model import Model, key_of
from growkit.planning.formula import Kernels, Noise, Ones, Term
from growkit.planning.part import Draw, Part, Parts, ones, patterns_of
from growkit.planning.proof.claim import Claim
from growkit.planning.proof.facts import Facts

INIT_STD = 0.02  # what transformers initialises with where the config has no initializer_range


@dataclass(frozen=True)
class State:
    """The model between two steps; maps are composed over all steps so far, by family axis."""

    model: Model
    sizes: Mapping[str, int]
    config: Mapping[str, Any]
    parts: Mapping[str, Part]
    maps: Mapping[str, AxisMap]  # from the first source to now
    other_maps: Mapping[str, Mapping[str, AxisMap]]  # the same from each source fused with it
    layer_maps: Mapping[str, LayerMap]  # what layers are made of
    tied: bool  # the head is the embedding
    tie_rule: str  # final_norm | embedding: what carries the factor of a tied head
    claim: Claim
    head_factor: float = 1.0  # what the norm before the head is multiplied by, for its logits
    no_null_space: bool = False  # different models stand side by side: no direction is unvisited
    theta_power: float = 1.0  # what RoPE bases have been raised to
    config_maps: Mapping[str, AxisMap] = field(default_factory=dict)  # of axes that no tensor has
    no_matrices: str = ""  # "steps[N]: why" of the first step that no matrix can say


def begin(source: str, model: Model, tied: str) -> State:
    """The model before the first step; `tied` is the recipe's rule for a tied head."""
    parts = {}
    whole: dict[int, Kernels] = {}  # by the number of dims: many tensors share them
    for key, entry in model.entries.items():
        info = entry.info
        stored = Stored(source, info.name, info.shape, info.dtype)
        rank = len(info.shape)
        term = Term(stored, whole.setdefault(rank, (None,) * rank))
        terms = (term, *ones(info.shape, entry.pattern.offset))  # gains as they act
        parts[key] = Part(entry.pattern, entry.numbers, info.name, info.dtype, terms)
    config = dict(model.config)
    is_tied = model.tied
    if tied == "untie" and is_tied:
        head = model.family.head
        assert head is not None
        patterns = model.family.patterns
        spelt = {key_of(model.family, name): name for name, _ in model.same}
        for key, twin in head.ties.items():
            if twin in parts:
                name = spelt.get(key, key)
                parts[key] = replace(parts[twin], pattern=patterns[key], numbers=(), name=name)
        config["tie_word_embeddings"] = is_tied = False
    layers = {
        a: unmoved(model.sizes[a]) for a in model.family.of_kind("layers") if a in model.sizes
    }
    rule = "embedding" if tied == "embedding" else "final_norm"
    return State(model, model.sizes, config, parts, {}, {}, layers, is_tied, rule, Claim())


def facts_of(state: State, theta_power: float = 1.0) -> Facts:
    """What proofs may know of the model; its RoPE bases are about to be raised to `theta_power`."""
    family, config, head = state.model.family, state.config, state.model.family.head
    patterns = patterns_of(state.parts)
    tied = head if state.tied else None
    read = family.patterns[tied.weight].consumed if tied else None
    thetas = rope_bases(family, config)
    return Facts(
        family=family,
        thetas=thetas,
        thetas_after=tuple(theta**theta_power for theta in thetas),
        rope_type=rope_type(family, config),
        score_power=score_power(family, config),
        clamp=clamp(family, config),
        eps=norm_eps(family, config),
        sizes=state.sizes,
        norms=_norms(family, patterns),
        factors=_factors(state.parts),
        nonlinear=frozenset(
            e for p in patterns if p.nonlinear for e, role in p.dims if role == "+"
        ),
        read_axis=read.name if read else "",
        write_axis=family.patterns[tied.tied].dims[-1][0].name if tied else "",
        has_head=bool(head and (state.tied or head.weight in state.parts)),
        carrier=any(head and p.module == head.scale_at for p in patterns),
        embedding_rule=state.tie_rule == "embedding",
        unnamed_tie=head is None and config.get("tie_word_embeddings") is True,
    )


def _norms(
    family: Family, patterns: Iterable[Pattern]
) -> dict[Expression, frozenset[tuple[str, str]]]:
    """The norms over each axis: of what kind, and whether they write the stream or end a branch."""
    norms: dict[Expression, set[tuple[str, str]]] = {}
    for pattern in patterns:
        target = "stream" if pattern.to_stream else "branch" if pattern.branch else ""
        if pattern.over:
            norms.setdefault(pattern.over, set()).add((pattern.norm, target))
    for over, norm in family.bare_norms.items():
        norms.setdefault(over, set()).add((norm, ""))
    return {over: frozenset(kinds) for over, kinds in norms.items()}


def _factors(parts: Parts) -> frozenset[Expression]:
    """What gains without a norm (LayerScale) multiply, but for those that are 1 (folded)."""
    gains = [p for p in parts.values() if p.pattern.is_factor]
    return frozenset(
        gain.pattern.dims[-1][0]
        for gain in gains
        if not all(isinstance(term.source, Ones) for term in gain.terms)
    )


def initialiser(state: State, number: int, seed: int) -> Draw:
    """Draws values for new rows at the config's own scale."""
    std = state.config.get("initializer_range")
    std = float(std) if isinstance(std, int | float) else INIT_STD
    return lambda part, shape: Noise(seed, number, part.name, shape, std=std)
