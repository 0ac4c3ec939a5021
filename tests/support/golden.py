"""Digests of tiny grown models: what proves that a change changes no result.

Every built-in recipe grows a tiny model of each of three families. The models' numbers come from a
counter-based generator and are multiples of 2⁻²³, and growkit's own sums have an order of their
own, so that every machine makes the same bytes. Left out is `ligo`: matrix products do not.

`make golden` writes golden.json anew. A commit that does so says which digests moved, and why.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import suppress
from pathlib import Path

import conftest  # noqa: F401  (one thread, no network)
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from growkit import api
from growkit.errors import GrowkitError
from growkit.recipe.recipe import builtin_recipes, load_recipe
from support.tiny import build, save

FILE = Path(__file__).parent / "golden.json"
LEFT_OUT = {"ligo"}
SIZES = {"heads": 4, "head_dim": 4, "mlp": 16, "layers": 8}
MODELS = {
    "bert": ("masked_lm", {"type_vocab_size": 2}),
    "gpt2": ("causal", {}),
    "llama": ("causal", {"kv_heads": 2}),
}
WIDTHS = {  # in place of the recipe's own, which are hundreds of megabytes
    "bert_base": "{hidden: 32, heads: 4, head_dim: 8, mlp: 64}",
    "bert_large": "{hidden: 24, heads: 6, head_dim: 4, mlp: 40}",
    "gpt2_medium": "{hidden: 24, heads: 6, head_dim: 4, mlp: 40}",
}


def numbers(label: str, like: torch.Tensor) -> torch.Tensor:
    """Numbers between -1 and 1 that belong to a label, the same on every machine."""
    key = int.from_bytes(hashlib.sha256(label.encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(max(1, like.numel())) >> np.uint64(40)
    values = raw.astype(np.float64) / 2**23 - 1.0
    return torch.from_numpy(values[: like.numel()]).reshape(like.shape).to(like.dtype)


def model(family: str, folder: Path, *, times: int = 1, seed: int = 0) -> Path:
    """A tiny model of a family, `times` as wide and deep as the others, saved."""
    head, more = MODELS[family]
    fixed = {"head_dim", "type_vocab_size"}
    sizes = {k: v if k in fixed else times * v for k, v in (SIZES | more).items()}
    saved = save(build(family, head, dtype=torch.float32, **sizes), folder)
    file = saved / "model.safetensors"
    tensors = {n: numbers(f"{seed} {n}", t) for n, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return saved


def digest(folder: Path) -> str:
    """One for all tensors of a checkpoint: names, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        total.update(f"{name} {tensor.dtype} {[*tensor.shape]}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def grown(name: str, folder: Path) -> str:
    """The digest of what RECIPE/FAMILY makes. Raises GrowkitError where they do not fit."""
    recipe, family = name.split("/")
    further = {
        source: model(family, folder / source, times=2 if source == "large" else 1, seed=1)
        for source in load_recipe(recipe)[1].sources[1:]
    }
    result = api.grow(
        model(family, folder / "small"),
        recipe,
        sources=further,
        out=folder / "out",
        overrides=[f"width.to={WIDTHS[recipe]}"] if recipe in WIDTHS else [],
    )
    return digest(result.out)


def renew() -> dict[str, str]:
    """Every digest, by RECIPE/FAMILY."""
    digests = {}
    for recipe in builtin_recipes().keys() - LEFT_OUT:
        for name in (f"{recipe}/{family}" for family in MODELS):
            with tempfile.TemporaryDirectory() as folder, suppress(GrowkitError):
                digests[name] = grown(name, Path(folder))
    return dict(sorted(digests.items()))


if __name__ == "__main__":
    FILE.write_text(json.dumps(renew(), indent=2) + "\n", encoding="utf-8")
