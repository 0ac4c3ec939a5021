"""Claim = measurement: every growth is written, loaded by transformers and run in float64.

Tiny random models with random norm gains and biases. A claim of exact must measure as exact, and a
claim of approximate must measurably differ; both ways, for every family, head class and operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import cycle
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
    FREE,
    FURTHER,
    GROWTHS,
    HEADS,
    TOGETHER,
    TOLERANCE,
    drift,
    growth_of,
    measure,
    sizes,
    steps_of,
    width,
)

from growkit import api
from growkit.checkpoints.open import open_checkpoint
from growkit.errors import CheckpointError
from growkit.families.model import read_model
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT

# What the zoo tries too, in float64: here in float32 alone.
IN_THE_ZOO = ("width 2x", "width 3/2x", "mlp", "silent depth", "width, depth, noise")
IN_THE_ZOO_IF_FREE = ("head_dim 2x", "head_dim 3/2x")


def rows() -> Iterator[Any]:
    """Head classes × growths × dtypes: a third of those in float64 quick, all others slow."""
    quick = cycle([(), pytest.mark.slow, pytest.mark.slow])
    for family, head in HEADS:
        coupled = family in COUPLED
        further = [*FURTHER, *(TOGETHER if coupled else FREE)]
        known = [*IN_THE_ZOO, *(() if coupled else IN_THE_ZOO_IF_FREE)]
        for growth in further:
            values, name = (family, head, growth, torch.float64), f"{family}-{head}-{growth}"
            yield pytest.param(*values, marks=next(quick), id=name)
        for growth in further + known:
            values, name = (family, head, growth, torch.float32), f"{family}-{head}-{growth}"
            yield pytest.param(*values, marks=pytest.mark.slow, id=f"{name}-float32")


def test_growths_have_names_of_their_own() -> None:
    """A name is a column of the table of families, or a further growth: never two."""
    names = [*GROWTHS, *FURTHER, *FREE, *TOGETHER]
    assert len(names) == len(set(names))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tiny.Saved]:
    """A small model by head class and dtype; the last ones are kept, with what they answer."""

    @lru_cache(maxsize=4)
    def of(family: str, head: str, dtype: torch.dtype, seed: int = 3) -> tiny.Saved:
        model = tiny.build(family, head, seed=seed, dtype=dtype, **sizes(family))
        return tiny.Saved(model, tiny.save(model, tmp_path_factory.mktemp("small")))

    return of


def grown(small: tiny.Saved, growth: str, out: Path) -> tuple[api.Result, float]:
    """A growth by name, and what it changes."""
    steps = growth_of(growth, read_model(open_checkpoint(small.folder)))
    assert steps is not None
    result = api.grow(small.folder, steps_of(steps), out=out)
    return result, drift(small, result.out, result.plan)


@pytest.mark.parametrize(("family", "head", "growth", "dtype"), [*rows()])
def test_claim_is_measurement(
    saved: Callable[..., tiny.Saved],
    tmp_path: Path,
    family: str,
    head: str,
    growth: str,
    dtype: torch.dtype,
) -> None:
    """What the plan claims is what transformers computes, for both storage dtypes."""
    result, error = grown(saved(family, head, dtype), growth, tmp_path / "big")
    claim = result.plan.claim
    if claim.claim == APPROXIMATE:
        assert error > DIFFERS
        assert claim.reasons
    else:
        assert error <= TOLERANCE[dtype][claim.claim]


@pytest.mark.parametrize(
    ("family", "head", "growth", "claim"),
    [
        ("bert", "base", "width 2x", EXACT), ("bert", "masked_lm", "3x", EXACT),
        ("bert", "sequence", "width 3/2x", APPROXIMATE),
        ("bert", "base", "width 3/2x", APPROXIMATE),
        ("bert", "pretraining", "silent depth", EPS), ("bert", "base", "mlp", EXACT),
        ("gpt2", "causal", "3/2x, noise", EXACT), ("gpt2", "causal", "silent depth", EXACT),
        ("llama", "tied", "3/2x, noise", EXACT), ("llama", "causal", "stack", APPROXIMATE),
        ("llama", "mistral", "3x", EXACT), ("llama", "qwen2 tied", "width 3/2x", EXACT),
    ],
)  # fmt: skip
def test_claims_and_float32(
    saved: Callable[..., tiny.Saved],
    tmp_path: Path,
    family: str,
    head: str,
    growth: str,
    claim: str,
) -> None:
    """The claim that each cell must have, and its measurement for a float32 checkpoint."""
    small = saved(family, head, torch.float32, seed=5)
    result, error = grown(small, growth, tmp_path / "big")
    assert result.plan.claim.claim == claim
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
    result = api.grow(
        small, steps_of(TOGETHER["hidden and head_dim 2x, noise"]), out=tmp_path / "big"
    )
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
