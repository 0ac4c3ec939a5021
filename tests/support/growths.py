"""Growths that many tests try, and how each is measured: both models run in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from growkit import api
from growkit.planning.proof.claim import EPS, EXACT
from growkit.recipe.recipe import parse_recipe
from growkit.verify.precision import full_precision
from support import tiny

NOISE = {"op": "noise", "snr_db": 0}


DEEPER = {"op": "depth", "to": {"layers": "2x"}}


HEADS = [
    ("bert", "base"), ("bert", "no_pooler"), ("bert", "masked_lm"), ("bert", "pretraining"),
    ("bert", "classifier"), ("gpt2", "base"), ("gpt2", "causal"), ("gpt2", "untied"),
    ("gpt2", "classifier"), ("llama", "base"), ("llama", "causal"), ("llama", "tied"),
    ("llama", "biased"), ("llama", "classifier"), ("mistral", "causal"), ("qwen2", "causal"),
    ("qwen2", "tied"),
]  # fmt: skip


COUPLED = ("bert", "gpt2")  # hidden = heads × head_dim in code


TOLERANCE = {torch.float64: {EXACT: 1e-10, EPS: 1e-9}, torch.float32: {EXACT: 2e-5, EPS: 2e-5}}


DIFFERS = 1e-3


def width(**to: Any) -> dict[str, Any]:
    """A width step."""
    return {"op": "width", "to": to}


def sizes(family: str) -> dict[str, int]:
    """Sizes that differ from each other, with grouped kv heads and a free head size if possible."""
    common = {"heads": 4, "head_dim": 4, "mlp": 18, "layers": 2}
    if family in COUPLED:
        return common
    return {**common, "kv_heads": 2, "hidden": 24}


def steps_of(steps: list[dict[str, Any]], **keys: Any) -> Any:
    """A recipe of these steps."""
    return parse_recipe({"steps": steps, **keys})


def load(folder: Path, model: Any) -> Any:
    """A checkpoint loaded as the class that a model is of: no key missing, none left over."""
    extra = {"add_pooling_layer": False} if getattr(model, "pooler", 1) is None else {}
    with full_precision():
        loaded, info = type(model).from_pretrained(
            folder,
            dtype=torch.float64,
            attn_implementation="eager",
            output_loading_info=True,
            **extra,
        )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return loaded.eval()


def measure(model: Any, small: Path, result: api.Result) -> float:
    """The largest difference of the outputs, relative to the largest output."""
    ids = torch.randint(1, 29, (3, 11), generator=torch.Generator().manual_seed(1))
    with full_precision():
        want = tiny.outputs(load(small, model), ids)
        have = tiny.outputs(load(result.out, model), ids)
    if have.shape != want.shape:  # a hidden state: read back through the map of the stream
        read = result.plan.maps["hidden"].read.matrix()
        have = have @ torch.from_numpy(read)
    return float((have - want).abs().max() / want.abs().max())
