"""Which stored tensors are the model's, and what they are called.

Training writes names that are not the model's: each wrapper around a module puts a word of its own
before the names inside. They are taken off here, once, so that no other room ever sees one, and no
result has one. Tensors that the user wants left out (`--drop`) never get further either.

The law: nothing is left out and no name is changed without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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


def pattern_of(name: str) -> str:
    """What `--drop` takes, quoted for a shell, for all tensors of one kind.

    >>> pattern_of("model.layers.3.mlp.up_proj.weight_scale")
    "'*.weight_scale'"
    >>> pattern_of("model.layers.3.eh_proj.weight")
    "'model.layers.*.eh_proj.weight'"
    """
    words = name.split(".")
    if len(words) > 1 and words[-1] not in ("weight", "bias"):
        return f"'*.{words[-1]}'"
    return f"'{'.'.join('*' if word.isdigit() else word for word in words)}'"


def pattern_up_to(name: str, number: int) -> str:
    """What `--drop` takes, quoted for a shell, for all tensors of the layer of this number.

    >>> pattern_up_to("model.layers.61.eh_proj.weight", 61)
    "'model.layers.61.*'"
    """
    words = name.split(".")
    return f"'{'.'.join(words[: words.index(str(number)) + 1])}.*'"


def _unwrapped(names: Sequence[str], found: Counter[str]) -> dict[str, str]:
    """Each name without the words of wrappers, which are counted in `found`."""
    bare = {name: name for name in names}
    for prefix in (_wrapped_attribute(names), *_LEADING, *_LEADING):  # one may be in another
        if prefix and names and all(b.startswith(prefix) for b in bare.values()):
            found[prefix] += len(names)
            bare = {name: b.removeprefix(prefix) for name, b in bare.items()}
    for name, b in bare.items():
        words = b.split(".")
        if not _WRAPPERS.isdisjoint(words):
            found.update(f"{word}." for word in words if word in _WRAPPERS)
            bare[name] = ".".join(word for word in words if word not in _WRAPPERS)
    return bare


def _wrapped_attribute(names: Sequence[str]) -> str:
    """What names begin with where a trainer keeps the wrapped model: `model._orig_mod.`, or "".

    Names of the model's own parts, of which one alone is wrapped, do not all begin so.
    """
    words = names[0].split(".") if names else []
    count = next((i + 1 for i, word in enumerate(words) if word in _WRAPPERS), 0)
    return "".join(f"{word}." for word in words[:count])
