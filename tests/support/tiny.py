"""Tiny random transformers models: made from a line of the zoo, saved, loaded, run and compared.

Weights, norm gains and biases are random and of size one, so that any mistake shows (`randomise`).
`make` takes a model of the zoo as it is; `build` makes it smaller still, with sizes in growkit's
words. The law: here is the one way to make, save, load and run a model that tests grow.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from growkit.verify.precision import full_precision
from growkit.verify.tiny import randomise
from support import zoo

SIZES: Mapping[str, int] = {
    "heads": 3,
    "head_dim": 4,
    "mlp": 17,
    "layers": 2,
    "vocab": 29,
    "positions": 23,
}
KEYS: Mapping[str, tuple[str, ...]] = {  # the config keys that say a size, family by family
    "hidden": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "mlp": ("intermediate_size", "n_inner"),
    "layers": ("num_hidden_layers", "n_layer"),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions"),
}
TOKENS = (2, 9)  # sequences, tokens each


def build(
    family: str,
    head: str,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **overrides: Any,
) -> Any:
    """FAMILY/HEAD of the zoo at other sizes; `overrides` are growkit's words, or config keys.

    Sizes are those of `SIZES` unless given: all different, so that no axis can pass for another.
    `hidden` is heads × head_dim unless given; `kv_heads` is `heads` unless given.
    """
    tiny = zoo.models()[f"{family}/{head}"]
    sizes = {**SIZES, **{word: overrides.pop(word) for word in KEYS if word in overrides}}
    sizes.setdefault("hidden", sizes["heads"] * sizes["head_dim"])
    sizes.setdefault("kv_heads", sizes["heads"])
    named = {k: sizes[word] for word, keys in KEYS.items() for k in keys if k in tiny.config}
    return make(replace(tiny, config={**tiny.config, **named, **overrides}), seed, dtype)


def make(tiny: zoo.Tiny, seed: int = 3, dtype: torch.dtype = torch.float64) -> Any:
    """The model in evaluation mode, every parameter drawn at a size where mistakes show."""
    cls = getattr(transformers, tiny.cls)
    config = cls.config_class(**tiny.config)
    config._attn_implementation = "eager"
    model = cls(config, **tiny.kwargs).to(dtype).eval()
    randomise(model, seed)  # the same for one seed whatever the dtype
    return model


def save(model: Any, folder: Path) -> Path:
    """The model written by transformers: safetensors under the names on disk, and config.json."""
    model.save_pretrained(folder)
    return folder


def load(folder: Path, model: Any) -> Any:
    """A checkpoint as the class that a model is of; no key is missing or left over."""
    bare = {"add_pooling_layer": False} if getattr(model, "pooler", 1) is None else {}
    with full_precision():
        loaded, info = type(model).from_pretrained(
            folder,
            dtype=torch.float64,
            attn_implementation="eager",
            output_loading_info=True,
            **bare,
        )
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    assert not info["mismatched_keys"], info["mismatched_keys"]
    if hasattr(loaded, "set_experts_implementation"):
        loaded.set_experts_implementation("eager")
    return loaded.eval()


def tokens(count: int = 2, length: int = 11, *, vocab: int = SIZES["vocab"], seed: int = 7) -> Any:
    """Random token ids, (count, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab, (count, length), generator=generator)


def inputs(model: Any, seed: int = 7) -> dict[str, torch.Tensor]:
    """What the class takes: token ids, pixels, or both; ids also for a decoder."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    text = getattr(config, "text_config", config)
    vision = getattr(config, "vision_config", config)
    out: dict[str, torch.Tensor] = {}
    vocab = getattr(text, "vocab_size", None)
    if vocab:
        out["input_ids"] = torch.randint(3, vocab, TOKENS, generator=generator)
        if getattr(config, "is_encoder_decoder", False):
            out["input_ids"][:, -1] = config.eos_token_id  # classifiers read what stands there
            out["decoder_input_ids"] = torch.randint(3, vocab, TOKENS, generator=generator)
    if "MultipleChoice" in type(model).__name__:
        out["input_ids"] = out["input_ids"][None]
    size = getattr(vision, "image_size", None)
    if size:
        channels = getattr(vision, "num_channels", 3)
        shape = (2, channels, size, size)
        out["pixel_values"] = torch.randn(shape, generator=generator, dtype=torch.float64)
    if bins := getattr(config, "num_mel_bins", None):
        shape = (2, bins, 2 * config.max_source_positions)
        out["input_features"] = torch.randn(shape, generator=generator, dtype=torch.float64)
    takes = inspect.signature(model.forward).parameters
    return {name: value for name, value in out.items() if name in takes}


def outputs(model: Any, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All that heads of the class give, else its last hidden state, by name."""
    with full_precision(), torch.no_grad():
        result = model(**given)
    heads = ("logits", "embeds", "reconstruction")
    logits = {
        k: v
        for k, v in result.items()
        if any(h in k for h in heads) and isinstance(v, torch.Tensor)
    }
    return logits or {"last_hidden_state": result["last_hidden_state"]}


def difference(small: Mapping[str, Any], big: Mapping[str, Any], read: Any = None) -> float:
    """The largest difference relative to the largest value.

    Hidden states are read back first; of logits over a longer vocabulary the old tokens' count.
    """
    worst = 0.0
    for name, want in small.items():
        have = big[name]
        if "logits" in name:
            have = have[..., : want.shape[-1]]
        elif have.shape != want.shape and read is not None:
            have = have @ read
        assert not have.isnan().any(), name
        worst = max(worst, float((have - want).abs().max() / want.abs().max()))
    return worst


@dataclass(frozen=True)
class Saved:
    """A tiny model and the folder where it lies; what it answers is computed once."""

    model: Any
    folder: Path

    @classmethod
    def at(cls, folder: Path, name: str, seed: int = 3) -> Saved:
        """A model of the zoo, made and saved to a folder."""
        model = make(zoo.models()[name], seed)
        return cls(model, save(model, folder))

    def another(self) -> Any:
        """A model of the same class and config with other weights."""
        model = copy.deepcopy(self.model)
        randomise(model, 9)
        return model

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What the model and all that grow from it are given."""
        return inputs(self.model)

    @cached_property
    def outputs(self) -> dict[str, torch.Tensor]:
        """What the model gives as it stands on disk."""
        return self.outputs_of(self.folder)

    def outputs_of(self, folder: Path) -> dict[str, torch.Tensor]:
        """What another checkpoint of the same class gives."""
        return outputs(load(folder, self.model), self.inputs)
