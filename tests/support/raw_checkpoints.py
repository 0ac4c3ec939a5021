"""Checkpoints of a few tensors, written by safetensors or by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from growkit.checkpoints.open import open_checkpoint
from growkit.errors import CheckpointError

CONFIG = {"model_type": "bert", "hidden_size": 4}


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]


TENSORS = {
    **{f"t{i}": torch.arange(12).reshape(4, 3).to(d) for i, d in enumerate(DTYPES)},
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "mask": torch.tensor([True, False]),
}


def save(folder: Path, *, shards: int = 1, config: object = CONFIG) -> Path:
    """A checkpoint folder as transformers leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weight_map = {key: names[i % shards] for i, key in enumerate(TENSORS)}
    for name in names:
        part = {k: t for k, t in TENSORS.items() if weight_map[k] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    write_index(folder, weight_map)
    return folder


def refused(path: Path | str, *, match: str, hint: str = "", **kwargs: object) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(path, **kwargs)
    assert hint in caught.value.hint
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def write_index(folder: Path, weight_map: object) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
