"""Steps compose: one recipe equals the composed maps, and equals one run after the other."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import tiny
from support.growths import COUPLED, HEADS, sizes, steps_of

from growkit import api
from growkit.errors import RecipeError

EXAMPLES = int(os.environ.get("GROWKIT_COMPOSITIONS", "40"))
# What is drawn at random is drawn by the number of the step, so that two runs are another draw:
# maps without it. Axes whose auto map is `fresh` at uneven ratios are named.
COPIES = ["tile", "repeat", "circular", "isometric", "auto", {"map": "random", "seed": 4}]
HEADS_BY = ["tile", "repeat", "circular", "auto"]


@st.composite
def width_steps(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """Axes that grow by some ratio and map; heads by whole ratios."""
    whole = draw(st.sampled_from(["2x", "3x", "2x"]))
    uneven = draw(st.sampled_from([whole, "3/2x", "5/4x"]))
    to: dict[str, Any] = {"mlp": draw(st.sampled_from([uneven, "2x", 60]))}
    how: dict[str, Any] = {"mlp": draw(st.sampled_from(COPIES))}
    kind = draw(st.integers(0, 3))
    if kind == 1 and family in COUPLED:
        to |= {"hidden": whole, "heads": whole}
    elif kind == 1:
        to |= {"hidden": uneven}
    elif kind == 2:
        to |= {"axes": whole}
    elif kind == 3:
        to |= {"head_dim": "2x"} | ({"hidden": "2x"} if family in COUPLED else {})
        how["head_dim"] = "tile"
    if "hidden" in to:
        how["hidden"] = draw(st.sampled_from([*COPIES[:5], "pad", "lemon"]))
    if "heads" in to or "axes" in to:
        how["heads"] = draw(st.sampled_from(HEADS_BY))
    return {"op": "width", "to": to, "how": how}


def other_steps() -> st.SearchStrategy[dict[str, Any]]:
    """Layers, legs of a V-cycle, longer tables."""
    rules = ["insert", "stack", "interleave", "top", "middle", "average"]
    depth = st.fixed_dictionaries(
        {
            "op": st.just("depth"),
            "to": st.fixed_dictionaries({"layers": st.integers(2, 5)}),
            "how": st.sampled_from(rules),
            "out_scale": st.sampled_from([1.0, 0.5]),
        }
    )
    level = st.fixed_dictionaries(
        {
            "op": st.sampled_from(["coalesce", "decoalesce"]),
            "to": st.sampled_from([{"axes": "2x"}, {"axes": "1/2x", "layers": "1/2x"}]),
            "pairing": st.sampled_from([{"width": "half"}, {"width": "adjacent"}]),
        }
    )
    table = st.sampled_from([{"op": "resize", "vocab": v, "new": "mean"} for v in (31, 40)])
    return st.one_of(depth, depth, level, table)


@settings(max_examples=EXAMPLES, suppress_health_check=[*HealthCheck], deadline=None)
@given(data=st.data())
def test_steps_compose(data: st.DataObject) -> None:
    """A then B in one recipe, A and then B on what A wrote, and the product of their maps."""
    family, head = data.draw(st.sampled_from(HEADS))
    step = st.one_of(width_steps(family), width_steps(family), other_steps())
    first, second = data.draw(step), data.draw(step)
    tied = data.draw(st.sampled_from(["final_norm", "final_norm", "embedding", "untie"]))
    note(f"{family} {head}: {[first, second]}, tied: {tied}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = tiny.save(tiny.build(family, head, seed=3, **sizes(family)), folder / "small")
        try:
            both = api.grow(small, steps_of([first, second], tied=tied), out=folder / "both")
        except RecipeError:
            event("refused")
            return
        event("compared")
        once = api.grow(small, steps_of([first], tied=tied), out=folder / "once")
        twice = api.grow(once.out, steps_of([second], tied=tied), out=folder / "twice")
        a, b = (load_file(r.out / "model.safetensors") for r in (both, twice))
        sized = both.plan.sizes_after == twice.plan.sizes_after
        assert sized
        assert dict(both.plan.config) == dict(twice.plan.config)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-12, atol=1e-13, msg=key)
    for axis, m in both.plan.maps.items():
        parts = [p.maps[axis] for p in (once.plan, twice.plan) if axis in p.maps]
        product = parts[0].then(parts[1]) if len(parts) == 2 else parts[0]
        for kernel in ("write", "read", "write_normed"):
            mine, theirs = (getattr(x, kernel).matrix() for x in (m, product))
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_three_steps_are_the_product_of_their_matrices(tmp_path: Path, family: str) -> None:
    """Every MLP weight is B·A·W·(…)ᵀ, computed here with dense matrices."""
    name = {
        "bert": ("encoder.layer.{}.intermediate.dense.weight", False),
        "gpt2": ("h.{}.mlp.c_fc.weight", True),
        "llama": ("layers.{}.mlp.up_proj.weight", False),
    }[family]
    steps: list[dict[str, Any]] = [
        {"op": "width", "to": {"axes": "2x"}, "how": "repeat"},
        {"op": "depth", "to": {"layers": 3}, "how": "interleave"},
        {"op": "width", "to": {"mlp": 50}, "how": {"mlp": {"map": "random", "seed": 1}}},
    ]
    small = tiny.save(tiny.build(family, "base", seed=3, **sizes(family)), tmp_path / "small")
    result = api.grow(small, steps_of(steps), out=tmp_path / "big")
    matrices = []
    for i in (0, 2):
        shape = api.plan_growth(small, steps_of(steps[: i + 1]))
        matrices.append(shape.maps)
    a, b = (load_file(p / "model.safetensors") for p in (small, result.out))
    mlp, hidden = matrices[1]["mlp"].write.matrix(), matrices[0]["hidden"].read.matrix()
    assert mlp.shape == (50, 18)
    for new, old in enumerate([0, 0, 1]):
        want, have = (t[name[0].format(n)] for t, n in ((a, old), (b, new)))
        want, have = (t.T if name[1] else t for t in (want, have))
        product = torch.from_numpy(mlp) @ want @ torch.from_numpy(hidden).T
        torch.testing.assert_close(have, product, rtol=1e-13, atol=1e-15)
