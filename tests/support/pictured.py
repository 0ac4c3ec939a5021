"""Plans whose pages are looked at: one source and several, two stacks, experts, small and large.

The large one is made of headers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from growkit import api
from growkit.checkpoints.types import Stored
from growkit.families.model import read_model
from growkit.planning.formula import Term
from growkit.planning.plan import Plan, build_plan
from support import tiny
from support.growths import steps_of
from support.headers import headers

TWICE = {"op": "width", "to": {"axes": "2x"}}
DEEPER = {"op": "depth", "to": {"layers": "2x"}}
NOISE = {"op": "noise", "snr_db": 10}
FUSE = {"op": "fuse", "with": ["other"]}
STEPS: Mapping[str, tuple[str, list[dict[str, Any]]]] = {
    "single": ("bert", [TWICE, DEEPER, NOISE]),
    "uneven": ("bert", [{"op": "width", "to": {"axes": "3/2x"}}]),
    "stacked": ("gpt2", [{**DEEPER, "how": "stack"}, {"op": "resize", "vocab": 40}]),
    "new layers": ("gpt2", [{**DEEPER, "how": "top", "new": "random"}]),
    "coalesced": ("gpt2", [{"op": "coalesce", "to": {"axes": "1/2x", "layers": "1/2x"}}]),
    "fusion": ("gpt2", [FUSE, DEEPER]),
    "fused with itself": ("gpt2", [{"op": "fuse", "with": ["same"]}, NOISE]),
    "blended": ("gpt2", [{"op": "blend", "with": "twin", "alpha": 0.5}]),
    "above": ("bert", [{"op": "width", "to": {"axes": "2x"}, "new_rows": "above"}]),
    "two stacks": ("t5", [TWICE, {**DEEPER, "how": "stack"}]),
    "half of two stacks": ("t5-encoder", [TWICE, DEEPER]),
    "towers": ("clip", [TWICE, {"op": "depth", "to": {"vision.layers": "2x"}}]),
    "experts": ("experts", [{"op": "width", "to": {"axes": "2x", "experts": "2x"}}]),
    "learned": ("bert", [{"op": "learned", "maps": "MAPS"}]),
}
ZOO = {"t5": "t5/generation", "t5-encoder": "t5/encoder", "clip": "clip/both"}


def plans(folder: Path) -> dict[str, Plan]:
    """All of them, by name; the small models are saved below `folder`."""
    sizes = {"heads": 2, "mlp": 12, "layers": 4, "dtype": torch.float32}
    places = {
        "bert": tiny.save(tiny.build("bert", "base", **sizes), folder / "bert"),
        "gpt2": tiny.save(tiny.build("gpt2", "causal", **sizes), folder / "gpt2"),
        "twin": tiny.save(tiny.build("gpt2", "causal", **sizes, seed=1), folder / "twin"),
        "other": tiny.save(
            tiny.build("gpt2", "causal", **{**sizes, "heads": 4}, seed=2), folder / "other"
        ),
        "experts": tiny.Saved.at(folder / "experts", "mixtral/causal").folder,
        **{n: tiny.Saved.at(folder / n, model).folder for n, model in ZOO.items()},
    }
    places["same"] = places["gpt2"]
    maps = folder / "maps.safetensors"
    uneven = [{"op": "width", "to": {"axes": "3/2x"}}, DEEPER]
    api.save_maps(api.plan_growth(places["bert"], steps_of(uneven)), maps)
    planned = {}
    for name, (source, steps) in STEPS.items():
        steps = [{k: str(maps) if v == "MAPS" else v for k, v in s.items()} for s in steps]
        more = [w for s in steps if (w := s.get("with"))]
        others = [n for w in more for n in ([w] if isinstance(w, str) else w)]
        recipe = steps_of(steps, sources=["small", *others])
        given = {other: str(places[other]) for other in others}
        planned[name] = api.plan_growth(places[source], recipe, sources=given)
    return planned | {"large": large(), "hostile": hostile(planned["fusion"])}


def large() -> Plan:
    """A decoder of 96 layers, grown to 192 of width 16,384."""
    model = read_model(headers(hidden=8192, heads=64, kv_heads=8, mlp=28672, layers=96))
    to = {"hidden": 16384, "heads": 128, "kv_heads": 16, "mlp": 57344}
    how = {"mlp": "random"}  # more runs than can be told one by one
    steps = [{"op": "width", "to": to, "how": how}, DEEPER, NOISE]
    return build_plan("large", steps_of(steps), {"small": model})


HOSTILE = (
    "</title></style></svg><script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "]]><!--&lt;b&amp;\x00\x1b[31m\ud800\uffff\u202egpj.exe\n<a href=javascript:alert(1)>",
    "x" * 3000,
)


def hostile(plan: Plan) -> Plan:
    """The same plan where everything that comes from outside has names that try to be markup."""
    first, second, third, long = HOSTILE
    main, other = plan.sources.values()
    config = {**plan.config, "architectures": [second], first: third, third: long, long: first}
    reasons = (*plan.claim.reasons, first, third, long)
    return replace(
        plan,
        recipe=plan.recipe.model_copy(update={"about": first, "sources": (plan.main, second)}),
        recipe_name=first,
        sources={plan.main: main, second: replace(other, path=third)},
        other_maps={second: plan.other_maps["other"]},
        formulas=tuple(
            replace(f, name=f"{f.name}{third}", terms=tuple(map(_renamed, f.terms)))
            for f in plan.formulas
        ),
        config=config,
        claim=replace(plan.claim, reasons=reasons),
        steps=tuple(replace(step, reasons=reasons) for step in plan.steps),
        dropped=HOSTILE,
        hints=HOSTILE,
    )


def _renamed(term: Term) -> Term:
    """A term of the second source under its hostile name."""
    stored = term.source
    if isinstance(stored, Stored) and stored.source == "other":
        return replace(term, source=replace(stored, source=HOSTILE[1]))
    return term


def layers_of(plan: Plan) -> list[str]:
    """Every layer of the result, such as `decoder.layers.3`."""
    stacks = [user for user, axes in plan.axes.items() if axes[0] in plan.layer_maps]
    return [f"{user}.{n}" for user in stacks for n in range(plan.sizes_after[user])]


def axes_of(plan: Plan) -> list[str]:
    """Every other axis that the user sees."""
    return [user for user, axes in plan.axes.items() if axes[0] not in plan.layer_maps]
