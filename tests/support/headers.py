"""Headers of models that are too large to make."""

from __future__ import annotations

from typing import Any

from growkit.checkpoints.types import Checkpoint, TensorInfo


def headers(hidden: int, heads: int, kv_heads: int, mlp: int, layers: int) -> Checkpoint:
    """A checkpoint that is all headers, in bfloat16."""
    head_dim, vocab = hidden // heads, 128256
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
    }
    queries, keys = heads * head_dim, kv_heads * head_dim
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
        **{f"model.layers.{i}.{n}.weight": s for i in range(layers) for n, s in layer.items()},
    }
    tensors = {n: TensorInfo(n, "BF16", s, "", 0, 0) for n, s in shapes.items()}
    return Checkpoint("headers", config, tensors, ())
