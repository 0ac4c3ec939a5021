"""What a model takes, drawn at random: token ids, images, spectrograms, or several of them.

The law: what is drawn depends on the seed and on the small model alone, so that both models get the
same.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from growkit.errors import VerifyError
from growkit.verify.load import LENGTHS, RUNS, Loaded, longest, token_table

Inputs = Mapping[str, torch.Tensor]  # by parameter of the model's forward
IDS, DECODER_IDS = "input_ids", "decoder_input_ids"
IMAGES, SPECTROGRAMS = "pixel_values", "input_features"


def random_inputs(loaded: Loaded, seed: int) -> list[Inputs]:
    """What the class takes: sequences of several lengths, with images or spectrograms."""
    generator = torch.Generator().manual_seed(seed)
    model, takes = loaded.model, _takes(loaded.model)
    vocab = _vocabulary(model) if {IDS, DECODER_IDS} & takes else None
    if vocab is None and not {IMAGES, SPECTROGRAMS} & takes:
        raise VerifyError(
            f"{loaded.path}: {type(model).__name__} takes neither tokens nor images nor"
            " spectrograms",
            hint=RUNS,
        )
    if vocab is None:
        return with_ids(loaded, [None], generator)
    lengths = sorted({min(length, longest(model)) for length in LENGTHS})
    ids = [torch.randint(vocab, (1, length), generator=generator) for length in lengths]
    end = getattr(model.config.get_text_config(), "eos_token_id", None)
    if isinstance(end, int) and end < vocab:  # some classes read where a text ends
        ids = [torch.cat([i[:, :-1], torch.tensor([[end]])], 1) for i in ids]
    return with_ids(loaded, ids, generator)


def with_ids(
    loaded: Loaded, ids: Sequence[torch.Tensor | None], generator: torch.Generator
) -> list[Inputs]:
    """For each sequence all that the class takes; a decoder gets the encoder's ids, reversed."""
    model, takes = loaded.model, _takes(loaded.model)
    shapes = {IMAGES: _image(model), SPECTROGRAMS: _spectrogram(model)}
    batches: list[Inputs] = []
    for sequence in ids:
        batch: dict[str, torch.Tensor] = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in shapes.items()
            if name in takes and shape
        }
        if sequence is not None and IDS in takes:
            batch[IDS] = sequence
        if sequence is not None and DECODER_IDS in takes and model.config.is_encoder_decoder:
            batch[DECODER_IDS] = sequence.flip(1)
        batches.append(batch)
    return batches


def described(batches: Sequence[Inputs]) -> str:
    """How much a model was given: "168 tokens and 3 images"."""
    words = {IDS: "tokens", DECODER_IDS: "decoder tokens", IMAGES: "images"}
    counts: dict[str, int] = {}
    for batch in batches:
        for name, value in batch.items():
            word = words.get(name, "spectrograms")
            counts[word] = counts.get(word, 0) + (value.numel() if "ids" in name else len(value))
    return " and ".join(f"{n} {word if n > 1 else word[:-1]}" for word, n in counts.items())


def _takes(model: Any) -> set[str]:
    return {*inspect.signature(model.forward).parameters}


def _vocabulary(model: Any) -> int | None:
    """How many tokens there are."""
    count = getattr(token_table(model), "num_embeddings", None)
    return count or getattr(model.config.get_text_config(), "vocab_size", None)


def _image(model: Any) -> tuple[int, ...] | None:
    """The shape of one image."""
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", None)
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return 1, getattr(config, "num_channels", 3), height, width


def _spectrogram(model: Any) -> tuple[int, ...] | None:
    """The shape of one spectrogram; the model halves its length."""
    bins = getattr(model.config, "num_mel_bins", None)
    places = getattr(model.config, "max_source_positions", None)
    return (1, bins, 2 * places) if bins and places else None
