"""Which stored tensors are the model's, and what they are called.

Training writes names that are not the model's: each wrapper around a module puts a word of its own
before the names inside. They are taken off here, once, so that no other room ever sees one, and no
result has one. Tensors that the user wants left out (`--drop`) never get further either.

The law: nothing is left out and no name is changed without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from growkit.checkpoints.types import TensorInfo
from growkit.errors import CheckpointError, UsageError, did_you_mean

# Words that no module has but those that wrap others: torch.compile, FSDP, activation
# checkpointing, DeepSpeed. They stand wherever a module was wrapped.
_WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
# Those that might be a module's own (DDP, DataParallel, peft): only where all names begin so.
_LEADING = ("module.", "base_model.model.")


class Named(NamedTuple):
    """The tensors of a model by its own names, and what has been done for that."""

    tensors: dict[str, TensorInfo]  # these have the names on disk
    dropped: tuple[str, ...]  # "name: reason"
    notes: tuple[str, ...]
    wrappers: tuple[str, ...]  # words that names on disk have and names here lack


def named(tensors: Mapping[str, TensorInfo], drop: Sequence[str] = ()) -> Named:
    """The tensors that no pattern of `drop` fits, without the words of wrappers.

    Patterns are those of the shell. Raises UsageError for one that fits no tensor, and
    CheckpointError for two names that are one without their wrappers.
    """
    left_out: dict[str, str] = {}
    for pattern in drop:
        fitting = [name for name in tensors if fnmatchcase(name, pattern)]
        if not fitting:
            raise UsageError(
                f'--drop: no tensor fits "{pattern}"', hint=did_you_mean(pattern, tensors)
            )
        left_out |= {name: pattern for name in fitting if name not in left_out}
    kept = [name for name in tensors if name not in left_out]
    if tensors and not kept:
        raise UsageError("--drop leaves no tensor", hint="give patterns of those to leave out")
    found = Counter[str]()
    bare = _unwrapped(kept, found)
    out: dict[str, TensorInfo] = {}
    for name in kept:
        if bare[name] in out:
            raise CheckpointError(
                f"tensor {bare[name]} is there twice, once as {name}",
                hint="leave one of the two out: --drop PATTERN",
            )
        out[bare[name]] = tensors[name]
    words = ", ".join(sorted(found))
    notes = [f"names lose {words}, which a wrapper of training put there"] if found else []
    dropped = (f"{name}: left out by --drop {pattern}" for name, pattern in left_out.items())
    return Named(out, tuple(dropped), tuple(notes), tuple(sorted(found)))


def _unwrapped(names: Iterable[str], found: Counter[str]) -> dict[str, str]:
    """Each name without the words of wrappers, which are counted in `found`."""
    bare = {}
    for name in names:
        words = name.split(".")
        found.update(f"{word}." for word in words if word in _WRAPPERS)
        bare[name] = ".".join(word for word in words if word not in _WRAPPERS)
    while leading := next(
        (p for p in _LEADING if bare and all(b.startswith(p) for b in bare.values())), ""
    ):
        found[leading] += len(bare)
        bare = {name: b.removeprefix(leading) for name, b in bare.items()}
    return bare
