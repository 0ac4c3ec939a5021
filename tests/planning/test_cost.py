"""What planning costs: no named map is ever a matrix, whatever the width and the number of tensors.

Headers of a Llama-shaped model are made by hand, so no weight and no file exists.
"""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest
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
    "steps",
    [
        [{"op": "width", "to": {"axes": "2x"}}, NOISE],
        [{"op": "width", "to": {"hidden": 16384, "heads": 128, "mlp": 53248}}, NOISE],
        [
            {"op": "width", "to": {"axes": "3/2x"}},
            {"op": "width", "to": {"axes": "4/3x"}},
            {"op": "depth", "to": {"layers": "3/2x"}},
            NOISE,
        ],
    ],
    ids=["copies", "uneven", "many steps"],
)  # fmt: skip
def test_planning_a_width_of_16384(steps: list[dict[str, Any]]) -> None:
    """Within 200 MB and a few seconds (0.3 s when the machine is idle); a matrix takes 2 GB."""
    start = time.perf_counter()
    made = plan(steps, **WIDE)
    assert time.perf_counter() - start < 10
    assert made.sizes_after["hidden"] == 16384
    assert made.claim.claim == "exact"
    tracemalloc.start()
    try:
        plan(steps, **WIDE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.slow
def test_planning_30000_tensors() -> None:
    """Time grows with the number of tensors, not with its square."""
    start = time.perf_counter()
    made = plan(
        [{"op": "width", "to": {"axes": "2x"}}, NOISE],
        hidden=1024, heads=8, kv_heads=8, mlp=2048, layers=3334,
    )  # fmt: skip
    assert len(made.formulas) > 30_000
    assert time.perf_counter() - start < 60
