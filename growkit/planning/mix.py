"""Deep Fusion: the parts of several models side by side (2306.11903).

    W = Σ_s  inject_s · W_s · inject_sᵀ        heads and other readers of the stream: divided by K

Source s owns a block of every grown axis. The law: everything that is not a size must agree, or the
fusion is refused with what differs.
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
from growkit.planning.factors import divide_head, embedding_shrinkage, scale_embeddings
from growkit.planning.part import Part, Parts, check_only, chosen
from growkit.planning.proof.claim import Claim, approximate
from growkit.planning.proof.tied_head import embedding_factor, level_factor, prove_scaled_embeddings
from growkit.planning.proof.width import prove_width
from growkit.planning.state import State, begin, facts_of
from growkit.planning.width import Composer

KINDS = ("stream", "latent", "heads", "kv_heads", "neurons")  # what stands side by side
PASSING = {  # config keys that say nothing about the function
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache",
}  # fmt: skip


def injections(family: Family, sizes: Sequence[Mapping[str, int]]) -> list[dict[str, AxisMap]]:
    """For every source the maps that put its units into its block."""
    axes = [a for a in family.of_kind(*KINDS) if a in sizes[0]]
    out: list[dict[str, AxisMap]] = [{} for _ in sizes]
    for axis in axes:
        widths = [s[axis] for s in sizes]
        start, total = 0, sum(widths)
        for number, width in enumerate(widths):
            mine = (np.arange(total) >= start) & (np.arange(total) < start + width)
            index = np.where(mine, np.arange(total) - start, 0)
            kernel = Kernel.gather(index, mine.astype(float), old=width)
            out[number][axis] = AxisMap.of(kernel)
            start += width
    return out


def fuse_parts(
    sources: Sequence[Mapping[str, Part]],
    sizes: Sequence[Mapping[str, int]],
    maps: Sequence[Mapping[str, AxisMap]],
) -> dict[str, Part]:
    """One model from several: block-diagonal inside, averaged where it goes out."""
    composers = [Composer(m, s) for m, s in zip(maps, sizes, strict=True)]
    grown, share = set(maps[0]), 1 / len(sources)
    placed = _placed(sources, sizes, grown)
    out: dict[str, Part] = {}
    for key in dict.fromkeys(k for parts in placed for k in parts):
        here = [(p[key], c) for p, c in zip(placed, composers, strict=True) if key in p]
        first = here[0][0]
        inward = len(here) == 1 or any(
            e.axes & grown for e, role in first.pattern.dims if role != "-"
        )
        terms = []
        for part, composer in here:
            one = part if inward else part.scaled(share)
            kernels = [_kernel(composer, e, r, share) for e, r in one.pattern.dims]
            terms += [t.through(composer.products(kernels, t.kernels)) for t in one.terms]
        zeroed = all(part.zeroed for part, _ in here)
        out[key] = replace(first, terms=tuple(terms), zeroed=zeroed)
    return out


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
    mine, theirs = ({_place(p, grown): k for k, p in each.items()} for each in (parts, other_parts))
    lacking = sorted((mine | theirs)[place] for place in mine.keys() ^ theirs.keys())
    if lacking and not differing:
        differing.append(f"only one of them has {lacking[0]}")
    if differing:
        _refuse(name, differing)


def _refuse(name: str, differing: list[str]) -> None:
    raise CheckpointError(
        f"source {name}: cannot be fused: {', '.join(differing)}",
        hint="sources of a fusion differ in values and widths only",
    )


def same_files(one: Model, other: Model) -> bool:
    """Whether two sources are one checkpoint given twice: the same files, whatever their names."""

    def real(model: Model) -> list[object]:
        path = Path(model.checkpoint.path)
        folder = path if path.suffix != ".safetensors" else path.parent
        files = [folder / f.name for f in model.checkpoint.files]
        return [f.stat()[1:3] if f.exists() else str(f) for f in files]  # inode and device

    return real(one) == real(other)


def blend(parts: Parts, other: Parts, alpha: float, only: tuple[str, ...]) -> dict[str, Part]:
    """(1 − alpha) · other + alpha · current."""
    out = dict(parts)
    for key, part in parts.items():
        if chosen(part, only):
            mine = part.scaled(alpha).terms if alpha else ()
            rest = other[key].scaled(1.0 - alpha).terms if alpha < 1 else ()
            out[key] = replace(part, terms=(*mine, *rest), zeroed=part.zeroed and not rest)
    return out


def apply_fuse(
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
    if facts_of(state, growth).headed:
        rho = level_factor(family, state.sizes, after, tied=state.tied)
        rho *= len(every) if state.tied else 1
    if state.tied and state.tie_rule == "embedding":
        parts = scale_embeddings(parts, family, 1 / rho)
    elif rho != 1.0 and family.head:
        state, parts = divide_head(state, parts, family.head, rho)
    copies = first and all(same_files(state.model, other.model) for other in others)
    if copies:
        facts = facts_of(state, growth)
        now = {a: tile(state.sizes[a], after[a]) for a in maps[0]}
        claim = prove_width(facts, now)
        if state.tied and state.tie_rule == "embedding":
            claim = claim.also(
                prove_scaled_embeddings(facts, rho, embedding_shrinkage(parts, family))
            )
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


def apply_blend(state: State, mix: Blending, models: Mapping[str, Model]) -> tuple[State, Claim]:
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
