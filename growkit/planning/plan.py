"""Recipe + headers → Plan: what every output tensor is made of, and what that keeps.

The plan is frozen, printable and checkable, and it holds no weights. The law: every source tensor
is used or listed as dropped, every output has the shape that the new sizes give it, and the claim
is proved (`growkit.planning.proof`) from the same maps that the formulas are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import frexp, prod
from typing import Any, Literal

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.algebra.layer_map import LayerMap, unmoved
from growkit.checkpoints.types import Checkpoint, Stored
from growkit.dtypes import FLOATS, holds
from growkit.errors import CheckpointError, located
from growkit.families.model import Model
from growkit.families.named_layers import follow_layers
from growkit.ops import Arrays, Growth
from growkit.planning.closure import check_closure
from growkit.planning.formula import Formula, Kernels, Noise
from growkit.planning.hints import hints, side_file_hints
from growkit.planning.part import as_stored, shapes
from growkit.planning.proof.claim import APPROXIMATE, Claim, StepClaim
from growkit.planning.sentence_transformers import GrownModule, embedding_hints, grow_modules
from growkit.planning.state import State, begin
from growkit.planning.step import apply
from growkit.recipe.recipe import Recipe, settings_for


@dataclass(frozen=True)
class Plan:
    """A whole growth, decided."""

    recipe: Recipe
    recipe_name: str
    family: str
    sources: Mapping[str, Checkpoint]  # by the recipe's names; the first is SOURCE
    state: State  # the model after the last step, which the rest is read off
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
    axes: Mapping[str, tuple[str, ...]]  # the axes behind `sizes_after`, as the family names them
    other_maps: Mapping[str, Mapping[str, AxisMap]]  # source fused with the first → the same
    hidden_axis: str | None  # the family axis of the last hidden state
    dropped: tuple[str, ...]  # "name: reason"
    zeroed: tuple[str, ...]  # output tensors that are zero on purpose
    hints: tuple[str, ...]  # the notes are among them
    notes: tuple[str, ...]  # on how the sources were read, and what they lack
    same: tuple[tuple[str, str, str], ...]  # (source, name, name): tied copies that must be equal
    modules: tuple[GrownModule, ...] = ()  # what runs behind the model and has to change

    def __repr__(self) -> str:
        return (
            f"<Plan {self.recipe_name}: {self.family}, {self.parameters_before:,} → "
            f"{self.parameters_after:,} parameters, {self.claim.claim}>"
        )

    @property
    def main(self) -> str:
        """What the recipe calls SOURCE."""
        return self.recipe.sources[0]

    @property
    def layer_maps(self) -> Mapping[str, LayerMap]:
        """What the layers of each stack are made of, over all steps, by family axis."""
        return self.state.layer_maps

    @property
    def config_before(self) -> Mapping[str, Any]:
        """The config.json of SOURCE."""
        return next(iter(self.sources.values())).config


def build_plan(
    recipe_name: str,
    recipe: Recipe,
    models: Mapping[str, Model],
    files: Mapping[str, Arrays] | None = None,
) -> Plan:
    """Apply the recipe's steps to the headers of its sources.

    `files` are the files of maps that steps name, by path.
    Raises RecipeError where a step contradicts the sizes, CheckpointError where sources do not fit.
    """
    first = recipe.sources[0]
    family = models[first].family
    allowed = [recipe.family] if isinstance(recipe.family, str) else recipe.family
    if allowed and family.name not in allowed and not set(family.model_types) & set(allowed):
        raise CheckpointError(
            f"recipe {recipe_name}: made for family {', '.join(allowed)}, "
            f"but the checkpoint is of family {family.name}",
            hint="choose another recipe: growkit recipes",
        )
    state = begin(first, models[first], recipe.tied)
    steps, notes = [], list[str]()
    if settings := settings_for(recipe_name, recipe, family.name):
        notes.append(
            f"for {family.name} the paper has {settings}: recipe {recipe_name}_{family.name}"
        )
    for number, operator in enumerate(recipe.steps):
        with located(f"steps[{number}] ({operator.op})"):
            growth = operator.with_files(files or {}).grow(family, state.sizes)
            state, claim = apply(state, growth, number, recipe.seed, models)
        notes += growth.notes
        steps.append(StepClaim(operator.op, claim.claim, claim.reasons))
    return _plan_of_state(recipe_name, recipe, models, state, tuple(steps), notes)


def plan_of(name: str, model: Model, growths: Iterable[Growth]) -> Plan:
    """The plan of growths of one model that no recipe says; its recipe has no steps."""
    recipe = Recipe.model_construct(steps=())
    models = {recipe.sources[0]: model}
    state = begin(recipe.sources[0], model, recipe.tied)
    for number, growth in enumerate(growths):
        state, _ = apply(state, growth, number, recipe.seed, models)
    return _plan_of_state(name, recipe, models, state, ())


def _plan_of_state(
    recipe_name: str,
    recipe: Recipe,
    models: Mapping[str, Model],
    state: State,
    steps: tuple[StepClaim, ...],
    notes: Iterable[str] = (),
) -> Plan:
    """What the model after the last step makes on disk."""
    family, model = state.model.family, state.model
    forced = {name: code for code, name in FLOATS.items()}.get(recipe.dtype)
    formulas = formulas_of(state, forced)
    config = follow_layers(family, state.config, state.layer_maps, state.maps, model.sizes)
    check_closure(state, formulas)
    if forced:
        config[next((k for k in ("dtype", "torch_dtype") if k in config), "dtype")] = recipe.dtype
    hidden_axis = next((a for a in family.of_kind("stream") if a in state.sizes), None)
    hidden_map = state.maps.get(hidden_axis or "")
    modules = model.checkpoint.modules
    grown_modules = grow_modules(
        modules,
        hidden_map,
        deeper=any(n != unmoved(model.sizes[a]) for a, n in state.layer_maps.items()),
        factor=_hidden_factor(state, hidden_axis),
        dtype=forced,
    )
    warnings = hints(family, state.parts, state.sizes, state.claim, filled=state.no_null_space)
    exact = state.claim.claim != APPROXIMATE
    before, after = model.user_sizes(), family.user_sizes(state.sizes)
    read_notes = tuple(
        dict.fromkeys(n for each in models.values() for n in each.notes(state.sizes))
    )
    return Plan(
        recipe=recipe,
        recipe_name=recipe_name,
        family=family.name,
        sources={name: each.checkpoint for name, each in models.items()},
        state=state,
        formulas=formulas,
        config=config,
        sizes_before=before,
        sizes_after=after,
        parameters_before=sum(prod(e.info.shape) for e in model.entries.values()),
        parameters_after=sum(prod(f.shape) for f in formulas),
        claim=state.claim,
        steps=steps,
        storage=storage_claim(_most_used_dtype(formulas), formulas),
        maps=state.maps,
        axes={u: a for u, a in family.user_axes.items() if a[0] in state.sizes},
        other_maps=state.other_maps,
        hidden_axis=hidden_axis,
        dropped=tuple(d for each in models.values() for d in each.dropped),
        zeroed=tuple(p.name for p in state.parts.values() if not p.terms),
        hints=(
            *notes,
            *read_notes,
            *warnings,
            *embedding_hints(modules, grown_modules, hidden_map, exact=exact),
            *side_file_hints(model.checkpoint, before, after),
        ),
        notes=read_notes,
        same=tuple((name, *pair) for name, each in models.items() for pair in each.same),
        modules=grown_modules,
    )


def formulas_of(state: State, forced: str | None = None) -> tuple[Formula, ...]:
    """What each output tensor is made of; all are of the dtype `forced`, if there is one."""
    shape_of = shapes(state.parts, state.sizes)
    formulas = []
    numbers_of: dict[Any, tuple[tuple[str | int, int], ...]] = {}  # of many tensors, the same
    for part in state.parts.values():
        shape = shape_of[part.pattern.name]
        terms = as_stored(part, shape)
        key = (part.pattern.slots, part.numbers)
        numbers = numbers_of.get(key)
        if numbers is None:
            numbers = numbers_of[key] = tuple(zip(*key, strict=True))
        dtype = forced or part.dtype
        formulas.append(Formula(part.name, shape, dtype, terms, part.pattern.dims, numbers))
    for kernels, shape in {(t.kernels, f.shape) for f in formulas for t in f.terms}:
        for kernel, size in zip(kernels, shape, strict=True):
            assert kernel is None or kernel.new == size, f"{kernel.shape} for {shape}"
    return tuple(formulas)


def _most_used_dtype(formulas: Sequence[Formula]) -> str:
    """The dtype of most numbers."""
    dtypes = {f.dtype for f in formulas}
    most = max(dtypes, key=lambda d: sum(prod(f.shape) for f in formulas if f.dtype == d))
    return FLOATS[most]


def _hidden_factor(state: State, stream: str | None) -> float:
    """By what the last hidden state is multiplied, beside its map: the last norm may serve a head.

    Of a model of two stacks it is the first stack's, whose norms serve no head.
    """
    family = state.model.family
    serves = any(
        family.head and p.pattern.module == family.head.scale_at and p.pattern.over
        and stream in p.pattern.over.axes
        for p in state.parts.values()
    )  # fmt: skip
    return state.head_factor if serves and len(family.of_kind("layers")) == 1 else 1.0


@dataclass(frozen=True, slots=True)
class Storage:
    """Whether the storage dtype holds every factor exactly."""

    dtype: str  # "float32", "bfloat16", …
    claim: Literal["exact", "rounded"]


def storage_claim(dtype: str, formulas: Iterable[Formula]) -> Storage:
    """Whether a storage dtype holds every value of these formulas without rounding."""
    return Storage(dtype, "rounded" if _rounded(formulas) else "exact")


def _rounded(formulas: Iterable[Formula]) -> bool:
    """Whether any value has to be rounded on its way into the storage dtype."""
    kept: set[tuple[str, str, float, Kernels]] = set()  # kinds of terms that are not rounded

    def shifts_exponents(kernel: Kernel | None) -> bool:
        """Whether every row is one source times a power of two."""
        if kernel is None:
            return True
        mantissa = np.frexp(np.abs(kernel.coef[kernel.coef != 0]))[0]
        single = kernel.is_gather and kernel.index.shape[1] <= 1
        return bool(single and (mantissa == 0.5).all())

    for formula in formulas:
        stored = [t for t in formula.terms if isinstance(t.source, Stored)]
        if len(stored) > 1 or any(
            isinstance(t.source, Noise) and t.source.signal for t in formula.terms
        ):
            return True
        for term in stored:
            assert isinstance(term.source, Stored)
            if term.source.by:
                return True
            kind = (formula.dtype, term.source.dtype, term.scale, term.kernels)
            if kind not in kept and (
                not holds(formula.dtype, term.source.dtype)
                or frexp(term.scale)[0] != 0.5
                or not all(map(shifts_exponents, term.kernels))
            ):
                return True
            kept.add(kind)
    return False


@dataclass(frozen=True, slots=True)
class Estimate:
    """What writing a plan will take, known before anything is written (`growkit.runtime`)."""

    output_bytes: int  # of the tensors
    disk_bytes: int  # of all files of weights, headers included
    peak_bytes: int  # of memory
    shards: tuple[str, ...]  # files of the model's weights
    digest: str
