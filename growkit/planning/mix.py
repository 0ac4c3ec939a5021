"""Several models in one: fused side by side, or blended element by element.

    fuse    W' = Σ_s  write_s · W_s · read_sᵀ     (Deep Fusion, 2306.11903)
    blend   W' = alpha · W + (1 − alpha) · W_other

In a fusion each of K sources has a block of every grown axis to itself: write_s puts its units
there. Tensors that do not grow where they write (heads, biases of heads) are the mean of all, so
they are divided by K. The law: everything that is not a size must agree, and for a blend sizes too,
or it is refused with what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from growkit.algebra.axis_map import AxisMap, chained
from growkit.algebra.expression import Expression
from growkit.algebra.kernel import Kernel
from growkit.errors import CheckpointError
from growkit.families.config import check_sizes, resize_config
from growkit.families.family import Family
from growkit.families.model import Model
from growkit.ops import Blending, Growth
from growkit.ops.axis_maps import tile
from growkit.planning.factors import divide_logits, undo_multipliers
from growkit.planning.part import Part, Parts, check_only, chosen
from growkit.planning.proof.claim import Claim, approximate
from growkit.planning.proof.tied_head import level_factor
from growkit.planning.proof.width import prove_width
from growkit.planning.state import State, begin, facts_of
from growkit.planning.width import Composer

KINDS = ("stream", "latent", "heads", "kv_heads", "neurons")  # what stands side by side
PASSING = {  # config keys that say nothing about the function
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache",
}  # fmt: skip


def injections(family: Family, sizes: Sequence[Mapping[str, int]]) -> list[dict[str, AxisMap]]:
    """For every source the maps that put its units into its block."""
    maps: list[dict[str, AxisMap]] = [{} for _ in sizes]
    for axis in [a for a in family.of_kind(*KINDS) if a in sizes[0]]:
        widths = [s[axis] for s in sizes]
        units, start = np.arange(sum(widths)), 0
        for number, width in enumerate(widths):
            block = (units >= start) & (units < start + width)
            index = np.where(block, units - start, 0)
            maps[number][axis] = AxisMap.of(Kernel.gather(index, block.astype(float), old=width))
            start += width
    return maps


def fuse_parts(
    sources: Sequence[Mapping[str, Part]],
    sizes: Sequence[Mapping[str, int]],
    maps: Sequence[Mapping[str, AxisMap]],
) -> dict[str, Part]:
    """One model from several: block-diagonal inside, averaged where it goes out."""
    composers = [Composer(m, s) for m, s in zip(maps, sizes, strict=True)]
    grown, share = set(maps[0]), 1 / len(sources)
    placed = _placed(sources, sizes, grown)
    fused: dict[str, Part] = {}
    for key in dict.fromkeys(k for parts in placed for k in parts):
        members = [(p[key], c) for p, c in zip(placed, composers, strict=True) if key in p]
        pattern = members[0][0].pattern
        in_blocks = len(members) == 1 or any(
            e.axes & grown for e, role in pattern.dims if role != "-"
        )
        terms = []
        for part, composer in members:
            weighted = part if in_blocks else part.scaled(share)  # a mean of what all put out
            kernels = [_kernel(composer, e, r, share) for e, r in pattern.dims]
            terms += [t.through(composer.products(kernels, t.kernels)) for t in weighted.terms]
        zeroed = all(part.zeroed for part, _ in members)
        fused[key] = replace(members[0][0], terms=tuple(terms), zeroed=zeroed)
    return fused


def _placed(
    sources: Sequence[Mapping[str, Part]], sizes: Sequence[Mapping[str, int]], grown: set[str]
) -> list[dict[str, Part]]:
    """The parts of each source under their numbers after fusion (heads may stand in names)."""
    out: list[dict[str, Part]] = []
    for number, parts in enumerate(sources):
        out.append({})
        for part in parts.values():
            moved = part
            for slot, axis in enumerate(part.pattern.slots):
                if axis in grown:
                    start = sum(s[str(axis)] for s in sizes[:number])
                    moved = moved.renumbered(slot, start + moved.numbers[slot])
            out[-1][moved.key] = moved
    return out


def _place(part: Part, grown: set[str]) -> tuple[str | int, ...]:
    """Which tensor a part is, whatever the number of a unit that stands beside others."""
    numbers = zip(part.pattern.slots, part.numbers, strict=True)
    return (part.pattern.name, *(n for axis, n in numbers if axis not in grown))


def _kernel(composer: Composer, expression: Expression, role: str, share: float) -> Kernel | None:
    """The kernel of one dim; what all models share of a fused tensor (one kv head) is averaged."""
    dim = composer.dim(expression, "+" if role == "*" else role)
    if dim is None or role == "-" or expression.kind != "sum":
        return dim.kernel if dim else None
    weights = [
        np.full(m.new if (m := p.map(composer.maps, composer.sizes)) else p.size(composer.sizes),
                1.0 if m else share)
        for p in expression.parts
    ]  # fmt: skip
    rows = np.concatenate(weights)
    if (rows == 1.0).all():
        return dim.kernel
    return Kernel.gather(np.arange(len(rows)), rows, old=len(rows)).after(dim.kernel)


def check_fusable(
    model: Model,
    sizes: Mapping[str, int],
    parts: Mapping[str, Part],
    other: Model,
    other_parts: Mapping[str, Part],
    name: str,
) -> None:
    """Refuse sources that cannot stand side by side, with what differs."""
    family, config = model.family, model.config
    if family.name != other.family.name:
        _refuse(name, [f"family {family.name} and {other.family.name}"])
    grown = set(family.of_kind(*KINDS))
    differing = [
        f"{axis} {sizes[axis]} and {other.sizes.get(axis)}"
        for axis in sizes
        if axis not in grown and sizes[axis] != other.sizes.get(axis)
    ]
    for t in family.attentions:
        if t.kv_heads in sizes:
            groups = [s[t.heads] // s[t.kv_heads] for s in (sizes, other.sizes)]
            if groups[0] != groups[1]:
                differing.append(f"query heads per kv head {groups[0]} and {groups[1]}")
    sized = {k for names in (*family.config, *family.mirrors) for k in names.split("|")}
    for key in sorted((config.keys() | other.config.keys()) - PASSING - sized):
        if config.get(key) != other.config.get(key):
            differing.append(f"{key} {config.get(key)} and {other.config.get(key)}")
    if model.tied != other.tied:
        differing.append(f"tied head {model.tied} and {other.tied}")
    dtypes = {p.dtype for p in (*parts.values(), *other_parts.values())}
    if len(dtypes) > 1:
        differing.append(f"dtypes {' and '.join(sorted(dtypes))}")
    first, second = (
        {_place(p, grown): k for k, p in each.items()} for each in (parts, other_parts)
    )
    lacking = sorted((first | second)[place] for place in first.keys() ^ second.keys())
    if lacking and not differing:
        differing.append(f"only one of them has {lacking[0]}")
    if differing:
        _refuse(name, differing)


def _refuse(name: str, differing: list[str]) -> None:
    raise CheckpointError(
        f"source {name}: cannot be fused: {', '.join(differing)}",
        hint="sources of a fusion differ in values and widths only",
    )


def same_files(model: Model, other: Model) -> bool:
    """Whether two sources are one checkpoint given twice: the same files, whatever their names."""

    def real(each: Model) -> list[object]:
        path = Path(each.checkpoint.path)
        folder = path if path.suffix != ".safetensors" else path.parent
        files = [folder / f.name for f in each.checkpoint.files]
        return [f.stat()[1:3] if f.exists() else str(f) for f in files]  # inode and device

    return real(model) == real(other)


def blend(parts: Parts, other: Parts, alpha: float, only: tuple[str, ...]) -> dict[str, Part]:
    """(1 − alpha) · other + alpha · current, of the tensors that fit `only`."""
    blended = dict(parts)
    for key, part in parts.items():
        if chosen(part, only):
            current = part.scaled(alpha).terms if alpha else ()
            rest = other[key].scaled(1.0 - alpha).terms if alpha < 1 else ()
            blended[key] = replace(part, terms=(*current, *rest), zeroed=part.zeroed and not rest)
    return blended


def apply_fuse(
    state: State, growth: Growth, models: Mapping[str, Model], *, first: bool
) -> tuple[State, Claim]:
    """The model with others at its side; `first` says that no step came before.

    Copies of one model, which nothing has changed yet, are the model tiled: that is proved as a
    step in width is. Different models share the norms of one stream, which no proof covers.
    """
    family, facts = state.model.family, facts_of(state)
    others = _fusable(state, growth.fuse, models)
    states = [state, *others]
    sizes = [each.sizes for each in states]
    maps = injections(family, sizes)
    after = {**state.sizes, **{a: sum(s[a] for s in sizes) for a in maps[0]}}
    check_sizes(family, after)
    inputs = [undo_multipliers(each.parts, family, each.sizes, after) for each in states]
    parts = fuse_parts(inputs, sizes, maps)
    rho = 1.0  # by which logits grow: a tied head adds up those of all models
    if facts.has_head:
        rho = level_factor(family, state.sizes, after, tied=state.tied)
        rho *= len(states) if state.tied else 1
    state, parts, tie_claim = divide_logits(state, parts, facts, rho)
    if first and all(same_files(state.model, other.model) for other in others):
        copies, now = True, {a: tile(state.sizes[a], after[a]) for a in maps[0]}
        claim = prove_width(facts, now).also(tie_claim)
    else:
        copies, now = False, maps[0]
        claim = approximate(["one norm serves the streams of different models"])
    earlier = {name: chained(before, maps[0]) for name, before in state.other_maps.items()}
    added = dict(zip(growth.fuse, maps[1:], strict=True))
    fused = replace(
        state,
        sizes=after,
        config=resize_config(family, state.config, after),
        parts=parts,
        maps=chained(state.maps, now),
        other_maps={} if copies else earlier | added,
        no_null_space=not copies,
    )
    return fused, claim


def _fusable(state: State, names: Sequence[str], models: Mapping[str, Model]) -> list[State]:
    """The other models, by the same rule for a tied head; CheckpointError if one does not fit."""
    rule = "untie" if state.model.tied and not state.tied else state.tie_rule
    others = [begin(name, models[name], rule) for name in names]
    for name, other in zip(names, others, strict=True):
        check_fusable(state.model, state.sizes, state.parts, other.model, other.parts, name)
    vocabularies = [models[name].checkpoint.vocabulary for name in names]
    if {state.model.checkpoint.vocabulary, *vocabularies} - {None, *vocabularies[:1]}:
        raise CheckpointError(
            "fuse: the sources have different tokenizers", hint="fuse models of one vocabulary"
        )
    return others


def apply_blend(state: State, mix: Blending, models: Mapping[str, Model]) -> tuple[State, Claim]:
    """The model blended with a checkpoint of its own sizes; alpha 1 leaves it as it is."""
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
    sizes, other_sizes = family.user_sizes(state.sizes), other.user_sizes()
    differing = [
        f"{a} {sizes[a]} and {other_sizes.get(a)}" for a in sizes if sizes[a] != other_sizes.get(a)
    ]
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
