"""One step of a recipe, applied to the model so far: new sizes, config and parts, and its claim.

The law: a step's claim is proved from the very maps that are then applied, compensations for
attention scores and tied heads included. Nothing is mutated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from growkit.algebra.axis_map import AxisMap, chained
from growkit.algebra.expression import Expression
from growkit.algebra.kernel import Kernel
from growkit.errors import CheckpointError, RecipeError
from growkit.families.config import (
    check_sizes,
    norm_eps,
    number,
    put_bases,
    remap_layers,
    resize_config,
    scale_eps,
)
from growkit.families.family import Family, Head
from growkit.families.grammar import get
from growkit.families.model import Model
from growkit.ops import Blending, Growth, LayerMap, Noising
from growkit.ops.axis_maps import tile
from growkit.planning.depth import grow_layers, grow_numbered, rescale_scores
from growkit.planning.formula import Noise, Ones, Stored, Term
from growkit.planning.mix import check_fusable, fuse_parts, injections, same_files
from growkit.planning.noise import NewRows, add_visible_noise
from growkit.planning.proof.attention import fit_scores, one_source
from growkit.planning.proof.facts import Claim, Facts, approximate
from growkit.planning.proof.width import (
    embedding_factor,
    level_factor,
    prove_above,
    prove_depth,
    prove_noise,
    prove_norm_scale,
    prove_scaled_embeddings,
    prove_width,
    tie_factor,
)
from growkit.planning.width import (
    Composer,
    Draw,
    Part,
    Parts,
    add_noise,
    blend,
    check_only,
    fold_factors,
    grow_axes,
    ones,
    scale_embeddings,
    scale_modules,
    scale_norms,
    shapes,
)

NUMBERED = ("experts", "heads", "kv_heads")  # axes that may stand in tensor names, beside layers
INIT_STD = 0.02  # what transformers initialises with where the config has no initializer_range


@dataclass(frozen=True)
class State:
    """The model between two steps."""

    model: Model
    sizes: Mapping[str, int]
    config: Mapping[str, Any]
    parts: Mapping[str, Part]
    maps: Mapping[str, AxisMap]  # from the source to now
    beside: Mapping[str, Mapping[str, AxisMap]]  # the same from sources that were fused with it
    layers: Mapping[str, tuple[int, ...]]
    tied: bool  # the head is the embedding
    tie_rule: str  # final_norm | embedding: what carries the factor of a tied head
    claim: Claim
    served: float = 1.0  # what the norm before a head has been multiplied by for it
    filled: bool = False  # no direction is unvisited: different models stand side by side


def begin(source: str, model: Model, tied: str) -> State:
    """The model before the first step; `tied` is the recipe's rule for a tied head."""
    parts = {}
    for key, entry in model.entries.items():
        info = entry.info
        stored = Stored(source, info.name, info.shape, info.dtype)
        term = Term(stored, (None,) * len(info.shape))
        terms = (term, *ones(info.shape, entry.pattern.offset))  # gains as they act
        parts[key] = Part(entry.pattern, entry.numbers, info.name, info.dtype, terms)
    config = dict(model.config)
    is_tied = model.tied
    if tied == "untie" and is_tied:
        head = model.family.head
        assert head is not None
        patterns = model.family.patterns
        for name, twin in head.ties.items():
            if twin in parts:
                parts[name] = replace(parts[twin], pattern=patterns[name], numbers=(), name=name)
        config["tie_word_embeddings"] = is_tied = False
    layers = {
        a: tuple(range(model.sizes[a])) for a in model.family.of_kind("layers") if a in model.sizes
    }
    rule = "embedding" if tied == "embedding" else "final_norm"
    return State(model, model.sizes, config, parts, {}, {}, layers, is_tied, rule, Claim())


def apply(
    state: State, growth: Growth, number: int, seed: int, models: Mapping[str, Model]
) -> tuple[State, Claim]:
    """The model after a step, and what that step keeps. `number` and `seed` key its random rows."""
    claim = Claim()
    if growth.maps or growth.theta_power != 1.0:
        state, claim = _grow_width(state, growth, number, seed)
    for axis, layers in growth.layers.items():
        state, also = _grow_depth(state, axis, layers, number, seed)
        claim = claim.also(also)
    if growth.noise:
        claim = claim.also(prove_noise(state.claim, growth.noise))
        state = _noise(state, growth.noise, number, seed)
    if growth.fuse:
        state, also = _fuse(state, growth, models, first=number == 0)
        claim = claim.also(also)
    if growth.blend:
        state, also = _blend(state, growth.blend, models)
        claim = claim.also(also)
    return replace(state, claim=state.claim.also(claim)), claim


def _facts(state: State, growth: Growth) -> Facts:
    family, config = state.model.family, state.config
    norms: dict[Expression, set[tuple[str, str]]] = {}
    factors, bent = set(), set()
    patterns = {p.pattern.name: p.pattern for p in state.parts.values()}
    for pattern in patterns.values():
        target = "stream" if pattern.to_stream else "branch" if pattern.branch else ""
        if pattern.over:
            norms.setdefault(pattern.over, set()).add((pattern.norm, target))
        bent |= {e for e, role in pattern.dims if pattern.bent and role == "+"}
    for part in state.parts.values() if any(p.is_factor for p in patterns.values()) else ():
        if part.pattern.is_factor and not all(isinstance(t.source, Ones) for t in part.terms):
            factors.add(part.pattern.dims[-1][0])
    for over, norm in family.bare_norms.items():
        norms.setdefault(over, set()).add((norm, ""))
    head, read_axis, write_axis = family.head, "", ""
    if head and state.tied:
        reads = family.patterns[head.weight].consumed
        read_axis = reads.name if reads else ""
        write_axis = family.patterns[head.tied].dims[-1][0].name
    thetas = _thetas(state)
    kinds = [get(config, k) for k in family.rope.type] if family.rope else []
    return Facts(
        family=family,
        config=config,
        sizes=state.sizes,
        norms={e: frozenset(n) for e, n in norms.items()},
        factors=frozenset(factors),
        bent=frozenset(bent),
        read_axis=read_axis,
        write_axis=write_axis,
        headed=bool(head and (state.tied or head.weight in state.parts)),
        carrier=any(head and p.module == head.scale_at for p in patterns.values()),
        thetas=thetas,
        thetas_after=tuple(t**growth.theta_power for t in thetas),
        rope_type=next(filter(None, kinds), "default"),
        eps=norm_eps(family, config),
        embedding_rule=state.tie_rule == "embedding",
        untold_tie=head is None and config.get("tie_word_embeddings") is True,
    )


def _thetas(state: State) -> tuple[float, ...]:
    """The RoPE bases, one for each way that the config has to say one."""
    rope = state.model.family.rope
    out = []
    for keys, base in zip(rope.theta, rope.base, strict=True) if rope else ():
        found = [number(state.config, key) for key in keys]
        out.append(next((t for t in found if t), base))
    return tuple(out)


def _grow_width(state: State, growth: Growth, number: int, seed: int) -> tuple[State, Claim]:
    family = state.model.family

    def folds(over: Expression) -> bool:
        m = over.map(growth.maps, state.sizes)
        return m is not None and m.new >= m.old and not one_source(m.write)

    state = replace(state, parts=fold_factors(state.parts, family, state.sizes, folds))
    facts = _facts(state, growth)
    patterns = {p.pattern.name: p.pattern for p in state.parts.values()}
    there = {a for p in patterns.values() for e, _ in p.dims for a in e.axes}
    there |= {s for p in patterns.values() for s in p.slots if isinstance(s, str)}
    there |= set(family.of_kind("choices"))
    maps, gains, still = fit_scores(facts, {a: m for a, m in growth.maps.items() if a in there})
    facts = replace(facts, gains=gains)
    sizes = {**state.sizes, **{a: m.new for a, m in growth.maps.items()}}
    check_sizes(family, sizes)
    claim = prove_width(facts, maps, growth.norm_scale)
    above = family.of_kind("layers") if growth.above else ()
    for axis in above:
        claim = claim.also(prove_above(facts, axis, maps))
    random = _random(state, number, seed)
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
        claim = claim.also(prove_scaled_embeddings(facts, rho, _shrunk(parts, family)))
    elif rho is not None and rho != 1.0 and family.head and facts.carrier:
        state, parts = _divide_head(state, parts, family.head, rho)
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
            beside={name: chained(known, maps) for name, known in state.beside.items()},
        ),
        claim,
    )


def _divide_head(
    state: State, parts: Parts, head: Head, rho: float
) -> tuple[State, dict[str, Part]]:
    """What the head reads, divided by ρ at the norm before it; what else reads that norm is not."""
    divided = scale_modules(parts, [head.scale_at], 1.0 / rho)
    divided = scale_modules(divided, head.also, rho)
    return replace(state, served=state.served / rho), divided


def _shrunk(parts: Mapping[str, Part], family: Family) -> float:
    """How many times smaller the embedding of a tied head is than in its checkpoint."""
    table = parts[family.head.tied] if family.head else None
    return 1.0 / abs(table.terms[0].scale) if table and table.terms else 1.0


def _random(state: State, number: int, seed: int) -> Draw:
    """Draws values for new rows at the config's own scale."""
    std = state.config.get("initializer_range")
    std = float(std) if isinstance(std, int | float) else INIT_STD
    return lambda part, shape: Noise(seed, number, part.name, shape, std=std)


def _grow_depth(
    state: State, axis: str, layers: LayerMap, number: int, seed: int
) -> tuple[State, Claim]:
    family = state.model.family
    random = _random(state, number, seed)
    facts = _facts(state, Growth())
    claim = prove_depth(facts, axis, layers)
    sizes = {**state.sizes, axis: len(layers)}
    parts = grow_layers(state.parts, family, axis, layers, state.sizes, random)
    by_layer = family.scores.get("by_layer")
    if by_layer and state.config.get(by_layer):  # scores are divided by the layer's number
        parts = rescale_scores(parts, family, axis, layers, state.sizes)
    config = remap_layers(family, resize_config(family, state.config, sizes), {axis: layers})
    origin = tuple(state.layers[axis][n.source] for n in layers)
    state = replace(
        state, sizes=sizes, config=config, parts=parts, layers={**state.layers, axis: origin}
    )
    return state, claim


def _noise(state: State, noise: Noising, number: int, seed: int) -> State:
    if noise.kind == "null_space" and state.filled:
        raise RecipeError(
            "noise: models side by side leave no null space",
            hint="different models need no noise to tell them apart",
        )
    check_only(state.parts, noise.only)
    family, maps, start = state.model.family, state.maps, state.model.sizes
    streams = {*family.of_kind("stream", "latent"), *family.like}
    known: dict[Expression, Kernel | None] = {}

    def null_space(expression: Expression) -> Kernel | None:
        if expression not in known:
            m = expression.map(maps, start)
            kernel = m.null_space(behind_norm=bool(expression.axes & streams)) if m else None
            known[expression] = None if kernel is None or kernel.zero_rows.all() else kernel
        return known[expression]

    known_shapes = shapes(state.parts, state.sizes)

    def make(part: Part, spread: float) -> Noise:
        shape = known_shapes[part.pattern.name]
        return Noise(seed, number, part.name, shape, noise.std, noise.snr_db, part.terms, spread)

    if noise.kind == "null_space":
        return replace(state, parts=add_noise(state.parts, noise.only, null_space, make))
    new = NewRows(maps, start, state.layers)
    return replace(state, parts=add_visible_noise(state.parts, noise, new, make))


def _fuse(
    state: State, growth: Growth, models: Mapping[str, Model], *, first: bool
) -> tuple[State, Claim]:
    family = state.model.family
    rule = "untie" if state.model.tied and not state.tied else state.tie_rule
    others = [begin(name, models[name], rule) for name in growth.fuse]
    for name, other in zip(growth.fuse, others, strict=True):
        check_fusable(state.model, state.sizes, state.parts, other.model, other.parts, name)
    vocabularies = [models[n].checkpoint.vocabulary for n in growth.fuse]
    if {state.model.checkpoint.vocabulary, *vocabularies} - {None, *vocabularies[:1]}:
        raise CheckpointError(
            "fuse: the sources have different tokenizers", hint="fuse models of one vocabulary"
        )
    every = [state, *others]
    sizes = [s.sizes for s in every]
    maps = injections(family, sizes)
    after = {**state.sizes, **{a: sum(s[a] for s in sizes) for a in maps[0]}}
    check_sizes(family, after)
    models_parts = []
    for one in every:
        mine = one.parts
        for module in family.multipliers:
            factor = embedding_factor(family, one.sizes, after, module)
            mine = scale_embeddings(mine, family, factor, module)
        models_parts.append(mine)
    parts = fuse_parts(models_parts, sizes, maps)
    rho = 1.0
    if _facts(state, growth).headed:
        rho = level_factor(family, state.sizes, after, tied=state.tied)
        rho *= len(every) if state.tied else 1
    if state.tied and state.tie_rule == "embedding":
        parts = scale_embeddings(parts, family, 1 / rho)
    elif rho != 1.0 and family.head:
        state, parts = _divide_head(state, parts, family.head, rho)
    copies = first and all(same_files(state.model, other.model) for other in others)
    if copies:
        facts = _facts(state, growth)
        now = {a: tile(state.sizes[a], after[a]) for a in maps[0]}
        claim = prove_width(facts, now)
        if state.tied and state.tie_rule == "embedding":
            claim = claim.also(prove_scaled_embeddings(facts, rho, _shrunk(parts, family)))
    else:
        now = maps[0]
        claim = approximate(["one norm serves the streams of different models"])
    return (
        replace(
            state,
            sizes=after,
            config=resize_config(family, state.config, after),
            parts=parts,
            maps=chained(state.maps, now),
            beside={} if copies else _beside(state, growth, maps),
            filled=not copies,
        ),
        claim,
    )


def _beside(
    state: State, growth: Growth, maps: Sequence[Mapping[str, AxisMap]]
) -> dict[str, Mapping[str, AxisMap]]:
    """The maps of all sources but the first; `maps` are those of the models now fused."""
    earlier = {name: chained(known, maps[0]) for name, known in state.beside.items()}
    return earlier | dict(zip(growth.fuse, maps[1:], strict=True))


def _blend(state: State, mix: Blending, models: Mapping[str, Model]) -> tuple[State, Claim]:
    check_only(state.parts, mix.only)
    other = models[mix.other]
    _check_alike(state, other, mix.other)
    parts = blend(state.parts, begin(mix.other, other, "final_norm").parts, mix.alpha, mix.only)
    if mix.alpha == 1.0:
        return replace(state, parts=parts), Claim()
    reason = f"{1 - mix.alpha:.4g} of {mix.other} is blended in"
    return replace(state, parts=parts), approximate([reason])


def _check_alike(state: State, other: Model, name: str) -> None:
    """Refuse to mix checkpoints that differ in more than their values."""
    family = state.model.family
    here, there = family.user_sizes(state.sizes), other.user_sizes()
    differing = [f"{a} {here[a]} and {there.get(a)}" for a in here if here[a] != there.get(a)]
    if family.name != other.family.name:
        differing = [f"family {family.name} and {other.family.name}"]
    elif state.tied != other.tied:
        differing.append(f"tied head {state.tied} and {other.tied}")
    lacking = sorted(state.parts.keys() ^ other.entries.keys())
    if differing or lacking:
        what = ", ".join(differing) or f"only one of them has {lacking[0]}"
        raise CheckpointError(
            f"source {name}: does not have the shape of the grown model: {what}",
            hint="blend takes a checkpoint of exactly the grown model's sizes",
        )
