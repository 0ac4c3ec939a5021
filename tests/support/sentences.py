"""Tiny models with tokenizers, as their makers save them, and the words that they know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from support import tiny

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = "the river had frozen overnight and boats lay still under snow while a bell rang far away"
TEXTS = (
    "the river had frozen overnight",
    "boats lay still under the snow",
    "a bell rang far away and still",
    "snow",
)
VOCABULARY = (*SPECIAL, *WORDS.split())


def tokenizer(*, marks: bool) -> PreTrainedTokenizerFast:
    """One token per word; `marks` puts [CLS] and [SEP] around a text."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if marks:
        around = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
        inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, around)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=tiny.SIZES["positions"],
    )


def saved(family: str, head: str, folder: Path, *, marks: bool = False, **sizes: Any) -> Path:
    """A tiny model in float32, and its tokenizer."""
    model = tiny.build(family, head, dtype=torch.float32, vocab=len(VOCABULARY), **sizes)
    tiny.save(model, folder)
    tokenizer(marks=marks).save_pretrained(folder)
    return folder
