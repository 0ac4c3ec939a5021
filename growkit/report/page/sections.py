"""What a page accounts for below its drawings: proof, tensors, config, bytes, advice, recipe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from growkit.byte_sizes import format_size
from growkit.families.family import numbered
from growkit.ops import Operator
from growkit.planning.formula import Noise
from growkit.planning.plan import Plan
from growkit.planning.proof.claim import EXACT, StepClaim
from growkit.recipe.recipe import resolved
from growkit.report.as_json import config_changes, training_hints
from growkit.report.page.html_parts import folded, listed, prose, row, section, table
from growkit.report.page.markup import Markup, element
from growkit.report.page.sentences import SIGNS, named
from growkit.report.provenance import origin
from growkit.report.words import count, shape_text, source_text

MOST = 400  # kinds of tensors that are told
LONG = 160  # characters of a value
NOTE = (
    "Copied: every value is one value of a source. Scaled: times a factor. Mixed: of several "
    "values, or with noise. New: of none."
)
PROOF = (
    "The plan proves this from the maps above and from what each axis passes through (norms, "
    "non-linearities, rotary positions, a tied head), step by step."
)

# -- the proof -----------------------------------------------------------------------------------


def proof(plan: Plan) -> Markup:
    """The claim as a whole and step by step, with reasons, and the noise that each step draws."""
    noise: dict[int, Counter[str]] = {}
    for formula in plan.formulas:
        for term in formula.terms:
            if isinstance(term.source, Noise):
                noise.setdefault(term.source.step, Counter())[source_text(term)] += 1
    pairs = zip(plan.steps, plan.recipe.steps, strict=True)
    steps = [_step(i, *pair, noise.get(i, Counter())) for i, pair in enumerate(pairs)]
    verb = "are" if plan.storage.claim == EXACT else "may be rounded as they are"
    storage = f"Values {verb} stored as {plan.storage.dtype}"
    kept = ", which loses nothing" if plan.storage.claim == EXACT else ""
    return section(
        "proof",
        "Does it still compute the same?",
        element("p", badge(plan.claim.claim), f" as a whole. {storage}{kept}."),
        element("p", PROOF, class_="soft"),
        element("ol", steps, class_="steps"),
    )


def _step(number: int, step: StepClaim, operator: Operator, noise: Counter[str]) -> Markup:
    given = operator.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    given.pop("op", None)
    about = (type(operator).__doc__ or "").strip().partition("\n")[0]
    return element(
        "li",
        element("div", element("h3", f"{number} · {step.op}"), badge(step.claim), class_="head"),
        element("p", prose(about), class_="soft"),
        element("p", element("code", _flow(given))) if given else None,
        listed([*step.reasons, *(f"{said}, in {count(n, 'tensor')}" for said, n in noise.items())]),
    )


def badge(claim: str) -> Markup:
    """A claim, with a sign for those who do not see its colour."""
    near = "" if claim == EXACT else " near"
    return element("span", f"{SIGNS[claim]} {claim}", class_=f"badge{near}")


def _flow(value: Any) -> str:
    """Options on one line, as in a recipe."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    )
    return text.strip().removeprefix("{").removesuffix("}")


# -- tensors and config --------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    """Tensors whose names differ in numbers only."""

    axes: str
    forms: dict[str, None] = field(default_factory=dict)  # shape and dtype
    kinds: Counter[str] = field(default_factory=Counter)


def tensors(plan: Plan) -> Markup:
    """How many are copied, scaled, mixed and new; and each kind of tensor."""
    kinds = Counter[str]()
    groups: dict[str, _Group] = {}
    for formula in plan.formulas:
        name = numbered(formula.name)[0].replace("#", "*")
        if name not in groups:
            groups[name] = _Group(", ".join(str(expression) for expression, _ in formula.dims))
        group, kind = groups[name], origin(formula).kind
        group.kinds[kind] += 1
        kinds[kind] += 1
        group.forms[f"{shape_text(formula.shape)} {formula.dtype}"] = None
    rows = [
        row(element("code", name), g.axes, ", ".join([*g.forms][:3]), _counted(g.kinds))
        for name, g in [*groups.items()][:MOST]
    ]
    dropped = f"Dropped: {'; '.join(plan.dropped)}" if plan.dropped else None
    return section(
        "tensors",
        "Tensors: what each is made of",
        element("p", f"{count(len(plan.formulas), 'tensor')}: {_counted(kinds)}. {NOTE}"),
        element("p", dropped, class_="soft") if dropped else None,
        folded(
            "Every kind of tensor",
            table("* is any number", ("tensor", "axes", "shape and dtype", "made of"), rows),
        ),
    )


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common())


def config(plan: Plan) -> Markup | None:
    """The keys of config.json that change."""
    changes = config_changes(plan).items()
    rows = [row(element("code", key), _brief(old), _brief(new)) for key, (old, new) in changes]
    heads = ("key", "before", "after")
    return (
        section("config", "config.json", table("all other keys stay", heads, rows))
        if rows
        else None
    )


def _brief(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONG else f"{text[: LONG - 10]}… ({len(text)} characters)"


# -- bytes, advice, recipe -----------------------------------------------------------------------


def cost(plan: Plan, output_bytes: int, further: Mapping[str, str]) -> Markup:
    """Bytes before and after, dtype and seed."""
    names = named(plan)
    facts: dict[str, str] = {}
    for name, source in plan.sources.items():
        size = format_size(sum(file.size for file in source.files))
        known = "" if names[name] == name else f"{names[name]}, "
        facts[f"source {name}"] = f"{known}{size} in {count(len(source.files), 'file')}"
    facts |= {
        "result": f"{format_size(output_bytes)}, {plan.storage.dtype}",
        "parameters before": f"{plan.parameters_before:,}",
        "parameters after": f"{plan.parameters_after:,}",
        "seed of all noise": str(plan.recipe.seed),
        **(further or {"peak memory": "what the writing took is told by growkit.json"}),
    }
    rows = [row(name, fact) for name, fact in facts.items()]
    return section("cost", "Bytes and memory", element("table", element("tbody", rows)))


def training(plan: Plan) -> Markup:
    """What to mind when training goes on."""
    return section("training", "When training goes on", listed(map(prose, training_hints(plan))))


def recipe(plan: Plan) -> Markup:
    """The recipe, resolved."""
    text = element("pre", element("code", resolved(plan.recipe)))
    return section("recipe", "Recipe", folded("Every option spelled out", text))
