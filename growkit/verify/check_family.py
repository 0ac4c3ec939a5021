"""Is a family file right? A tiny random model is made, read through it, permuted and grown.

Three questions, each of which finds what the one before cannot: does the file describe the tensors
on disk; does the function stay when the coordinates of one axis change everywhere; does growth keep
what the plan claims. The law: what is asked is answered by running the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from growkit.checkpoints.open import open_checkpoint
from growkit.errors import CheckpointError, FamilyError, GrowkitError, RecipeError
from growkit.families.load import build_family, find_family
from growkit.families.model import Model, read_model
from growkit.planning.plan import Plan, build_plan
from growkit.recipe.recipe import parse_recipe
from growkit.runtime.estimate import WriteOptions, prepare
from growkit.runtime.execute import execute
from growkit.verify.compare import ROUNDING, compare, tolerance
from growkit.verify.symmetries import symmetries, symmetry_plan
from growkit.verify.tiny import save_random_model, tiny_config

SAME = ROUNDING["float64"]  # relative
DIFFERS = 1e-4  # relative: a growth that is not exact visibly is not
WIDER: Mapping[str, Any] = {"op": "width", "to": {"axes": "2x"}}
UNEVEN: Mapping[str, Any] = {"op": "width", "to": {"axes": "3/2x"}}
LEMON: Mapping[str, Any] = {**UNEVEN, "how": {"hidden": "lemon"}}

Measure = Callable[[Plan], float]  # the largest relative difference that a plan makes


@dataclass(frozen=True, slots=True)
class Finding:
    """One question and its answer."""

    what: str  # "tensors", "axis heads", "growth: width 2x"
    passed: bool
    words: str  # what was measured, or what is wrong


def check_family(config: Mapping[str, Any], family_file: Path | None = None) -> list[Finding]:
    """Check a family file against a tiny random model of a config; the first failure may hide more.

    Raises FamilyError if the file cannot be read, VerifyError if transformers cannot build a model.
    """
    family = build_family(find_family(config, family_file), config, set(), str(family_file or ""))
    with TemporaryDirectory(prefix="growkit-") as folder:
        small = Path(folder) / "small"
        save_random_model(tiny_config(family, config), small)
        try:
            model = read_model(open_checkpoint(small), family_file)
        except (CheckpointError, FamilyError) as error:
            return [Finding("tensors", False, error.message)]
        described = len(model.entries) + len(model.dropped)
        tensors = Finding("tensors", True, f"{described} described, none missing")
        return [tensors, *check_loaded(model, small)]


def check_loaded(model: Model, small: Path) -> Iterator[Finding]:
    """Symmetries and growths of a model that is saved at `small`."""
    with TemporaryDirectory(prefix="growkit-") as folder:
        measure = partial(_difference, small, Path(folder) / "big")
        yield from _symmetric(model, measure)
        yield from _grown(model, measure)


def _difference(small: Path, big: Path, plan: Plan) -> float:
    """Write a plan's result to `big`: the largest relative difference of its outputs."""
    execute(prepare(plan, WriteOptions(overwrite=True)), big)
    axis = plan.maps.get(plan.hidden_axis or "")
    read = axis.read if axis else None
    measured = compare(open_checkpoint(small), open_checkpoint(big), readback=read)
    if measured.strays:
        raise CheckpointError("; ".join(measured.strays))
    return float("inf") if measured.error is None else measured.error


def _symmetric(model: Model, measure: Measure) -> Iterator[Finding]:
    """Each axis in other coordinates."""
    for axis, maps in symmetries(model).items():
        try:
            error = measure(symmetry_plan(model, maps))
        except GrowkitError as broken:
            yield Finding(f"axis {axis}", False, broken.message)
            continue
        words = f"other coordinates change the outputs by {error:.0e}"
        yield Finding(f"axis {axis}", error <= SAME, words)


def _grown(model: Model, measure: Measure) -> Iterator[Finding]:
    """Growths, and whether each is what the plan claims."""
    layers = [a for a in model.family.of_kind("layers") if a in model.sizes]
    deeper = {"op": "depth", "to": dict.fromkeys(layers, "2x")}
    cases = {"width 2x": [WIDER], "width 3/2x": [UNEVEN], "lemon 3/2x": [LEMON]}
    inner = {t.head_dim: "2x" for t in model.family.attentions if t.query in model.sizes}
    if inner:
        streams = [a for a in model.family.of_kind("stream") if a in model.sizes]
        cases["head_dim 2x"] = [{"op": "width", "to": inner}]
        cases["hidden and head_dim 2x"] = [
            {"op": "width", "to": {**dict.fromkeys(streams, "2x"), **inner}}
        ]
    if layers:
        cases |= {"silent depth 2x": [deeper], "width and depth": [WIDER, deeper]}
    if "vocab" in model.user_sizes():
        cases["vocab"] = [{"op": "resize", "vocab": model.sizes["vocab"] + 9}]
    for name, steps in cases.items():
        try:
            plan = build_plan(name, parse_recipe({"steps": steps}), {"small": model})
            error = measure(plan)
        except RecipeError as refused:
            yield Finding(f"growth: {name}", True, f"refused: {refused.message}")
            continue
        except GrowkitError as broken:
            yield Finding(f"growth: {name}", False, broken.message)
            continue
        claim = plan.claim.claim
        limit = tolerance(claim, "float64", plan.claim.eps, plan.claim.passes)
        holds = error > DIFFERS if limit is None else error <= limit
        words = f"claimed {claim}, outputs differ by {error:.0e}"
        yield Finding(f"growth: {name}", holds, words)
