"""Seeded random numbers that belong to a row, never to a block of rows.

The law: the numbers of row r depend on (seed, step, tensor, r) and on nothing else, so that the
order of work, the number of workers and the memory limit cannot change a byte. A counter-based
generator makes this cheap (Philox 4×64: Salmon et al., SC 2011): its key is a hash of (seed, step,
tensor), each counter gives 256 bits, row r owns counters [r·k, (r+1)·k) with k = ⌈row length / 16⌉,
and neighbouring rows are one draw.

Every 16 bits become one number: they choose one of 65,536 equally likely steps of the normal
distribution, whole numbers from a table. Nothing is computed, so every CPU gives the same bits. The
numbers are normal up to the width of a step: bounded at ±4.32 standard deviations, kurtosis 3.00.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache

import numpy as np
import numpy.typing as npt

from growkit.planning.formula import Noise

UNIT = 1.5258943318901872e-05  # `draw` times this has variance 1
FINE = 1 << 16  # whole numbers per standard deviation: fine enough that no two steps are equal

_NUMBERS = 1 << 15  # at a time: with table and scratch within a second-level cache
_PER_WORD = 4  # numbers of 16 bits in a word of 64
_PER_COUNTER = 4 * _PER_WORD


def draw(noise: Noise, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Rows [start, stop) as whole numbers of mean 0, shape (rows, …); times `UNIT` they are noise.

    >>> draw(Noise(seed=0, step=1, tensor="w", shape=(4, 2)), 1, 3)
    array([[-49374., 114088.],
           [ 45632.,  45271.]], dtype=float32)
    """
    length = math.prod(noise.shape[1:])
    counters = -(-length // _PER_COUNTER)  # per row
    generator = np.random.Philox(key=_key(noise), counter=start * counters)
    row = counters * _PER_COUNTER  # numbers, of which those beyond `length` are dropped
    out = np.empty((stop - start) * row, dtype=np.float32)
    table = _table()
    for at in range(0, out.size, _NUMBERS):
        part = out[at : at + _NUMBERS]
        words = generator.random_raw(part.size // _PER_WORD).astype("<u8", copy=False)
        np.take(table, words.view("<u2"), out=part, mode="wrap")
    padded = out.reshape(stop - start, row)
    return np.ascontiguousarray(padded[:, :length]).reshape(-1, *noise.shape[1:])


@cache
def _table() -> npt.NDArray[np.float32]:
    """The middle of each of 65,536 equally likely steps, in whole numbers, symmetric about 0.

    No middle lies within 1e-6 of two whole numbers' border, so the last bits of a CPU's logarithm
    do not matter.
    """
    from statistics import NormalDist

    middle = NormalDist().inv_cdf
    upper = [round(FINE * middle((i + 0.5) / (1 << 16))) for i in range(1 << 15, 1 << 16)]
    return np.array([-x for x in reversed(upper)] + upper, dtype=np.float32)


def _key(noise: Noise) -> int:
    """128 bits that tell a noise from all others."""
    text = f"{noise.seed}\0{noise.step}\0{noise.tensor}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
