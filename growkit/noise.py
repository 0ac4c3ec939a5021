"""Seeded random numbers that belong to a row, never to a block of rows.

The law: the numbers of row r depend on (seed, step, tensor, r) and on nothing else, so that the
order of work, the number of workers and the memory limit cannot change a byte. A counter-based
generator (Philox 4×64) makes this cheap: its key is a hash of (seed, step, tensor), row r owns the
counters [r·k, (r+1)·k) with k = ⌈row length / 4⌉, and neighbouring rows are one draw.

Each 64-bit word becomes one number: the sum of its four 16-bit parts, centred (Irwin–Hall of order
4). Only integers are added, so every CPU gives the same bits. The distribution is bell-shaped,
bounded at ±3.46 standard deviations like the truncated normals of initialisers, with kurtosis 2.7.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from growkit.formula import Noise

UNIT = math.sqrt(3.0 / (2**32 - 1))  # `steps` times this has variance 1
CENTRE = 2 * (2**16 - 1)  # mean of the sum of four 16-bit parts

_CHUNK = 1 << 16  # words per draw: half a MiB of scratch
_HALVES = np.uint64(0x0000FFFF0000FFFF)
_SHIFT = np.uint64(16)


def steps(noise: Noise, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Rows [start, stop) as whole numbers of mean 0, shape (rows, …); times `UNIT` they are noise.

    >>> steps(Noise(seed=0, step=1, tensor="w", shape=(4, 2)), 1, 3)
    array([[-4941., 59360.],
           [-7216.,  2252.]], dtype=float32)
    """
    length = math.prod(noise.shape[1:])
    counters = -(-length // 4)  # per row; each gives four words
    generator = np.random.Philox(key=_key(noise), counter=start * counters)
    out = np.empty((stop - start) * counters * 4, dtype=np.float32)
    for at in range(0, out.size, _CHUNK):
        words = generator.random_raw(min(_CHUNK, out.size - at))
        pairs = ((words & _HALVES) + ((words >> _SHIFT) & _HALVES)).view(np.int32)
        np.subtract(pairs[0::2] + pairs[1::2], CENTRE, out=out[at : at + words.size])
    return out.reshape(stop - start, counters * 4)[:, :length].reshape(-1, *noise.shape[1:])


def _key(noise: Noise) -> int:
    text = f"{noise.seed}\0{noise.step}\0{noise.tensor}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
