"""The model between two steps of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.expression import Expression
from growkit.algebra.layer_map import LayerMap, unmoved
from growkit.checkpoints.types import Stored
from growkit.families.config import norm_eps, number
from growkit.families.family import Family, Pattern, get
from growkit.families.model import Model
from growkit.ops import Growth
from growkit.planning.formula import Noise, Ones, Term
from growkit.planning.part import Draw, Part, ones
from growkit.planning.proof.claim import Claim
from growkit.planning.proof.facts import Facts

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
    layer_maps: Mapping[str, LayerMap]  # from the source to now
    tied: bool  # the head is the embedding
    tie_rule: str  # final_norm | embedding: what carries the factor of a tied head
    claim: Claim
    served: float = 1.0  # what the norm before a head has been multiplied by for it
    filled: bool = False  # no direction is unvisited: different models stand side by side
    theta_power: float = 1.0  # what RoPE bases have been raised to
    config_maps: Mapping[str, AxisMap] = field(default_factory=dict)  # of axes that no tensor has
    no_matrices: str = ""  # "steps[N]: why" of the first step that no matrix can say


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
        a: unmoved(model.sizes[a]) for a in model.family.of_kind("layers") if a in model.sizes
    }
    rule = "embedding" if tied == "embedding" else "final_norm"
    return State(model, model.sizes, config, parts, {}, {}, layers, is_tied, rule, Claim())


def tensor_axes(family: Family, patterns: Iterable[Pattern]) -> set[str]:
    """The axes that a map can act on: of dims or names of tensors, or counts of experts taken."""
    axes = set(family.of_kind("choices"))
    for pattern in {p.name: p for p in patterns}.values():
        axes |= {axis for expression, _ in pattern.dims for axis in expression.axes}
        axes |= {slot for slot in pattern.slots if isinstance(slot, str)}
    return axes


def facts_of(state: State, growth: Growth) -> Facts:
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


def initialiser(state: State, number: int, seed: int) -> Draw:
    """Draws values for new rows at the config's own scale."""
    std = state.config.get("initializer_range")
    std = float(std) if isinstance(std, int | float) else INIT_STD
    return lambda part, shape: Noise(seed, number, part.name, shape, std=std)
