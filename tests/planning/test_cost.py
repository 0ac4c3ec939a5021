"""What planning costs: no named map is ever a matrix, whatever the width and the number of tensors.

Headers of a Llama-shaped model are made by hand, so no weight and no file exists. Costs are counted
in function calls and bytes; the seconds that they take are for the benchmarks.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from support.calls import calls
from support.growths import steps_of
from support.headers import headers

from growkit.families.model import read_model
from growkit.planning.plan import Plan, build_plan

WIDE = {"hidden": 8192, "heads": 64, "kv_heads": 8, "mlp": 28672, "layers": 80}
NOISE = {"op": "noise", "snr_db": 10}


def plan(steps: list[dict[str, Any]], **sizes: int) -> Plan:
    """A plan from headers alone."""
    return build_plan("recipe", steps_of(steps), {"small": read_model(headers(**sizes))})


@pytest.mark.parametrize(
    ("steps", "each"),
    [
        ([{"op": "width", "to": {"axes": "2x"}}, NOISE], 200),
        ([{"op": "width", "to": {"hidden": 16384, "heads": 128, "mlp": 53248}}, NOISE], 200),
        (
            [
                {"op": "width", "to": {"axes": "3/2x"}},
                {"op": "width", "to": {"axes": "4/3x"}},
                {"op": "depth", "to": {"layers": "3/2x"}},
                NOISE,
            ],
            1000,
        ),
    ],
    ids=["copies", "uneven", "many steps"],
)
def test_planning_a_width_of_16384(steps: list[dict[str, Any]], each: int) -> None:
    """Within so many calls for each tensor, and within 200 MB, where a matrix takes 2 GB."""
    plan(steps, **WIDE | {"layers": 2})  # imports and caches
    plans: list[Plan] = []
    tracemalloc.start()
    try:
        count = calls(lambda: plans.append(plan(steps, **WIDE)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert plans[0].sizes_after["hidden"] == 16384
    assert plans[0].claim.claim == "exact"
    assert count < each * len(plans[0].formulas)
    assert peak < 200e6


@pytest.mark.slow
def test_planning_30000_tensors() -> None:
    """Calls grow with the number of tensors, not with its square."""

    def cost(layers: int) -> tuple[int, int]:
        steps = [{"op": "width", "to": {"axes": "2x"}}, NOISE]
        sizes = {"hidden": 1024, "heads": 8, "kv_heads": 8, "mlp": 2048, "layers": layers}
        plans: list[Plan] = []
        count = calls(lambda: plans.append(plan(steps, **sizes)))
        return len(plans[0].formulas), count

    cost(2)  # imports and caches
    (few, first), (many, second) = cost(833), cost(3334)
    assert many > 30_000
    assert second / first < 1.03 * many / few
