"""Float64 all the way: modules that cast to float32 inside are made to compute in float64.

Rotary embeddings, RMSNorm and softmax cast to float32 whatever the model's dtype is, which sets a
floor of 1e-6 under every measurement. The law: nothing of torch is replaced; calls are rewritten on
their way in, in this thread, and only inside the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Widened(TorchFunctionMode):
    """Every call that asks for float32 gets float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        named = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **named)


def _wide(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, what modules cast to float32 is computed in float64.

    Load the model inside too: rotary frequencies are made while loading.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widened():
            yield
    finally:
        torch.set_default_dtype(default)
