"""Kinds of noise: what they touch, how strong they are, and what they keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support.growths import DIFFERS, TOLERANCE, measure, sizes, steps_of, width

from growkit import api
from growkit.algebra.kernel import Kernel
from growkit.errors import RecipeError
from growkit.planning.proof.claim import APPROXIMATE, EXACT

TWICE = width(axes="2x")
DEEPER = {"op": "depth", "to": {"layers": "2x"}}
STACKED = {**DEEPER, "how": "stack"}
FAMILIES = [("bert", "masked_lm"), ("gpt2", "causal"), ("llama", "tied")]


def grown(
    folder: Path, family: str, head: str, *steps: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], api.Result, Callable[[], float]]:
    """Tensors without and with the last step, the result, and how far its outputs are."""
    model = tiny.build(family, head, seed=3, **sizes(family))
    small = tiny.save(model, folder / "small")
    first = api.grow(small, steps_of([*steps[:-1]]), out=folder / "plain")
    result = api.grow(small, steps_of([*steps]), out=folder / "noisy")
    a, b = (load_file(r.out / "model.safetensors") for r in (first, result))
    return a, b, result, partial(measure, model, small, result)


def decibels(signal: torch.Tensor, noise: torch.Tensor) -> float:
    """The ratio of the mean squares."""
    return 10 * math.log10(float((signal**2).mean() / (noise**2).mean()))


@pytest.mark.parametrize(("family", "head"), FAMILIES)
@pytest.mark.parametrize("options", [{"snr_db": 20}, {"std": 0.05}, {}])
def test_gaussian(tmp_path: Path, family: str, head: str, options: dict[str, Any]) -> None:
    """Every weight gets noise of the level asked for, gains and biases none; it is seen."""
    noise = {"op": "noise", "kind": "gaussian", **options}
    before, after, result, error = grown(tmp_path, family, head, TWICE, noise)
    for name, old in before.items():
        added = after[name] - old
        if old.ndim < 2:
            assert not added.any()
        elif "std" in options:
            assert added.std() == pytest.approx(0.05, rel=0.2)
        else:
            assert decibels(old, added) == pytest.approx(options.get("snr_db", 10), abs=1.5)
    assert result.plan.steps[1].claim == APPROXIMATE
    assert "noise is added where the network sees it" in result.plan.claim.reasons[0]
    assert error() > DIFFERS


@pytest.mark.parametrize(("family", "head"), FAMILIES)
def test_shrink_perturb(tmp_path: Path, family: str, head: str) -> None:
    """keep · W + noise on weights, and the noise as far below what is left as asked."""
    noise = {"op": "noise", "kind": "shrink_perturb", "keep": 0.5, "snr_db": 30}
    before, after, result, error = grown(tmp_path, family, head, TWICE, noise)
    for name, old in before.items():
        if old.ndim < 2:
            torch.testing.assert_close(after[name], old, rtol=0, atol=0)
        else:
            assert decibels(0.5 * old, after[name] - 0.5 * old) == pytest.approx(30, abs=1.5)
    assert result.plan.claim.claim == APPROXIMATE
    assert "weights shrink to 0.5 of themselves" in result.plan.claim.reasons[0]
    assert error() > DIFFERS


@pytest.mark.parametrize(("family", "head"), [*FAMILIES, ("llama", "causal")])
def test_null_space_by_std(tmp_path: Path, family: str, head: str) -> None:
    """A standard deviation instead of a ratio keeps the function just the same."""
    noise = {"op": "noise", "std": 0.3}
    before, after, result, error = grown(tmp_path, family, head, TWICE, noise)
    changed = {name for name, old in before.items() if not torch.equal(old, after[name])}
    assert changed
    for name in changed:  # a projection onto half of the directions
        found = float((after[name] - before[name]).std())
        assert found == pytest.approx(0.3 * math.sqrt(0.5), rel=0.2)
    assert result.plan.claim.claim == EXACT
    assert error() <= TOLERANCE[torch.float64][EXACT]


@pytest.mark.parametrize("kind", [{"kind": "gaussian"}, {"kind": "shrink_perturb", "keep": 0.9}])
def test_mask_new_width(tmp_path: Path, kind: dict[str, Any]) -> None:
    """Only rows of new units change, and for tables of embeddings only new columns."""
    noise = {"op": "noise", "std": 0.5, "mask": "new", **kind}
    old, after, _, error = grown(tmp_path, "llama", "causal", TWICE, noise)
    hidden, mlp = 24, 18
    for name, touched in {
        "model.layers.0.mlp.up_proj.weight": (slice(mlp, None), slice(None)),
        "model.layers.1.self_attn.o_proj.weight": (slice(hidden, None), slice(None)),
        "model.embed_tokens.weight": (slice(None), slice(hidden, None)),
    }.items():
        mask = torch.zeros_like(old[name], dtype=torch.bool)
        mask[touched] = True
        assert torch.equal(after[name][~mask], old[name][~mask])
        left = kind.get("keep", 1.0) * old[name]
        assert (after[name] - left)[mask].std() == pytest.approx(0.5, rel=0.25)
    assert torch.equal(after["lm_head.weight"], old["lm_head.weight"])  # it makes no new unit
    assert error() > DIFFERS


def test_mask_new_takes_copies_inside_groups(tmp_path: Path) -> None:
    """New heads are the second of each pair where copies stand next to their original."""
    noise = {"op": "noise", "kind": "gaussian", "std": 0.5, "mask": "new"}
    old, after, _, _ = grown(tmp_path, "llama", "causal", width(heads=8), noise)
    name = "model.layers.0.self_attn.q_proj.weight"
    changed = (after[name] != old[name]).any(dim=1).reshape(8, 4).all(dim=1)
    assert changed.tolist() == [False, False, True, True] * 2


def test_mask_new_layers(tmp_path: Path) -> None:
    """New layers change whole, old ones not at all."""
    noise = {"op": "noise", "kind": "gaussian", "snr_db": 10, "mask": "new"}
    old, after, _, _ = grown(tmp_path, "gpt2", "causal", STACKED, noise)
    changed = {n for n in old if not torch.equal(old[n], after[n])}
    assert changed == {n for n in old if old[n].ndim == 2 and (".h.2." in n or ".h.3." in n)}


def test_mask_new_with_two_new_axes(tmp_path: Path) -> None:
    """New tokens and new columns of an embedding: their union, once."""
    steps = [{"op": "resize", "vocab": 40}, TWICE]
    noise = {"op": "noise", "kind": "shrink_perturb", "keep": 0.5, "std": 1e-9, "mask": "new"}
    old, after, _, _ = grown(tmp_path, "llama", "causal", *steps, noise)
    name = "model.embed_tokens.weight"
    mask = torch.zeros_like(old[name], dtype=torch.bool)
    mask[29:], mask[:, 24:] = True, True
    torch.testing.assert_close(
        after[name], torch.where(mask, 0.5, 1.0) * old[name], atol=1e-8, rtol=0
    )


def test_silent_layers_stay_silent(tmp_path: Path) -> None:
    """What is zero on purpose gets no noise."""
    noise = {"op": "noise", "kind": "gaussian"}
    _, after, result, _ = grown(tmp_path, "llama", "causal", DEEPER, noise)
    assert result.plan.zeroed
    assert not any(after[name].any() for name in result.plan.zeroed)


def test_only(tmp_path: Path) -> None:
    """Patterns choose tensors."""
    noise = {"op": "noise", "kind": "gaussian", "only": ["*.mlp.*"]}
    old, after, _, _ = grown(tmp_path, "llama", "causal", TWICE, noise)
    changed = {n for n in old if not torch.equal(old[n], after[n])}
    assert changed == {n for n in old if ".mlp." in n}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"kind": "gaussian", "only": ["*.nlp.*"]}], r"only: no tensor fits"),
        ([{"kind": "gaussian", "mask": "new"}], r"steps\[0\] \(noise\): gaussian noise: there is"),
    ],
)
def test_noise_that_touches_nothing(tmp_path: Path, steps: list[Any], message: str) -> None:
    """A pattern that fits nothing, and a mask before anything has grown, are refused."""
    small = tiny.save(tiny.build("llama", "causal"), tmp_path / "small")
    with pytest.raises(RecipeError, match=message):
        api.plan_growth(small, steps_of([{"op": "noise", **step} for step in steps]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snr_db": -1}, "louder than the weights"),
        ({"snr_db": 10, "std": 0.1}, "snr_db and std both say how strong"),
        ({"kind": "gaussian", "keep": 0.5}, "keep belongs to kind shrink_perturb, not to gaussian"),
        ({"kind": "shrink_perturb", "std": 0.1}, "shrink_perturb needs keep"),
        ({"kind": "shrink_perturb", "keep": 0.5}, "shrink_perturb needs std or snr_db"),
        ({"mask": "new"}, "mask does not go with kind null_space"),
        ({"kind": "white"}, '"white" is not one of null_space, gaussian, shrink_perturb'),
        ({"kind": "shrink_perturb", "keep": 0, "std": 1}, "keep"),
        ({"std": 0}, "std"),
    ],
)
def test_contradictions(options: dict[str, Any], message: str) -> None:
    """Options that contradict each other are refused in one sentence."""
    with pytest.raises(RecipeError, match=message):
        steps_of([{"op": "noise", **options}])


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (Kernel.gather([0, 0, 1], old=2), [0, 1, 0]),
        (Kernel.gather([1, 0, 0], [1.0, 0.0, 1.0], old=2), [0, 1, 0]),
        (Kernel.gather([[0, 1], [0, 0]], [[0.5, 0.5], [1.0, 0.0]], old=2), [1, 0]),
        (Kernel.shared([0.5, 0.5], [1.0, 1.0]), [1, 1]),
        (Kernel.from_matrix(np.eye(2)), [1, 1]),
    ],
)
def test_new_units(kernel: Kernel, expected: list[int]) -> None:
    """Copies after the first, empty rows, mixtures and dense rows are new."""
    assert (~kernel.row_kinds.first).tolist() == [bool(n) for n in expected]
