"""Where layers and units come from, as formulas and maps say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import pictured, tiny
from support.growths import steps_of

from growkit import api
from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.ops.axis_maps import pad, repeat, tile, uneven
from growkit.planning.plan import Estimate, Plan
from growkit.report.as_json import plan_json
from growkit.report.provenance import (
    KINDS,
    Provenance,
    Run,
    axis_provenance,
    provenance,
    provenance_json,
    unit_provenance,
)

NOTHING = Estimate(output_bytes=0, disk_bytes=0, peak_bytes=0, shards=(), digest="")


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Plans of every kind."""
    return pictured.plans(tmp_path_factory.mktemp("models"))


def units(m: AxisMap | Kernel) -> list[tuple[str, int, int, list[int]]]:
    """The runs of units under a map: kind, start, stop, first old units."""
    found = unit_provenance({"a": m.write if isinstance(m, AxisMap) else m})
    return [(r.kind, r.start, r.stop, [n for _, n in r.places]) for r in found.runs]


# -- units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "runs"),
    [
        (Kernel.identity(4), [("old", 0, 4, [0])]),
        (Kernel.identity(4, 0.5), [("scaled", 0, 4, [0])]),
        (tile(3, 6), [("old", 0, 3, [0]), ("copied", 3, 6, [0])]),
        (
            repeat(2, 4),
            [("old", 0, 1, [0]), ("copied", 1, 2, [0]), ("old", 2, 3, [1]), ("copied", 3, 4, [1])],
        ),
        (uneven(2, 4, (2, 1)), [("old", 0, 2, [0]), ("copied", 2, 4, [0])]),
        (pad(3, 5), [("old", 0, 3, [0]), ("new", 3, 5, [])]),
        (pad(3, 4, mean=True), [("old", 0, 3, [0]), ("mixed", 3, 4, [])]),
        (tile(2, 4).inverse(), [("mixed", 0, 2, [0, 2])]),
        (Kernel.gather([2, 0], old=3), [("old", 0, 1, [2]), ("old", 1, 2, [0])]),
        (Kernel.from_matrix(np.eye(3) + np.eye(3, k=1)),
         [("mixed", 0, 2, [0, 1]), ("old", 2, 3, [2])]),
        (Kernel.from_matrix(np.arange(1, 61.0).reshape(3, 20) ** 0.5), [("mixed", 0, 3, [])]),
    ],
)  # fmt: skip
def test_runsof_units(kernel: Any, runs: list[Any]) -> None:
    """Units that come from old ones in step are one run; zero rows are new, means are mixed."""
    assert units(kernel) == runs


def test_units_of_two_sources() -> None:
    """Each source owns its block; a unit that takes from both is mixed."""
    left, right = (
        Kernel.gather([0, 1, 0], [1, 1, 0], old=2),
        Kernel.gather([0, 0, 0], [0, 1, 1], old=1),
    )
    found = unit_provenance({"a": left, "b": right})
    assert found.runs == (
        Run("old", 0, 1, (("a", 0),)),
        Run("mixed", 1, 2, (("a", 1), ("b", 0))),
        Run("old", 2, 3, (("b", 0),)),
    )
    assert (found.before, found.left_out) == ({"a": 2, "b": 1}, 0)


def test_units_that_are_left_out() -> None:
    """Old units that nothing comes from are counted."""
    assert unit_provenance({"a": Kernel.gather([1, 3], old=5)}).left_out == 3


def test_too_many_runs() -> None:
    """They are counted and not told."""
    found = unit_provenance({"a": repeat(100, 200).write})
    assert (found.runs, found.counts) == ((), {"old": 100, "copied": 100})


# -- layers --------------------------------------------------------------------------------------


LAYERS: dict[str, list[tuple[str, int, int, list[int]]]] = {
    "single": [
        (kind, 2 * n + i, 2 * n + i + 1, [n])
        for n in range(4)
        for i, kind in enumerate(("old", "silent"))
    ],
    "uneven": [("old", 0, 4, [0])],
    "stacked": [("old", 0, 4, [0]), ("copied", 4, 8, [0])],
    "new layers": [("old", 0, 4, [0]), ("new", 4, 8, [])],
    "coalesced": [("mixed", 0, 1, [0, 1]), ("mixed", 1, 2, [2, 3])],
    "fused with itself": [("mixed", 0, 4, [0, 0])],
    "blended": [("mixed", 0, 4, [0, 0])],
    "above": [("mixed", 0, 3, [0, 1]), ("old", 3, 4, [3])],
    "experts": [("old", 0, 3, [0])],
}


@pytest.mark.parametrize("name", LAYERS)
def test_runs_of_layers(name: str, plans: dict[str, Plan]) -> None:
    """Silent, copied, new, averaged, fused and blended layers, and those with rows from above."""
    found = axis_provenance(plans[name], "layers")
    assert [(r.kind, r.start, r.stop, [n for _, n in r.places]) for r in found.runs] == LAYERS[name]


def test_two_stacks(plans: dict[str, Plan]) -> None:
    """Each has layers of its own, also one that only the config has."""
    both = provenance(plans["two stacks"])
    assert both["encoder.layers"].counts == {"old": 3, "copied": 3}
    assert both["decoder.layers"].before != both["encoder.layers"].before
    half = provenance(plans["half of two stacks"])
    assert half["encoder.layers"].counts == {"old": 3, "silent": 3}


def test_layers_after_a_blend_are_not_silent(tmp_path: Path) -> None:
    """What is said of a layer is said of its formulas, whatever the steps before were."""
    model = tiny.build("gpt2", "causal", layers=2, dtype=torch.float32)
    small = tiny.save(model, tmp_path / "small")
    deep = api.grow(small, steps_of([pictured.DEEPER]), out=tmp_path / "deep").out
    blend = {"op": "blend", "with": "deep", "alpha": 0.5, "only": ["h.1.*"]}
    steps = steps_of([{**pictured.DEEPER, "how": "stack"}, blend], sources=["small", "deep"])
    found = axis_provenance(api.plan_growth(small, steps, sources={"deep": str(deep)}), "layers")
    assert [r.kind for r in found.singles] == ["old", "mixed", "copied", "old"]
    steps = steps_of([pictured.DEEPER, {**blend, "only": []}], sources=["small", "deep"])
    found = axis_provenance(api.plan_growth(small, steps, sources={"deep": str(deep)}), "layers")
    assert found.counts == {"mixed": 4}


# -- all of a plan -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*pictured.STEPS, "large"])
def test_every_axis_adds_up(name: str, plans: dict[str, Plan]) -> None:
    """Counts add up to the size after, runs cover it, and every axis of the plan is there."""
    plan, found = plans[name], provenance(plans[name])
    assert {a.partition(" (")[0] for a in found} >= {*plan.sizes_after}
    for axis, d in found.items():
        assert d.after == plan.sizes_after.get(axis.partition(" (")[0], d.after)
        assert sum(d.counts.values()) == d.after
        assert {*d.counts} <= {*KINDS}
        if d.runs:
            assert [r.start for r in d.runs] == [0, *(r.stop for r in d.runs[:-1])]
            assert d.runs[-1].stop == d.after
            assert len([*d.singles]) == d.after
        for source, _ in (p for r in d.runs for p in r.places):
            assert source in d.before


def test_plans_tell_it_as_json(plans: dict[str, Plan]) -> None:
    """`plan --json` has it as `descent`."""
    told = plan_json(plans["stacked"], NOTHING)["descent"]
    assert told.keys() == provenance(plans["stacked"]).keys()
    assert told["layers"] == {
        "before": {"small": 4},
        "after": 8,
        "counts": {"old": 4, "copied": 4},
        "left_out": 0,
        "runs": [["old", 0, 4, [["small", 0]]], ["copied", 4, 8, [["small", 0]]]],
    }
    assert told["hidden"] == provenance_json(Provenance({"small": 8}, 8, {"old": 8}, (
        Run("old", 0, 8, (("small", 0),)),
    )))  # fmt: skip
