"""Decoders that try one thing each that the others do not have."""

from __future__ import annotations

from zoo import Tiny

MODELS = {
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
