"""Decoders with routed experts."""

from __future__ import annotations

from support.zoo import Tiny
from support.zoo.rope_decoders import FULL, LLAMA, SIZES, SLIDING, SQUARE, TIED, heads

EVERY = "base causal classifier tokens answers"
MIXTRAL = {
    **LLAMA, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None,
}  # fmt: skip
QWEN = {
    **LLAMA, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 14,
    "shared_expert_intermediate_size": 22,
}  # fmt: skip
GPT_OSS = {
    **LLAMA, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 4,
    "layer_types": [SLIDING, FULL, SLIDING],
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1000.0,
                        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                        "original_max_position_embeddings": 8},
}  # fmt: skip
DEEPSEEK = {
    **SIZES, "num_key_value_heads": 6, "kv_lora_rank": 16, "q_lora_rank": 22,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 14, "v_head_dim": 10, "moe_intermediate_size": 18,
    "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "n_shared_experts": 3, "first_k_dense_replace": 1,
}  # fmt: skip
MODELS = {
    **heads("mixtral", "Mixtral", MIXTRAL, EVERY),
    "mixtral/tied": Tiny("MixtralForCausalLM", {**MIXTRAL, **TIED, "sliding_window": 4}),
    **heads("qwen2_moe", "Qwen2Moe", QWEN, EVERY),
    "qwen2_moe/dense": Tiny(
        "Qwen2MoeForCausalLM", {**QWEN, "mlp_only_layers": [1]}
    ),
    "qwen2_moe/sparse": Tiny("Qwen2MoeForCausalLM", {**QWEN, "decoder_sparse_step": 2}),
    **heads("qwen3_moe", "Qwen3Moe", QWEN, EVERY),
    "qwen3_moe/dense": Tiny(
        "Qwen3MoeForCausalLM",
        {**QWEN, "mlp_only_layers": [1], "norm_topk_prob": True},
    ),
    **heads(
        "olmoe", "Olmoe", {**SQUARE, "num_experts": 5, "num_experts_per_tok": 2},
        "base causal",
    ),
    "olmoe/clipped": Tiny(
        "OlmoeForCausalLM", {**SQUARE, "num_experts": 5, "num_experts_per_tok": 2, "clip_qkv": 0.7}
    ),
    **heads("gpt_oss", "GptOss", GPT_OSS, "base causal classifier tokens"),
    **heads("deepseek_v3", "DeepseekV3", DEEPSEEK, "base causal classifier tokens"),
    "deepseek_v3/one group": Tiny(
        "DeepseekV3ForCausalLM",
        {**DEEPSEEK, "n_group": 1, "topk_group": 1, "q_lora_rank": None, "attention_bias": True},
    ),
    "deepseek_v3/not normed": Tiny("DeepseekV3ForCausalLM", {**DEEPSEEK, "norm_topk_prob": False}),
    "deepseek_v3/v2": Tiny(
        "DeepseekV2ForCausalLM", {**DEEPSEEK, "topk_method": "group_limited_greedy"}
    ),
    "deepseek_v3/v2 lite": Tiny(
        "DeepseekV2ForCausalLM",
        {**DEEPSEEK, "q_lora_rank": None, "topk_method": "greedy", "n_group": None,
         "topk_group": None},
    ),
    "deepseek_v3/v2 base": Tiny("DeepseekV2Model", DEEPSEEK),
    "deepseek_v3/v2 classifier": Tiny(
        "DeepseekV2ForSequenceClassification", {**DEEPSEEK, "num_labels": 7}
    ),
}  # fmt: skip
