"""timm's layout of ViT: the same function as transformers' layout of the same weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny, zoo

from growkit import api
from growkit.errors import CheckpointError, UsageError
from growkit.planning.proof.claim import EXACT
from growkit.recipe.recipe import parse_recipe
from growkit.verify.precision import full_precision

NAMES = {  # timm → transformers; q, k and v are one tensor in timm
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.": "encoder.layer.",
    ".norm1": ".layernorm_before",
    ".norm2": ".layernorm_after",
    ".attn.proj": ".attention.output.dense",
    ".mlp.fc1": ".intermediate.dense",
    ".mlp.fc2": ".output.dense",
    "head_dist": "distillation_classifier",
    "head.": "cls_classifier.",
}
QKV = [f"attention.attention.{n}" for n in ("query", "key", "value")]
CONFIG = {
    "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 96, "num_hidden_layers": 3,
    "image_size": 8, "patch_size": 2, "num_labels": 5, "layer_norm_eps": 1e-6,
}  # fmt: skip
ARGS = {"embed_dim": 48, "num_heads": 6, "depth": 3, "mlp_ratio": 2}
TINY = zoo.Tiny("DeiTForImageClassificationWithTeacher", CONFIG)


def to_timm(folder: Path, out: Path, config: dict[str, Any]) -> Path:
    """A checkpoint of transformers under timm's names."""
    state = {n.removeprefix("deit."): t for n, t in load_file(folder / "model.safetensors").items()}
    weights = {}
    for name, tensor in state.items():
        if QKV[0] in name:
            whole = torch.cat([state[name.replace(QKV[0], other)] for other in QKV])
            weights[name.replace(QKV[0], "attn.qkv")] = whole
        elif not any(other in name for other in QKV):
            weights[name] = tensor
    renamed = {}
    for name, tensor in weights.items():
        for timm, ours in NAMES.items():
            name = name.replace(ours, timm)
        renamed[re.sub("^layernorm", "norm", name)] = tensor
    out.mkdir()
    save_file(renamed, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    return out


def from_timm(folder: Path) -> Any:
    """The same weights as a model of transformers, of the sizes that config.json says."""
    args = json.loads((folder / "config.json").read_text())["model_args"]
    sizes = {
        "hidden_size": args["embed_dim"],
        "num_attention_heads": args["num_heads"],
        "intermediate_size": args["embed_dim"] * args["mlp_ratio"],
        "num_hidden_layers": args["depth"],
    }
    model = tiny.make(zoo.Tiny(TINY.cls, {**CONFIG, **sizes}))
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = re.sub("^norm", "layernorm", name)
        for timm, ours in NAMES.items():
            name = name.replace(timm, ours)
        if "attn.qkv" in name:
            parts = zip(QKV, tensor.chunk(3), strict=True)
            state |= {name.replace("attn.qkv", own): part for own, part in parts}
        else:
            state[name] = tensor
    written = folder.with_name(folder.name + "-ours")
    model.save_pretrained(written)
    there = load_file(written / "model.safetensors")
    prefixed = {n if n in there else f"deit.{n}": t.contiguous() for n, t in state.items()}
    save_file(prefixed, written / "model.safetensors", metadata={"format": "pt"})
    return tiny.load(written, model)


@pytest.mark.parametrize(
    "steps",
    [
        [{"op": "width", "to": {"axes": "2x"}}],
        [{"op": "width", "to": {"axes": "3/2x"}}],
        [{"op": "depth", "to": {"layers": "2x"}}],
        [
            {"op": "width", "to": {"axes": "2x"}},
            {"op": "depth", "to": {"layers": "2x"}},
            {"op": "noise", "snr_db": 0},
        ],
    ],
    ids=["2x", "3/2x", "depth", "all"],
)
def test_growth_in_timm_layout(tmp_path: Path, steps: list[dict[str, Any]]) -> None:
    """Grown under timm's names, run under those of transformers: the same function."""
    model = tiny.make(TINY)
    saved = tiny.save(model, tmp_path / "saved")
    config = {"architecture": "deit_tiny_distilled_patch16_224", "num_features": 48}
    small = to_timm(saved, tmp_path / "small", {**config, "model_args": ARGS})
    result = api.grow(small, parse_recipe({"steps": steps}), out=tmp_path / "big")
    assert result.plan.family == "timm_vit"
    assert result.plan.claim.claim == EXACT
    given = tiny.inputs(model)
    with full_precision():
        want = tiny.outputs(tiny.load(saved, model), given)
        have = tiny.outputs(from_timm(result.out), given)
    assert tiny.difference(want, have) <= 1e-12


def test_sizes_of_a_named_architecture(tmp_path: Path) -> None:
    """Without model_args the architecture says how many heads; after growth model_args does."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 12, "intermediate_size": 512}
    saved = tiny.save(tiny.make(zoo.Tiny(TINY.cls, {**CONFIG, **sizes})), tmp_path / "saved")
    config = {"architecture": "vit_tiny_patch16_224", "num_features": 128}
    small = to_timm(saved, tmp_path / "small", config)
    assert api.inspect_checkpoint(small)["axes"]["heads"]["size"] == 2
    plan = api.plan_growth(small, "double_width")
    assert plan.config["model_args"] == {"embed_dim": 256, "num_heads": 4}
    assert plan.config["num_features"] == 256


def test_an_architecture_of_unknown_heads(tmp_path: Path) -> None:
    """Where neither config nor architecture says how many heads there are, nothing is guessed."""
    saved = tiny.save(tiny.make(TINY), tmp_path / "saved")
    config = {"architecture": "vit_other_patch16_224", "num_features": 48}
    small = to_timm(saved, tmp_path / "small", config)
    with pytest.raises(CheckpointError, match=r"model_args\.\w+ is missing, so the size of"):
        api.inspect_checkpoint(small)


def test_verify_says_that_it_cannot(tmp_path: Path) -> None:
    """A folder of timm is no model of transformers: one sentence, and what runs it instead."""
    saved = tiny.save(tiny.make(TINY), tmp_path / "saved")
    config = {"architecture": "deit_tiny_distilled_patch16_224", "num_features": 48}
    small = to_timm(saved, tmp_path / "small", {**config, "model_args": ARGS})
    with pytest.raises(UsageError, match="no class of transformers, and verify runs no") as caught:
        api.grow(small, "double_width", out=tmp_path / "big", verify=True)
    assert "timm.create_model('local-dir:FOLDER', pretrained=True)" in (caught.value.hint or "")
