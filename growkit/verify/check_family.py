"""Is a family file right? A tiny random model is made, read through it, turned and grown.

Three questions, each of which finds what the one before cannot: does the file describe the tensors
on disk; does the function stay when the coordinates of one axis change everywhere; does growth keep
what the plan claims. The law: what is asked is answered by running the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
from growkit.verify.symmetries import gauge_plan, gauges
from growkit.verify.tiny import tiny_config, write_specimen

SAME = ROUNDING["float64"]  # relative
DIFFERS = 1e-4  # relative: a growth that is not exact visibly is not
WIDER: Mapping[str, Any] = {"op": "width", "to": {"axes": "2x"}}
UNEVEN: Mapping[str, Any] = {"op": "width", "to": {"axes": "3/2x"}}
LEMON: Mapping[str, Any] = {**UNEVEN, "how": {"hidden": "lemon"}}


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
    with scratch() as folder:
        small = folder / "small"
        write_specimen(tiny_config(family, config), small)
        try:
            model = read_model(open_checkpoint(small), family_file)
        except (CheckpointError, FamilyError) as error:
            return [Finding("tensors", False, error.message)]
        count = len(model.entries) + len(model.dropped)
        findings = [Finding("tensors", True, f"{count} described, none missing")]
        findings += check_loaded(model, small)
    return findings


def check_loaded(model: Model, small: Path) -> Iterator[Finding]:
    """Gauges and growths of a model that is saved at `small`."""
    with scratch() as folder:
        measure = _Bench(small, folder).measure
        yield from _gauged(model, measure)
        yield from _grown(model, measure)


@dataclass(frozen=True, slots=True)
class _Bench:
    """Writes a plan and says how far the result is from the small model."""

    small: Path
    folder: Path

    def measure(self, plan: Plan) -> float:
        """The largest relative difference of the outputs."""
        out = self.folder / "big"
        execute(prepare(plan, WriteOptions(overwrite=True)), out)
        axis = plan.maps.get(plan.hidden_axis or "")
        read = axis.read if axis else None
        measured = compare(open_checkpoint(self.small), open_checkpoint(out), readback=read)
        if measured.strays:
            raise CheckpointError("; ".join(measured.strays))
        return float("inf") if measured.error is None else measured.error


def _gauged(model: Model, measure: Callable[[Plan], float]) -> Iterator[Finding]:
    """Each axis in other coordinates."""
    for axis, maps in gauges(model).items():
        try:
            error = measure(gauge_plan(model, maps))
        except GrowkitError as broken:
            yield Finding(f"axis {axis}", False, broken.message)
            continue
        words = f"other coordinates change the outputs by {error:.0e}"
        yield Finding(f"axis {axis}", error <= SAME, words)


def _grown(model: Model, measure: Callable[[Plan], float]) -> Iterator[Finding]:
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


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder, removed at the end whatever happens."""
    with tempfile.TemporaryDirectory(prefix="growkit-") as folder:
        yield Path(folder)
