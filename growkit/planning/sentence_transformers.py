"""What runs behind the model in a pipeline, and how it follows the growth of the hidden state.

A checkpoint of sentence-transformers lists its modules in modules.json: pooling over the tokens, a
dense layer, a scaling to length 1. Pooling treats every number of the hidden state alike and is
told the new size. A dense layer is grown as an output head is, by the map back,

    W_new = W · readᵀ          readᵀ · (what the grown model puts out) = what the small one put out

so that it gives what it gave, and nothing behind it changes.

The law: a module that growth concerns is made to fit, or the growth is refused; none travels that
would load and compute something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Stored, TrailingModule
from growkit.errors import CheckpointError
from growkit.planning.formula import Formula, Term

SIZES = ("word_embedding_dimension", "embedding_dimension")  # keys that say the hidden size
_DENSE = "Dense"
_POOLING = "Pooling"
_LENGTH_ONE = "Normalize"
_ANY_SIZE = ("Transformer", _POOLING, _LENGTH_ONE, "Dropout")  # kinds without weights of a size
_OUT = "take it out of modules.json, and train a new one behind the result"
_EVERY_LAYER = "WeightedLayerPooling"  # reads the hidden state behind every layer


@dataclass(frozen=True, slots=True)
class GrownModule:
    """A module as growth leaves it."""

    module: TrailingModule
    sizes: Mapping[str, int]  # keys of its config.json that change
    formulas: tuple[Formula, ...] = ()  # its weights, where they change


def resized(config: Mapping[str, Any], old: int, new: int) -> dict[str, int]:
    """The keys of a config that say the hidden size, with the new one.

    >>> resized({"embedding_dimension": 4, "pooling_mode": "mean"}, 4, 8)
    {'embedding_dimension': 8}
    """
    return {key: new for key in SIZES if config.get(key) == old}


def grow_modules(
    modules: Iterable[TrailingModule],
    grown: AxisMap | None,
    *,
    deeper: bool,
    factor: float = 1.0,
    dtype: str | None = None,
) -> tuple[GrownModule, ...]:
    """The modules that have to change, up to the first dense layer.

    `grown` is the map of the hidden state, `deeper` says that layers were added or taken away. What
    the model puts out is `factor` times what `grown` says; `dtype` is that of dense layers to come.
    Raises CheckpointError for modules that cannot follow.
    """
    grown_modules: list[GrownModule] = []
    for module in modules:
        if module.kind == _EVERY_LAYER and deeper:
            raise CheckpointError(
                f"{_named(module)} weighs every layer, and layers change", hint=_OUT
            )
        if grown is None or grown.is_identity:
            continue
        if module.kind == _DENSE:
            return (*grown_modules, _dense(module, grown.read.scaled(1.0 / factor), dtype))
        if module.kind not in _ANY_SIZE:
            raise CheckpointError(
                f"{_named(module)} reads the hidden state, which grows from {grown.old} to "
                f"{grown.new}, and growkit knows no way to let it follow",
                hint=_OUT,
            )
        if module.kind == _LENGTH_ONE:
            factor = 1.0 / _stretched(grown)
        grown_modules.append(
            GrownModule(module, resized(module.stored.config, grown.old, grown.new))
        )
    return tuple(grown_modules)


def _stretched(grown: AxisMap) -> float:
    """How many times longer growth makes what leaves the last norm, on average."""
    return float((grown.write_normed.square_norm / grown.old) ** 0.5)


def _evenly(grown: AxisMap) -> bool:
    """Whether it makes all of it longer by the same factor, so that cosines stay."""
    written = grown.write_normed
    return written.transpose().after(written).scalar() is not None


def _named(module: TrailingModule) -> str:
    return f"{module.folder}: a module of kind {module.kind}, which"


def _dense(module: TrailingModule, read: Kernel, dtype: str | None) -> GrownModule:
    """A dense layer that reads the grown state, or several pooled ones side by side."""
    config, stored = module.stored.config, module.stored
    size, out = (config.get(key) for key in ("in_features", "out_features"))
    where = f"{module.folder}/config.json"
    if not isinstance(size, int) or size < 1 or size % read.old:
        raise CheckpointError(
            f"{where}: in_features {size!r} is no multiple of the hidden size {read.old}",
            hint="mend it, or take this module out of modules.json",
        )
    if not stored.tensors:
        raise CheckpointError(
            f"{module.folder}: no safetensors weights, and they have to follow the hidden size "
            f"{read.old} → {read.new}",
            hint="load the whole with sentence-transformers and save it: that writes safetensors",
        )
    if config.get("use_residual") and size == out:
        raise CheckpointError(
            f"{where}: use_residual adds the hidden state itself, which grows from {read.old} to "
            f"{read.new}, to {out} features",
            hint=_OUT,
        )
    count = size // read.old
    kernel = read if count == 1 else Kernel.identity(count).kron(read)
    formulas = []
    for info in stored.tensors.values():
        reads = len(info.shape) == 2
        if reads and info.shape != (out, size):
            raise CheckpointError(
                f"{module.folder}: tensor {info.name}: expected shape {(out, size)}, "
                f"found {info.shape}",
                hint="its config.json and its weights must belong together",
            )
        source = Stored(module.folder, info.name, info.shape, info.dtype)
        kernels = (None, kernel) if reads else (None,) * len(info.shape)
        shape = (info.shape[0], kernel.new) if reads else info.shape
        formulas.append(Formula(info.name, shape, dtype or info.dtype, (Term(source, kernels),)))
    return GrownModule(module, {"in_features": kernel.new}, tuple(formulas))


def embedding_hints(
    modules: Sequence[TrailingModule],
    grown_modules: Sequence[GrownModule],
    grown: AxisMap | None,
    *,
    exact: bool,
) -> Iterator[str]:
    """What growth means for the embeddings that come out at the end.

    `exact`: the grown model computes the small one's function.
    """
    if grown is None or not grown_modules:
        return
    written = grown.write_normed
    lone = written.is_gather and written.index.shape[1] <= 1 and bool((written.coef >= 0).all())
    most = any(_takes_maximum(s.stored.config) for s in modules if s.kind == _POOLING)
    even, kept = _evenly(grown), exact and (lone or not most)
    dense = next((f.module.folder for f in grown_modules if f.formulas), None)
    if dense is not None:
        kept &= even or all(f.module.kind != _LENGTH_ONE for f in grown_modules)
        keeps = "the embeddings stay" if kept else "the embeddings stay about the same"
        yield f"{dense} is grown with the hidden state, by the map back: {keeps}"
        return
    yield (
        f"sentence embeddings have {grown.new} numbers instead of {grown.old}; "
        f"cosines between them {'stay' if kept and even else 'change'}"
    )


def _takes_maximum(config: Mapping[str, Any]) -> bool:
    mode = config.get("pooling_mode", ())
    return bool(config.get("pooling_mode_max_tokens")) or "max" in (
        mode if isinstance(mode, list) else [mode]
    )
