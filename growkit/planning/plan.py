"""Recipe + headers → Plan: what every output tensor is made of, and what that keeps.

The plan is frozen, printable and checkable, and it holds no weights. The law: every source tensor
is used or listed as dropped, every output has the shape that the new sizes give it, and the claim
is proved (`growkit.planning.proof`) from the same maps that the formulas are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import frexp, prod
from typing import Any, Literal

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Checkpoint, Stored
from growkit.dtypes import FLOATS, holds
from growkit.errors import CheckpointError, located
from growkit.families.model import Model
from growkit.ops import Arrays, Growth
from growkit.planning.depth import silent_layers
from growkit.planning.formula import Formula, Noise
from growkit.planning.hints import hints
from growkit.planning.part import as_stored, shapes
from growkit.planning.proof.claim import APPROXIMATE, Claim, StepClaim
from growkit.planning.sentence_transformers import Follower, embedding_hints, follow
from growkit.planning.state import State, begin
from growkit.planning.step import apply
from growkit.recipe.recipe import Recipe


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
    growths: tuple[Growth, ...]  # what each step said
    storage: Storage
    maps: Mapping[str, AxisMap]  # composed over all steps, by family axis
    axes: Mapping[str, tuple[str, ...]]  # the axes behind `sizes_after`, as the family names them
    beside: Mapping[str, Mapping[str, AxisMap]]  # source → the same, of those fused with the first
    layers: Mapping[str, tuple[int, ...]]  # layer axis → the old layer that each new one copies
    silent: Mapping[str, frozenset[int]]  # layer axis → layers that add nothing to the stream
    readback: str | None  # the family axis of the last hidden state
    dropped: tuple[str, ...]  # "name: reason"
    zeroed: tuple[str, ...]  # output tensors that are zero on purpose
    hints: tuple[str, ...]
    same: tuple[tuple[str, str, str], ...]  # (source, name, name): tied copies that must be equal
    stages: tuple[Follower, ...] = ()  # what runs behind the model and has to change

    @property
    def main(self) -> str:
        """What the recipe calls SOURCE."""
        return self.recipe.sources[0]

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
    model = models[first]
    family = model.family
    allowed = [recipe.family] if isinstance(recipe.family, str) else recipe.family
    if allowed and family.name not in allowed and not set(family.model_types) & set(allowed):
        raise CheckpointError(
            f"recipe {recipe_name}: made for family {', '.join(allowed)}, "
            f"but the checkpoint is of family {family.name}",
            hint="choose another recipe: growkit recipes",
        )
    state = begin(first, model, recipe.tied)
    steps, growths = [], []
    for number, operator in enumerate(recipe.steps):
        with located(f"steps[{number}] ({operator.op})"):
            growth = operator.with_files(files or {}).grow(family, state.sizes)
            state, claim = apply(state, growth, number, recipe.seed, models)
        steps.append(StepClaim(operator.op, claim.claim, claim.reasons))
        growths.append(growth)
    return finish(recipe_name, recipe, models, state, tuple(steps), tuple(growths))


# -- the end -------------------------------------------------------------------------------------


def finish(
    recipe_name: str,
    recipe: Recipe,
    models: Mapping[str, Model],
    state: State,
    steps: tuple[StepClaim, ...],
    growths: tuple[Growth, ...] = (),
) -> Plan:
    family = state.model.family
    want = {v: k for k, v in FLOATS.items()}.get(recipe.dtype)
    formulas = []
    known = shapes(state.parts, state.sizes)
    for part in state.parts.values():
        shape = known[part.pattern.name]
        terms = as_stored(part, shape)
        numbers = tuple(zip(part.pattern.slots, part.numbers, strict=True))
        dtype = want or part.dtype
        formulas.append(Formula(part.name, shape, dtype, terms, part.pattern.dims, numbers))
    for kernels, shape in {(t.kernels, f.shape) for f in formulas for t in f.terms}:
        for kernel, size in zip(kernels, shape, strict=True):
            assert kernel is None or kernel.new == size, f"{kernel.shape} for {shape}"
    config = dict(state.config)
    if want:
        key = next((k for k in ("dtype", "torch_dtype") if k in config), "dtype")
        config[key] = recipe.dtype
    dtypes = {f.dtype for f in formulas}
    dtype = FLOATS[max(dtypes, key=lambda d: sum(prod(f.shape) for f in formulas if f.dtype == d))]
    before = sum(prod(e.info.shape) for e in state.model.entries.values())
    readback = next((a for a in family.of_kind("stream") if a in state.sizes), None)
    behind = state.model.checkpoint.stages
    grown = state.maps.get(readback or "")
    followers = follow(
        behind,
        grown,
        deeper=any(layers != (*range(state.model.sizes[a]),) for a, layers in state.layers.items()),
        factor=_put_out(state, readback),
        dtype=want,
    )
    exact = state.claim.claim != APPROXIMATE
    return Plan(
        recipe=recipe,
        recipe_name=recipe_name,
        family=family.name,
        sources={n: m.checkpoint for n, m in models.items()},
        formulas=tuple(formulas),
        config=config,
        sizes_before=state.model.user_sizes(),
        sizes_after=family.user_sizes(state.sizes),
        parameters_before=before,
        parameters_after=sum(prod(f.shape) for f in formulas),
        claim=state.claim,
        steps=steps,
        growths=growths,
        storage=storage_claim(dtype, formulas),
        maps=state.maps,
        axes={u: a for u, a in family.user_axes.items() if a[0] in state.sizes},
        beside=state.beside,
        layers=state.layers,
        silent={a: silent_layers(state.parts, family, a) for a in state.layers},
        readback=readback,
        dropped=tuple(d for m in models.values() for d in m.dropped),
        zeroed=tuple(p.name for p in state.parts.values() if not p.terms),
        hints=(
            *hints(family, state.parts, state.sizes, state.claim, filled=state.filled),
            *embedding_hints(behind, followers, grown, exact=exact),
        ),
        same=tuple((n, *pair) for n, m in models.items() for pair in m.same),
        stages=followers,
    )


def _put_out(state: State, stream: str | None) -> float:
    """By what the last hidden state is multiplied, beside its map: the last norm may serve a head.

    Of a model of two stacks it is the first stack's, whose norms serve no head.
    """
    family = state.model.family
    serves = any(
        family.head and p.pattern.module == family.head.scale_at and p.pattern.over
        and stream in p.pattern.over.axes
        for p in state.parts.values()
    )  # fmt: skip
    return state.served if serves and len(family.of_kind("layers")) == 1 else 1.0


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
    known: dict[int, bool] = {}

    def plain(kernel: Kernel | None) -> bool:
        if kernel is None:
            return True
        if id(kernel) not in known:
            mantissa = np.frexp(np.abs(kernel.coef[kernel.coef != 0]))[0]
            single = kernel.is_gather and kernel.index.shape[1] <= 1
            known[id(kernel)] = bool(single and (mantissa == 0.5).all())
        return known[id(kernel)]

    for formula in formulas:
        stored = [t for t in formula.terms if isinstance(t.source, Stored)]
        if len(stored) > 1 or any(
            isinstance(t.source, Noise) and t.source.signal for t in formula.terms
        ):
            return True
        for term in stored:
            assert isinstance(term.source, Stored)
            if (
                term.source.by
                or not holds(formula.dtype, term.source.dtype)
                or frexp(term.scale)[0] != 0.5
                or not all(map(plain, term.kernels))
            ):
                return True
    return False


@dataclass(frozen=True, slots=True)
class Estimate:
    """What writing a plan will take, known before anything is written (`growkit.runtime`)."""

    output_bytes: int  # of the tensors
    disk_bytes: int  # of all files of weights, headers included
    peak_bytes: int  # of memory
    shards: tuple[str, ...]  # files of the model's weights
    digest: str
