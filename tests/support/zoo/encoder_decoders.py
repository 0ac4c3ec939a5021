"""Encoder-decoders: T5 and its relatives, BART, Whisper."""

from __future__ import annotations

from support.zoo import Tiny

T5 = {
    "vocab_size": 29, "d_model": 22, "d_kv": 6, "d_ff": 34, "num_layers": 3,
    "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12, "decoder_start_token_id": 0, "eos_token_id": 1,
    "dropout_rate": 0.0, "num_labels": 7,
}  # fmt: skip
GATED = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {
    "vocab_size": 29, "d_model": 48, "encoder_attention_heads": 6, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 34, "decoder_ffn_dim": 38, "encoder_layers": 3, "decoder_layers": 2,
    "max_position_embeddings": 23, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2, "forced_eos_token_id": 2, "num_labels": 7, "dropout": 0.0,
}  # fmt: skip
WHISPER = {
    "vocab_size": 29, "d_model": 48, "encoder_attention_heads": 6, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 34, "decoder_ffn_dim": 38, "encoder_layers": 3, "decoder_layers": 2,
    "num_mel_bins": 9, "max_source_positions": 11, "max_target_positions": 23, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "num_labels": 7,
    "classifier_proj_size": 13,
}  # fmt: skip
MODELS = {
    "t5/model": Tiny("T5Model", T5),
    "t5/generation": Tiny("T5ForConditionalGeneration", T5),
    "t5/generation-1.1": Tiny("T5ForConditionalGeneration", GATED),
    "t5/encoder": Tiny("T5EncoderModel", GATED),
    "t5/sequence": Tiny("T5ForSequenceClassification", T5),
    "t5/token": Tiny("T5ForTokenClassification", T5),
    "t5/question": Tiny("T5ForQuestionAnswering", {**T5, "num_labels": 2}),
    "t5/mt5": Tiny("MT5ForConditionalGeneration", GATED),
    "umt5/generation": Tiny("UMT5ForConditionalGeneration", GATED),
    "umt5/encoder": Tiny("UMT5EncoderModel", GATED),
    "bart/model": Tiny("BartModel", BART),
    "bart/generation": Tiny("BartForConditionalGeneration", BART),
    "bart/scaled": Tiny("BartForConditionalGeneration", {**BART, "scale_embedding": True}),
    "bart/untied": Tiny("BartForConditionalGeneration", {**BART, "tie_word_embeddings": False}),
    "bart/decoder": Tiny("BartForCausalLM", {**BART, "scale_embedding": True}),
    "bart/sequence": Tiny("BartForSequenceClassification", BART),
    "bart/question": Tiny("BartForQuestionAnswering", {**BART, "num_labels": 2}),
    "whisper/model": Tiny("WhisperModel", WHISPER),
    "whisper/generation": Tiny("WhisperForConditionalGeneration", WHISPER),
    "whisper/untied": Tiny(
        "WhisperForConditionalGeneration", {**WHISPER, "tie_word_embeddings": False}
    ),
    "whisper/scaled": Tiny("WhisperForConditionalGeneration", {**WHISPER, "scale_embedding": True}),
    "whisper/audio": Tiny("WhisperForAudioClassification", WHISPER),
}
