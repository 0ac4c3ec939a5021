"""Tiny random transformers models, one builder for every family and head that the tests grow.

Weights, norm gains and biases are random and of size one, so that any mistake shows: gains
1 + 0.3·N, biases 0.3·N, embeddings 0.8·N, matrices 1.3/√fan_in·N, with N standard normal. Sizes are
given in growkit's words and are all different by default, so that no axis can pass for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from growkit.verify.tiny import randomise

SIZES: Mapping[str, int] = {
    "heads": 3,
    "head_dim": 4,
    "mlp": 17,
    "layers": 2,
    "vocab": 29,
    "positions": 23,
}
CLASSES = 5  # of a sequence classifier

# (family, head): class of transformers, config keys
HEADS: Mapping[tuple[str, str], tuple[str, Mapping[str, Any]]] = {
    ("bert", "base"): ("BertModel", {}),
    ("bert", "no_pooler"): ("BertModel", {}),
    ("bert", "masked_lm"): ("BertForMaskedLM", {}),
    ("bert", "pretraining"): ("BertForPreTraining", {}),
    ("bert", "classifier"): ("BertForSequenceClassification", {"num_labels": CLASSES}),
    ("gpt2", "base"): ("GPT2Model", {}),
    ("gpt2", "causal"): ("GPT2LMHeadModel", {}),
    ("gpt2", "untied"): ("GPT2LMHeadModel", {"tie_word_embeddings": False}),
    ("gpt2", "classifier"): (
        "GPT2ForSequenceClassification",
        {"num_labels": CLASSES, "pad_token_id": 0},
    ),
    ("llama", "base"): ("LlamaModel", {}),
    ("llama", "causal"): ("LlamaForCausalLM", {"tie_word_embeddings": False}),
    ("llama", "tied"): ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    ("llama", "biased"): ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    ("llama", "classifier"): ("LlamaForSequenceClassification", {"num_labels": CLASSES}),
    ("mistral", "base"): ("MistralModel", {}),
    ("mistral", "causal"): ("MistralForCausalLM", {"tie_word_embeddings": False}),
    ("qwen2", "base"): ("Qwen2Model", {}),
    ("qwen2", "causal"): ("Qwen2ForCausalLM", {"tie_word_embeddings": False}),
    ("qwen2", "tied"): ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
}


def build(
    family: str,
    head: str,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **overrides: Any,
) -> Any:
    """A tiny model in evaluation mode; `overrides` are sizes in growkit's words, or config keys.

    `hidden` is heads × head_dim unless given; `kv_heads` is `heads` unless given.
    """
    name, keys = HEADS[family, head]
    sizes = {**SIZES, **{k: overrides.pop(k) for k in [*overrides] if k in _SIZE_WORDS}}
    sizes.setdefault("hidden", sizes["heads"] * sizes["head_dim"])
    sizes.setdefault("kv_heads", sizes["heads"])
    cls = getattr(transformers, name)
    config = cls.config_class(**{**_config(family, sizes), **keys, **overrides})
    extra = {"add_pooling_layer": False} if head == "no_pooler" else {}
    model = cls(config, **extra).to(dtype).eval()
    randomise(model, seed)  # the same for one seed whatever the dtype
    return model


_SIZE_WORDS = {*SIZES, "hidden", "kv_heads"}


def _config(family: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    if family == "gpt2":
        return {
            "n_embd": sizes["hidden"],
            "n_head": sizes["heads"],
            "n_inner": sizes["mlp"],
            "n_layer": sizes["layers"],
            "vocab_size": sizes["vocab"],
            "n_positions": sizes["positions"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        }
    config = {
        "hidden_size": sizes["hidden"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["mlp"],
        "num_hidden_layers": sizes["layers"],
        "vocab_size": sizes["vocab"],
        "max_position_embeddings": sizes["positions"],
        "pad_token_id": 0,
    }
    if family == "bert":
        return config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return config | {
        "num_key_value_heads": sizes["kv_heads"],
        "head_dim": sizes["head_dim"],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def save(model: Any, folder: Path) -> Path:
    """The model written by transformers in its own dtype: safetensors and config.json."""
    model.save_pretrained(folder)
    return folder


def outputs(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Logits where the class has a head, else the last hidden state, for token ids."""
    with torch.no_grad():
        result = model(input_ids=inputs)
    for name in ("logits", "prediction_logits"):
        if name in result:
            return result[name]  # type: ignore[no-any-return]
    return result.last_hidden_state  # type: ignore[no-any-return]


def tokens(count: int = 2, length: int = 11, *, vocab: int = SIZES["vocab"], seed: int = 7) -> Any:
    """Random token ids, (count, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab, (count, length), generator=generator)
