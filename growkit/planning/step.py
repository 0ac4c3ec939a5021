"""One step of a recipe, applied to the model so far: new sizes, config and parts, and its claim.

The law: a step's claim is proved from the very maps that are then applied, compensations for
attention scores and tied heads included. Nothing is mutated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from growkit.algebra.axis_map import chained
from growkit.algebra.expression import Expression
from growkit.algebra.layer_map import composed
from growkit.families.config import (
    check_sizes,
    put_bases,
    remap_layers,
    resize_config,
    scale_eps,
)
from growkit.families.model import Model
from growkit.ops import Growth, LayerMap
from growkit.ops.matrices import no_matrix
from growkit.planning.depth import grow_layers, rescale_scores
from growkit.planning.factors import (
    divide_head,
    embedding_shrinkage,
    fold_factors,
    scale_embeddings,
    scale_norms,
)
from growkit.planning.mix import (
    apply_blend,
    apply_fuse,
)
from growkit.planning.noise import apply_noise, prove_noise
from growkit.planning.proof.attention import fit_scores, one_source
from growkit.planning.proof.claim import Claim
from growkit.planning.proof.depth import prove_depth
from growkit.planning.proof.tied_head import (
    embedding_factor,
    prove_scaled_embeddings,
    tie_factor,
)
from growkit.planning.proof.width import prove_above, prove_norm_scale, prove_width
from growkit.planning.state import State, facts_of, initialiser, tensor_axes
from growkit.planning.width import Composer, grow_axes, grow_numbered

NUMBERED = ("experts", "heads", "kv_heads")  # axes that may stand in tensor names, beside layers


def apply(
    state: State, growth: Growth, number: int, seed: int, models: Mapping[str, Model]
) -> tuple[State, Claim]:
    """The model after a step, and what that step keeps. `number` and `seed` key its random rows."""
    claim = Claim()
    if not state.no_matrices and (why := no_matrix(growth, state.layer_maps)):
        state = replace(state, no_matrices=f"steps[{number}]: {why}")
    if growth.maps or growth.theta_power != 1.0:
        state, claim = _grow_width(state, growth, number, seed)
    for axis, layers in growth.layers.items():
        state, also = _grow_depth(state, axis, layers, number, seed)
        claim = claim.also(also)
    if growth.noise:
        claim = claim.also(prove_noise(state.claim, growth.noise))
        state = apply_noise(state, growth.noise, number, seed)
    if growth.fuse:
        state, also = apply_fuse(state, growth, models, first=number == 0)
        claim = claim.also(also)
    if growth.blend:
        state, also = apply_blend(state, growth.blend, models)
        claim = claim.also(also)
    return replace(state, claim=state.claim.also(claim)), claim


def _grow_width(state: State, growth: Growth, number: int, seed: int) -> tuple[State, Claim]:
    family = state.model.family

    def folds(over: Expression) -> bool:
        m = over.map(growth.maps, state.sizes)
        return m is not None and m.new >= m.old and not one_source(m.write)

    state = replace(state, parts=fold_factors(state.parts, family, state.sizes, folds))
    facts = facts_of(state, growth)
    acted_on = tensor_axes(family, (p.pattern for p in state.parts.values()))
    given = {a: m for a, m in growth.maps.items() if a in acted_on}
    in_config = {a: m for a, m in growth.maps.items() if a not in acted_on}
    maps, gains, still = fit_scores(facts, given)
    facts = replace(facts, gains=gains)
    sizes = {**state.sizes, **{a: m.new for a, m in growth.maps.items()}}
    check_sizes(family, sizes)
    claim = prove_width(facts, maps, growth.norm_scale)
    above = family.of_kind("layers") if growth.above else ()
    for axis in above:
        claim = claim.also(prove_above(facts, axis, maps))
    random = initialiser(state, number, seed)
    parts = grow_axes(state.parts, Composer(maps, state.sizes, still=still), random, sizes, above)
    for axis in family.of_kind(*NUMBERED):
        if axis in maps:
            parts = grow_numbered(parts, axis, maps[axis], random, sizes)
    parts = scale_norms(parts, {a: s**0.5 for a, s in growth.norm_scale.items()})  # as eps times s
    parts = scale_norms(parts, gains, "*~")
    for module in family.multipliers:
        factor = embedding_factor(family, state.sizes, sizes, module)
        parts = scale_embeddings(parts, family, factor, module) if factor != 1.0 else parts
    rho = tie_factor(facts, maps)
    if rho is not None and rho != 1.0 and state.tied and state.tie_rule == "embedding":
        parts = scale_embeddings(parts, family, 1.0 / rho)
        claim = claim.also(prove_scaled_embeddings(facts, rho, embedding_shrinkage(parts, family)))
    elif rho is not None and rho != 1.0 and family.head and facts.carrier:
        state, parts = divide_head(state, parts, family.head, rho)
    config = resize_config(family, state.config, sizes)
    for scale in [*growth.norm_scale.values()][:1]:  # one config key serves all norms
        scale_eps(family, config, scale)
        norms = [p.pattern.over for p in parts.values() if p.pattern.over]
        asked = {a for a, s in growth.norm_scale.items() if s == scale}
        others = sum(not over.axes & asked for over in norms)
        claim = claim.also(prove_norm_scale(facts, scale, others))
    if growth.theta_power != 1.0 and family.rope:
        put_bases(config, family.rope.theta, facts.thetas_after)
    return (
        replace(
            state,
            sizes=sizes,
            config=config,
            parts=parts,
            maps=chained(state.maps, maps),
            config_maps=chained(state.config_maps, in_config),
            theta_power=state.theta_power * growth.theta_power,
            beside={name: chained(known, maps) for name, known in state.beside.items()},
        ),
        claim,
    )


def _grow_depth(
    state: State, axis: str, layers: LayerMap, number: int, seed: int
) -> tuple[State, Claim]:
    family = state.model.family
    random = initialiser(state, number, seed)
    facts = facts_of(state, Growth())
    claim = prove_depth(facts, axis, layers)
    sizes = {**state.sizes, axis: len(layers)}
    parts = grow_layers(state.parts, family, axis, layers, state.sizes, random)
    by_layer = family.scores.get("by_layer")
    if by_layer and state.config.get(by_layer):  # scores are divided by the layer's number
        parts = rescale_scores(parts, family, axis, layers, state.sizes)
    config = remap_layers(family, resize_config(family, state.config, sizes), {axis: layers})
    layer_maps = {**state.layer_maps, axis: composed(state.layer_maps[axis], layers)}
    state = replace(state, sizes=sizes, config=config, parts=parts, layer_maps=layer_maps)
    return state, claim
