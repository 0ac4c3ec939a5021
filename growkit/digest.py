"""What identifies a result: the same digest means the same bytes.

The law: everything that can change a byte of the output goes in (recipe, formulas, layout, format
version), and so does what tells that a source file is still the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from operator import attrgetter
from typing import Any

import numpy as np

from growkit.formula import FileIdentity, Noise, Stored, Term
from growkit.kernel import Kernel
from growkit.plan import Plan

FORMAT = 3  # raise when the same plan would be written to other bytes


# reading fields is several times faster than the repr of a dataclass
_STORED = attrgetter(*(f.name for f in fields(Stored)))
_NOISE = attrgetter(*(f.name for f in fields(Noise) if f.name != "signal"))


def digest(plan: Plan, headers: Iterable[bytes], recipe_text: str) -> str:
    """sha256 of recipe, formulas, layout (`headers`), format version and source files."""
    sha = hashlib.sha256()
    known: dict[int, str] = {}

    def of_kernel(kernel: Kernel | None) -> str:
        if kernel is None:
            return ""
        if id(kernel) not in known:
            inner = hashlib.sha256(repr(kernel.shape).encode())
            for array in (kernel.index, kernel.coef, kernel.share, kernel.rows, kernel.dense):
                inner.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
            known[id(kernel)] = inner.hexdigest()
        return known[id(kernel)]

    def of_term(term: Term) -> str:
        source = term.source
        kernels = [of_kernel(k) for k in term.kernels]
        if isinstance(source, Noise):
            signal = [of_term(t) for t in source.signal]
            return repr((_NOISE(source), signal, kernels, term.scale))
        known_by = _STORED(source) if isinstance(source, Stored) else source.shape
        return repr((known_by, kernels, term.scale))

    identity = {
        n: [_identity(f) for f in (*c.files, *(f for s in c.stages for f in s.stored.files))]
        for n, c in plan.sources.items()
    }
    revisions = {n: c.revision for n, c in plan.sources.items()}
    for text in (
        f"growkit format {FORMAT}",
        recipe_text,
        json.dumps([plan.config, identity, revisions], sort_keys=True),
    ):
        sha.update(text.encode() + b"\0")
    for formula in plan.formulas:
        sha.update(repr((formula.name, formula.shape, formula.dtype)).encode())
        sha.update("".join(of_term(t) for t in formula.terms).encode())
    for header in headers:
        sha.update(header)
    return sha.hexdigest()


def _identity(file: FileIdentity) -> dict[str, Any]:
    """What tells the file apart; a file that is not from the Hub has no blob."""
    return {key: value for key, value in asdict(file).items() if value is not None}
