"""What the page and the SVG say in sentences: what became what, and is the function kept.

The law: whoever looks has not read the docs; so no word of the plan stands without what it means.
"""

from __future__ import annotations

from collections.abc import Mapping

from growkit.planning.plan import Plan
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT
from growkit.report.as_json import class_names, hub_id
from growkit.report.provenance import Kind, Provenance
from growkit.report.words import count

SIGNS = {EXACT: "✓", EPS: "ε", APPROXIMATE: "≈"}
CLAIMS = {
    EXACT: "The result computes the same function as the model it comes from.",
    EPS: "The result computes the same function as the model it comes from, "
    "up to the eps in its norms.",
    APPROXIMATE: "The result starts from what the model knows, but does not compute the same.",
}
AXES = {
    "hidden": "the width of the stream that all layers read and write",
    "heads": "attention heads",
    "kv_heads": "heads of keys and values, each shared by several attention heads",
    "head_dim": "the size of an attention head",
    "mlp": "units of the feed-forward network in each layer",
    "vocab": "tokens that it knows",
    "positions": "places in a text that it knows",
    "experts": "feed-forward networks that a router chooses from",
    "layers": "layers, one after the other",
}
LAYERS: Mapping[Kind, str] = {
    "old": "{n} {are} the source's own",
    "copied": "{n} {are} further copies",
    "silent": "{n} {are} silent: there, but adding nothing until training changes that",
    "mixed": "{n} {are} made of several",
    "new": "{n} {are} drawn anew",
}


def named(plan: Plan) -> dict[str, str]:
    """What each source is called: its id on the Hub, or the recipe's name for it."""
    return {
        name: (source.revision and hub_id(source.path, source.revision)) or name
        for name, source in plan.sources.items()
    }


def headline(plan: Plan) -> str:
    """One line: what became what."""
    names = " and ".join(named(plan).values())
    verb = "grown" if plan.parameters_after >= plan.parameters_before else "made smaller"
    return f"{names}, {verb} by {plan.recipe_name}"


def about_model(plan: Plan) -> str:
    """The class of the model, or its family."""
    return ", ".join(class_names(plan.config)) or plan.family


def ratio(before: float, after: float) -> str:
    """How many times as much; nothing where it is the same.

    >>> ratio(384, 768), ratio(5, 5)
    ('(× 2)', '')
    """
    return f"(× {after / before:.3g})" if before and before != after else ""


def short(number: int) -> str:
    """A count that can be read at a glance.

    >>> short(22_713_216), short(512)
    ('22.7 million', '512')
    """
    for size, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:,}"


def in_short(plan: Plan, by_axis: Mapping[str, Provenance]) -> list[str]:
    """Sizes, layers and zeros in a few sentences."""
    before, after = short(plan.parameters_before), short(plan.parameters_after)
    if len(plan.sources) > 1:
        began = f"{len(plan.sources)} models became one of {after} parameters"
    elif plan.parameters_before != plan.parameters_after:
        began = f"A model of {before} parameters became one of {after}"
    else:
        began = f"A model of {before} parameters kept its size"
    changed = [
        f"{axis} from {sizes_before(d)} to {d.after:,}"
        for axis, d in by_axis.items()
        if axis in plan.axes and [*d.before.values()] != [d.after]
    ]
    sentences = [f"{began}{': ' if changed else ''}{', '.join(changed)}."]
    for axis, d in stacks(plan, by_axis).items():
        parts = [LAYERS[kind].format(n=f"{n:,}", are=_are(n)) for kind, n in d.counts.items()]
        sentences.append(
            f"All {axis} {parts[0].partition(' ')[2]}."
            if len(parts) == 1 and d.after > 1
            else f"Of its {d.after:,} {axis}, {', '.join(parts)}."
        )
    if plan.zeroed:
        verb = "starts" if len(plan.zeroed) == 1 else "start"
        sentences.append(f"{count(len(plan.zeroed), 'tensor')} {verb} at zero on purpose.")
    return sentences


def sizes_before(entry: Provenance) -> str:
    """`384`, or `8 + 16` of two sources."""
    return " + ".join(f"{size:,}" for size in entry.before.values())


def change(entry: Provenance) -> tuple[str, str]:
    """`384 → 768` and how many times as much that is; one number where nothing changes."""
    sizes = [*entry.before.values()]
    if sizes == [entry.after]:
        return f"{entry.after:,}", ""
    times = ratio(sizes[0], entry.after) if len(sizes) == 1 else ""
    return f"{sizes_before(entry)} → {entry.after:,}", times


def stacks(plan: Plan, by_axis: Mapping[str, Provenance]) -> dict[str, Provenance]:
    """Those that are layers."""
    return {a: d for a, d in by_axis.items() if d.axis in plan.layer_maps}


def about_axis(axis: str) -> str:
    """What an axis is, by its name; that of a stack or a tower has its own before a dot."""
    return AXES.get(axis.partition(" ")[0].rpartition(".")[2], "an inner axis of this family")


def counts(entry: Provenance) -> str:
    """`384 old, 384 copied`."""
    kinds = [f"{n:,} {kind}" for kind, n in entry.counts.items()]
    left_out = [f"{entry.left_out:,} left out"] if entry.left_out else []
    return ", ".join([*kinds, *left_out])


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
