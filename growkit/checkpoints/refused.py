"""Checkpoints that are not taken: quantised ones, adapters, other formats.

The law: each is recognised by names, dtypes or its config, before a family is looked for, and the
hint says how the user comes to a checkpoint that can be grown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from growkit.checkpoints.header import WEIGHTS
from growkit.checkpoints.names import pattern_of
from growkit.checkpoints.types import TensorInfo
from growkit.dtypes import FLOATS, QUANTISED_BITS
from growkit.errors import CheckpointError

_QUANTISED = {
    ".qweight", ".qzeros", ".scales", ".absmax", ".SCB", ".weight_scale_inv", ".weight_packed",
}  # fmt: skip
_PLAIN = {*FLOATS, "I64", "BOOL"}  # dtypes of weights, and of positions and masks
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


def without_quantisation(
    config: dict[str, Any], tensors: Iterable[TensorInfo], given: Path
) -> tuple[dict[str, Any], list[str]]:
    """The config without what it, or that of one of its towers, says of packed weights; and notes.

    The tensors decide: weights that were merged or dequantised are plain, whatever the config of
    their day still says. Raises CheckpointError where some are packed.
    """
    packed = next((t for t in tensors if t.dtype not in _PLAIN), None)
    out, notes = dict(config), []
    for key in ("quantization_config", "compression_config"):
        towers = {k: v for k, v in out.items() if isinstance(v, dict) and v.get(key)}
        settings = next((t[key] for t in (out, *towers.values()) if t.get(key)), None)
        if not settings:
            continue
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        what = f"{key} {method or ''}".rstrip()
        if packed:
            raise _quantised(given, f"config.json has {what}, and {packed.name} is {packed.dtype}")
        notes.append(f"config.json loses {what}: no tensor is quantised")
        out |= {k: {n: x for n, x in v.items() if n != key} for k, v in towers.items()}
        out.pop(key, None)
    return out, notes


def refuse_names(tensors: Iterable[TensorInfo], given: Path) -> None:
    """Raise CheckpointError if names or dtypes are those of packed weights or of an adapter."""
    tensors = [*tensors]
    names = {t.name for t in tensors}
    for t in tensors:
        packed = t.name.endswith("_blocks") and f"{t.name.removesuffix('_blocks')}_scales" in names
        named = t.name[t.name.rfind(".") :] in _QUANTISED or "quant_state" in t.name
        if t.dtype in QUANTISED_BITS or packed or named:
            error = _quantised(given, f"{t.name} is {t.dtype} {list(t.shape)}")
            if named and all(other.dtype in _PLAIN for other in tensors):  # left over, it seems
                error.hint += f"; if the weights are, leave it out: --drop {pattern_of(t.name)}"
            raise error
        if ".base_layer." in t.name:
            raise CheckpointError(
                f"{given}: tensor {t.name}: a LoRA adapter was around it",
                hint="merge the adapter into its base model (peft: merge_and_unload), then save",
            )
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
        if inner and "modules.json" in names:  # the first layout of sentence-transformers
            hint = (
                f"move what is in {inner.parent.name} up into the folder, and make its path in "
                f'modules.json "": grown alone it would lose the modules behind it, such as pooling'
            )
    raise CheckpointError(f"{given}: {what}", hint=hint)
