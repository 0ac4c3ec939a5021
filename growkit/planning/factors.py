"""Factors that whole tensors carry so that what growth multiplies elsewhere comes out as it was.

    gains of norms · √s      where maps multiply the mean square that a norm sees by s
    embeddings · 1/c         where the model's code multiplies them by c times as much as before
    head's norm · 1/ρ        where a tied head's logits grow by ρ (or embeddings · 1/ρ)
    rows · LayerScale        where a mean of coordinates would meet a factor for each of them

The law: a factor that undoes an earlier one leaves no rounding behind (`Part.scaled`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from growkit.algebra.expression import Expression
from growkit.checkpoints.types import Stored
from growkit.families.family import Family
from growkit.planning.formula import Term
from growkit.planning.part import Part, Parts, ones
from growkit.planning.proof.claim import Claim
from growkit.planning.proof.facts import Facts
from growkit.planning.proof.tied_head import embedding_factor, prove_scaled_embeddings
from growkit.planning.state import State


def scale_modules(parts: Parts, modules: Iterable[str], factor: float) -> dict[str, Part]:
    """All tensors of these modules times a factor; only weights of modules that consume.

    Of a module that every layer has, the last layer's is meant.
    """
    chosen = [
        p
        for p in parts.values()
        if p.pattern.module in set(modules) and (p.pattern.norm or p.pattern.consumed)
    ]
    last: dict[str, tuple[int, ...]] = {}
    for part in chosen:
        last[part.pattern.name] = max(part.numbers, last.get(part.pattern.name, ()))
    return dict(parts) | {
        p.key: p.scaled(factor) for p in chosen if p.numbers == last[p.pattern.name]
    }


def fold_factors(
    parts: Parts, family: Family, sizes: Mapping[str, int], folds: Callable[[Expression], bool]
) -> dict[str, Part]:
    """LayerScale gains λ moved into the projections before them: diag(λ)·(W·x), W' = diag(λ)·W.

    The gains become 1, which any map of coordinates leaves as they are; a mean of coordinates would
    not pass gains that differ. `folds` says on which axes that is needed. A gain acts on what the
    modules before it in its layer put out; it stays where those are no longer stored tensors, row
    by row, but sums (after noise, a blend, or mixed layers).
    """
    if not any(pattern.is_factor for pattern in family.patterns.values()):
        return dict(parts)
    order = {name: place for place, name in enumerate(family.patterns)}
    out, before = dict(parts), list[Part]()
    for part in sorted(parts.values(), key=lambda p: (p.numbers, order[p.pattern.name])):
        before = [p for p in before if p.numbers == part.numbers]
        over = part.pattern.dims[-1][0] if part.pattern.is_factor else None
        if over is None:
            before.append(part)
            continue
        makers = [p for p in before if p.pattern.dims[0] == (over, "+")] if folds(over) else []
        folded = [_times(p, part) for p in makers]
        if folded and all(folded):
            out |= {p.key: p for p in folded if p}
            out[part.key] = replace(part, terms=ones(part.shape(sizes), 1.0), zeroed=False)
        before = []
    return out


def _times(part: Part, factors: Part) -> Part | None:
    """A tensor with its rows multiplied; None if that is no product of stored tensors."""
    if not factors.terms:
        return replace(part, terms=(), zeroed=True)
    factor = factors.terms[0]
    if len(factors.terms) > 1 or not isinstance(factor.source, Stored):
        return None
    terms = []
    for term in part.terms:
        source = term.source
        if not isinstance(source, Stored) or source.by or not _same_rows(term, factor):
            return None
        times = replace(source, by=factor.source)
        terms.append(replace(term, source=times, scale=term.scale * factor.scale))
    return replace(part, terms=tuple(terms))


def _same_rows(term: Term, factor: Term) -> bool:
    """Whether each new row comes from the one source row that its factor comes from."""
    a, b = term.kernels[0], factor.kernels[0]
    if a is None or b is None:
        return a is b
    single = a.is_gather and b.is_gather and a.index.shape[1] == b.index.shape[1] == 1
    return single and bool(b.unit_rows.all()) and np.array_equal(a.index, b.index)


def scale_norms(parts: Parts, factors: Mapping[str, float], roles: str = "*") -> dict[str, Part]:
    """Gains of the norms on these axes times a factor; with the role ~ among `roles` shifts too."""
    out = dict(parts)
    for key, part in parts.items():
        axis, role = part.pattern.dims[-1] if part.pattern.norm else (None, "")
        for name in axis.axes & factors.keys() if axis and role in roles else ():
            out[key] = out[key].scaled(factors[name])
    return out


def scale_embeddings(
    parts: Parts, family: Family, factor: float, module: str = ""
) -> dict[str, Part]:
    """Every table whose rows are added to the stream, or that of one module, times a factor."""
    streams = set(family.of_kind("stream", "latent"))

    def is_embedding(part: Part) -> bool:
        if module:
            return part.pattern.module == module
        roles = [role for _, role in part.pattern.dims]
        return "#" in roles and any(r == "+" and e.axes & streams for e, r in part.pattern.dims)

    return {k: p.scaled(factor) if is_embedding(p) else p for k, p in parts.items()}


def undo_multipliers(
    parts: Parts, family: Family, before: Mapping[str, int], after: Mapping[str, int]
) -> dict[str, Part]:
    """Embeddings that the model's code multiplies by a power of its size, such as √hidden (Gemma).

    They are divided by what that power grows by, so that the stream starts as it was.
    """
    scaled = dict(parts)
    for module in family.multipliers:
        factor = embedding_factor(family, before, after, module)
        if factor != 1.0:
            scaled = scale_embeddings(scaled, family, factor, module)
    return scaled


def divide_logits(
    state: State, parts: Parts, facts: Facts, rho: float
) -> tuple[State, dict[str, Part], Claim]:
    """What the head puts out, divided by ρ, and what that keeps.

    By the recipe's rule for a tied head the embeddings carry 1/ρ, else the norm before the head
    does, and further readers of that norm are multiplied by ρ. Where there is no such norm nothing
    is done, and `prove_width` has said so.
    """
    family, head = facts.family, facts.family.head
    if state.tied and state.tie_rule == "embedding":
        scaled = scale_embeddings(parts, family, 1.0 / rho)
        return state, scaled, prove_scaled_embeddings(facts, rho, _shrinkage(scaled, family))
    if head is None or not facts.carrier:
        return state, dict(parts), Claim()
    scaled = scale_modules(parts, [head.scale_at], 1.0 / rho)
    scaled = scale_modules(scaled, head.also, rho)
    return replace(state, head_factor=state.head_factor / rho), scaled, Claim()


def _shrinkage(parts: Mapping[str, Part], family: Family) -> float:
    """How many times smaller the embedding of a tied head is than in its checkpoint."""
    table = parts[family.head.tied] if family.head else None
    return 1.0 / abs(table.terms[0].scale) if table and table.terms else 1.0
