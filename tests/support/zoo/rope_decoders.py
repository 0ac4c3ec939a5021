"""Decoders with rotary positions that are not mixtures of experts."""

from __future__ import annotations

from typing import Any

from support.zoo import Tiny

SIZES: dict[str, Any] = {
    "vocab_size": 29, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 34, "num_hidden_layers": 3, "max_position_embeddings": 23,
    "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SQUARE = {**SIZES, "hidden_size": 72, "head_dim": 12}  # heads × head_dim = hidden
LLAMA = {**SIZES, "head_dim": 12}
TIED = {"tie_word_embeddings": True}
SLIDING, FULL = "sliding_attention", "full_attention"
TWO_BASES = {
    FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
    SLIDING: {"rope_type": "default", "rope_theta": 700.0},
}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.3, 1.4, 1.9, 2.5],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "original_max_position_embeddings": 13,
}  # fmt: skip
SEVEN = {"num_labels": 7}
FOUR = {"num_attention_heads": 8, "num_key_value_heads": 4}  # where there are two labels
HEADS = {
    "base": ("Model", {}),
    "causal": ("ForCausalLM", {}),
    "tied": ("ForCausalLM", TIED),
    "classifier": ("ForSequenceClassification", SEVEN),
    "tokens": ("ForTokenClassification", SEVEN),
    "answers": ("ForQuestionAnswering", FOUR),
}


def heads(family: str, prefix: str, config: dict[str, Any], which: str) -> dict[str, Tiny]:
    """Models of several head classes of one family."""
    return {
        f"{family}/{head}": Tiny(prefix + HEADS[head][0], {**config, **HEADS[head][1]})
        for head in which.split()
    }


MODELS = {
    **heads("llama", "Llama", LLAMA, "base causal tied classifier tokens answers"),
    "llama/biased": Tiny(
        "LlamaForCausalLM",
        {**LLAMA, **TIED, "attention_bias": True, "mlp_bias": True},
    ),
    "llama/llama3": Tiny(
        "LlamaForCausalLM",
        {**LLAMA, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
    ),
    "llama/yarn": Tiny(
        "LlamaForCausalLM",
        {**LLAMA, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
                                      "original_max_position_embeddings": 64}},
    ),
    "llama/dynamic": Tiny(
        "LlamaForCausalLM",
        {**LLAMA, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0,
                                      "factor": 2.0}, "max_position_embeddings": 5},
    ),
    "llama/mistral": Tiny("MistralForCausalLM", {**LLAMA, "sliding_window": 4}),
    "llama/mistral base": Tiny("MistralModel", {**LLAMA, "sliding_window": None}),
    "llama/mistral classifier": Tiny("MistralForSequenceClassification", {**LLAMA, **SEVEN}),
    "llama/mistral tokens": Tiny("MistralForTokenClassification", {**LLAMA, **SEVEN}),
    "llama/mistral answers": Tiny("MistralForQuestionAnswering", {**LLAMA, **FOUR}),
    "llama/qwen2": Tiny("Qwen2ForCausalLM", LLAMA),
    "llama/qwen2 tied": Tiny("Qwen2ForCausalLM", {**LLAMA, **TIED}),
    "llama/qwen2 sliding": Tiny(
        "Qwen2ForCausalLM",
        {**LLAMA, **TIED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "llama/qwen2 base": Tiny("Qwen2Model", LLAMA),
    "llama/qwen2 classifier": Tiny("Qwen2ForSequenceClassification", {**LLAMA, **SEVEN}),
    "llama/qwen2 tokens": Tiny("Qwen2ForTokenClassification", {**LLAMA, **SEVEN}),
    "llama/qwen2 answers": Tiny("Qwen2ForQuestionAnswering", {**LLAMA, **FOUR}),
    **heads("qwen3", "Qwen3", LLAMA, "base causal tied classifier tokens answers"),
    "qwen3/biased": Tiny("Qwen3ForCausalLM", {**LLAMA, "attention_bias": True}),
    **heads("gemma", "Gemma", {**LLAMA, **TIED}, "base causal classifier tokens"),
    **heads(
        "gemma2", "Gemma2",
        {**LLAMA, **TIED, "query_pre_attn_scalar": 13, "sliding_window": 4,
         "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        "base causal classifier tokens",
    ),
    "gemma2/untied": Tiny("Gemma2ForCausalLM", {**LLAMA, "query_pre_attn_scalar": 13}),
    **{
        f"gemma3_text/{head}": Tiny(
            cls,
            {**LLAMA, **TIED, **SEVEN, "query_pre_attn_scalar": 13, "sliding_window": 4,
             "layer_types": [SLIDING, FULL, SLIDING], "rope_parameters": TWO_BASES},
        )
        for head, cls in (
            ("base", "Gemma3TextModel"),
            ("causal", "Gemma3ForCausalLM"),
            ("classifier", "Gemma3TextForSequenceClassification"),
        )
    },
    **heads("olmo", "Olmo", SQUARE, "base causal classifier"),
    "olmo/tied": Tiny("OlmoForCausalLM", {**SQUARE, **TIED}),
    "olmo/clipped": Tiny("OlmoForCausalLM", {**SQUARE, "clip_qkv": 0.7}),
    **heads("olmo2", "Olmo2", LLAMA, "base causal classifier"),
    "olmo2/tied": Tiny("Olmo2ForCausalLM", {**LLAMA, **TIED}),
    "olmo2/olmo3": Tiny(
        "Olmo3ForCausalLM",
        {**LLAMA, "sliding_window": 4, "layer_types": [SLIDING, FULL, SLIDING],
         "rope_parameters": TWO_BASES},
    ),
    "olmo2/olmo3 base": Tiny("Olmo3Model", LLAMA),
    "olmo2/olmo3 classifier": Tiny("Olmo3ForSequenceClassification", {**LLAMA, **SEVEN}),
    **heads(
        "granite", "Granite",
        {**SQUARE, "attention_multiplier": 0.23, "embedding_multiplier": 3.0,
         "logits_scaling": 2.0, "residual_multiplier": 0.4},
        "base causal tied",
    ),
    **heads("cohere", "Cohere", {**SQUARE, **TIED, "logit_scale": 0.3}, "base causal"),
    "cohere/normed": Tiny(
        "CohereForCausalLM",
        {**SQUARE, **TIED, "use_qk_norm": True, "attention_bias": True},
    ),
    "cohere/cohere2": Tiny(
        "Cohere2ForCausalLM",
        {**SQUARE, **TIED, "sliding_window": 4, "layer_types": [SLIDING, FULL, SLIDING]},
    ),
    "cohere/cohere2 base": Tiny("Cohere2Model", SQUARE),
    **heads(
        "smollm3", "SmolLM3", {**SQUARE, **TIED, "no_rope_layers": [1, 0, 1]},
        "base causal classifier tokens",
    ),
    "smollm3/answers": Tiny("SmolLM3ForQuestionAnswering", {**SQUARE, **FOUR, "hidden_size": 96}),
    "smollm3/interval": Tiny(
        "SmolLM3ForCausalLM",
        {**SQUARE, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 4},
    ),
    **heads(
        "starcoder2", "Starcoder2", {**SQUARE, **TIED, "use_bias": True, "sliding_window": None},
        "base causal classifier tokens",
    ),
    "starcoder2/without bias": Tiny("Starcoder2ForCausalLM", {**SQUARE, "use_bias": False}),
    **heads("phi", "Phi", {**SQUARE, "partial_rotary_factor": 0.5},
            "base causal classifier tokens"),
    "phi/as published": Tiny(  # every head has keys and values of its own
        "PhiForCausalLM",
        {**{k: v for k, v in SQUARE.items() if k != "num_key_value_heads"},
         "partial_rotary_factor": 0.5},
    ),
    "phi/grouped": Tiny("PhiForCausalLM", {**SIZES, "partial_rotary_factor": 0.5}),
    "phi/normed": Tiny("PhiForCausalLM", {**SIZES, "qk_layernorm": True}),
    **heads("phi3", "Phi3", SQUARE, "base causal tied classifier tokens"),
    "phi3/partial": Tiny(
        "Phi3ForCausalLM",
        {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                      "partial_rotary_factor": 0.5}},
    ),
    "phi3/longrope": Tiny(
        "Phi3ForCausalLM",
        {**SQUARE, "rope_parameters": LONGROPE, "original_max_position_embeddings": 13},
    ),
}  # fmt: skip
