"""A checkpoint read through its family: sizes, completeness, ties, and the config after growth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.growths import HEADS

from growkit.checkpoints.open import open_checkpoint
from growkit.errors import CheckpointError, RecipeError
from growkit.families.config import check_sizes, remap_layers, resize_config
from growkit.families.family import renumber
from growkit.families.model import Model, read_model
from growkit.ops import Layer


def read(folder: Path) -> Model:
    """The model in a folder."""
    return read_model(open_checkpoint(folder))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Change the tensors of a checkpoint in place."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    """Change keys of config.json; None deletes."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A tiny untied Llama with grouped kv heads, every size different."""
    return tiny.save(
        tiny.build("llama", "causal", heads=4, kv_heads=2, hidden=20), tmp_path / "llama"
    )


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_every_head_class_is_understood(tmp_path: Path, family: str, head: str) -> None:
    """What transformers writes for each class matches the family file tensor by tensor."""
    model = read(tiny.save(tiny.build(family, head), tmp_path / "model"))
    assert len(model.entries) == len(model.checkpoint.tensors)
    assert not model.dropped
    sizes = model.user_sizes()
    assert {k: sizes[k] for k in tiny.SIZES if k in sizes} == {
        k: v for k, v in tiny.SIZES.items() if k in sizes
    }


@pytest.mark.parametrize(
    ("family", "head", "tied"),
    [
        ("bert", "masked_lm", True), ("bert", "base", False), ("gpt2", "causal", True),
        ("gpt2", "untied", False), ("gpt2", "base", False), ("gpt2", "sequence", False),
        ("llama", "causal", False), ("llama", "tied", True), ("llama", "qwen2 tied", True),
    ],
)  # fmt: skip
def test_ties(tmp_path: Path, family: str, head: str, tied: bool) -> None:
    """Whether the head is the embedding, read off config and tensors."""
    assert read(tiny.save(tiny.build(family, head), tmp_path / "m")).tied is tied


def test_a_second_copy_of_a_tied_head_is_dropped_and_remembered(tmp_path: Path) -> None:
    """Old files hold the embedding twice; the copy is listed and must be compared."""

    def twice(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    model = read(edit_tensors(tiny.save(tiny.build("llama", "tied"), tmp_path / "m"), twice))
    assert model.same == (("lm_head.weight", "model.embed_tokens.weight"),)
    assert "a second copy" in model.dropped[0]


def test_legacy_names(tmp_path: Path) -> None:
    """gamma and beta of 2018 are understood, and kept as they are."""

    def old(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if "LayerNorm" in n]:
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            tensors[new.replace("LayerNorm.bias", "LayerNorm.beta")] = tensors.pop(name)

    model = read(edit_tensors(tiny.save(tiny.build("bert", "masked_lm"), tmp_path / "m"), old))
    entry = model.entries["encoder.layer.1.output.LayerNorm.weight"]
    assert entry.info.name == "bert.encoder.layer.1.output.LayerNorm.gamma"
    assert renumber(entry.info.name, [7]) == "bert.encoder.layer.7.output.LayerNorm.gamma"


def test_buffers_are_dropped_and_listed(llama: Path) -> None:
    """Rotary tables of old files are known buffers."""

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)

    assert "inv_freq" in read(edit_tensors(llama, add)).dropped[0]


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(DOWN), r"layers\.1\.mlp\.down_proj\.weight is missing \(1 of 2 found\)"),
        (lambda t: t.pop("model.norm.weight"), r"norm\.weight is missing"),
        (lambda t: t.pop("lm_head.weight"), "missing and config.json does not tie it"),
        (lambda t: t.update({DOWN: t[DOWN][:-1].clone()}), "expected hidden = 20, found 19"),
        (lambda t: t.update({DOWN: t[DOWN][None].clone()}), "expected 2 dims, found shape"),
        (lambda t: t.update({"model.layers.2.mlp.down_proj.weight": t[DOWN].clone()}),
         "layers number 2, but config.json says there are 2"),
        (lambda t: t.update({DOWN: t[DOWN].to(torch.int32)}), "dtype I32 cannot be grown"),
        (lambda t: t.update({"norm.weight": t["model.norm.weight"].clone()}),
         "are the same tensor"),
        (lambda t: t.update(extra=torch.ones(2)), "tensor extra: no pattern of family llama fits"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(
    llama: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    """Missing, misshapen, surplus and unknown tensors are refused by name."""
    with pytest.raises(CheckpointError, match=message):
        read(edit_tensors(llama, change))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 22}, "expected hidden = 22, found 20"),
        ({"hidden_size": "20"}, "hidden_size: expected a positive whole number, found '20'"),
        ({"num_hidden_layers": True}, "num_hidden_layers: expected a positive whole number"),
        ({"num_hidden_layers": -2}, "num_hidden_layers: expected a positive whole number"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers: expected a positive whole number"),
        ({"num_hidden_layers": 3}, r"layers\.2\..* is missing \(2 of 3 found\)"),
        ({"num_attention_heads": 5}, "expected heads"),
    ],
)
def test_configs_that_do_not_fit(llama: Path, changes: dict[str, Any], message: str) -> None:
    """Sizes of the wrong kind, or of another checkpoint, are refused."""
    with pytest.raises(CheckpointError, match=message):
        read(edit_config(llama, **changes))


def test_missing_sizes_are_read_off_the_shapes(llama: Path) -> None:
    """A config that lacks a size is completed from the tensors."""
    assert read(edit_config(llama, vocab_size=None)).sizes["vocab"] == tiny.SIZES["vocab"]


def test_the_config_is_edited_not_rewritten(llama: Path) -> None:
    """Sizes change, everything else stays, unknown keys too."""
    model = read(edit_config(llama, my_key=[1, 2]))
    new = resize_config(model.family, model.config, {**model.sizes, "hidden": 40, "mlp": 34})
    changed = {k for k in new if new[k] != model.config[k]}
    assert changed == {"hidden_size", "intermediate_size"}
    assert new["my_key"] == [1, 2]


def test_defaults_are_written_only_when_they_are_wrong(llama: Path) -> None:
    """head_dim appears in the config when it no longer is hidden / heads."""
    model = read(edit_config(llama, hidden_size=20, head_dim=4))
    config = {k: v for k, v in model.config.items() if k != "head_dim"}
    follows = {**model.sizes, "hidden": 16}
    assert "head_dim" not in resize_config(model.family, config, follows)
    assert resize_config(model.family, config, {**follows, "hidden": 32})["head_dim"] == 4


@pytest.mark.parametrize(
    ("family", "sizes", "message", "hint"),
    [
        ("bert", {"hidden": 24}, r"hidden \(24\) must equal heads \(3\) × head_dim \(4\) = 12",
         "set heads: 6, or head_dim: 8, or hidden: 12"),
        ("llama", {"hidden": 22, "heads": 4}, r"hidden \(22\) must be a multiple of heads \(4\)",
         "set hidden: 24"),
    ],
)  # fmt: skip
def test_couplings(
    tmp_path: Path, family: str, sizes: dict[str, int], message: str, hint: str
) -> None:
    """Sizes that contradict each other come with the repair."""
    model = read(tiny.save(tiny.build(family, "base"), tmp_path / "m"))
    with pytest.raises(RecipeError, match=message) as error:
        check_sizes(model.family, {**model.sizes, **sizes})
    assert hint in error.value.hint


def test_layer_lists_follow_the_layer_map(tmp_path: Path) -> None:
    """Per-layer lists are re-indexed, a threshold moves to where its layer went."""
    model = read(tiny.save(tiny.build("llama", "qwen2 base", layers=3), tmp_path / "m"))
    config = {"layer_types": ["a", "b", "c"], "max_window_layers": 2}
    layers = tuple(Layer.copy(i) for i in (0, 0, 1, 1, 2, 2))
    new = remap_layers(model.family, config, {"layers": layers})
    assert new == {"layer_types": ["a", "a", "b", "b", "c", "c"], "max_window_layers": 4}
    far = remap_layers(model.family, {"max_window_layers": 28}, {"layers": layers})
    assert far["max_window_layers"] == 31
    with pytest.raises(CheckpointError, match="layer_types: 1 entries are too few"):
        remap_layers(model.family, {"layer_types": ["a"]}, {"layers": layers})


@pytest.mark.parametrize(
    ("family", "key"),
    [("llama", "num_hidden_layers"), ("bert", "num_attention_heads"), ("gpt2", "n_embd")],
)
def test_a_missing_size_is_named(tmp_path: Path, family: str, key: str) -> None:
    """A size that neither the config nor a shape tells."""
    folder = edit_config(tiny.save(tiny.build(family, "base"), tmp_path / "m"), **{key: None})
    with pytest.raises(CheckpointError, match=f"config.json: .*{key}.* is missing"):
        read(folder)


def test_classes_must_be_a_list(llama: Path) -> None:
    """`architectures` of another kind is refused."""
    with pytest.raises(CheckpointError, match="architectures: expected a list of names, found 5"):
        read(edit_config(llama, architectures=5))


def test_a_bare_encoder_has_no_tied_head(tmp_path: Path) -> None:
    """Without class names, what is stored tells whether there is a head."""
    folder = edit_config(tiny.save(tiny.build("bert", "base"), tmp_path / "m"), architectures=None)
    assert not read(folder).tied
