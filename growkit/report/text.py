"""What commands print for people: plans, results, measurements.

The laws: every number shown is read off the plan; nothing is decided here and nothing printed. What
a source is called is shown and never reaches a terminal as a command. Text is 80 columns wide, or
as wide as a terminal that has more, up to 120.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

from growkit.byte_sizes import format_size
from growkit.errors import UsageError, did_you_mean, shown
from growkit.planning.plan import Estimate, Plan
from growkit.recipe.recipe import resolved
from growkit.report.as_json import config_changes, training_hints
from growkit.report.provenance import origin
from growkit.report.words import ROLES, count, first_rows, in_words, roles, shape_text, source_text
from growkit.text_width import columns

Args = ParamSpec("Args")


def _printable(text_of: Callable[Args, str]) -> Callable[Args, str]:
    """The same text with its control characters escaped, but for the ends of its lines."""

    @wraps(text_of)
    def escaped(*args: Args.args, **kwargs: Args.kwargs) -> str:
        text = text_of(*args, **kwargs)
        return "\n".join(shown(line, max(1, len(line))) for line in text.split("\n"))

    return escaped


@_printable
def plan_text(
    plan: Plan, estimate: Estimate, *, further: Sequence[str] = (), full: bool = False
) -> str:
    """The plan for people, a screen of it: what changes, claim, cost, and `further` commands.

    With `full` there are all sizes, config, steps, tensors, digest, what training should mind, and
    the recipe with its defaults, too.
    """
    kinds = Counter(origin(f).kind for f in plan.formulas).most_common()
    cost = [
        f"output {format_size(estimate.output_bytes)} in "
        f"{count(len(estimate.shards), 'file')}, {plan.storage.dtype}, "
        f"values {plan.storage.claim}",
        f"disk needed {format_size(estimate.disk_bytes)}, "
        f"peak memory {format_size(estimate.peak_bytes)}",
    ]
    claim = {"claim": [claim_text(plan.claim.claim, plan.claim.reasons)]}
    sections: dict[str, list[str]]
    if full:
        sections = {
            "config.json": [_change(key, *pair) for key, pair in config_changes(plan).items()],
            **claim,
            "steps": [
                f"{i} {step.op}: {claim_text(step.claim, step.reasons)}"
                for i, step in enumerate(plan.steps)
            ],
            "tensors": [
                ", ".join(f"{n} {kind}" for kind, n in kinds),
                *([f"{len(plan.zeroed)} zero on purpose"] if plan.zeroed else []),
                *(f"dropped: {name}" for name in plan.dropped),
            ],
            "cost": [*cost, f"digest {estimate.digest}"],
            "hints": training_hints(plan),
        }
    else:
        sections = {**claim, "cost": cost, "hints": [*plan.hints]}
    lines = [f"{plan.recipe_name}: {plan.family}, {len(plan.formulas)} tensors", ""]
    lines += _sizes(plan, full)
    for title, items in sections.items():
        lines += ["", title, *(x for item in items for x in wrapped(item, "  "))] if items else []
    lines += ["", "recipe", textwrap.indent(resolved(plan.recipe).rstrip(), "  ")] if full else []
    lines += ["", "next", *(f"  {command}" for command in further)] if further else []
    return "\n".join(lines)


@_printable
def explain(plan: Plan, name: str) -> str:
    """What one output tensor is made of, term by term, and the maps of the axes behind it.

    Raises UsageError for a tensor that the plan does not write.
    """
    formulas = {f.name: f for f in plan.formulas}
    if name not in formulas:
        raise UsageError(
            f"--tensor {name}: the plan writes no such tensor", hint=did_you_mean(name, formulas)
        )
    formula = formulas[name]
    kind, _, new_rows = origin(formula)
    lines = [
        name,
        f"  {shape_text(formula.shape)} {formula.dtype}, {kind}, {count(new_rows, 'new row')}",
    ]
    lines += [] if formula.terms else ["", "  = 0"]
    for i, term in enumerate(formula.terms):
        scale = "" if term.scale == 1.0 else f"{term.scale:.6g} × "
        lines += ["", *wrapped(f"{'+' if i else '='} {scale}{source_text(term)}", "  ")]
        for dim, ((expression, role), kernel) in enumerate(
            zip(formula.dims, term.kernels, strict=True)
        ):
            axes = f"{expression}, {ROLES[role]}" if role in ROLES else f"{expression}"
            lines += wrapped(f"dim {dim}: {axes}: {in_words(kernel)}", "    ")
            if kernel is not None and kernel.scalar() is None:
                lines += wrapped(first_rows(kernel), "      ")
    behind = {a for expression, _ in formula.dims for a in expression.axes}
    for axis, m in plan.maps.items():
        if not m.is_identity and axis in behind:
            lines += ["", f"  {axis}: {m.old} → {m.new}"]
            for role, kernel in roles(m).items():
                lines += wrapped(f"{role}: {in_words(kernel)}", "    ")
    return "\n".join(lines)


def claim_text(claim: str, reasons: Sequence[str]) -> str:
    """A claim and its reasons in one sentence."""
    return f"{claim}: {'; '.join(reasons)}" if reasons else claim


def _sizes(plan: Plan, full: bool) -> list[str]:
    """The table of sizes; those that stay as they are only if all are asked for."""
    before = {**plan.sizes_before, "parameters": plan.parameters_before}
    after = {**plan.sizes_after, "parameters": plan.parameters_after}
    rows = {a: n for a, n in after.items() if full or a == "parameters" or n != before.get(a)}
    width = max(16, *(len(axis) + 1 for axis in rows))
    lines = [f"  {'':<{width}}{'before':>16}{'after':>16}"]
    for axis, new in rows.items():
        old = before.get(axis)
        ratio = f"× {new / old:.4g}" if old and new != old else ""
        number = "" if old is None else f"{old:,}"
        lines.append(f"  {axis:<{width}}{number:>16}{new:>16,}   {ratio}".rstrip())
    return lines


def _change(key: str, before: Any, after: Any) -> str:
    def brief(value: Any) -> str:
        text = "absent" if value is None else repr(value)
        return text if len(text) <= 60 else f"{text[:50]}… ({len(text)} characters)"

    return f"{key}: {brief(before)} → {brief(after)}"


@_printable
def result_text(summary: Mapping[str, Any]) -> str:
    """A finished growth, from its summary."""
    done = "already done" if summary["already_done"] else f"written in {summary['seconds']:.1f} s"
    before, after = summary["parameters"]["before"], summary["parameters"]["after"]
    lines = [
        f"parameters {before:,} → {after:,}",
        ", ".join(f"{n} {kind}" for kind, n in summary["origins"].items()),
        f"peak memory {format_size(summary['peak_memory_bytes'])}",
        claim_text(summary["exactness"]["claim"], summary["exactness"]["reasons"]),
    ]
    verified = [verification_text(summary["verify"])] if summary["verify"] else []
    return "\n".join(
        [f"{summary['out']}: {done}", *(row for x in lines for row in wrapped(x, "  ")), *verified]
    )


@_printable
def rank_text(summary: Mapping[str, Any]) -> str:
    """What one of several ranks has done, from its JSON."""
    if summary["already_done"]:
        return f"{summary['out']}: already done"
    files, missing = summary["files"], len(summary["missing"])
    return "\n".join(
        [
            f"{summary['out']}: rank {summary['rank']} of {summary['world']} has written its "
            f"{count(len(files), 'file')}, {format_size(sum(files.values()))}, "
            f"in {summary['seconds']:.1f} s",
            f"  {count(missing, 'file')} of other ranks to come" if missing else "  all are there",
            "  after the last rank: growkit finish OUT",
        ]
    )


@_printable
def verification_text(verification: Mapping[str, Any]) -> str:
    """What `verify` measured, claimed and found, from its JSON."""
    m, lines = verification["measurement"], []
    if m["error"] is not None:
        lines.append(
            f"{m['kind']} of {m['inputs']}: largest relative difference {m['error']:.2e}, "
            f"rms {m['rms']:.2e}"
        )
    if m["kl"] is not None:
        lines.append(f"KL {m['kl']:.2e} nats, same first choice {m['top1']:.1%}")
    if verification["claim"] is not None:
        limit = verification["tolerance"]
        allows = "any difference" if limit is None else f"{limit:.2e}"
        lines.append(f'claim "{verification["claim"]}" allows {allows}')
        lines += [f"  {reason}" for reason in verification["reasons"]]
    lines += [f"note: {note}" for note in verification["notes"]]
    lines += [f"failed: {failure}" for failure in verification["failures"]]
    lines.append(_verdict(verification))
    return "\n".join(row for line in lines for row in wrapped(line, ""))


def _verdict(verification: Mapping[str, Any]) -> str:
    """The last line: what was held against nothing has not passed, it was measured."""
    if not verification["passed"]:
        return "FAILED"
    if verification["tolerance"] is not None or verification.get("max_drift") is not None:
        return "passed"
    error = verification["measurement"]["error"]
    measured = "nothing could be compared" if error is None else f"drift {error:.2e}"
    return f"measured: {measured}; nothing was claimed"


@_printable
def inspection_text(summary: Mapping[str, Any]) -> str:
    """What a checkpoint is and what of it can grow, from the JSON of `inspect`."""
    dtypes = ", ".join(f"{n} {dtype}" for dtype, n in summary["dtypes"].items())
    facts = {
        "family": f"{summary['family']}: {summary['about']}",
        "classes": ", ".join(summary["classes"]) or "not said by config.json",
        "parameters": f"{summary['parameters']:,}",
        "tensors": f"{summary['tensors']} ({dtypes})",
        "head": "tied to the embedding" if summary["tied"] else "not tied",
        "files": ", ".join(summary["files"]),
        "carried": ", ".join(summary["side_files"]),
        "dropped": "; ".join(summary["dropped"]),
        "notes": "; ".join(summary["notes"]),
    }
    lines = [summary["path"], ""]
    for name, fact in facts.items():
        lines += wrapped(f"{name:<12}{fact}", "", hang=12) if fact else []
    width = max(12, *(len(axis) + 1 for axis in summary["axes"]))
    lines += ["", f"{'axis':<{width}}{'size':>12}  grows"]
    for axis, entry in summary["axes"].items():
        grows = ", ".join(filter(None, ["yes" if entry["can_grow"] else "no", entry["why"]]))
        line = f"{axis:<{width}}{entry['size']:>12,}  {grows}"
        lines += wrapped(line, "", hang=width + 14)
    return "\n".join(lines)


@_printable
def table_text(rows: Mapping[str, str]) -> str:
    """Names and what they are, in two columns."""
    width = max(map(len, rows), default=0) + 2
    lines = [
        line
        for name, about in rows.items()
        for line in wrapped(f"{name:<{width}}{about}", "", hang=width)
    ]
    return "\n".join(lines)


def wrapped(text: str, indent: str, hang: int = 2) -> list[str]:
    """Lines as wide as the terminal; a longer word, such as a path, stays whole to be copied."""
    return textwrap.wrap(
        text,
        columns.get(),
        initial_indent=indent,
        subsequent_indent=indent + " " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
