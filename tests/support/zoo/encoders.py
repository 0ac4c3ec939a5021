"""Encoders: BERT and what came after it, with every head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from support.zoo import Tiny

BERT = {
    "vocab_size": 29, "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 34,
    "num_hidden_layers": 3, "max_position_embeddings": 23, "type_vocab_size": 4, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "num_labels": 7,
}  # fmt: skip
DISTIL = {
    "vocab_size": 29, "dim": 48, "n_heads": 6, "hidden_dim": 34, "n_layers": 3, "num_labels": 7,
    "max_position_embeddings": 23, "pad_token_id": 0,
}  # fmt: skip
PROJECTED = {**BERT, "embedding_size": 20}
DEBERTA = {
    **BERT, "type_vocab_size": 0, "relative_attention": True, "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"], "position_buckets": 7, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "max_relative_positions": -1,
}  # fmt: skip
OLD_DEBERTA = {
    **DEBERTA, "type_vocab_size": 4, "position_biased_input": True, "share_att_key": False,
    "norm_rel_ebd": "none", "embedding_size": 20,
}  # fmt: skip
MODERN = {
    "vocab_size": 29, "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 34,
    "num_hidden_layers": 4, "max_position_embeddings": 23, "num_labels": 7, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    "local_attention": 4,
}  # fmt: skip
BASE, MASKED, CAUSAL = {"base": "Model"}, {"masked_lm": "ForMaskedLM"}, {"causal": "ForCausalLM"}
TOKEN, QUESTION = {"token": "ForTokenClassification"}, {"question": "ForQuestionAnswering"}
CHOICE, PRETRAINING = {"choice": "ForMultipleChoice"}, {"pretraining": "ForPreTraining"}
TASKS = {"sequence": "ForSequenceClassification"} | TOKEN | QUESTION | CHOICE


def heads(
    family: str, prefix: str, config: Mapping[str, Any], ends: Mapping[str, str]
) -> dict[str, Tiny]:
    """One model per head: its name and the end of its class; a span has two labels, its ends."""
    own = {"question": {"num_labels": 2}, "causal": {"is_decoder": True}}
    return {
        f"{family}/{head}": Tiny(prefix + end, {**config, **own.get(head, {})})
        for head, end in ends.items()
    }


MODELS = {
    **heads("bert", "Bert", BERT,
            BASE | MASKED | PRETRAINING | TASKS
            | {"causal": "LMHeadModel", "next sentence": "ForNextSentencePrediction"}),
    "bert/no pooler": Tiny("BertModel", BERT, {"add_pooling_layer": False}),
    **heads("roberta", "Roberta", {**BERT, "pad_token_id": 1},
            BASE | MASKED | CAUSAL | TASKS),
    "roberta/xlm": Tiny("XLMRobertaForMaskedLM", {**BERT, "pad_token_id": 1}),
    "roberta/xlm classifier": Tiny("XLMRobertaForSequenceClassification", BERT),
    "roberta/camembert": Tiny("CamembertForMaskedLM", {**BERT, "pad_token_id": 1}),
    "roberta/untied": Tiny(
        "RobertaForMaskedLM", {**BERT, "tie_word_embeddings": False}
    ),
    **heads("distilbert", "DistilBert", DISTIL, BASE | MASKED | TASKS),
    **heads("electra", "Electra", PROJECTED,
            BASE | MASKED | CAUSAL | PRETRAINING | TASKS),
    "electra/one width": Tiny("ElectraForPreTraining", {**BERT, "embedding_size": 48}),
    "electra/one width generator": Tiny(
        "ElectraForMaskedLM", {**BERT, "embedding_size": 48}
    ),
    "electra/one width token": Tiny(
        "ElectraForTokenClassification", {**BERT, "embedding_size": 48}
    ),
    **heads("deberta-v2", "DebertaV2", DEBERTA, BASE | MASKED | TASKS),
    "deberta-v2/conv": Tiny(
        "DebertaV2ForMaskedLM",
        {**DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"},
    ),
    "deberta-v2/keys of their own": Tiny("DebertaV2ForMaskedLM", OLD_DEBERTA),
    "deberta-v2/published head": Tiny(
        "DebertaV2ForMaskedLM", {**DEBERTA, "legacy": False}
    ),
    **heads("modernbert", "ModernBert", MODERN, BASE | MASKED | TASKS),
    "modernbert/biased": Tiny(
        "ModernBertForMaskedLM",
        {**MODERN, "norm_bias": True, "attention_bias": True, "mlp_bias": True,
         "classifier_bias": True, "tie_word_embeddings": False},
    ),
    **heads("albert", "Albert", PROJECTED,
            BASE | MASKED | PRETRAINING | TASKS),
    "albert/groups": Tiny(
        "AlbertForMaskedLM", {**PROJECTED, "num_hidden_groups": 3, "inner_group_num": 2}
    ),
}  # fmt: skip
