"""One step of a recipe, applied to the model so far: new sizes, config and parts, and its claim.

The law: a step's claim is proved from the very maps that are then applied, compensations for
attention scores and tied heads included. No state is mutated.

A step in width goes in an order, since each of these needs those before it:

     1  factors per coordinate (LayerScale) move into projections: a mean row does not pass them
     2  maps of axes that tensors have; the others change config.json alone
     3  maps of query and key rows get the factor that keeps attention scores
     4  the sizes after it
     5  the claim, proved from these maps
     6  every tensor: write · W · readᵀ, with random rows where a map says so
     7  tensors with a unit's number in their names (experts): unit by unit
     8  gains of norms: times √s where the mean square grows by s; what is left of 3 on q/k norms
     9  embeddings that the model's code multiplies by a power of its size: divided by its growth
    10  logits of a tied head, which have grown by ρ: divided at the norm before it, or embeddings
    11  config.json: the sizes
    12  config.json: eps times s
    13  config.json: the RoPE base
    14  the state after it, with its maps behind those of earlier steps
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from growkit.algebra.axis_map import AxisMap, chained
from growkit.algebra.expression import Expression
from growkit.algebra.layer_map import composed
from growkit.families.config import (
    check_sizes,
    norm_eps,
    put_bases,
    remap_layers,
    resize_config,
    scale_eps,
)
from growkit.families.model import Model
from growkit.ops import Growth, LayerMap
from growkit.ops.matrices import no_matrix
from growkit.planning.depth import grow_layers, rescale_scores
from growkit.planning.factors import divide_logits, fold_factors, scale_norms, undo_multipliers
from growkit.planning.mix import apply_blend, apply_fuse
from growkit.planning.noise import apply_noise, prove_noise
from growkit.planning.part import Part, Parts, patterns_of
from growkit.planning.proof.attention import fit_scores, one_source
from growkit.planning.proof.claim import Claim
from growkit.planning.proof.depth import prove_depth
from growkit.planning.proof.facts import Facts
from growkit.planning.proof.tied_head import tie_factor
from growkit.planning.proof.width import prove_above, prove_norm_scale, prove_width
from growkit.planning.state import State, facts_of, initialiser
from growkit.planning.width import Composer, grow_axes, grow_numbered

# kinds of axes whose units, like layers, may have tensors of their own, with their numbers in the
# names: `experts.3.up_proj`, or a norm for each head
NUMBERED = ("experts", "heads", "kv_heads")


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
    """A step in width; the numbers are those of the module's docstring."""
    family = state.model.family
    state = replace(state, parts=_folded(state, growth.maps))  # 1
    given, in_config = _by_use(state, growth.maps)  # 2
    facts = facts_of(state, growth.theta_power)
    maps, gains, no_fresh = fit_scores(facts, given)  # 3
    facts = replace(facts, gains=gains)
    sizes = {**state.sizes, **{a: m.new for a, m in growth.maps.items()}}  # 4
    check_sizes(family, sizes)
    above = family.of_kind("layers") if growth.above else ()
    claim = prove_width(facts, maps, growth.norm_scale)  # 5
    for axis in above:
        claim = claim.also(prove_above(facts, axis, maps))
    random = initialiser(state, number, seed)
    composer = Composer(maps, state.sizes, no_fresh=no_fresh)
    parts = grow_axes(state.parts, composer, random, sizes, above)  # 6
    for axis in family.of_kind(*NUMBERED):  # 7
        if axis in maps:
            parts = grow_numbered(parts, axis, maps[axis], random, sizes)
    parts = scale_norms(parts, {a: s**0.5 for a, s in growth.norm_scale.items()})  # 8
    parts = scale_norms(parts, gains, "*~")
    parts = undo_multipliers(parts, family, state.sizes, sizes)  # 9
    rho = tie_factor(facts, maps)
    if rho is not None and rho != 1.0:  # 10
        state, parts, also = divide_logits(state, parts, facts, rho)
        claim = claim.also(also)
    config = resize_config(family, state.config, sizes)  # 11
    claim = claim.also(_put_eps(config, facts, growth.norm_scale, parts))  # 12
    if growth.theta_power != 1.0 and family.rope:  # 13
        put_bases(config, family.rope.theta, facts.thetas_after)
    grown = replace(  # 14
        state,
        sizes=sizes,
        config=config,
        parts=parts,
        maps=chained(state.maps, maps),
        other_maps={name: chained(before, maps) for name, before in state.other_maps.items()},
        config_maps=chained(state.config_maps, in_config),
        theta_power=state.theta_power * growth.theta_power,
    )
    return grown, claim


def _folded(state: State, maps: Mapping[str, AxisMap]) -> dict[str, Part]:
    """The tensors, with factors per coordinate folded where rows will be mixed of several."""

    def folds(over: Expression) -> bool:
        m = over.map(maps, state.sizes)
        return m is not None and m.new >= m.old and not one_source(m.write)

    return fold_factors(state.parts, state.model.family, state.sizes, folds)


def _by_use(
    state: State, maps: Mapping[str, AxisMap]
) -> tuple[dict[str, AxisMap], dict[str, AxisMap]]:
    """The maps of axes that tensors have, and of those that only config.json has.

    Counts of experts that a router takes are no dim of a tensor, but proofs need their maps.
    """
    on_tensors = set(state.model.family.of_kind("choices"))
    for pattern in patterns_of(state.parts):
        on_tensors |= {axis for expression, _ in pattern.dims for axis in expression.axes}
        on_tensors |= {slot for slot in pattern.slots if isinstance(slot, str)}
    used = {a: m for a, m in maps.items() if a in on_tensors}
    return used, {a: m for a, m in maps.items() if a not in on_tensors}


def _put_eps(
    config: dict[str, Any], facts: Facts, norm_scale: Mapping[str, float], parts: Parts
) -> Claim:
    """The eps of norms times s, in `config`, and what that keeps.

    One key of config.json serves all norms, so there is one s, and norms of axes that did not ask
    for it get it too.
    """
    if not norm_scale:
        return Claim()
    scale = next(iter(norm_scale.values()))
    scale_eps(facts.family, config, scale)
    scaled = {a for a, s in norm_scale.items() if s == scale}
    norms = [p.pattern.over for p in parts.values() if p.pattern.over]
    return prove_norm_scale(facts, scale, sum(not over.axes & scaled for over in norms))


def _grow_depth(
    state: State, axis: str, layers: LayerMap, number: int, seed: int
) -> tuple[State, Claim]:
    family = state.model.family
    random = initialiser(state, number, seed)
    eps = norm_eps(family, state.config)
    claim = prove_depth(family, axis, state.sizes[axis], layers, eps)
    sizes = {**state.sizes, axis: len(layers)}
    parts = grow_layers(state.parts, family, axis, layers, state.sizes, random)
    by_layer = family.scores.get("by_layer")
    if by_layer and state.config.get(by_layer):  # scores are divided by the layer's number
        parts = rescale_scores(parts, family, axis, layers, state.sizes)
    config = remap_layers(family, resize_config(family, state.config, sizes), {axis: layers})
    layer_maps = {**state.layer_maps, axis: composed(state.layer_maps[axis], layers)}
    state = replace(state, sizes=sizes, config=config, parts=parts, layer_maps=layer_maps)
    return state, claim
