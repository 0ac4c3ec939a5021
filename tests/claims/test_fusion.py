"""Deep Fusion: block-diagonal parts, averaged logits, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.family_edits import flipped
from support.growths import HEADS, measure, sizes, steps_of

from growkit import api
from growkit.errors import CheckpointError, RecipeError
from growkit.planning.proof.claim import APPROXIMATE, EXACT


def recipe(*others: str, **keys: Any) -> Any:
    """A fusion of the first source with these."""
    steps = [{"op": "fuse", "with": list(others)}, *keys.pop("then", [])]
    return steps_of(steps, sources=["small", *others], **keys)


@pytest.mark.parametrize("tied", ["final_norm", "untie"])
@pytest.mark.parametrize("noise", [False, True], ids=["", "noise"])
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_self_fusion_is_exact(
    tmp_path: Path, family: str, head: str, noise: bool, tied: str
) -> None:
    """A checkpoint fused with itself computes the same, null-space noise included."""
    model = tiny.build(family, head, seed=3, **sizes(family))
    small = tiny.save(model, tmp_path / "small")
    then = [{"op": "noise", "snr_db": 0}] if noise else []
    result = api.grow(
        small, recipe("b", then=then, tied=tied), sources={"b": str(small)}, out=tmp_path / "big"
    )
    assert result.plan.claim.claim == EXACT
    assert measure(model, small, result) < 1e-10


def test_three_copies(tmp_path: Path) -> None:
    """K sources stand side by side, not only two."""
    model = tiny.build("llama", "tied", seed=3, **sizes("llama"))
    small = tiny.save(model, tmp_path / "small")
    result = api.grow(
        small, recipe("b", "c"), sources={"b": str(small), "c": str(small)}, out=tmp_path / "big"
    )
    assert result.plan.sizes_after["hidden"] == 72
    assert measure(model, small, result) < 1e-10


def test_one_checkpoint_under_several_names(tmp_path: Path) -> None:
    """A hard link, a symbolic link and the single file are the same weights; a copy may not be."""
    small = tiny.save(tiny.build("llama", "causal", seed=3, **sizes("llama")), tmp_path / "small")
    weights, config = small / "model.safetensors", small / "config.json"
    names = {"hard": os.link, "symbolic": os.symlink, "copied": shutil.copy2}
    claims = {"file": EXACT, "hard": EXACT, "symbolic": EXACT, "copied": APPROXIMATE}
    others = {"file": weights}
    for name, place in names.items():
        (tmp_path / name).mkdir()
        shutil.copy(config, tmp_path / name)
        others[name] = tmp_path / name / "model.safetensors"
        place(weights, others[name])
    for name, claim in claims.items():
        plan = api.plan_growth(small, recipe("b"), sources={"b": str(others[name])})
        assert plan.claim.claim == claim, name


def test_a_table_with_a_column_per_head(tmp_path: Path) -> None:
    """Relative biases (T5) are raw tables, one column per head: they stand side by side too."""

    def biased(data: dict[str, Any]) -> None:
        data["axes"]["buckets"] = "table"
        data["modules"]["layers.0.self_attn.relative_bias"] = "emb buckets heads"

    family = flipped(tmp_path, "llama", biased)
    folders, name = [], "model.layers.0.self_attn.relative_bias.weight"
    for number in (1, 2):
        model = tiny.build("llama", "causal", seed=number, **sizes("llama"))
        folders.append(tiny.save(model, tmp_path / f"m{number}"))
        file = folders[-1] / "model.safetensors"
        save_file(
            {**load_file(file), name: torch.full((5, 4), float(number), dtype=torch.float64)}, file
        )
    out = api.grow(
        folders[0], recipe("b"), sources={"b": str(folders[1])}, family=family, out=tmp_path / "out"
    ).out
    table = load_file(out / "model.safetensors")[name]
    assert table.tolist() == [[1.0] * 4 + [2.0] * 4] * 5


@pytest.mark.parametrize(("family", "head"), [("llama", "causal"), ("gpt2", "causal")])
def test_different_models_are_approximate(tmp_path: Path, family: str, head: str) -> None:
    """One norm over both streams: the mean of the logits is missed by about their size."""
    models = [tiny.build(family, head, seed=s, **sizes(family)) for s in (3, 4)]
    folders = [tiny.save(m, tmp_path / f"m{i}") for i, m in enumerate(models)]
    result = api.grow(folders[0], recipe("b"), sources={"b": str(folders[1])}, out=tmp_path / "big")
    assert result.plan.claim.claim == APPROXIMATE
    assert "one norm serves" in result.plan.claim.reasons[0]
    one, two = (tiny.Saved(m, f).outputs for m, f in zip(models, folders, strict=True))
    mean = {name: (one[name] + two[name]) / 2 for name in one}
    fused = tiny.Saved(models[0], result.out).outputs
    assert tiny.difference(mean, fused) > 1e-2


def test_blocks_of_different_widths(tmp_path: Path) -> None:
    """Each source owns its block, off-diagonal blocks are zero, the head is averaged."""
    wide = {"heads": 6, "kv_heads": 3, "head_dim": 4, "hidden": 36, "mlp": 20}
    a = tiny.save(tiny.build("llama", "causal", seed=1, **sizes("llama")), tmp_path / "a")
    b = tiny.save(tiny.build("llama", "causal", seed=2, **wide), tmp_path / "b")
    result = api.grow(a, recipe("b", then=[]), sources={"b": str(b)}, out=tmp_path / "big")
    x, y, z = (load_file(p / "model.safetensors") for p in (a, b, result.out))
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(z[name][:18, :24], x[name])
    torch.testing.assert_close(z[name][18:, 24:], y[name])
    assert not z[name][:18, 24:].any()
    assert not z[name][18:, :24].any()
    head = torch.cat([x["lm_head.weight"], y["lm_head.weight"]], 1) / 2
    torch.testing.assert_close(z["lm_head.weight"], head)
    gains = torch.cat([x["model.norm.weight"], y["model.norm.weight"]])
    torch.testing.assert_close(z["model.norm.weight"], gains)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"layers": 3}, "layers 2 and 3"),
        ("llama", {"head_dim": 6}, "q 4 and 6"),
        ("llama", {"vocab": 31}, "vocab 29 and 31"),
        ("llama", {"kv_heads": 4}, "query heads per kv head 2 and 1"),
        ("llama", {"rms_norm_eps": 1e-3}, r"rms_norm_eps 1e-06 and 0\.001"),
        ("llama", {"hidden_act": "relu"}, "hidden_act silu and relu"),
        ("llama", {"rope_theta": 500.0}, "rope_"),
        ("llama", {"dtype": torch.float32}, "dtypes F32 and F64"),
        ("llama", {"attention_bias": True}, "attention_bias False and True"),
        ("gpt2", {}, "family llama and gpt2"),
        ("llama", {"tie_word_embeddings": True}, "tie_word_embeddings False and True"),
        ("llama", {"max_position_embeddings": 99}, "max_position_embeddings 23 and 99"),
    ],
)
def test_sources_that_do_not_belong_together(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    """Everything that is not a width must agree, and what differs is named."""
    a = tiny.save(tiny.build("llama", "causal", **sizes("llama")), tmp_path / "a")
    model = tiny.build(family, "causal", **{**sizes(family), **changes})
    b = tiny.save(model, tmp_path / "b")
    with pytest.raises(CheckpointError, match=f"source b: cannot be fused: .*{message}"):
        api.plan_growth(a, recipe("b"), sources={"b": str(b)})


def test_different_tokenizers(tmp_path: Path) -> None:
    """One vocabulary size is not one vocabulary."""
    folders = [
        tiny.save(tiny.build("llama", "causal", seed=s, **sizes("llama")), tmp_path / f"m{s}")
        for s in (1, 2)
    ]
    for number, folder in enumerate(folders):
        (folder / "tokenizer.json").write_text(json.dumps({"vocabulary": number}))
    with pytest.raises(CheckpointError, match="different tokenizers"):
        api.plan_growth(folders[0], recipe("b"), sources={"b": str(folders[1])})


def test_noise_needs_a_null_space(tmp_path: Path) -> None:
    """Different models side by side visit every direction."""
    folders = [
        tiny.save(tiny.build("llama", "causal", seed=s, **sizes("llama")), tmp_path / f"m{s}")
        for s in (1, 2)
    ]
    noisy = recipe("b", then=[{"op": "noise"}])
    with pytest.raises(RecipeError, match="no null space"):
        api.plan_growth(folders[0], noisy, sources={"b": str(folders[1])})
