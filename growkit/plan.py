"""Recipe + headers → Plan: what every output tensor is made of, and what that keeps.

The plan is frozen, printable and checkable, and it holds no weights. The law: every source tensor
is used or listed as dropped, every output has the shape that the new sizes give it, and the claim
is proved (`growkit.proof`) from the same maps that the formulas are made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any

from growkit import proof
from growkit.axes import AxisMap, Kernel
from growkit.compose import (
    Composer,
    Part,
    add_noise,
    blend,
    check_only,
    grow_axes,
    grow_layers,
    scale_modules,
)  # fmt: skip
from growkit.errors import CheckpointError, RecipeError
from growkit.expression import Expression
from growkit.formula import Checkpoint, Formula, Noise, Shape, Stored, Term
from growkit.lints import lints
from growkit.model import (
    DTYPES,
    Model,
    check_sizes,
    get,
    put,
    remap_layers,
    resize_config,
    user_sizes,
)  # fmt: skip
from growkit.ops import Blending, Growth, LayerMap, Noising
from growkit.proof import Claim, Facts, StepClaim, Storage
from growkit.recipe import Recipe

INIT_STD = 0.02  # what transformers initialises with where the config has no initializer_range


@dataclass(frozen=True)
class Plan:
    """A whole growth, decided."""

    recipe: Recipe
    recipe_name: str
    family: str
    sources: Mapping[str, Checkpoint]  # by the recipe's names; the first is SOURCE
    formulas: tuple[Formula, ...]
    config: Mapping[str, Any]  # the new config.json
    sizes_before: Mapping[str, int]  # by user axis
    sizes_after: Mapping[str, int]
    parameters_before: int
    parameters_after: int
    claim: Claim
    steps: tuple[StepClaim, ...]
    storage: Storage
    maps: Mapping[str, AxisMap]  # composed over all steps, by family axis
    layers: Mapping[str, tuple[int, ...]]  # layer axis → the old layer that each new one copies
    readback: str | None  # the family axis of the last hidden state
    dropped: tuple[str, ...]  # "name: reason"
    zeroed: tuple[str, ...]  # output tensors that are zero on purpose
    lints: tuple[str, ...]
    same: tuple[tuple[str, str, str], ...]  # (source, name, name): tied copies that must be equal

    @property
    def config_before(self) -> Mapping[str, Any]:
        """The config.json of SOURCE."""
        return next(iter(self.sources.values())).config


@dataclass(frozen=True)
class _State:
    """The model between two steps."""

    model: Model
    sizes: Mapping[str, int]
    config: Mapping[str, Any]
    parts: Mapping[str, Part]
    maps: Mapping[str, AxisMap]  # from the source to now
    layers: Mapping[str, tuple[int, ...]]
    tied: bool
    claim: Claim


def build_plan(recipe_name: str, recipe: Recipe, models: Mapping[str, Model]) -> Plan:
    """Apply the recipe's steps to the headers of its sources.

    Raises RecipeError where a step contradicts the sizes, CheckpointError where sources do not fit.
    """
    first = recipe.sources[0]
    model = models[first]
    family = model.family
    allowed = [recipe.family] if isinstance(recipe.family, str) else recipe.family
    if allowed and family.name not in allowed and not set(family.model_types) & set(allowed):
        raise CheckpointError(
            f"recipe {recipe_name}: made for family {', '.join(allowed)}, "
            f"but the checkpoint is of family {family.name}",
            hint="choose another recipe: growkit recipes",
        )
    state = _begin(first, model, untie=recipe.tied == "untie")
    steps = []
    for number, operator in enumerate(recipe.steps):
        where = f"steps[{number}] ({operator.op})"
        try:
            growth = operator.grow(family, state.sizes)
            state, claim = _step(state, growth, number, recipe.seed, models)
        except RecipeError as error:
            raise RecipeError(f"{where}: {error.message}", hint=error.hint) from None
        steps.append(StepClaim(operator.op, claim.claim, claim.reasons))
    return _finish(recipe_name, recipe, models, state, tuple(steps))


def _begin(source: str, model: Model, *, untie: bool) -> _State:
    parts = {}
    for key, entry in model.entries.items():
        info = entry.info
        stored = Stored(source, info.name, info.shape, info.dtype)
        term = Term(stored, (None,) * len(info.shape))
        parts[key] = Part(entry.pattern, entry.numbers, info.name, info.dtype, (term,))
    config = dict(model.config)
    tied = model.tied
    if untie and tied:
        head = model.family.head
        assert head is not None
        patterns = {p.name: p for p in model.family.patterns.values()}
        for name, twin in head.ties.items():
            if twin in parts:
                parts[name] = replace(parts[twin], pattern=patterns[name], numbers=(), name=name)
        config["tie_word_embeddings"] = tied = False
    layers = {a: tuple(range(model.sizes[a])) for a in model.family.of_kind("layers")}
    return _State(model, model.sizes, config, parts, {}, layers, tied, Claim())


def _step(
    state: _State, growth: Growth, number: int, seed: int, models: Mapping[str, Model]
) -> tuple[_State, Claim]:
    claim = Claim()
    if growth.maps or growth.theta_power != 1.0:
        state, claim = _grow_width(state, growth, number, seed)
    for axis, layers in growth.layers.items():
        state, also = _grow_depth(state, axis, layers)
        claim = claim.also(also)
    if growth.noise:
        claim = claim.also(proof.prove_noise(state.claim, state.maps))
        state = _noise(state, growth.noise, number, seed)
    if growth.blend:
        state, also = _blend(state, growth.blend, models)
        claim = claim.also(also)
    return replace(state, claim=state.claim.also(claim)), claim


def _facts(state: _State, growth: Growth) -> Facts:
    family, config = state.model.family, state.config
    norms: dict[str, set[tuple[str, bool]]] = {}
    for part in state.parts.values():
        if part.pattern.norm:
            for axis in part.pattern.dims[0][0].axes:
                norms.setdefault(axis, set()).add((part.pattern.norm, part.pattern.to_stream))
    head = family.head
    read_axis = ""
    if head and state.tied:
        reads = next(p.consumed for p in family.patterns.values() if p.name == head.weight)
        read_axis = reads.name if reads else ""
    theta = _theta(state)
    kind = (
        next((get(config, k) for k in family.rope.type if get(config, k)), "")
        if family.rope
        else ""
    )
    return Facts(
        family=family,
        config=config,
        sizes=state.sizes,
        norms={a: frozenset(n) for a, n in norms.items()},
        read_axis=read_axis,
        carrier=any(head and p.pattern.module == head.scale_at for p in state.parts.values()),
        theta=theta,
        theta_after=theta**growth.theta_power,
        rope_type=kind or "default",
        eps=_number(config, family.eps) or 0.0,
        untold_tie=head is None and config.get("tie_word_embeddings") is True,
    )


def _theta(state: _State) -> float:
    rope = state.model.family.rope
    found = [_number(state.config, key) for key in rope.theta] if rope else []
    return next((t for t in found if t), 10000.0)


def _number(config: Mapping[str, Any], key: str) -> float | None:
    """A number of the config; None where it is absent."""
    value = get(config, key) if key else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        raise CheckpointError(
            f"config.json: {key}: expected a number, found {value!r}", hint="mend config.json"
        )
    return float(value)


def _grow_width(state: _State, growth: Growth, number: int, seed: int) -> tuple[_State, Claim]:
    family = state.model.family
    facts = _facts(state, growth)
    there = {a for p in state.parts.values() for e, _ in p.pattern.dims for a in e.axes}
    maps = {a: m for a, m in growth.maps.items() if a in there}
    for query, key in zip(family.of_kind("query"), family.of_kind("key"), strict=True):
        if (
            query in maps and key in maps
        ):  # scores keep their size: (new/old)^power · ρ · factor² = 1
            power = proof.score_power(family, state.config)
            rho = maps[query].write.transpose().after(maps[key].write).scalar() or 1.0
            factor = (maps[query].new / maps[query].old) ** (-power / 2) / sqrt(abs(rho))
            maps[query], maps[key] = maps[query].scaled(factor), maps[key].scaled(factor)
    sizes = {**state.sizes, **{a: m.new for a, m in growth.maps.items()}}
    check_sizes(family, sizes)
    claim = proof.prove_width(facts, maps)
    std = state.config.get("initializer_range")
    std = float(std) if isinstance(std, int | float) else INIT_STD

    def random(part: Part, shape: Shape) -> Noise:
        return Noise(seed, number, part.name, shape, std=std)

    parts = grow_axes(state.parts, Composer(maps, state.sizes), random, sizes)
    rho_tied = proof.tie_factor(facts, maps)
    head = family.head
    if head and facts.carrier and rho_tied not in (None, 1.0):
        parts = scale_modules(parts, [head.scale_at], 1.0 / rho_tied)
        parts = scale_modules(parts, head.also, rho_tied)
    config = resize_config(family, state.config, sizes)
    if growth.theta_power != 1.0 and family.rope:
        present = [k for k in family.rope.theta if get(config, k) is not None]
        for path in present or family.rope.theta[-1:]:
            put(config, path, facts.theta_after)
    return (
        replace(
            state,
            sizes=sizes,
            config=config,
            parts=parts,
            maps={**state.maps, **{a: _then(state.maps.get(a), m) for a, m in maps.items()}},
        ),
        claim,
    )


def _then(first: AxisMap | None, later: AxisMap) -> AxisMap:
    return first.then(later) if first else later


def _grow_depth(state: _State, axis: str, layers: LayerMap) -> tuple[_State, Claim]:
    family = state.model.family
    facts = _facts(state, Growth())
    claim = proof.prove_depth(facts, axis, layers)
    sizes = {**state.sizes, axis: len(layers.source)}
    parts = grow_layers(state.parts, family, axis, layers, state.sizes)
    by_layer = family.scores.get("by_layer")
    if by_layer and state.config.get(by_layer):  # scores are divided by the layer's number
        parts = _rescale_scores(parts, family, axis, layers, state.sizes)
    config = remap_layers(family, resize_config(family, state.config, sizes), {axis: layers})
    origin = tuple(state.layers[axis][i] for i in layers.source)
    state = replace(
        state, sizes=sizes, config=config, parts=parts, layers={**state.layers, axis: origin}
    )
    return state, claim


def _rescale_scores(
    parts: Mapping[str, Part], family: Any, axis: str, layers: LayerMap, sizes: Mapping[str, int]
) -> dict[str, Part]:
    """Queries times (new layer + 1) / (old layer + 1)."""
    out = dict(parts)
    query = family.of_kind("query")[0]
    for new, old in enumerate(layers.source):
        if new == old:
            continue
        factor = (new + 1) / (old + 1)
        scaled = AxisMap.of(
            Kernel.identity(sizes[query], factor), Kernel.identity(sizes[query], 1.0)
        )
        composer = Composer({query: scaled}, sizes)
        here = {
            k: p
            for k, p in parts.items()
            if axis in p.pattern.slots and p.numbers[p.pattern.slots.index(axis)] == new
        }
        out |= grow_axes(here, composer, _no_random, sizes)
    return out


def _no_random(part: Part, shape: Shape) -> Noise:
    raise AssertionError("scaling makes no new rows")


def _noise(state: _State, noise: Noising, number: int, seed: int) -> _State:
    check_only(state.parts, noise.only)
    family, maps, start = state.model.family, state.maps, state.model.sizes
    streams = set(family.of_kind("stream")) | set(family.like)
    known: dict[Expression, Kernel | None] = {}

    def null_space(expression: Expression) -> Kernel | None:
        if expression not in known:
            m = expression.map(maps, start)
            kernel = m.null_space(behind_norm=bool(expression.axes & streams)) if m else None
            known[expression] = None if kernel is None or kernel.zero_rows.all() else kernel
        return known[expression]

    def make(part: Part, spread: float) -> Noise:
        shape = part.shape(state.sizes)
        return Noise(
            seed, number, part.name, shape, snr_db=noise.snr_db, signal=part.terms, spread=spread
        )

    return replace(state, parts=add_noise(state.parts, noise.only, null_space, make))


def _blend(state: _State, mix: Blending, models: Mapping[str, Model]) -> tuple[_State, Claim]:
    check_only(state.parts, mix.only)
    other = models[mix.other]
    _check_alike(state, other, mix.other)
    terms = {}
    for key, part in state.parts.items():
        info = other.entries[key].info
        stored = Stored(mix.other, info.name, info.shape, info.dtype)
        terms[key] = Term(stored, (None,) * len(part.pattern.dims))
    parts = blend(state.parts, terms, mix.alpha, mix.only)
    if mix.alpha == 1.0:
        return replace(state, parts=parts), Claim()
    reason = f"{1 - mix.alpha:.4g} of {mix.other} is blended in"
    return replace(state, parts=parts), proof.approximate([reason])


def _check_alike(state: _State, other: Model, name: str) -> None:
    """Refuse to mix checkpoints that differ in more than their values."""
    family = state.model.family
    here, there = user_sizes(family, state.sizes), other.user_sizes()
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


# -- the end -------------------------------------------------------------------------------------


def _finish(
    recipe_name: str,
    recipe: Recipe,
    models: Mapping[str, Model],
    state: _State,
    steps: tuple[StepClaim, ...],
) -> Plan:
    family = state.model.family
    want = {v: k for k, v in DTYPES.items()}.get(recipe.dtype)
    formulas = []
    for part in state.parts.values():
        shape = part.shape(state.sizes)
        for term in part.terms:
            for kernel, size in zip(term.kernels, shape, strict=True):
                assert kernel is None or kernel.new == size, (
                    f"{part.name}: {kernel.shape} for {shape}"
                )
        dtype = want or part.dtype
        formulas.append(Formula(part.name, shape, dtype, part.terms, part.pattern.dims))
    config = dict(state.config)
    if want:
        key = next((k for k in ("dtype", "torch_dtype") if k in config), "dtype")
        config[key] = recipe.dtype
    dtypes = {f.dtype for f in formulas}
    dtype = DTYPES[max(dtypes, key=lambda d: sum(prod(f.shape) for f in formulas if f.dtype == d))]
    before = sum(prod(e.info.shape) for e in state.model.entries.values())
    noisy = any(step.op in ("noise", "blend") for step in recipe.steps)
    return Plan(
        recipe=recipe,
        recipe_name=recipe_name,
        family=family.name,
        sources={n: m.checkpoint for n, m in models.items()},
        formulas=tuple(formulas),
        config=config,
        sizes_before=state.model.user_sizes(),
        sizes_after=user_sizes(family, state.sizes),
        parameters_before=before,
        parameters_after=sum(prod(f.shape) for f in formulas),
        claim=state.claim,
        steps=steps,
        storage=proof.storage(dtype, formulas),
        maps=state.maps,
        layers=state.layers,
        readback=next(iter(family.of_kind("stream")), None),
        dropped=tuple(d for m in models.values() for d in m.dropped),
        zeroed=tuple(p.name for p in state.parts.values() if not p.terms),
        lints=tuple(lints(family, state.maps, noisy=noisy)),
        same=tuple((n, *pair) for n, m in models.items() for pair in m.same),
    )
