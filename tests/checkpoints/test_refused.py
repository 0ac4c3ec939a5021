"""Store, reading: what is not a checkpoint to grow is named, with the way to one that is."""

from __future__ import annotations

import os
import re

import pytest
import torch
from safetensors.torch import save_file
from support.raw_checkpoints import CONFIG, TENSORS, refused, save
from support.unprivileged import unprivileged

from growkit.checkpoints.open import open_checkpoint
from growkit.errors import CheckpointError, ResourceError


@pytest.mark.parametrize(
    ("names", "match", "hint"),
    [
        ([], "an empty folder", "the folder that holds the weights"),
        (["notes.txt"], "no safetensors file in this folder", "the folder that holds"),
        (["sub/model.safetensors"], "no safetensors file in this folder", "did you mean .*sub"),
        (["pytorch_model.bin", "config.json"], "pickled weights only", "save_pretrained"),
        (["model.pt"], "pickled weights only", "save_pretrained"),
        (["__0_0.distcp", ".metadata"], "shards of PyTorch's distributed checkpoint", "gather"),
        (["model-q4.gguf"], "GGUF weights only", "the safetensors model"),
        (["tf_model.h5"], "weights of another framework only", "save_pretrained"),
        (["adapter_model.safetensors"], "a LoRA adapter", "merge_and_unload"),
        (["adapter_config.json", "model.safetensors"], "a LoRA adapter", "merge_and_unload"),
        (["a.safetensors", "b.safetensors"], "several safetensors files and no index", "the one"),
        (
            ["a.safetensors.index.json", "b.safetensors.index.json"],
            "several index files",
            "one of them",
        ),
    ],
)
def test_folder_of_another_kind(tmp_path, names, match, hint):
    """Every other format is named, with the way from it to one that can be grown."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(tmp_path)
    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("x.gguf", "GGUF weights only"),
        ("pytorch_model.bin", "pickled weights only"),
        ("pytorch_model.bin.index.json", "pickled weights only"),
        ("notes.txt", "not a safetensors file"),
        ("adapter_model.safetensors", "a LoRA adapter"),
    ],
)
def test_file_of_another_kind(tmp_path, name, match):
    """The same for a path to a file."""
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, match=match)


def test_neither_file_nor_folder():
    """A device is not opened."""
    refused(os.devnull, match="neither a file nor a folder")


@pytest.mark.parametrize(
    "extra",
    [
        {"quantization_config": {"quant_method": "gptq"}},
        {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
        {"compression_config": {"format": "pack"}},
    ],
)
def test_quantised_by_config(tmp_path, extra):
    """The config says so, and a tensor is packed."""
    refused(save(tmp_path, config=CONFIG | extra), match="quantised checkpoint: config.json has")


def test_quantised_once(tmp_path):
    """Plain weights are not quantised, whatever a config says that was left from when they were."""
    extra = {"quantization_config": {"quant_method": "nf4"}, "text_config": {"a": 1}}
    extra["text_config"] |= {"compression_config": {"format": "pack"}}
    folder = save(tmp_path, config=CONFIG | extra)
    save_file({"a": torch.zeros(2), "position_ids": torch.arange(2)}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config == CONFIG | {"text_config": {"a": 1}}
    assert [note.partition(":")[0] for note in checkpoint.notes] == [
        "config.json loses quantization_config nf4", "config.json loses compression_config"
    ]  # fmt: skip


def test_the_first_layout_of_sentence_transformers(tmp_path):
    """The hint does not lead to a model without what runs behind it."""
    save(tmp_path / "0_Transformer")
    (tmp_path / "modules.json").write_text("[]")
    hint = "move what is in 0_Transformer up into the folder, and make its path in modules.json"
    refused(tmp_path, match="no safetensors file in this folder", hint=hint)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, r"w is F8_E4M3 \[2\]"),
        ({"w": torch.zeros(2).to(torch.float8_e5m2)}, r"w is F8_E5M2 \[2\]"),
        ({"a.qweight": torch.zeros(2, dtype=torch.int32)}, r"a.qweight is I32"),
        ({"a.qzeros": torch.zeros(2, dtype=torch.int32)}, r"a.qzeros is I32"),
        ({"a.scales": torch.zeros(2)}, r"a.scales is F32"),
        ({"a.SCB": torch.zeros(2)}, r"a.SCB is F32"),
        ({"a.weight.absmax": torch.zeros(2)}, "a.weight.absmax"),
        ({"a.weight.quant_state.bitsandbytes__nf4": torch.zeros(2)}, ".*quant_state"),
        ({"a.weight_scale_inv": torch.zeros(2)}, "a.weight_scale_inv"),
        ({"e_blocks": torch.zeros(2), "e_scales": torch.zeros(2)}, "e_blocks"),
    ],
)
def test_quantised_by_tensors(tmp_path, tensors, match):
    """fp8, GPTQ, AWQ, bitsandbytes and MXFP4 without a word in the config."""
    folder = save(tmp_path)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, match=f"quantised checkpoint: {match}", hint="dequantise it first")


def test_adapter_and_partial_shards_by_content(tmp_path):
    """A LoRA adapter under a model's name; a shard that holds a part of each tensor."""
    folder = save(tmp_path)
    save_file({"q.lora_A.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    refused(folder, match="a LoRA adapter", hint="merge_and_unload")
    save_file(TENSORS, folder / "model.safetensors", metadata={"DCP_SHARDING_INFO": "{}"})
    refused(folder, match="a partial shard of PyTorch's distributed checkpoint", hint="consolidate")


@pytest.mark.parametrize("path", ["nowhere", "nowhere/model.safetensors", "./nowhere"])
def test_missing_path(tmp_path, monkeypatch, path):
    """What is not there is said with everything that could have been given."""
    monkeypatch.chdir(tmp_path)
    hint = "give a .safetensors file, a folder, its index, or org/name of the Hub"
    refused(path, match=f"{path}: no such file or folder", hint=hint)


def test_unreadable_source(tmp_path):
    """No permission is exit 4, whoever asks."""
    folder = save(tmp_path / "m")
    (folder / "model.safetensors").chmod(0)
    with unprivileged(), pytest.raises(ResourceError, match="no permission to read"):
        open_checkpoint(folder)
