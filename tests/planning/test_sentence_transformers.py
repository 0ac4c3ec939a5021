"""Stages behind a model: what follows a growth, what travels as it is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from growkit import api
from growkit.errors import CheckpointError
from growkit.recipe.recipe import parse_recipe

WIDER = parse_recipe({"steps": [{"op": "width", "to": {"axes": "2x"}}]})
DEEPER = parse_recipe({"steps": [{"op": "depth", "to": {"layers": "2x"}}]})
DENSE = {"in_features": 12, "out_features": 5}
POOLING = {"word_embedding_dimension": 12, "pooling_mode_mean_tokens": True}


def module(folder: Path, name: str, config: Any, weights: Any = None) -> None:
    """One more module of the model in a folder; its kind is what follows the number."""
    path = folder / "modules.json"
    listed = json.loads(path.read_text()) if path.exists() else []
    kind = f"sentence_transformers.models.{name.partition('_')[2]}"
    listed.append({"idx": len(listed), "name": str(len(listed)), "path": name, "type": kind})
    path.write_text(json.dumps(listed))
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(config))
    if weights is not None:
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tiny encoder, 12 wide, that pools over its tokens."""
    folder = tiny.save(tiny.build("bert", "base", dtype=torch.float32), tmp_path / "small")
    module(folder, "1_Pooling", POOLING)
    return folder


def linear(out: int, size: int) -> dict[str, torch.Tensor]:
    """Weights of a dense layer."""
    return {"linear.weight": torch.randn(out, size), "linear.bias": torch.randn(out)}


REFUSED: dict[str, tuple[str, Any, Any, str]] = {
    "of an unknown kind": (
        "2_CNN", {"in_word_embedding_dimension": 12}, None,
        "2_CNN: a module of kind CNN, which reads the hidden state, which grows from 12 to 24",
    ),
    "without weights": ("2_Dense", DENSE, None, "2_Dense: no safetensors weights, and they have"),
    "of another size": (
        "2_Dense", {**DENSE, "in_features": 13}, linear(5, 13),
        "2_Dense/config.json: in_features 13 is no multiple of the hidden size 12",
    ),
    "without a size": ("2_Dense", [], linear(5, 12), "in_features None is no multiple of the hidd"),
    "a residual": (
        "2_Dense", {"in_features": 12, "out_features": 12, "use_residual": True}, linear(12, 12),
        "2_Dense/config.json: use_residual adds the hidden state itself, which grows from 12 to 24",
    ),
    "of another shape": (
        "2_Dense", DENSE, linear(5, 24),
        r"2_Dense: tensor linear.weight: expected shape \(5, 12\), found \(5, 24\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_follow_is_refused(case: str, small: Path, tmp_path: Path) -> None:
    """Before anything is written, with the module's name; deeper alone, it travels as it is."""
    name, config, weights, match = REFUSED[case]
    module(small, name, config, weights)
    with pytest.raises(CheckpointError, match=match) as caught:
        api.plan_growth(small, WIDER)
    assert caught.value.hint
    out = api.grow(small, DEEPER, out=tmp_path / "out").out
    for path in (small / name).iterdir():
        assert (out / name / path.name).read_bytes() == path.read_bytes()


def test_weights_of_every_layer(small: Path) -> None:
    """They do not fit when layers are added, and nothing else says so."""
    module(small, "2_WeightedLayerPooling", {"num_hidden_layers": 2})
    match = "2_WeightedLayerPooling: a module of kind W.*, which weighs every layer, and layers cha"
    with pytest.raises(CheckpointError, match=match):
        api.plan_growth(small, DEEPER)


def test_what_stands_behind_a_dense_layer_stays(small: Path, tmp_path: Path) -> None:
    """Whatever it is, and even if it names the size that the hidden state had."""
    module(small, "2_Dense", {"in_features": 12, "out_features": 12}, linear(12, 12))
    module(small, "3_Pooling", POOLING)
    module(small, "4_LayerNorm", {"dimension": 12}, {"norm.weight": torch.ones(12)})
    out = api.grow(small, WIDER, out=tmp_path / "out").out
    sizes = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/config.json")}
    assert sizes == {
        "1_Pooling": {**POOLING, "word_embedding_dimension": 24},
        "2_Dense": {"in_features": 24, "out_features": 12},
        "3_Pooling": POOLING,
        "4_LayerNorm": {"dimension": 12},
    }
    for name in ("3_Pooling/config.json", "4_LayerNorm/model.safetensors"):
        assert (out / name).read_bytes() == (small / name).read_bytes()


def test_a_dense_layer_is_read_by_the_map_back(small: Path, tmp_path: Path) -> None:
    """W_new = W · readᵀ, for each of two pooled states; the bias stays."""
    weights = linear(5, 24)
    module(small, "2_Dense", {**DENSE, "in_features": 24}, weights)
    result = api.grow(small, WIDER, out=tmp_path / "out")
    grown = load_file(result.out / "2_Dense" / "model.safetensors")
    read = np.kron(np.eye(2), result.plan.maps["hidden"].read.matrix())
    wanted = torch.from_numpy(weights["linear.weight"].double().numpy() @ read.T).float()
    torch.testing.assert_close(grown["linear.weight"], wanted)
    assert grown["linear.bias"].equal(weights["linear.bias"])


def test_pickled_weights_travel_unopened(small: Path, tmp_path: Path) -> None:
    """Where the hidden state does not grow; beside safetensors they stay behind."""
    module(small, "2_Dense", DENSE)
    (small / "2_Dense" / "pytorch_model.bin").write_bytes(b"pickle")
    out = api.grow(small, DEEPER, out=tmp_path / "out").out
    assert (out / "2_Dense" / "pytorch_model.bin").read_bytes() == b"pickle"
    with pytest.raises(CheckpointError, match="2_Dense: no safetensors weights") as caught:
        api.plan_growth(small, WIDER)
    assert "save it: that writes safetensors" in (caught.value.hint or "")
    save_file(linear(5, 12), small / "2_Dense" / "model.safetensors")
    both = api.grow(small, WIDER, out=tmp_path / "both").out
    assert {p.name for p in (both / "2_Dense").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("recipe", [WIDER, DEEPER], ids=["wider", "deeper"])
def test_other_weights_of_a_stage_make_another_result(
    recipe: Any, small: Path, tmp_path: Path
) -> None:
    """A dense layer that was trained on is not what OUT was made of."""
    module(small, "2_Dense", DENSE, linear(5, 12))
    first = api.grow(small, recipe, out=tmp_path / "out").report["digest"]
    assert api.grow(small, recipe, out=tmp_path / "out").already_done
    save_file(linear(5, 12), small / "2_Dense" / "model.safetensors")
    assert api.grow(small, recipe, out=tmp_path / "again").report["digest"] != first


def test_values_of_a_stage_are_checked(small: Path, tmp_path: Path) -> None:
    """NaN in what is grown is refused, as in the model itself, and nothing is left."""
    weights = linear(5, 12)
    weights["linear.weight"][2, 3] = torch.nan
    module(small, "2_Dense", DENSE, weights)
    with pytest.raises(CheckpointError, match=r"tensor linear\.weight: 2 values are NaN"):
        api.grow(small, WIDER, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert api.grow(small, WIDER, out=tmp_path / "out", allow_nonfinite=True).out.exists()


def test_the_weights_of_stages_count_as_disk(small: Path) -> None:
    """The plan says what all files take."""
    module(small, "2_Dense", DENSE, linear(5, 12))
    plan = api.plan_growth(small, WIDER)
    known = api.estimate(plan)
    model = sum(f.nbytes for f in plan.formulas)
    assert known.disk_bytes - model >= 5 * 24 * 4 + 5 * 4
    assert known.output_bytes == model
