"""A tiny random model of a config, written as transformers writes it: what families are checked on.

The law: parameters are drawn at a size where mistakes show, gains and biases included, and only
classes of transformers itself are built; code from a checkpoint is never run.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from growkit.errors import VerifyError
from growkit.verify.load import build, reason, silence


def write_specimen(config: Mapping[str, Any], folder: Path, *, seed: int = 0) -> None:
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
    done: set[int] = set()  # a tied parameter is reached twice, as an embedding first
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in done:
                    done.add(id(parameter))
                    normal = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.copy_(_drawn(module, name, normal))
            for name, buffer in module.named_buffers(recurse=False):
                if name.endswith("_bias") and name not in module._non_persistent_buffers_set:
                    normal = torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
                    buffer.copy_(0.3 * normal)


def _drawn(module: Any, name: str, normal: torch.Tensor) -> torch.Tensor:
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
