"""Decoders that try one thing each that the others do not have."""

from __future__ import annotations

from zoo import Tiny

LLAMA = {
    "vocab_size": 29, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 12, "intermediate_size": 34, "num_hidden_layers": 3, "max_position_embeddings": 23,
    "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "qwen3/causal": Tiny("Qwen3ForCausalLM", LLAMA, "qwen3"),
    "gemma2/causal": Tiny(
        "Gemma2ForCausalLM",
        {**LLAMA, "query_pre_attn_scalar": 13, "sliding_window": 4, "tie_word_embeddings": True},
        "gemma2",
    ),
    "olmo2/causal": Tiny("Olmo2ForCausalLM", LLAMA, "olmo2"),
    "mixtral/causal": Tiny(
        "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        "mixtral",
    ),
    "gpt_neox/causal": Tiny(
        "GPTNeoXForCausalLM",
        {
            "vocab_size": 29, "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 34,
            "num_hidden_layers": 3, "max_position_embeddings": 23, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                "partial_rotary_factor": 0.5},
        },
        "gpt_neox",
    ),
    "bloom/causal": Tiny(
        "BloomForCausalLM",
        {"vocab_size": 29, "hidden_size": 48, "n_head": 6, "n_layer": 3, "hidden_dropout": 0.0,
         "attention_dropout": 0.0},
        "bloom",
    ),
}  # fmt: skip
