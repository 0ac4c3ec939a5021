"""Tiny random transformers models of every family and head class, for the tests of families.

Each module here lists models as `MODELS`: name → `Tiny`, with names such as "gemma2/causal"; what
stands before the slash is the family's name in growkit. Axes have different sizes, so that no axis
can pass for another, but where the config says that two are one, or leaves a size to another's.
What each growth of each model must keep is what docs/families.md says.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from growkit.verify.precision import full_precision
from growkit.verify.tiny import randomise

TOKENS = (2, 9)  # sequences, tokens each


@dataclass(frozen=True)
class Tiny:
    """How to make one tiny model."""

    cls: str  # class of transformers
    config: Mapping[str, Any]  # of its config class
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # of the class itself


@cache
def models() -> dict[str, Tiny]:
    """All tiny models by name."""
    out: dict[str, Tiny] = {}
    for module in pkgutil.iter_modules(__path__):
        found = getattr(importlib.import_module(f"{__name__}.{module.name}"), "MODELS", {})
        assert not out.keys() & found.keys()
        out |= found
    return out


def by_speed(growths: tuple[str, ...] = ()) -> list[Any]:
    """Parameters for a test over all models, or models × growths: the first quick, the rest slow.

    Quick is one model of each family, with the growths that find most mistakes.
    """
    seen: set[str] = set()
    out = []
    for name in sorted(models(), key=lambda n: (n.partition("/")[2] not in LEADERS, n)):
        family = name.partition("/")[0]
        leads = family not in seen
        seen.add(family)
        for growth in growths or ("",):
            quick = leads and (not growth or growth in QUICK)
            marks = (one_worker(name),) if quick else (one_worker(name), pytest.mark.slow)
            values = (name, growth) if growth else (name,)
            out.append(pytest.param(*values, marks=marks, id=" ".join(values)))
    return out


def one_worker(name: str) -> pytest.MarkDecorator:
    """All tests of one model run in one process, which makes and runs it once."""
    return pytest.mark.xdist_group(name)


LEADERS = ("causal", "masked_lm", "seq2seq", "image_classifier")  # heads that say most of a family
QUICK = ("width 2x", "width 3/2x", "silent depth", "width, depth, noise")


def build(tiny: Tiny, seed: int = 3, dtype: torch.dtype = torch.float64) -> Any:
    """The model in evaluation mode, every parameter drawn at a size where mistakes show."""
    cls = getattr(transformers, tiny.cls)
    config = cls.config_class(**tiny.config)
    config._attn_implementation = "eager"
    model = cls(config, **tiny.kwargs).to(dtype).eval()
    randomise(model, seed)
    return model


def save(model: Any, folder: Path) -> Path:
    """The model written by transformers: safetensors under the names on disk, and config.json."""
    model.save_pretrained(folder)
    return folder


def load(folder: Path, model: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
    """A checkpoint as the class that a model is of; no key is missing or left over."""
    with full_precision():
        loaded, info = type(model).from_pretrained(
            folder,
            dtype=torch.float64,
            attn_implementation="eager",
            output_loading_info=True,
            **(kwargs or {}),
        )
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    assert not info["mismatched_keys"], info["mismatched_keys"]
    if hasattr(loaded, "set_experts_implementation"):
        loaded.set_experts_implementation("eager")
    return loaded.eval()


@dataclass(frozen=True)
class Saved:
    """A tiny model and the folder where it lies; what it answers is computed once."""

    tiny: Tiny
    model: Any
    folder: Path

    @classmethod
    def at(cls, folder: Path, tiny: Tiny, seed: int = 3) -> Saved:
        """Built, and saved to a folder."""
        model = build(tiny, seed)
        return cls(tiny, model, save(model, folder))

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
        return answer(load(folder, self.model, self.tiny.kwargs), self.inputs)


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


def answer(model: Any, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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
        worst = max(worst, float((have - want).abs().max() / want.abs().max()))
    return worst
