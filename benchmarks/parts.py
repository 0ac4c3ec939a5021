"""What a gigabyte costs, part by part: CPU seconds of one thread, in the sizes that a run has."""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np

from growkit.engine import row_noise
from growkit.engine.row_blocks import nonfinite
from growkit.engine.working_memory import TARGET
from growkit.planning.formula import Noise

BYTES = 1 << 29  # passed through each part in one go
WIDTH = 2048  # of the noise, in elements


def parts(rounds: int) -> Iterator[list[dict[str, Any]]]:
    """The median for each part."""
    weights = (
        np.random.default_rng(0).standard_normal(TARGET // 2, dtype=np.float32).view(np.uint32)
    )
    block = (weights >> 16).astype("<u2").view(np.uint8).data  # bfloat16, cut
    into = memoryview(bytearray(TARGET))
    rows = Noise(seed=0, step=0, tensor="w", shape=(TARGET // 2 // WIDTH, WIDTH))
    with tempfile.TemporaryFile() as file:
        file.write(block)
        file.flush()
        work: dict[str, Callable[[], object]] = {
            "read from the page cache": lambda: os.preadv(file.fileno(), [into], 0),
            "look for NaN and infinities (bfloat16)": lambda: nonfinite(block, "BF16"),
            "crc32": lambda: zlib.crc32(block),
            "copy into the buffer to be written": lambda: into.__setitem__(slice(None), block),
            "draw noise (for bfloat16)": lambda: row_noise.draw(rows, 0, rows.shape[0]),
        }
        for part, one in work.items():
            one()  # tables are made, pages are there
            seconds = median(_seconds(one) for _ in range(rounds))
            yield [{"part": part, "cpu_seconds_per_gb": seconds / BYTES * 1e9}]


def _seconds(one: Callable[[], object]) -> float:
    before = time.process_time()
    for _ in range(BYTES // TARGET):
        one()
    return time.process_time() - before
