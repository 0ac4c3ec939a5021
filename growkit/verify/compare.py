"""Does the big model compute the small one's function? This room runs both and measures.

Both models run in float64 on the same inputs; what they compute is compared, and the difference is
held against what `growkit.json` claims. The law: the arithmetic of the measurement is always finer
than the claim.

    precision      float64 where modules ask for float32
    memory         what running the models takes
    load           one model, built or loaded, and run
    inputs         what it takes, drawn at random
    tiny           a tiny model with random weights
    symmetries     axes in other coordinates, where a model must compute the same
    check_family   a family file against a tiny model
    draft_family   a family file drafted from a config
    compare        two models compared, and the verdict

No file is opened here except by transformers and tokenizers, and nothing is printed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Checkpoint
from growkit.errors import VerifyError
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT, Claim
from growkit.verify.inputs import described, random_inputs, with_ids
from growkit.verify.load import HIDDEN, Loaded, load, outputs, text_tokens
from growkit.verify.precision import full_precision

__all__ = [
    "Measurement", "Verification", "compare", "full_precision", "load", "tolerance", "verify",
]  # fmt: skip

# relative error that rounding alone may cause, by storage dtype
ROUNDING: Mapping[str, float] = {
    "float64": 1e-10,
    "float32": 2e-5,
    "bfloat16": 2e-2,
    "float16": 2e-2,
}
# relative error per extra norm pass and unit of eps: normalising once more is off by about
# eps/2 · |1/σ² - 1| for a stream of variance σ². Measured: at most 0.17 on tiny random BERTs (2 to
# 12 layers, gains from 0.05 to 1, eps from 1e-12 to 1e-3), 0.09 on a trained MiniLM. 10 leaves
# room for σ² down to 0.03.
EPS_FACTOR = 10.0


# -- comparing -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measurement:
    """How far the big model's outputs are from the small one's, over all tokens."""

    kind: str  # "logits" | "hidden" | "outputs" (embeddings, images)
    error: float | None  # max |Δ| / max |small|; None if not finite, or nothing is comparable
    rms: float | None  # rms(Δ) / rms(small)
    kl: float | None  # mean KL(small ‖ big) of the predictions, in nats; logits only
    top1: float | None  # share of predictions with the same first choice; logits only
    tokens: int
    inputs: str  # "168 tokens and 3 images"
    finite: bool  # of the big model's outputs
    strays: tuple[str, ...]  # where BIG's files and class disagree, and SMALL's do not
    notes: tuple[str, ...]


def compare(
    small: Checkpoint,
    big: Checkpoint,
    *,
    readback: Kernel | None = None,
    text: str | None = None,
    seed: int = 0,
) -> Measurement:
    """Run both models in float64 on random tokens and images, and on the tokens of `text`.

    `readback` is the `read` of the stream's axis map, (hidden of BIG, hidden of SMALL), for models
    without a head: small = readᵀ · big. One model is in memory at a time.
    """
    notes: list[str] = []
    with full_precision():
        first = load(small)
        batches = random_inputs(first, seed)
        if text is not None:
            lines, notes = text_tokens(first, text)
            batches += with_ids(first, lines, torch.Generator().manual_seed(seed))
        small_outputs = outputs(first, batches)
        if not _finite(small_outputs):
            raise VerifyError(
                f"{small.path}: its own outputs are not finite{_lacks(first.missing)}",
                hint="check this checkpoint: there is nothing to compare the other with",
            )
        first = Loaded(first.path, None, first.missing, first.unexpected)
        second = load(big)
        big_outputs = outputs(second, batches)
    hidden = big_outputs.get(HIDDEN)
    if hidden is not None and readback is not None and readback.new == hidden.shape[1]:
        big_outputs[HIDDEN] = torch.from_numpy(readback.transpose().apply(hidden.T.numpy()).T)
    pairs = _pairs(small_outputs, big_outputs, notes)
    error = rms = kl = top1 = None
    if pairs and _finite(big_outputs):
        error = max(_ratio((b - a).abs().max(), a.abs().max()) for a, b in pairs.values())
        rms = max(_ratio((b - a).norm(), a.norm()) for a, b in pairs.values())
        choices = [(a, b) for n, (a, b) in pairs.items() if "logits" in n and a.shape[1] > 1]
        kl, top1 = _predictions(choices) if choices else (None, None)
    return Measurement(
        kind=_kind(small_outputs),
        error=error,
        rms=rms,
        kl=kl,
        top1=top1,
        tokens=sum(v.numel() for batch in batches for k, v in batch.items() if "ids" in k),
        inputs=described(batches),
        finite=_finite(big_outputs),
        strays=_strays(first, second),
        notes=tuple(notes),
    )


def _kind(names: Collection[str]) -> str:
    if HIDDEN in names:
        return "hidden"
    return "logits" if any("logits" in name for name in names) else "outputs"


def _finite(values: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in values.values())


def _pairs(
    small: Mapping[str, torch.Tensor], big: Mapping[str, torch.Tensor], notes: list[str]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What can be compared, as (small, big); what cannot goes to `notes`."""
    pairs = {}
    for name, a in small.items():
        b = big.get(name)
        if b is None:
            notes.append(f"not compared: {name}, which only SMALL gives")
            continue
        if name != HIDDEN and b.shape[1] > a.shape[1]:
            notes.append(f"compared: the first {a.shape[1]} of {b.shape[1]} {name}")
            b = b[:, : a.shape[1]]
        if a.shape == b.shape:
            pairs[name] = (a, b)
        else:
            sizes = f"{a.shape[1]} and {b.shape[1]}"
            notes.append(f"not compared: {name}, of sizes {sizes} with no axis map between them")
    return pairs


def _predictions(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """Mean KL(small ‖ big) and top-1 agreement over all predictions."""
    kl, same = [], []
    for a, b in pairs:
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(-1))
        same.append(a.argmax(-1) == b.argmax(-1))
    return float(torch.cat(kl).mean()), float(torch.cat(same).double().mean())


def _ratio(difference: torch.Tensor, size: torch.Tensor) -> float:
    return float(difference) / max(float(size), torch.finfo(torch.float64).tiny)


def _strays(small: Loaded, big: Loaded) -> tuple[str, ...]:
    """What BIG lacks or has over, unless SMALL does in some layer: then the class is to blame."""
    strays = []
    for what, of_big, of_small in (
        ("lacks", big.missing, small.missing),
        ("has no place for", big.unexpected, small.unexpected),
    ):
        forms = {re.sub(r"\d+", "#", name) for name in of_small}
        new = sorted(name for name in of_big if re.sub(r"\d+", "#", name) not in forms)
        strays += [f"the model {what} {_few(new)}"] if new else []
    return tuple(strays)


def _lacks(missing: frozenset[str]) -> str:
    return f": it lacks {_few(sorted(missing))}" if missing else ""


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# -- judging ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verification:
    """What was measured, what was claimed, and whether the two agree."""

    measurement: Measurement
    claim: str | None  # None: BIG has no growkit.json
    reasons: tuple[str, ...]
    tolerance: float | None  # None: the claim allows any error
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    max_drift: float | None = None  # what was allowed beside the claim
    damaged: bool = False  # a file of BIG is not as it was written

    def __repr__(self) -> str:
        m, claim = self.measurement, self.claim or "nothing"
        error = "nothing compared" if m.error is None else f"{m.kind} differ by {m.error:.2e}"
        return f"<Verification {'passed' if self.passed else 'FAILED'}: {error}, claimed {claim}>"

    @property
    def passed(self) -> bool:
        """Nothing contradicts the claim."""
        return not self.failures


def tolerance(claim: str, storage_dtype: str, eps: float = 0.0, passes: int = 0) -> float | None:
    """The relative error that a claim allows; None if any.

    >>> tolerance("exact", "float32")
    2e-05
    """
    if claim == APPROXIMATE:
        return None
    return ROUNDING[storage_dtype] + (EPS_FACTOR * eps * passes if claim == EPS else 0.0)


def verify(
    small: Checkpoint,
    big: Checkpoint,
    *,
    growth: Mapping[str, Any] | None = None,
    text: str | None = None,
    max_drift: float | None = None,
    file_problems: Sequence[str] = (),
) -> Verification:
    """Compare two models and hold the difference against the claim.

    `growth` is BIG's parsed growkit.json; without it nothing is claimed, and only `max_drift` and
    `file_problems` (what a check of BIG's files found) can fail.
    """
    claim, allowed, readback = (None, None, None) if growth is None else _read(growth)
    m = compare(small, big, readback=readback, text=text)
    limits = {"--max-drift": max_drift, f'claim "{claim and claim.claim}"': allowed}
    problems = [] if m.finite else ["outputs are not finite"]
    problems += m.strays
    for name, limit in limits.items():
        if limit is None:
            continue
        if m.error is None:
            problems.append(f"{name}: not confirmed, nothing could be compared")
        elif m.error > limit:
            problems.append(f"{name}: {m.kind} differ by {m.error:.2e}, allowed {limit:.2e}")
    judged = claim is not None or max_drift is not None
    return Verification(
        measurement=m,
        claim=None if claim is None else claim.claim,
        reasons=() if claim is None else claim.reasons,
        tolerance=allowed,
        failures=(*file_problems, *(problems if judged else ())),
        notes=(*m.notes, *(() if judged else problems)),
        max_drift=max_drift,
        damaged=bool(file_problems),
    )


def _kernel(
    old: int, new: int, *, matrix: str = "", runs: Any = (), index: Any = (), coef: Any = ()
) -> Kernel:
    """A map as growkit.json holds it: sparse, in runs or not, or the bytes of a matrix."""
    if runs:
        if sum(count for count, *_ in runs) != new:
            raise ValueError(f"runs of other than {new} rows")
        return Kernel.from_runs(runs, old=old)
    if not matrix:
        return Kernel.gather(index, coef, old=old)
    values = np.frombuffer(base64.b64decode(matrix), "<f8")
    return Kernel.from_matrix(values.reshape(-1, old))


def _read(growth: Mapping[str, Any]) -> tuple[Claim, float | None, Kernel | None]:
    """The claim of a growkit.json, the error it allows, and the map for reading back."""
    try:
        exactness = growth["exactness"]
        claim = Claim(
            exactness["claim"], tuple(exactness["reasons"]), exactness["eps"], exactness["passes"]
        )
        if claim.claim not in (EXACT, EPS, APPROXIMATE):
            raise ValueError(f'"{claim.claim}" is no claim')
        allowed = tolerance(claim.claim, exactness["storage"]["dtype"], claim.eps, claim.passes)
        axis = growth["readback"]
        stored = None if axis is None else growth["maps"][axis]
        readback = stored and _kernel(stored["old"], stored["new"], **stored["read"])
    except (KeyError, TypeError, ValueError) as error:
        raise VerifyError(
            f"growkit.json: not readable as written by growkit ({type(error).__name__}: {error})",
            hint="it was edited, or is of another version: grow again",
        ) from error
    return claim, allowed, readback
