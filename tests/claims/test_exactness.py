"""Claim = measurement: every growth is written, loaded by transformers and run in float64.

Tiny random models with random norm gains and biases. A claim of exact must measure as exact, and a
claim of approximate must measurably differ; both ways, for every family, head class and operator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support import tiny
from support.growths import (
    COUPLED,
    DEEPER,
    DIFFERS,
    HEADS,
    NOISE,
    TOLERANCE,
    measure,
    sizes,
    steps_of,
    width,
)

from growkit import api
from growkit.errors import CheckpointError
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT

SLOW = pytest.mark.slow


CASES: dict[str, list[dict[str, Any]]] = {
    "2x": [width(axes="2x")],
    "3x": [width(axes="3x")],
    "3/2x": [width(axes="3/2x")],
    "mlp": [width(mlp=25)],
    "2x, noise": [width(axes="2x"), NOISE],
    "3x, noise": [width(axes="3x"), NOISE],
    "3/2x, noise": [width(axes="3/2x"), NOISE],
    "mlp, noise": [width(mlp=25), NOISE],
    "silent 2x": [DEEPER],
    "silent 2x, noise": [DEEPER, NOISE],
    "2x and silent, noise": [width(axes="2x"), DEEPER, NOISE],
    "noise, then 3/2x": [width(mlp="2x"), NOISE, width(axes="3/2x")],
    "stack": [{**DEEPER, "how": "stack"}],
    "uneven split": [{**width(mlp="2x"), "how": {"mlp": {"map": "uneven", "weights": [2, 1]}}}],
}
FREE = {  # families whose head size is a config key of its own
    "heads only": [width(heads=8)],
    "heads only, noise": [width(heads=8), NOISE],
    "heads only, fresh": [width(heads=6)],
    "heads only, fresh, noise": [width(heads=6), NOISE],
    "heads and kv heads": [width(hidden=48, heads=8, kv_heads=4), NOISE],
    "fresh kv heads": [width(hidden=48, heads=6, kv_heads=3), NOISE],
    "kv heads only": [width(kv_heads=4)],
    "head_dim only": [width(head_dim="2x")],
    "head_dim only, noise": [width(head_dim="2x"), NOISE],
    "head_dim only, 3/2x": [width(head_dim="3/2x")],
    "head_dim only, 3/2x, noise": [width(head_dim="3/2x"), NOISE],
    "hidden only": [width(hidden=28), NOISE],
    "hidden isometric": [{**width(hidden=28), "how": "isometric"}, NOISE],
    "hidden circular": [{**width(hidden=28), "how": "circular"}],
    "hidden repeat": [{**width(hidden=48), "how": "repeat"}, NOISE],
    "explicit layers": [{"op": "depth", "layers": [0, 0, 1], "new": "silent"}],
}
TOGETHER = {
    "head_dim 2x": [width(hidden="2x", head_dim="2x"), NOISE],
    "head_dim 3/2x": [width(hidden="3/2x", head_dim="3/2x"), NOISE],
    "repeat": [{**width(axes="2x"), "how": "repeat"}, NOISE],
}
TABLE = [
    pytest.param(family, head, steps, id=f"{family}-{head}-{name}")
    for family, head in HEADS
    for name, steps in (CASES | (TOGETHER if family in COUPLED else FREE)).items()
]


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=SLOW)])
@pytest.mark.parametrize(("family", "head", "steps"), TABLE)
def test_claim_is_measurement(
    tmp_path: Path, family: str, head: str, steps: list[dict[str, Any]], dtype: torch.dtype
) -> None:
    """What the plan claims is what transformers computes, for both storage dtypes."""
    model = tiny.build(family, head, seed=3, dtype=dtype, **sizes(family))
    small = tiny.save(model, tmp_path / "small")
    result = api.grow(small, steps_of(steps), out=tmp_path / "big")
    error = measure(model, small, result)
    claim = result.plan.claim
    if claim.claim == APPROXIMATE:
        assert error > DIFFERS
        assert claim.reasons
    else:
        assert error <= TOLERANCE[dtype][claim.claim]


@pytest.mark.parametrize(
    ("family", "head", "name", "claim"),
    [
        ("bert", "base", "2x", EXACT), ("bert", "masked_lm", "3x", EXACT),
        ("bert", "classifier", "3/2x", APPROXIMATE), ("bert", "base", "3/2x", APPROXIMATE),
        ("bert", "pretraining", "silent 2x", EPS), ("bert", "base", "mlp", EXACT),
        ("gpt2", "causal", "3/2x, noise", EXACT), ("gpt2", "causal", "silent 2x", EXACT),
        ("llama", "tied", "3/2x, noise", EXACT), ("llama", "causal", "stack", APPROXIMATE),
        ("mistral", "causal", "3x", EXACT), ("qwen2", "tied", "3/2x", EXACT),
    ],
)  # fmt: skip
def test_claims_and_float32(tmp_path: Path, family: str, head: str, name: str, claim: str) -> None:
    """The claim that each cell must have, and its measurement for a float32 checkpoint."""
    model = tiny.build(family, head, seed=5, dtype=torch.float32, **sizes(family))
    small = tiny.save(model, tmp_path / "small")
    result = api.grow(small, steps_of(CASES[name]), out=tmp_path / "big")
    assert result.plan.claim.claim == claim
    error = measure(model, small, result)
    limit = TOLERANCE[torch.float32].get(claim)
    assert error > DIFFERS if limit is None else error <= limit


@pytest.mark.parametrize("head", ["base", "masked_lm"])
def test_the_eps_claim_shrinks_with_eps(tmp_path: Path, head: str) -> None:
    """Silent layers under post-norm differ by eps, and by nothing else."""
    errors = []
    for eps in (1e-5, 1e-12):
        model = tiny.build("bert", head, seed=3, layer_norm_eps=eps, **sizes("bert"))
        small = tiny.save(model, tmp_path / f"small{eps}")
        result = api.grow(small, steps_of([DEEPER]), out=tmp_path / f"big{eps}")
        assert result.plan.claim.claim == EPS
        assert api.verify_growth(small, result.out).passed
        errors.append(measure(model, small, result))
    assert 1e-7 < errors[0] < 1e-3
    assert errors[1] < 1e-10


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("tied", ["final_norm", "untie"])
def test_both_ways_to_treat_a_tied_head(tmp_path: Path, family: str, tied: str) -> None:
    """The factor in the norm before the head, or a head of its own: both keep the logits."""
    head = {"bert": "masked_lm", "gpt2": "causal", "llama": "tied"}[family]
    model = tiny.build(family, head, seed=3, **sizes(family))
    small = tiny.save(model, tmp_path / "small")
    result = api.grow(small, steps_of([width(axes="2x")], tied=tied), out=tmp_path / "big")
    assert measure(model, small, result) < 1e-10


def test_scores_divided_by_the_layer_number(tmp_path: Path) -> None:
    """GPT-2's inverse layer index: copies of a layer at another place keep their scores."""
    model = tiny.build(
        "gpt2", "causal", seed=3, scale_attn_by_inverse_layer_idx=True, **sizes("gpt2")
    )
    small = tiny.save(model, tmp_path / "small")
    result = api.grow(small, steps_of([DEEPER]), out=tmp_path / "big")
    assert result.plan.claim.claim == EXACT
    assert measure(model, small, result) < 1e-10


def test_unscaled_scores(tmp_path: Path) -> None:
    """Without the 1/√head_dim in the scores, growing head_dim needs no factor for it."""
    model = tiny.build("gpt2", "causal", seed=3, scale_attn_weights=False, **sizes("gpt2"))
    small = tiny.save(model, tmp_path / "small")
    result = api.grow(small, steps_of(TOGETHER["head_dim 2x"]), out=tmp_path / "big")
    assert result.plan.claim.claim == EXACT
    assert measure(model, small, result) < 1e-10


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_blend(tmp_path: Path, alpha: float) -> None:
    """alpha is the weight of the grown model: 1 leaves it, 0 gives the other checkpoint."""
    small = tiny.save(tiny.build("llama", "causal", seed=3, **sizes("llama")), tmp_path / "small")
    double = {k: 2 * v for k, v in sizes("llama").items() if k not in ("layers", "head_dim")}
    other = tiny.build("llama", "causal", seed=8, **{**double, "head_dim": 4})
    large = tiny.save(other, tmp_path / "large")
    recipe = steps_of(
        [width(axes="2x"), {"op": "blend", "with": "large", "alpha": alpha}],
        sources=["small", "large"],
    )
    result = api.grow(small, recipe, sources={"large": str(large)}, out=tmp_path / "out")
    grown = api.grow(small, steps_of([width(axes="2x")]), out=tmp_path / "grown")
    a, b, mixed = (load_file(p / "model.safetensors") for p in (large, grown.out, result.out))
    for name, value in mixed.items():
        torch.testing.assert_close(value, (1 - alpha) * a[name] + alpha * b[name])
    assert result.plan.claim.claim == (EXACT if alpha == 1 else APPROXIMATE)


def test_blend_needs_the_grown_shape(tmp_path: Path) -> None:
    """A checkpoint of another shape is refused with what differs."""
    small = tiny.save(tiny.build("llama", "causal", **sizes("llama")), tmp_path / "small")
    recipe = steps_of(
        [width(axes="2x"), {"op": "blend", "with": "large", "alpha": 0.5}],
        sources=["small", "large"],
    )
    with pytest.raises(CheckpointError, match=r"source large: .* hidden 48 and 24"):
        api.plan_growth(small, recipe, sources={"large": str(small)})


@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn", "dynamic"])
@pytest.mark.parametrize("to", ["2x", "3/2x"])
def test_rope_types(tmp_path: Path, rope: str, to: str) -> None:
    """Growing head_dim under scaled rotary positions; only the dynamic type cannot be kept."""
    keys: dict[str, Any] = {"rope_type": rope, "rope_theta": 10000.0, "factor": 2.0}
    if rope == "llama3":
        keys |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if rope in ("llama3", "yarn"):
        keys["original_max_position_embeddings"] = 8
    model = tiny.build(
        "llama", "causal", seed=3, rope_parameters=keys, positions=8, **sizes("llama")
    )
    small = tiny.save(model, tmp_path / "small")
    result = api.grow(small, steps_of([width(head_dim=to)]), out=tmp_path / "big")
    assert (result.plan.claim.claim == APPROXIMATE) is (rope == "dynamic")
    assert (measure(model, small, result) < 1e-10) is (rope != "dynamic")


@pytest.mark.slow
def test_half_size_bert_grows_to_bert_large(tmp_path: Path) -> None:
    """512 × 12 layers × 8 heads × 2048 → BERT-large, layers included: exact up to eps."""
    model = tiny.build(
        "bert", "base", seed=1, dtype=torch.float32, heads=8, head_dim=64, mlp=2048, layers=12
    )
    small = tiny.save(model, tmp_path / "small")
    result = api.grow(small, "bert_large", out=tmp_path / "big")
    assert result.plan.claim.claim == EPS
    after = {"hidden": 1024, "heads": 16, "head_dim": 64, "mlp": 4096, "layers": 24}
    assert {k: result.plan.sizes_after[k] for k in after} == after
    assert measure(model, small, result) < 2e-5
    loaded = transformers.AutoModel.from_pretrained(result.out)
    assert loaded.config.num_hidden_layers == 24
