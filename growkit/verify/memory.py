"""What running two models takes of memory, known from their headers before either is loaded.

The law: what does not fit is refused before it is tried, for a system that runs out of memory says
nothing, and kills.
"""

from __future__ import annotations

from math import prod

from growkit.byte_sizes import format_size
from growkit.checkpoints.types import Checkpoint
from growkit.errors import ResourceError
from growkit.runtime.memory import available_bytes

DOUBLE = 8  # bytes of a number in float64
PROGRAM = 400_000_000  # bytes; Python, torch and transformers before a model is loaded
COPIES = 5  # of the outputs: both models', their logarithms, and a difference
RANDOM, TEXT = 168, 1024  # tokens whose outputs are held (`growkit.verify.inputs`, `load`)


def needed_bytes(small: Checkpoint, big: Checkpoint, *, text: bool = False) -> int:
    """Bytes that comparing two models takes at most, roughly; one is in memory at a time.

    Of the larger one all parameters in float64, and its largest tensor as it is stored.
    """
    weights = max(
        sum(DOUBLE * prod(t.shape) for t in each.tensors.values())
        + max((t.stop - t.start for t in each.tensors.values()), default=0)
        for each in (small, big)
    )
    classes = big.config.get("vocab_size")
    classes = classes if isinstance(classes, int) else 0
    tokens = RANDOM + (TEXT if text else 0)
    return PROGRAM + weights + COPIES * tokens * DOUBLE * max(classes, 0)


def refuse_too_large(need: int) -> None:
    """Raise ResourceError if this machine, or its cgroup, has not so many bytes free."""
    free = available_bytes()
    if free is not None and need > free:
        raise ResourceError(
            f"verify: needs about {format_size(need)} of memory, {format_size(free)} free",
            hint="run it where there is more; `growkit verify --files BIG` checks the files alone",
        )
