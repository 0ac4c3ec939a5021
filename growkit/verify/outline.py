"""What the model of a config is made of, without a weight: built on the meta device.

The law: only classes of transformers itself are built, and names are those on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from growkit.errors import FamilyError
from growkit.verify.load import build, reason, silence, token_table

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Outline:
    """Shapes under the names on disk, and what modules are."""

    shapes: Shapes
    kinds: Mapping[str, str]  # module → class name
    embedding: str  # the module of the token table, and that of the output head, or empty
    head: str


def outline(config: Mapping[str, Any]) -> Outline:
    """What a config builds. Raises FamilyError if transformers cannot build it."""
    with silence():
        try:
            with torch.device("meta"):
                model = build(config)
            state = revert_weight_conversion(model, model.state_dict())
        except Exception as error:  # transformers raises all kinds; each is about this config
            raise FamilyError(
                f"transformers cannot build a model of this config: {reason(error)}",
                hint="infer needs a model that transformers itself knows",
            ) from error
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    names = {id(module): name for name, module in model.named_modules()}
    table = names.get(id(token_table(model)), "")
    out: Any = model.get_output_embeddings() if table else None
    head = names.get(id(out), "")
    if head and f"{head}.weight" not in shapes:  # it has another name on disk
        shape = tuple(out.weight.shape)
        named = (n for n, s in shapes.items() if s == shape and n != f"{table}.weight")
        head = next(named, "").removesuffix(".weight")
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    return Outline(shapes, kinds, table, head)
