"""The growth as one page: what became what, from where, with which proof and at what cost.

The law: one file, no script, nothing fetched; its own policy forbids both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from growkit.byte_sizes import format_size
from growkit.planning.plan import Plan
from growkit.report.page import sections
from growkit.report.page.drawing import bars, comes_from, span, stack
from growkit.report.page.html_parts import figure, folded, legend, row, section, soft, table
from growkit.report.page.markup import Markup, element
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
from growkit.report.page.style import HATCHES, PAGE
from growkit.report.page.svg import thickness
from growkit.report.provenance import Provenance, provenance
from growkit.report.words import maps_json

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MOST = 400  # layers that are told one by one, and runs of them where they are more

Found = Mapping[str, Provenance]


def growth_page(plan: Plan, *, output_bytes: int, cost: Mapping[str, str] | None = None) -> str:
    """An HTML document; `output_bytes` are the weights on disk, `cost` what else is worth knowing.

    The same plan gives the same page as long as there is no `cost`.
    """
    found = provenance(plan)
    head = [
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<link rel="icon" href="data:,">'),
        element("title", headline(plan)),
        element("style", Markup(PAGE)),
    ]
    main = [
        _layers(plan, found),
        _axes(plan, found),
        sections.proof(plan),
        sections.tensors(plan),
        sections.config(plan),
        sections.cost(plan, output_bytes, cost or {}),
        sections.training(plan),
        sections.recipe(plan),
    ]
    body = [
        element("svg", HATCHES, width=0, height=0, class_="hatches", aria_hidden="true"),
        _header(plan, found, output_bytes),
        element("main", main),
        element("footer", element("p", "Made by growkit from the plan: no weight was read.")),
    ]
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _header(plan: Plan, found: Found, output_bytes: int) -> Markup:
    before, after = plan.parameters_before, plan.parameters_after
    was = [format_size(sum(f.size for f in source.files)) for source in plan.sources.values()]
    parameters = ("parameters", f"{short(before)} → {short(after)}", ratio(before, after))
    if len(plan.sources) > 1:
        parameters = ("parameters", short(after), f"{short(before)} in {plan.main}")
    facts = [
        parameters,
        *((axis, change(d)[0], counts(d)) for axis, d in stacks(plan, found).items()),
        ("weights on disk", f"{' + '.join(was)} → {format_size(output_bytes)}", plan.storage.dtype),
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
        element("p", " ".join(in_short(plan, found)), class_="lead"),
        element("p", CLAIMS[plan.claim.claim], class_="lead"),
        element("dl", cards, class_="facts"),
    )


# -- layers --------------------------------------------------------------------------------------


def _layers(plan: Plan, found: Found) -> Markup | None:
    every = stacks(plan, found)
    if not every:
        return None
    figures = [
        element(
            "figure",
            element("h3", axis, " ", _change(d)),
            figure(stack(d, thickness=thickness(plan, axis)), f"{axis}: {counts(d)}"),
        )
        for axis, d in every.items()
    ]
    said = (
        "On the left the layers before, on the right those of the result; data flows from top to "
        "bottom. A wider box is a wider stream."
    )
    return section(
        "layers",
        "Layers: where each one comes from",
        element("p", said, class_="soft"),
        element("div", figures, legend(every.values()), class_="stacks"),
        folded("The same as a table", [_layer_table(axis, d) for axis, d in every.items()]),
    )


def _layer_table(axis: str, found: Provenance) -> Markup:
    one_by_one = found.after <= MOST
    runs = [*found.singles] if one_by_one else [*found.runs[:MOST]]
    rows = [
        row(
            span(run.start, run.stop),
            run.kind,
            comes_from(run, len(found.before)),
            data_layer=f"{axis}.{span(run.start, run.stop)}",
        )
        for run in runs
    ]
    if not one_by_one and len(found.runs) > MOST:
        rows.append(row("…", f"{len(found.runs) - MOST:,} more", ""))
    return table(f"{axis}: {counts(found)}", ("layer", "is", "comes from"), rows)


# -- other axes ----------------------------------------------------------------------------------


def _axes(plan: Plan, found: Found) -> Markup:
    maps = maps_json(plan)
    others = {axis: d for axis, d in found.items() if axis not in stacks(plan, found)}
    grown = {axis: d for axis, d in others.items() if not d.same}
    said = (
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
        element("p", said if grown else "None of them changes.", class_="soft"),
        legend(grown.values()) if grown else None,
        [_axis(axis, d, maps.get(d.axis, {})) for axis, d in grown.items()],
        [element("h3", "Unchanged"), element("ul", same)] if same else None,
    )


def _axis(axis: str, found: Provenance, words: Mapping[str, Any]) -> Markup:
    roles = [f"{role}: {said}" for role, said in words.items() if role not in ("old", "new")]
    if len(found.before) > 1:
        roles.insert(0, f"maps of {next(iter(found.before))}")
    head = [element("h3", axis), _change(found), soft(about_axis(axis))]
    return element(
        "div",
        element("div", head, class_="head"),
        figure(bars(found, 1000.0), f"{axis}: {counts(found)}", class_="bars", stretch=True),
        element("p", element("b", counts(found)), soft("".join(f" · {role}" for role in roles))),
        class_="axis",
        data_axis=axis,
    )


def _change(found: Provenance) -> Markup:
    sizes, times = change(found)
    return element("span", sizes, " ", soft(times), class_="size")
