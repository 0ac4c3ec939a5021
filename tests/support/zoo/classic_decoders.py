"""Decoders before Llama: learned positions, partial rotary, ALiBi, and the ways to fuse q, k, v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from support.zoo import Tiny

SIZES = {"vocab_size": 29, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HF = {
    **SIZES, "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 34,
    "num_hidden_layers": 3, "max_position_embeddings": 23,
}  # fmt: skip
GPT2 = {
    **SIZES, "n_embd": 48, "n_head": 6, "n_inner": 34, "n_layer": 3, "n_positions": 23,
    "num_labels": 7,
}  # fmt: skip
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
NEOX = {**HF, "tie_word_embeddings": False, "num_labels": 7, "rope_parameters": HALF}
BLOOM = {**SIZES, "hidden_size": 48, "n_head": 6, "n_layer": 3, "num_labels": 7}
NEO = {
    **SIZES, "hidden_size": 48, "num_heads": 6, "intermediate_size": 34, "num_layers": 4,
    "attention_types": [[["global", "local"], 2]], "window_size": 3, "num_labels": 7,
    "max_position_embeddings": 23,
}  # fmt: skip
OPT = {**{k: v for k, v in HF.items() if k != "intermediate_size"}, "ffn_dim": 34,
       "word_embed_proj_dim": 48, "num_labels": 7}  # fmt: skip
SMALL_OPT = {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20}
FALCON = {
    **{k: v for k, v in HF.items() if k != "intermediate_size"}, "ffn_hidden_size": 34,
    "num_labels": 7, "multi_query": True, "parallel_attn": True,
}  # fmt: skip
GROUPED = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
SLOPED = {**FALCON, "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}
MPT = {**SIZES, "d_model": 48, "n_heads": 6, "n_layers": 3, "max_seq_len": 23, "num_labels": 7}
STABLE = {**HF, "num_key_value_heads": 2, "tie_word_embeddings": False, "num_labels": 7,
          "rope_parameters": HALF}  # fmt: skip
NORMED = {**STABLE, "qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True}
CAUSAL = {"base": "Model", "causal": "ForCausalLM"}
SEQUENCE, TOKEN = {"sequence": "ForSequenceClassification"}, {"token": "ForTokenClassification"}
QUESTION = {"question": "ForQuestionAnswering"}
EVERY = CAUSAL | SEQUENCE | TOKEN | QUESTION


def heads(
    family: str, prefix: str, config: Mapping[str, Any], ends: Mapping[str, str]
) -> dict[str, Tiny]:
    """One model per head: its name and the end of its class; a span has two labels, its ends."""
    two = {"question": {"num_labels": 2}}
    return {
        f"{family}/{head}": Tiny(prefix + end, {**config, **two.get(head, {})})
        for head, end in ends.items()
    }


MODELS = {
    **heads("gpt2", "GPT2", GPT2,
            EVERY | {"causal": "LMHeadModel", "two heads": "DoubleHeadsModel"}),
    "gpt2/untied": Tiny("GPT2LMHeadModel", {**GPT2, "tie_word_embeddings": False}),
    **heads("gpt_neox", "GPTNeoX", NEOX, EVERY),
    "gpt_neox/sequential": Tiny(
        "GPTNeoXForCausalLM",
        {**NEOX, "use_parallel_residual": False, "tie_word_embeddings": True},
    ),
    "gpt_neox/no bias": Tiny("GPTNeoXForCausalLM", {**NEOX, "attention_bias": False}),
    **heads("bloom", "Bloom", BLOOM, EVERY),
    "bloom/untied": Tiny("BloomForCausalLM", {**BLOOM, "tie_word_embeddings": False}),
    "bloom/norms in the stream": Tiny(
        "BloomForCausalLM", {**BLOOM, "apply_residual_connection_post_layernorm": True}
    ),
    **heads("gpt_neo", "GPTNeo", NEO, EVERY),
    **heads("gptj", "GPTJ", {**GPT2, "rotary_dim": 4, "tie_word_embeddings": False},
            CAUSAL | SEQUENCE | QUESTION),
    **heads("opt", "OPT", OPT, CAUSAL | SEQUENCE | QUESTION),
    "opt/350m": Tiny("OPTForCausalLM", SMALL_OPT),
    "opt/350m classifier": Tiny("OPTForSequenceClassification", SMALL_OPT),
    "opt/norms without tensors": Tiny(
        "OPTForCausalLM",
        {**OPT, "layer_norm_elementwise_affine": False, "enable_bias": False,
         "tie_word_embeddings": False},
    ),
    **heads("falcon", "Falcon", FALCON, EVERY),
    "falcon/40b": Tiny("FalconForCausalLM", GROUPED),
    "falcon/11b": Tiny(
        "FalconForCausalLM",
        {**GROUPED, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
    ),
    "falcon/rw": Tiny("FalconForCausalLM", SLOPED),
    **heads("mpt", "Mpt", MPT, EVERY),
    "mpt/clamped": Tiny(
        "MptForCausalLM",
        {**MPT, "attn_config": {"clip_qkv": 1.0, "softmax_scale": 0.3}},
    ),
    **heads("stablelm", "StableLm", STABLE,
            CAUSAL | SEQUENCE | TOKEN),
    "stablelm/normed": Tiny("StableLmForCausalLM", NORMED),
    **heads("gpt_bigcode", "GPTBigCode", GPT2,
            CAUSAL | SEQUENCE | TOKEN),
    "gpt_bigcode/separate": Tiny(
        "GPTBigCodeForCausalLM",
        {**GPT2, "multi_query": False, "tie_word_embeddings": False},
    ),
}  # fmt: skip
