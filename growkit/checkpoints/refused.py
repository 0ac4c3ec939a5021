"""Checkpoints that are not taken: quantised ones, adapters, other formats.

The law: each is recognised by names, dtypes or its config, before a family is looked for, and the
hint says how the user comes to a checkpoint that can be grown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from growkit.checkpoints.header import WEIGHTS
from growkit.checkpoints.types import TensorInfo
from growkit.dtypes import QUANTISED_BITS
from growkit.errors import CheckpointError

_QUANTISED = {
    ".qweight", ".qzeros", ".scales", ".absmax", ".SCB", ".weight_scale_inv", ".weight_packed",
}  # fmt: skip
_LORA_NAME = re.compile(r"\.lora_[AB]\b|lora_embedding_[AB]")

# what a folder without safetensors may hold instead, and the way out
_OTHER_FORMATS = (
    (
        re.compile(r".*\.distcp|\.metadata"),
        "shards of PyTorch's distributed checkpoint, no safetensors",
        "gather them and save with `save_pretrained` (torch.distributed.checkpoint.format_utils)",
    ),
    (
        re.compile(r".*\.(bin|pt|pth|ckpt|pkl)(\.index\.json)?"),
        "pickled weights only, which can run code when they are loaded",
        "load them with transformers where that is safe, and `save_pretrained` writes safetensors",
    ),
    (
        re.compile(r".*\.gguf"),
        "GGUF weights only",
        "grow the safetensors model that they come from",
    ),
    (
        re.compile(r".*\.(h5|msgpack|onnx|npz)"),
        "weights of another framework only",
        "load them with transformers and `save_pretrained` writes safetensors",
    ),
)


def refuse_quantised_config(config: Mapping[str, Any], given: Path) -> None:
    """Raise CheckpointError if the config, or that of one of its towers, says how it is packed."""
    towers = [config, *(v for v in config.values() if isinstance(v, dict))]
    for key in ("quantization_config", "compression_config"):
        settings = next((t[key] for t in towers if t.get(key)), None)
        if settings:
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            raise _quantised(given, f"config.json has {key} {method or ''}".rstrip())


def refuse_names(tensors: Iterable[TensorInfo], given: Path) -> None:
    """Raise CheckpointError if names or dtypes are those of packed weights or of an adapter."""
    tensors = [*tensors]
    names = {t.name for t in tensors}
    for t in tensors:
        packed = t.name.endswith("_blocks") and f"{t.name.removesuffix('_blocks')}_scales" in names
        named = t.name[t.name.rfind(".") :] in _QUANTISED or "quant_state" in t.name
        if t.dtype in QUANTISED_BITS or packed or named:
            raise _quantised(given, f"{t.name} is {t.dtype} {list(t.shape)}")
        if "lora_" in t.name and _LORA_NAME.search(t.name):
            raise adapter(given)


def _quantised(given: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{given}: quantised checkpoint: {why}",
        hint="grow the original, or dequantise it first and save it as bfloat16 or float32",
    )


def adapter(given: Path) -> CheckpointError:
    """The refusal of a LoRA adapter."""
    return CheckpointError(
        f"{given}: a LoRA adapter, not a whole model",
        hint="merge it into its base model first (peft: merge_and_unload, then save_pretrained)",
    )


def refuse_format(given: Path, names: list[str]) -> None:
    """Raise CheckpointError for a file or folder without safetensors, whose files are `names`."""
    for pattern, what, hint in _OTHER_FORMATS:
        if any(pattern.fullmatch(name) for name in names):
            raise CheckpointError(f"{given}: {what}", hint=hint)
    if given.is_file():
        what, hint = "not a safetensors file", "give a .safetensors file, a folder, or its index"
    elif not any(given.iterdir()):
        what, hint = "an empty folder", "give the folder that holds the weights"
    else:
        inner = next((p for d in ("*", "*/*") for p in sorted(given.glob(f"{d}/*{WEIGHTS}"))), None)
        what = "no safetensors file in this folder"
        hint = (
            f"did you mean {inner.parent}?" if inner else "give the folder that holds the weights"
        )
    raise CheckpointError(f"{given}: {what}", hint=hint)
