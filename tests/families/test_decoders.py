"""Decoders as the Hub has them: old config keys, other storage of experts, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import growths, tiny, zoo

from growkit.api import grow, plan_growth
from growkit.checkpoints.open import open_checkpoint
from growkit.errors import FamilyError, RecipeError
from growkit.families.load import build_family, find_family
from growkit.families.model import read_model
from growkit.recipe.recipe import parse_recipe

EXACT = 1e-9
Change = Callable[[dict[str, Any]], None]


def saved(name: str, folder: Path, change: Change = lambda config: None) -> tiny.Saved:
    """A tiny model on disk, with another config.json."""
    small = tiny.Saved.at(folder / "small", name)
    file = small.folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    return small


def without(*keys: str, **others: Any) -> Change:
    """A config with keys left out and others set."""

    def change(config: dict[str, Any]) -> None:
        for key in keys:
            config.pop(key, None)
        config.update(others)

    return change


LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.4, 1.9, 2.5],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
}
ROPE = "rope_parameters"
OLD: dict[str, tuple[str, Change, tuple[str, ...]]] = {
    "gemma": ("gemma/causal", without(ROPE, rope_theta=500.0), ("head_dim 3/2x",)),
    "gemma 2": (
        "gemma2/causal",
        without(ROPE, "layer_types", rope_theta=500.0),
        ("silent depth", "head_dim 3/2x"),
    ),
    "gemma 3": (
        "gemma3_text/causal",
        without(
            ROPE, "layer_types", sliding_window_pattern=2, rope_theta=5e4, rope_local_base_freq=7e2
        ),
        ("silent depth", "head_dim 3/2x"),
    ),
    "gemma 3 by default": ("gemma3_text/causal", without(ROPE, "layer_types"), ("head_dim 3/2x",)),
    "olmo 3": (
        "olmo2/olmo3",
        without(ROPE, "layer_types", rope_theta=5e5),
        ("silent depth", "head_dim 2x", "head_dim 3/2x"),
    ),
    "olmo 3, scaled": (
        "olmo2/olmo3",
        without(
            ROPE, "layer_types", rope_theta=3e5, rope_scaling={"rope_type": "linear", "factor": 4.0}
        ),
        ("head_dim 2x", "head_dim 3/2x"),
    ),
    "qwen 2, windows from a layer on": (
        "llama/qwen2 sliding",
        without("layer_types", max_window_layers=2),
        ("silent depth",),
    ),
    "smollm 3": (
        "smollm3/causal",
        without("no_rope_layers", "layer_types", no_rope_layer_interval=2),
        ("silent depth",),
    ),
    "cohere 2": (
        "cohere/cohere2",
        without(ROPE, "layer_types", sliding_window_pattern=2),
        ("silent depth", "head_dim 3/2x"),
    ),
    "gpt-oss": ("gpt_oss/causal", without("layer_types"), ("silent depth",)),
    "mixtral by default": ("mixtral/causal", without(ROPE), ("head_dim 3/2x",)),
    "phi": (
        "phi/causal",
        without(ROPE, "head_dim", rope_theta=500.0, partial_rotary_factor=0.5),
        ("width 3/2x", "head_dim 2x"),
    ),
    "phi 3": ("phi3/longrope", without(ROPE, rope_theta=1e4, rope_scaling=LONGROPE), ("width 2x",)),
    "qwen 3 experts": (
        "qwen3_moe/causal",
        without("num_local_experts", num_experts=5),
        ("experts", "silent depth"),
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_old_configs(tmp_path: Path, name: str) -> None:
    """Configs with the keys that older releases wrote, or without keys that have a default."""
    of, change, kept = OLD[name]
    small = saved(of, tmp_path, change)
    for growth in kept:
        out = tmp_path / growth.replace("/", " of ")
        cell = growths.try_growth(small, growth, out)
        assert cell is not None
        assert cell.claim == "exact", f"{growth}: {cell.why}"
        assert cell.measured is not None
        assert cell.measured < EXACT, growth


@pytest.mark.parametrize(
    "name", ["mixtral/causal", "qwen2_moe/dense", "qwen3_moe/causal", "deepseek_v3/causal"]
)
def test_experts_in_one_tensor(tmp_path: Path, name: str) -> None:
    """Checkpoints that hold experts as transformers 5 has them in memory."""
    small = tiny.Saved(tiny.make(zoo.models()[name]), tmp_path / "small")
    small.model.save_pretrained(small.folder, save_original_format=False)
    names = set(load_file(small.folder / "model.safetensors"))
    assert any(n.endswith("mlp.experts.gate_up_proj") for n in names)
    for growth in ("width 2x", "width 3/2x", "mlp", "experts", "silent depth"):
        out = tmp_path / growth.replace("/", " of ")
        cell = growths.try_growth(small, growth, out)
        assert cell is not None
        assert cell.claim == "exact", f"{growth}: {cell.why}"
        assert cell.measured is not None
        assert cell.measured < EXACT, growth


@pytest.mark.parametrize(
    ("name", "axis", "why"),
    [
        ("phi3/longrope", "head_dim", "longrope lists a factor for every rotary pair"),
        ("olmo/clipped", "head_dim", "clip_qkv"),
        ("olmoe/clipped", "head_dim", "clip_qkv"),
        ("deepseek_v3/not normed", "experts", "copies would count twice"),
    ],
)
def test_axes_that_do_not_grow(tmp_path: Path, name: str, axis: str, why: str) -> None:
    """An axis that a config forbids is refused with the reason."""
    small = saved(name, tmp_path).folder
    with pytest.raises(RecipeError, match=why):
        grow(small, parse_recipe({"steps": [{"op": "width", "to": {axis: "2x"}}]}))


@pytest.mark.parametrize("name", ["llama/causal", "gemma3_text/causal", "gpt_neox/causal"])
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_longrope_in_any_family(tmp_path: Path, name: str, key: str) -> None:
    """As many factors as rotary pairs stand in the config: it would no longer load."""
    factors = {k: v for k, v in LONGROPE.items() if k != "type"} | {key: "longrope"}
    small = saved(name, tmp_path, without(ROPE, rope_scaling=factors)).folder
    step = growths.width(head_dim="2x", hidden="2x")
    with pytest.raises(RecipeError, match="longrope lists a factor for every rotary pair"):
        plan_growth(small, parse_recipe({"steps": [step]}))
    assert plan_growth(small, parse_recipe({"steps": [growths.width(axes="2x")]}))


def test_multi_token_prediction_is_refused(tmp_path: Path) -> None:
    """Layers behind the last one, which transformers does not run, are not dropped silently."""
    small = saved("deepseek_v3/causal", tmp_path).folder
    tensors = load_file(small / "model.safetensors")
    tensors["model.layers.3.eh_proj.weight"] = torch.zeros(48, 96)
    tensors["model.layers.3.enorm.weight"] = torch.zeros(48)
    save_file(tensors, small / "model.safetensors")
    with pytest.raises(FamilyError, match="multi-token prediction"):
        read_model(open_checkpoint(small))


def test_a_sparse_step_is_spelt_out_where_it_has_to_be(tmp_path: Path) -> None:
    """A period stays where layers grow in whole periods; else the list of dense layers says all."""
    small = saved("qwen2_moe/sparse", tmp_path)
    deep = {"op": "depth", "layers": [0, 1, 0, 1, 2], "new": "silent"}
    out = grow(small.folder, parse_recipe({"steps": [deep]}), out=tmp_path / "out").out
    assert tiny.difference(small.outputs, small.outputs_of(out)) < EXACT
    deep = {"op": "depth", "to": {"layers": "2x"}}
    result = grow(small.folder, parse_recipe({"steps": [deep]}), out=tmp_path / "doubled")
    assert result.plan.config["decoder_sparse_step"] == 1
    assert result.plan.config["mlp_only_layers"] == [0, 1, 4, 5]
    assert tiny.difference(small.outputs, small.outputs_of(result.out)) < EXACT


def test_variants_by_what_a_key_is_not() -> None:
    """A variant may ask that a key is anything but a value; a variant may refuse the model."""
    data = find_family({"model_type": "olmo"})
    assert not build_family(data, {"clip_qkv": None}, set()).limits
    assert build_family(data, {"clip_qkv": 8.0}, set()).limits
    mine = {**data, "variants": [{"when": {"odd": True}, "refused": "it is odd"}]}
    build_family(mine, {}, set())
    with pytest.raises(FamilyError, match="cannot be grown: it is odd"):
        build_family(mine, {"odd": True}, set())


def test_a_tied_head_without_a_norm_is_untied(tmp_path: Path) -> None:
    """Where no norm can carry a tied head's factor, a head of its own keeps the function."""
    small = saved("olmo/tied", tmp_path)
    recipe = {"tied": "untie", "steps": [{"op": "width", "to": {"axes": "2x"}}]}
    result = grow(small.folder, parse_recipe(recipe), out=tmp_path / "out")
    assert result.plan.claim.claim == "exact"
    assert tiny.difference(small.outputs, small.outputs_of(result.out)) < EXACT


def test_norms_that_are_not_there_prove_nothing(tmp_path: Path) -> None:
    """Mean rows in queries vanish behind a LayerNorm; a family file that only may have one."""
    small = saved("cohere/causal", tmp_path).folder
    norm = {
        "layers.{layers}.": {"self_attn.q_norm?": "ln q per heads", "self_attn.k_norm?": "ln k"}
    }
    mine = {"family": "mine", "model_type": "cohere", "extends": "cohere", "modules": norm}
    (tmp_path / "mine.yaml").write_text(json.dumps(mine))
    recipe = parse_recipe({"steps": [{"op": "width", "to": {"head_dim": "2x"}}]})
    plan = plan_growth(small, recipe, family=tmp_path / "mine.yaml")
    assert plan.claim.claim == "approximate"
    assert "attention scores change" in plan.claim.reasons[0]
