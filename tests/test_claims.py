"""Claim = measurement on recipes drawn at random: families × sizes × maps × up to three steps.

A claim of exact must measure as exact in float64, whatever the recipe. That a claim of approximate
is not vacuous is shown by the fixed table of `test_exactness.py`: some approximate recipes happen
to change nothing that a tiny model can show.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from test_exactness import COUPLED, HEADS, TOLERANCE, measure, sizes, steps_of
from torch import float64

from growkit import run
from growkit.errors import RecipeError
from growkit.facts import APPROXIMATE

EXAMPLES = int(os.environ.get("GROWKIT_CLAIMS", "150"))  # recipes; 2,000 for a thorough run
MAPS = ["auto", "auto", "auto", "tile", "repeat", "circular", "pad", "isometric", "fresh", "random"]
OWN = {  # maps that fit one axis only, or none but this with options
    "hidden": ["lemon", "lemon"],
    "heads": ["ingroup", {"map": "fresh", "pairs": True}],
    "mlp": [{"map": "fresh", "pairs": True}, {"map": "random", "seed": 3}],
}


@st.composite
def width_steps(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """Some axes grow, each by a whole or uneven ratio, each by some map."""
    ratio = draw(st.sampled_from(["2x", "3x", "3/2x", "5/4x", "2x"]))
    if family in COUPLED and draw(st.booleans()):
        to: dict[str, Any] = {"hidden": ratio, draw(st.sampled_from(["heads", "head_dim"])): ratio}
    else:
        to = {"axes": ratio}
    for axis in ("mlp", "hidden", "heads", "kv_heads", "head_dim"):
        if draw(st.integers(0, 3)) == 0 and (family not in COUPLED or axis == "mlp"):
            to[axis] = draw(st.sampled_from(["2x", "3/2x", "7/4x", 24, 32, 36, 48]))
    if draw(st.booleans()):
        to.pop("axes", None)
        to = to or {"mlp": 30}
    how: Any = draw(st.sampled_from(MAPS))
    if draw(st.booleans()):
        how = {a: draw(st.sampled_from(MAPS + OWN.get(a, []))) for a in to if a != "axes"}
    return {"op": "width", "to": to, "how": how}


def depth_steps() -> st.SearchStrategy[dict[str, Any]]:
    """More layers, by every rule."""
    others = ["stack", "interleave", "top", "middle", "overlap", "average"]
    return st.fixed_dictionaries(
        {
            "op": st.just("depth"),
            "to": st.fixed_dictionaries({"layers": st.integers(2, 5)}),
            "how": st.sampled_from(["insert"] * 5 + others),
            "new": st.sampled_from([None, None, None, "silent", "silent", "random"]),
        }
    )


def level_steps() -> st.SearchStrategy[dict[str, Any]]:
    """A leg of a V-cycle."""
    return st.fixed_dictionaries(
        {
            "op": st.sampled_from(["decoalesce", "decoalesce", "decoalesce", "coalesce"]),
            "to": st.sampled_from(
                [{"axes": "2x"}, {"axes": "3x"}, {"mlp": "2x"}, {"axes": "1/2x"}]
            ),
            "pairing": st.sampled_from([{"width": "half"}, {"width": "adjacent"}]),
        }
    )


NOISES: list[dict[str, Any]] = [
    {"snr_db": 0},
    {"snr_db": 0},
    {"snr_db": 0, "only": ["*.0.*"]},
    {"std": 0.1},
    {"kind": "gaussian", "std": 0.5, "mask": "new"},
]


def recipes(family: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Up to three steps, now and then after a fusion with a copy of itself."""
    noise = st.sampled_from(NOISES).map(lambda options: {"op": "noise", **options})
    width = width_steps(family)
    step = st.one_of(width, width, depth_steps(), noise, level_steps())
    fused = st.sampled_from([[], [], [], [], [{"op": "fuse", "with": ["b"]}]])
    return st.builds(lambda a, b: [*a, *b], fused, st.lists(step, min_size=1, max_size=3))


@pytest.mark.slow
@settings(max_examples=EXAMPLES, suppress_health_check=[*HealthCheck], print_blob=True)
@given(data=st.data())
def test_exact_claims_hold(data: st.DataObject) -> None:
    """No recipe that is claimed exact measures as anything else."""
    family, head = data.draw(st.sampled_from(HEADS))
    steps = data.draw(recipes(family))
    tied = data.draw(st.sampled_from(["final_norm", "final_norm", "untie", "embedding"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny.build(family, head, seed=3, dtype=float64, **sizes(family))
        small = tiny.save(model, folder / "small")
        fused = steps[0]["op"] == "fuse"
        recipe = steps_of(steps, tied=tied, sources=["small", "b"] if fused else ["small"])
        further = {"b": str(small)} if fused else {}
        try:
            result = run.grow(small, recipe, sources=further, out=folder / "big")
        except RecipeError:
            event("refused")
            return
        claim = result.plan.claim.claim
        event(claim)
        if claim != APPROXIMATE:
            assert measure(model, small, result) <= TOLERANCE[float64][claim]
