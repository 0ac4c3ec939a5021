"""A tiny random model of the same kind as that of a config of any size, for checking families.

First the config is made tiny, then its model is built, drawn at random and saved. The law: all that
is not a size stays; axes get sizes that differ wherever the family allows it, so that no axis can
pass for another; and no parameter keeps a value that hides what it does.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from growkit.algebra.layer_map import Layer, LayerMap
from growkit.errors import RecipeError, VerifyError
from growkit.families.config import layer_kinds, remap_layers, resize_config
from growkit.families.family import Family
from growkit.families.model import solve_sizes
from growkit.families.named_layers import follow_layers
from growkit.verify.load import build, reason, silence

HEADS, KV_HEADS = 6, 2
HEAD_DIM = 16  # a quarter of it still makes rotary pairs, before and after ·3/2
FREE = 54  # a multiple of HEADS, as some configs ask
LAYERS = 4  # at most, unless there are more kinds of them
EXPERTS, CHOSEN, ROWS = 8, 2, 97  # at most; ROWS of a table
ODD = (34, 38, 46, 58, 62, 74)  # sizes for neurons and inner streams: even, so that 3/2 is whole

# -- the config ----------------------------------------------------------------------------------


def tiny_config(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a tiny model that differs from the given one in sizes alone."""
    given = solve_sizes(family, config, {})
    layers = {
        axis: _few_layers(family, config, axis, given[axis])
        for axis in family.of_kind("layers")
        if axis in given
    }
    depths = {axis: len(few) for axis, few in layers.items()}
    tiny = resize_config(family, config, _tiny_sizes(family, given) | depths)
    tiny = follow_layers(family, remap_layers(family, tiny, layers), layers, {}, given)
    for key in ("dtype", "torch_dtype"):
        if key in tiny:
            tiny[key] = "float64"
    _lower_token_ids(tiny)
    return tiny


def _few_layers(family: Family, config: Mapping[str, Any], axis: str, count: int) -> LayerMap:
    """One layer of each kind that the config knows, and the first ones."""
    kinds = layer_kinds(family, config, axis, count)
    chosen = {kinds.index(kind) for kind in kinds}
    for layer in range(count):
        if len(chosen) < LAYERS:
            chosen.add(layer)
    few = tuple(Layer.copy(n) for n in sorted(chosen))
    try:
        remap_layers(family, config, {axis: few})
    except RecipeError:  # a kind that comes back in a period keeps its place
        few = tuple(Layer.copy(n) for n in range(max(*chosen, min(count, LAYERS) - 1) + 1))
    return few


def _tiny_sizes(family: Family, given: Mapping[str, int]) -> dict[str, int]:
    """Small sizes for the axes whose size the config says."""
    sizes: dict[str, int] = {}
    odd, rows = iter(ODD * 4), ROWS
    for axis, kind in family.axes.items():
        if axis not in given or axis in family.derived:
            continue
        if kind in ("query", "key", "value"):
            sizes[axis] = HEAD_DIM
        elif kind in ("neurons", "latent"):
            sizes[axis] = next(odd)
        elif kind == "table":
            rows -= 8 if given[axis] > rows else 0
            sizes[axis] = min(given[axis], rows)
        elif kind in ("experts", "choices"):
            sizes[axis] = min(given[axis], EXPERTS if kind == "experts" else CHOSEN)
        elif kind == "stream":
            sizes[axis] = FREE
        elif kind == "fixed":
            sizes[axis] = given[axis]
    for attention in family.attentions:
        heads, kv = attention.heads, attention.kv_heads
        if heads in given:
            sizes[heads] = HEADS
        if kv in given:
            shared = given[kv] < given[heads]
            sizes[kv] = min(given[kv], KV_HEADS) if shared else HEADS
    _couple(family, sizes)
    return sizes


def _couple(family: Family, sizes: dict[str, int]) -> None:
    """Where one config key says several sizes, products of heads say the rest."""
    for expressions in family.config.values():
        solved = [e for e in expressions if e.axes <= sizes.keys()]
        products = [e for e in solved if e.kind != "axis"]
        value = (products or solved)[0].size(sizes) if solved else 0
        for expression in solved:
            if expression.kind == "axis":
                sizes[expression.name] = value
    for axis, expression in family.derived.items():
        if expression.axes <= sizes.keys():
            sizes[axis] = expression.size(sizes)


def _lower_token_ids(config: dict[str, Any]) -> None:
    """Numbers of special tokens that the small table still has."""
    for key, value in copy.copy(config).items():
        if isinstance(value, dict):
            _lower_token_ids(value)
        elif str(key).endswith("_token_id") and value is not None:
            config[key] = min(value, 1) if isinstance(value, int) else 1


# -- the model -----------------------------------------------------------------------------------


def save_random_model(config: Mapping[str, Any], folder: Path, *, seed: int = 0) -> None:
    """Build the model of a config in float64, draw its parameters, and save it to `folder`.

    Raises VerifyError if transformers cannot build it.
    """
    with silence(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = build(config).to(torch.float64).eval()
            randomise(model, seed)
            model.save_pretrained(folder)
        except Exception as error:  # transformers raises all kinds; each is about this config
            raise VerifyError(
                f"transformers cannot build a tiny model of this config: {reason(error)}",
                hint="give the config.json of a model that transformers knows",
            ) from error


def randomise(model: Any, seed: int) -> None:
    """Draw every parameter anew, in place: gains around 1, biases and weights of size one.

    So is the bias of a router, which is a buffer because it is learned without a gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: set[int] = set()  # a tied parameter is reached twice, as an embedding first
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in drawn:
                    drawn.add(id(parameter))
                    normal = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.copy_(_scaled(module, name, normal))
            for name, buffer in module.named_buffers(recurse=False):
                if name.endswith("_bias") and name not in module._non_persistent_buffers_set:
                    normal = torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
                    buffer.copy_(0.3 * normal)


def _scaled(module: Any, name: str, normal: torch.Tensor) -> torch.Tensor:
    """A standard normal draw as values that a parameter of this module may have."""
    if "bias" in name or normal.ndim == 0:
        return 0.3 * normal
    if normal.ndim == 1 or "norm" in type(module).__name__.lower():
        return 1.0 + 0.3 * normal
    if isinstance(module, torch.nn.Embedding):
        return 0.8 * normal
    fan_in = math.prod(normal.shape[1:])
    if type(module).__name__ == "Conv1D":  # stored [in, out]
        fan_in = normal.shape[0]
    elif normal.ndim == 3:  # experts side by side
        fan_in = normal.shape[-1]
    return 1.3 / math.sqrt(fan_in) * normal
