"""Checkpoints to measure with, written without torch: random Llamas, and files full of holes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]
CHUNK = 1 << 22  # values drawn at once

LLAMA: Mapping[str, dict[str, int]] = {
    "tiny": {"hidden": 64, "mlp": 176, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 500},
    "0.35B": {"hidden": 1024, "mlp": 2816, "layers": 24, "heads": 16, "kv_heads": 16},
    "1.1B": {"hidden": 2048, "mlp": 5632, "layers": 22, "heads": 32, "kv_heads": 4},
    "7B": {"hidden": 4096, "mlp": 11008, "layers": 32, "heads": 32, "kv_heads": 32},
}


def llama(folder: Path, size: str, *, sparse: bool = False, seed: int = 0) -> Path:
    """A bfloat16 Llama with random weights; or, if `sparse`, with a header and zeros on no disk."""
    s = {"vocab": 32000, **LLAMA[size]}
    hidden, keys = s["hidden"], s["hidden"] // s["heads"] * s["kv_heads"]
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (s["mlp"], hidden),
        "mlp.up_proj": (s["mlp"], hidden),
        "mlp.down_proj": (hidden, s["mlp"]),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (s["vocab"], hidden),
        "lm_head.weight": (s["vocab"], hidden),
        "model.norm.weight": (hidden,),
        **{f"model.layers.{i}.{n}.weight": t for i in range(s["layers"]) for n, t in layer.items()},
    }
    return _write(folder, shapes, _config("llama", "LlamaForCausalLM", s), sparse, seed)


def mixture(folder: Path, tensors: int, hidden: int = 256) -> Path:
    """A sparse mixture of experts of about so many tensors."""
    s = {"hidden": hidden, "mlp": 2 * hidden, "heads": 4, "kv_heads": 4, "vocab": 1000}
    experts = max(2, math.isqrt(tensors // 6))
    s |= {"experts": experts, "layers": max(1, tensors // (3 * experts + 7))}
    mlp = s["mlp"]
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "block_sparse_moe.gate": (experts, hidden),
        **{f"self_attn.{n}_proj": (hidden, hidden) for n in "qkvo"},
    }
    for e in range(experts):
        for name, shape in (("w1", (mlp, hidden)), ("w2", (hidden, mlp)), ("w3", (mlp, hidden))):
            layer[f"block_sparse_moe.experts.{e}.{name}"] = shape
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (s["vocab"], hidden),
        "lm_head.weight": (s["vocab"], hidden),
        "model.norm.weight": (hidden,),
        **{f"model.layers.{i}.{n}.weight": t for i in range(s["layers"]) for n, t in layer.items()},
    }
    config = _config("mixtral", "MixtralForCausalLM", s)
    config |= {"num_local_experts": experts, "num_experts_per_tok": 2}
    return _write(folder, shapes, config, sparse=True, seed=0)


def _config(kind: str, cls: str, s: Mapping[str, int]) -> dict[str, Any]:
    return {
        "architectures": [cls],
        "model_type": kind,
        "hidden_size": s["hidden"],
        "intermediate_size": s["mlp"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"],
        "num_key_value_heads": s["kv_heads"],
        "head_dim": s["hidden"] // s["heads"],
        "vocab_size": s["vocab"],
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _write(folder: Path, shapes: Shapes, config: dict[str, Any], sparse: bool, seed: int) -> Path:
    """`folder` with config and weights; config.json is written last, and says that all is there."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        start, end = end, end + 2 * math.prod(shapes[name])
        entries[name] = {
            "dtype": "BF16",
            "shape": list(shapes[name]),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    draw = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in () if sparse else sorted(shapes):
            left = math.prod(shapes[name])
            while left:
                values = draw.standard_normal(min(left, CHUNK), dtype=np.float32) * 0.02
                values += float("norm" in name)
                file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
                left -= len(values)
        file.truncate(8 + len(header) + end)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder
