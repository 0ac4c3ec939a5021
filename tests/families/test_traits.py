"""What family files can say beyond names and sizes, each seen on a model that needs it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import tiny, zoo

from growkit import api
from growkit.errors import FamilyError, RecipeError
from growkit.families.load import build_family, family_text, find_family, read_yaml
from growkit.planning.plan import Plan
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT
from growkit.recipe.recipe import parse_recipe


def plan_of(small: Path, *steps: dict[str, Any], **keys: Any) -> Plan:
    """The plan of these steps."""
    return api.plan_growth(small, parse_recipe({"steps": list(steps)}), **keys)


def saved(name: str, folder: Path, **config: Any) -> Path:
    """A tiny model, perhaps with other config keys, written."""
    model = zoo.models()[name]
    return tiny.save(tiny.make(replace(model, config={**model.config, **config})), folder)


@pytest.mark.parametrize(
    ("layers", "claim"), [([0, 1, 1, 2, 2], EPS), ([0, 1, 2], EXACT), ([0, 0, 1, 2], APPROXIMATE)]
)
def test_what_joins_the_stream_after_layer_0(tmp_path: Path, layers: list[int], claim: str) -> None:
    """A convolution reads layer 0's output: nothing may come between, further up all may."""
    small = saved("deberta-v2/conv", tmp_path / "small")
    step = {"op": "depth", "layers": layers, "to": {"layers": len(layers)}, "new": "silent"}
    found = plan_of(small, step).claim
    assert found.claim == claim, found.reasons
    assert any("encoder.conv.LayerNorm joins" in r for r in found.reasons) is (claim == APPROXIMATE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joins": {"mlp": "norm"}}, "joins: unknown layer axis mlp"),
        ({"joins": {"layers": "conv"}}, "joins: unknown module conv"),
    ],
)
def test_joins_name_what_exists(change: dict[str, Any], message: str) -> None:
    """An axis of layers, and a module of the file."""
    data = {**find_family({"model_type": "llama"}), **change}
    with pytest.raises(FamilyError, match=message):
        build_family(data, {}, set(), "mine.yaml")


def test_scores_that_the_config_scales_itself(tmp_path: Path) -> None:
    """With a softmax_scale of its own, a larger head needs no factor on its queries."""
    step = {"op": "width", "to": {"hidden": "2x", "head_dim": "2x"}}
    factor = {}
    for name, keys in (("own", {"softmax_scale": 0.3}), ("power", {})):
        small = saved("mpt/causal", tmp_path / name, attn_config=keys)
        result = api.grow(small, parse_recipe({"steps": [step]}), out=tmp_path / f"{name}-big")
        old, new = (load_file(p / "model.safetensors") for p in (small, result.out))
        weight = "transformer.blocks.0.attn.Wqkv.weight"
        factor[name] = float(new[weight][0, 0] / old[weight][0, 0])
    assert factor["power"] == pytest.approx(factor["own"] * 2**0.25)


@pytest.mark.parametrize(("clip", "claim"), [(None, EXACT), (1.0, APPROXIMATE)])
def test_clamped_projections_carry_no_factor(
    tmp_path: Path, clip: float | None, claim: str
) -> None:
    """What is clamped must be copied as it is."""
    small = saved("mpt/causal", tmp_path / "small", attn_config={"clip_qkv": clip})
    found = plan_of(small, {"op": "width", "to": {"hidden": "2x", "head_dim": "2x"}}).claim
    assert found.claim == claim
    assert all("attn_config.clip_qkv clamps" in r for r in found.reasons)


def test_rows_of_the_mean_need_a_norm_that_is_there(tmp_path: Path) -> None:
    """A file that says `?` of its query norms, and a checkpoint without any."""
    data = read_yaml(family_text("stablelm"), "stablelm")
    norms = data.pop("variants")[0]["modules"]["layers.{layers}.self_attn."]
    inside = data["modules"]["layers.{layers}."]
    inside |= {f"self_attn.{module}?": kind for module, kind in norms.items()}
    mine = tmp_path / "mine.yaml"
    mine.write_text(json.dumps(data))  # which YAML reads
    small = saved("stablelm/causal", tmp_path / "small")
    step = {"op": "width", "to": {"hidden": "2x", "head_dim": "2x"}}
    found = plan_of(small, step, family=mine).claim
    assert found.claim == APPROXIMATE
    assert any("no norm takes it away" in r for r in found.reasons)
    assert plan_of(small, step).claim.claim == EXACT


def test_layers_of_one_set_of_weights(tmp_path: Path) -> None:
    """There is no layer to add where all are one."""
    small = saved("albert/masked_lm", tmp_path / "small")
    with pytest.raises(RecipeError, match=r"to\.layers: does not grow .* share one set of weights"):
        plan_of(small, {"op": "depth", "to": {"layers": "2x"}})


def test_position_rows_before_the_first_position_stay(tmp_path: Path) -> None:
    """OPT looks up position + 2: two rows stand before the table that grows."""
    small = saved("opt/causal", tmp_path / "small")
    step = {"op": "resize", "positions": 31}
    result = api.grow(small, parse_recipe({"steps": [step]}), out=tmp_path / "big")
    name = "model.decoder.embed_positions.weight"
    old, new = (load_file(p / "model.safetensors")[name] for p in (small, result.out))
    assert new.shape[0] == 33
    assert torch.equal(new[:25], old)


def test_fused_heads_with_norms_of_their_own(tmp_path: Path) -> None:
    """Heads that stand in names are numbered on; a model of other widths is welcome."""
    small = saved("stablelm/normed", tmp_path / "a")
    wide = saved("stablelm/normed", tmp_path / "b", hidden_size=72, num_attention_heads=9,
                 num_key_value_heads=3)  # fmt: skip
    recipe = parse_recipe({"sources": ["small", "b"], "steps": [{"op": "fuse", "with": ["b"]}]})
    result = api.grow(small, recipe, sources={"b": str(wide)}, out=tmp_path / "big")
    a, b, big = (load_file(p / "model.safetensors") for p in (small, wide, result.out))
    name = "model.layers.1.self_attn.q_layernorm.norms.{}.weight"
    assert torch.equal(big[name.format(4)], a[name.format(4)])
    assert torch.equal(big[name.format(6 + 4)], b[name.format(4)])
    assert name.format(14) in big
    assert name.format(15) not in big


def test_fused_models_share_the_mean_of_their_one_kv_head(tmp_path: Path) -> None:
    """All query heads of both meet one key, which is the mean of the two."""
    small = saved("falcon/causal", tmp_path / "a")
    other = tiny.save(tiny.make(zoo.models()["falcon/causal"], seed=9), tmp_path / "b")
    recipe = parse_recipe({"sources": ["small", "b"], "steps": [{"op": "fuse", "with": ["b"]}]})
    result = api.grow(small, recipe, sources={"b": str(other)}, out=tmp_path / "big")
    name = "transformer.h.1.self_attention.query_key_value.weight"
    a, b, big = (load_file(p / "model.safetensors")[name] for p in (small, other, result.out))
    assert torch.equal(big[:48, :48], a[:48])
    assert torch.equal(big[48:96, 48:], b[:48])
    assert torch.allclose(big[96:], torch.cat([a[48:], b[48:]], 1) / 2)
