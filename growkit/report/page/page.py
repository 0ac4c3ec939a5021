"""The growth as one HTML page: where layers and units come from, the proof, and how to train on.

The law: one file, no script, nothing fetched; its own policy forbids both. What growkit.json and
`growkit plan` hold is not repeated, but linked or named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml

from growkit.byte_sizes import format_size
from growkit.ops import Operator
from growkit.planning.formula import Noise
from growkit.planning.plan import Plan
from growkit.planning.proof.claim import EXACT, StepClaim
from growkit.report.as_json import maps_json, training_hints
from growkit.report.page.drawing import bars, comes_from, figure, legend, span, stack, stream_ratio
from growkit.report.page.markup import Markup, element, listed, prose, row, section, soft, table
from growkit.report.page.sentences import (
    CLAIMS,
    SIGNS,
    about_axis,
    about_model,
    change,
    counts,
    headline,
    in_short,
    ratio,
    short,
    stacks,
)
from growkit.report.page.style import HATCHES, PAGE_STYLE
from growkit.report.provenance import Provenance, provenance
from growkit.report.words import count, source_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MOST_ROWS = 400  # layers that are told one by one, and runs of them where they are more
PROOF = (
    "The plan proves this from the maps above and from what each axis passes through (norms, "
    "non-linearities, rotary positions, a tied head), step by step."
)
BESIDE = {  # files of a result that hold what the page does not
    "growkit.json": "what each tensor is made of, what is new, zero or dropped, what writing took",
    "recipe.yaml": "the recipe with every option spelled out",
    "config.json": "the config of the result",
}
COMMANDS = (  # that print the same before there is a result
    "`growkit plan` with the same arguments prints what changes in config.json, the disk and the "
    "memory that writing takes, and the recipe with every option spelled out",
    "with `--tensor NAME` it prints what one tensor is made of",
    "with `--json` it prints all of this for programs",
)

ByAxis = Mapping[str, Provenance]


def growth_page(plan: Plan, *, output_bytes: int, written: bool = True) -> str:
    """An HTML document; `output_bytes` are the weights on disk.

    If `written`, it leads to the other files of the result; else it names commands.
    """
    by_axis = provenance(plan)
    head = [
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<link rel="icon" href="data:,">'),
        element("title", headline(plan)),
        element("style", Markup(PAGE_STYLE)),
    ]
    sections = [
        _layers(plan, by_axis),
        _axes(plan, by_axis),
        _proof(plan),
        section("training", "When training goes on", listed(map(prose, training_hints(plan)))),
        _further(written),
    ]
    body = [
        element("svg", HATCHES, width=0, height=0, class_="hatches", aria_hidden="true"),
        _header(plan, by_axis, output_bytes),
        element("main", sections),
        element("footer", element("p", "Made by growkit from the plan: no weight was read.")),
    ]
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _header(plan: Plan, by_axis: ByAxis, output_bytes: int) -> Markup:
    before, after = plan.parameters_before, plan.parameters_after
    sizes = [format_size(sum(f.size for f in source.files)) for source in plan.sources.values()]
    on_disk = f"{' + '.join(sizes)} → {format_size(output_bytes)}"
    several = len(plan.sources) > 1
    numbers = [after] if several else [before, after]
    brief, exact = (" → ".join(map(form, numbers)) for form in (short, "{:,}".format))
    more = [exact] if exact != brief else []
    times = ratio(before, after).replace(" ", "\u00a0")  # a line does not break in it
    more.append(f"{before:,} in {plan.main}" if several else times)
    facts = [
        ("parameters", brief, " ".join(more)),
        *((axis, change(d)[0], counts(d)) for axis, d in stacks(plan, by_axis).items()),
        ("weights on disk", on_disk, plan.storage.dtype),
        ("same function?", f"{SIGNS[plan.claim.claim]} {plan.claim.claim}", ""),
    ]
    cards = [
        element("div", element("dt", name), element("dd", fact, element("small", more)))
        for name, fact, more in facts
    ]
    return element(
        "header",
        element("p", f"growkit · how a model was grown · {about_model(plan)}", class_="eyebrow"),
        element("h1", headline(plan)),
        element("p", " ".join(in_short(plan, by_axis)), class_="lead"),
        element("p", CLAIMS[plan.claim.claim], class_="lead"),
        element("dl", cards, class_="facts"),
    )


# -- layers --------------------------------------------------------------------------------------


def _layers(plan: Plan, by_axis: ByAxis) -> Markup | None:
    layers = stacks(plan, by_axis)
    if not layers:
        return None
    figures = [
        element(
            "figure",
            element("h3", axis, " ", _change(entry)),
            figure(stack(entry, stream_ratio=stream_ratio(plan, axis)), f"{axis}: {counts(entry)}"),
        )
        for axis, entry in layers.items()
    ]
    how_to_read = (
        "On the left the layers before, on the right those of the result; data flows from top to "
        "bottom. A wider box is a wider stream."
    )
    tables = [_layer_table(axis, entry) for axis, entry in layers.items()]
    return section(
        "layers",
        "Layers: where each one comes from",
        element("p", how_to_read, class_="soft"),
        element("div", figures, legend(layers.values()), class_="stacks"),
        element("details", element("summary", "The same as a table"), tables),
    )


def _layer_table(axis: str, entry: Provenance) -> Markup:
    one_by_one = entry.after <= MOST_ROWS
    runs = [*entry.singles] if one_by_one else [*entry.runs[:MOST_ROWS]]
    rows = [
        row(
            span(run.start, run.stop),
            run.kind,
            comes_from(run, len(entry.before)),
            data_layer=f"{axis}.{span(run.start, run.stop)}",
        )
        for run in runs
    ]
    if not one_by_one and len(entry.runs) > MOST_ROWS:
        rows.append(row("…", f"{len(entry.runs) - MOST_ROWS:,} more", ""))
    return table(f"{axis}: {counts(entry)}", ("layer", "is", "comes from"), rows)


# -- other axes ----------------------------------------------------------------------------------


def _axes(plan: Plan, by_axis: ByAxis) -> Markup:
    maps = maps_json(plan)
    others = {axis: d for axis, d in by_axis.items() if axis not in stacks(plan, by_axis)}
    grown = {axis: d for axis, d in others.items() if not d.same}
    how_to_read = (
        "The bar above is the axis before, the bar below the axis after; bands lead from each unit "
        "to what it became. Tensors that write an axis take the map “write”, those that read it "
        "take the map “read”."
    )
    same = [
        element("li", element("b", axis), f" {d.after:,} ", soft(about_axis(axis)), data_axis=axis)
        for axis, d in others.items()
        if axis not in grown
    ]
    return section(
        "axes",
        "Axes: where each unit comes from",
        element("p", how_to_read if grown else "None of them changes.", class_="soft"),
        legend(grown.values()) if grown else None,
        [_axis(axis, d, maps.get(d.axis, {})) for axis, d in grown.items()],
        [element("h3", "Unchanged"), element("ul", same)] if same else None,
    )


def _axis(axis: str, entry: Provenance, words: Mapping[str, Any]) -> Markup:
    roles = [f"{role}: {map_}" for role, map_ in words.items() if role not in ("old", "new")]
    if len(entry.before) > 1:
        roles.insert(0, f"maps of {next(iter(entry.before))}")
    head = [element("h3", axis), _change(entry), soft(about_axis(axis))]
    about = counts(entry)
    return element(
        "div",
        element("div", head, class_="head"),
        figure(bars(entry, 1000.0), f"{axis}: {about}", class_="bars", stretch=True),
        element("p", element("b", about), soft("".join(f" · {role}" for role in roles))),
        class_="axis",
        data_axis=axis,
    )


def _change(entry: Provenance) -> Markup:
    sizes, times = change(entry)
    return element("span", sizes, " ", soft(times), class_="size")


# -- the proof -----------------------------------------------------------------------------------


def _proof(plan: Plan) -> Markup:
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
        element("p", _badge(plan.claim.claim), f" as a whole. {storage}{kept}."),
        element("p", PROOF, class_="soft"),
        element("ol", steps, class_="steps"),
    )


def _step(number: int, step: StepClaim, operator: Operator, noise: Counter[str]) -> Markup:
    options = operator.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    options.pop("op", None)
    about = (type(operator).__doc__ or "").strip().partition("\n")[0]
    draws = (f"{drawn}, in {count(tensors, 'tensor')}" for drawn, tensors in noise.items())
    return element(
        "li",
        element("div", element("h3", f"{number} · {step.op}"), _badge(step.claim), class_="head"),
        element("p", prose(about), class_="soft"),
        element("p", element("code", _flow(options))) if options else None,
        listed([*step.reasons, *draws]),
    )


def _badge(claim: str) -> Markup:
    """A claim, with a sign for those who do not see its colour."""
    near = "" if claim == EXACT else " near"
    return element("span", f"{SIGNS[claim]} {claim}", class_=f"badge{near}")


def _flow(value: Any) -> str:
    """Options on one line, as in a recipe."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    )
    return text.strip().removeprefix("{").removesuffix("}")


# -- what else there is --------------------------------------------------------------------------


def _further(written: bool) -> Markup:
    """Links to the files beside the page; before there are any, commands that print the same."""
    files = ([element("a", name, href=name), f": {about}"] for name, about in BESIDE.items())
    return section("further", "Further", listed(files if written else map(prose, COMMANDS)))
