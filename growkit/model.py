"""A checkpoint read through its family: sizes, one entry per tensor, and the config after growth.

The law: every tensor of the checkpoint matches exactly one pattern with exactly the shape that the
config's sizes give it, and no tensor that the family requires is missing; or the checkpoint is
refused with the tensor's name.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growkit.errors import CheckpointError, RecipeError
from growkit.family import Family, Pattern
from growkit.family_file import build_family, find_family
from growkit.formula import FLOATS, Checkpoint, TensorInfo
from growkit.ops.contract import LayerMap

_NUMBER = re.compile(r"(?:(?<=\.)|^)[0-9]+(?=\.|$)")
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a checkpoint, understood."""

    info: TensorInfo
    pattern: Pattern
    numbers: tuple[int, ...]  # the numbers in its name, one per slot of the pattern

    @property
    def key(self) -> str:
        """The family's name for it, whatever prefix or old spelling the file uses."""
        return spell(self.pattern.name, self.numbers)

    def renumbered(self, numbers: Sequence[int]) -> str:
        """Its name on disk with other numbers, in the spelling that the file uses."""
        fresh = iter(numbers)
        return _NUMBER.sub(lambda _: str(next(fresh)), self.info.name)


@dataclass(frozen=True)
class Model:
    """A checkpoint with its family."""

    family: Family
    checkpoint: Checkpoint
    sizes: Mapping[str, int]  # by family axis
    entries: Mapping[str, Entry]  # by key
    dropped: tuple[str, ...]  # "name: reason"
    tied: bool  # the output head is the embedding
    same: tuple[tuple[str, str], ...]  # pairs of tensors on disk that a tie says are equal

    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's config.json."""
        return self.checkpoint.config

    def user_sizes(self) -> dict[str, int]:
        """Sizes by the axis names that recipes use."""
        return user_sizes(self.family, self.sizes)


def user_sizes(family: Family, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes by the axis names that recipes use: `head_dim` for query, key and value axes."""
    return {u: sizes[axes[0]] for u, axes in family.user_axes.items() if axes[0] in sizes}


def spell(name: str, numbers: Sequence[int]) -> str:
    """A pattern's name with its numbers filled in.

    >>> spell("layers.{layers}.norm.weight", [3])
    'layers.3.norm.weight'
    """
    fresh = iter(numbers)
    return re.sub(r"\{\w+\}|(?:(?<=\.)|^)\d+(?=\.|$)", lambda _: str(next(fresh)), name)


def get(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a config, or None."""
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def number(config: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path of a config; None where it is absent."""
    value = get(config, path) if path else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        raise CheckpointError(
            f"config.json: {path}: expected a number, found {value!r}", hint="mend config.json"
        )
    return float(value)


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path of a config."""
    *parents, last = path.split(".")
    for part in parents:
        config = config.setdefault(part, {})
    config[last] = value


def read_model(checkpoint: Checkpoint, family_file: Path | None = None) -> Model:
    """Understand a checkpoint through its family file. Raises FamilyError or CheckpointError."""
    config = checkpoint.config
    data = find_family(config, family_file)
    where = str(family_file) if family_file else ""
    first = build_family(data, config, set(), where)
    found = {n: first.match(n) for n in checkpoint.tensors}
    modules = {m[0].module for m in found.values() if m}
    family = build_family(data, config, modules, where)  # now with the variants for what is there
    entries: dict[str, Entry] = {}
    dropped = []
    for name, info in checkpoint.tensors.items():
        match = family.match(name)
        if match is None:
            dropped.append(f"{name}: a buffer that the model makes anew")
            continue
        entry = Entry(info, *match)
        if entry.key in entries:
            raise CheckpointError(
                f"{checkpoint.path}: {name} and {entries[entry.key].info.name} are the same tensor",
                hint="keep one of the two spellings",
            )
        entries[entry.key] = entry
    sizes = _sizes(family, config, entries)
    _complete(family, checkpoint, entries, sizes)
    tied, same = _tie(family, checkpoint, entries)
    for name, twin in same:
        key = next(k for k, e in entries.items() if e.info.name == name)
        del entries[key]
        dropped.append(f"{name}: a second copy of {twin}, to which config.json ties it")
    return Model(family, checkpoint, sizes, entries, tuple(dropped), tied, same)


def _whole(config: Mapping[str, Any], key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise CheckpointError(
            f"config.json: {key}: expected a positive whole number, found {value!r}"
        )
    return value


def _default(family: Family, config: Mapping[str, Any], key: str) -> int | None:
    """What a missing config key means: `4 * n_embd`, `hidden_size // heads`, or another key."""
    words = family.defaults.get(key, "").split()
    if not words:
        return None

    def operand(word: str) -> int | None:
        if word.isdigit():
            return int(word)
        value = config.get(word)
        return _default(family, config, word) if value is None else _whole(config, word, value)

    left = operand(words[0])
    if len(words) == 1 or left is None:
        return left
    right = operand(words[2])
    if right is None:
        return None
    return left * right if words[1] == "*" else left // right


def _sizes(
    family: Family, config: Mapping[str, Any], entries: Mapping[str, Entry]
) -> dict[str, int]:
    """Axis sizes from the config; what the config does not say is read off the shapes."""
    sizes: dict[str, int] = {}
    equations = []
    for key, expressions in family.config.items():
        value = get(config, key)
        value = _default(family, config, key) if value is None else _whole(config, key, value)
        if value is not None:
            equations += [(f"config.json: {key}", e, value) for e in expressions]
    for entry in entries.values():
        if len(entry.pattern.dims) == len(entry.info.shape):
            pairs = zip(entry.pattern.dims, entry.info.shape, strict=True)
            equations += [(entry.info.name, e, n) for (e, _), n in pairs]
    waiting = [e for e in equations if e[1].axes - sizes.keys()]
    while waiting:  # configs need two rounds, shapes one
        before = len(sizes)
        for _, expression, value in waiting:
            solved = expression.solve(value, sizes)
            if solved:
                sizes.setdefault(*solved)
        waiting = [e for e in waiting if e[1].axes - sizes.keys()]
        if len(sizes) == before:
            break
    _refuse_unknown_sizes(family, entries, sizes)
    for where, expression, value in equations:
        if expression.axes <= sizes.keys() and expression.size(sizes) != value:
            bound = ", ".join(f"{a} = {sizes[a]}" for a in sorted(expression.axes))
            raise CheckpointError(
                f"{where}: expected {expression} = {expression.size(sizes)}, "
                f"found {value} ({bound})",
                hint="config.json and the tensors must belong together",
            )
    return sizes


def _refuse_unknown_sizes(
    family: Family, entries: Mapping[str, Entry], sizes: Mapping[str, int]
) -> None:
    """Every axis of a tensor or of a name has a size."""
    used = {a for e in entries.values() for x, _ in e.pattern.dims for a in x.axes}
    used |= {s for e in entries.values() for s in e.pattern.slots if isinstance(s, str)}
    for axis in sorted(used - sizes.keys()):
        keys = [k for k, es in family.config.items() if any(axis in e.axes for e in es)]
        raise CheckpointError(
            f"config.json: {' or '.join(keys) or 'no key'} is missing, so the size of {axis} is "
            "unknown",
            hint="add the key to config.json",
        )


def _complete(
    family: Family, checkpoint: Checkpoint, entries: Mapping[str, Entry], sizes: Mapping[str, int]
) -> None:
    """Every tensor has the right rank and layer numbers, and no required tensor is missing."""
    seen: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for entry in entries.values():
        seen[entry.pattern.name].add(entry.numbers)
        rank, want = len(entry.info.shape), len(entry.pattern.dims)
        if rank != want:
            raise CheckpointError(
                f"tensor {entry.info.name}: expected {want} dims, found shape {entry.info.shape}"
            )
        if entry.info.dtype not in FLOATS:
            raise CheckpointError(
                f"tensor {entry.info.name}: dtype {entry.info.dtype} cannot be grown",
                hint="growkit grows float64, float32, float16 and bfloat16 weights",
            )
        for slot, number in zip(entry.pattern.slots, entry.numbers, strict=True):
            if isinstance(slot, str) and number >= sizes[slot]:
                raise CheckpointError(
                    f"tensor {entry.info.name}: {slot} number {number}, but config.json says "
                    f"there are {sizes[slot]}"
                )
    for pattern in family.patterns.values():
        have = seen[pattern.name]
        count = 1
        for slot in pattern.slots:
            count *= sizes.get(slot, 0) if isinstance(slot, str) else 1
        if len(have) == count or (pattern.optional and not have):
            continue
        missing = next(
            (i for i in range(count) if len(pattern.slots) == 1 and (i,) not in have), None
        )
        name = pattern.name if missing is None else spell(pattern.name, [missing])
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name} is missing ({len(have)} of {count} found)",
            hint="the checkpoint is incomplete, or its config.json belongs to another one",
        )


def _tie(
    family: Family, checkpoint: Checkpoint, entries: Mapping[str, Entry]
) -> tuple[bool, tuple[tuple[str, str], ...]]:
    """Whether the head is the embedding, and the pairs on disk that must then be equal."""
    names = checkpoint.config.get("architectures") or []
    if not isinstance(names, list) or not all(
        isinstance(n, str) and n.isprintable() for n in names
    ):
        raise CheckpointError(
            f"config.json: architectures: expected a list of names, found {names!r}",
            hint="write a list of class names",
        )
    head = family.head
    if head is None or head.tied not in entries:
        return False, ()
    said = checkpoint.config.get("tie_word_embeddings")
    tied = head.default if said is None else bool(said)
    if head.weight in entries:
        both = [(n, t) for n, t in head.ties.items() if n in entries and t in entries]
        same = tuple((entries[n].info.name, entries[t].info.name) for n, t in both)
        return tied, same if tied else ()
    has_head = any(c in str(n) for n in names for c in head.classes)
    if has_head and not tied:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {head.weight} is missing and config.json does not tie it",
            hint='set "tie_word_embeddings": true if the head is the embedding',
        )
    feeds = any(e.pattern.module == head.scale_at for e in entries.values())
    return tied and (has_head or (not names and feeds)), ()


# -- the config after growth ---------------------------------------------------------------------


def check_sizes(family: Family, sizes: Mapping[str, int]) -> None:
    """Refuse sizes that no config of this family can express, with the repair in the hint."""
    for expressions in family.config.values():
        known = [e for e in expressions if e.axes <= sizes.keys()]
        if len({e.size(sizes) for e in known}) > 1:
            stream, other = (
                known[0],
                next(e for e in known if e.size(sizes) != known[0].size(sizes)),
            )
            names = {a: u for u, axes in family.user_axes.items() for a in axes}
            want = stream.size(sizes)
            label = " × ".join(
                f"{names.get(p.name, p.name)} ({p.size(sizes)})" for p in other.parts
            )
            repairs = []
            for axis in sorted(other.axes):
                solved = other.solve(want, {a: n for a, n in sizes.items() if a != axis})
                if solved:
                    repairs.append(f"{names.get(axis, axis)}: {solved[1]}")
            repairs.append(f"{names.get(stream.name, stream.name)}: {other.size(sizes)}")
            raise RecipeError(
                f"sizes: {stream} ({want}) must equal {label or other} = {other.size(sizes)} "
                f"in family {family.name}",
                hint="set " + ", or ".join(repairs),
            )
    for rule in family.require:
        left, _, right = rule.split()
        if left in sizes and right in sizes and sizes[left] % sizes[right]:
            raise RecipeError(
                f"sizes: {left} ({sizes[left]}) must be a multiple of {right} ({sizes[right]}) "
                f"in family {family.name}",
                hint=f"set {left}: {-(-sizes[left] // sizes[right]) * sizes[right]}, "
                f"or another {right}",
            )


def resize_config(
    family: Family, config: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """The config with these sizes; an absent key is written only if its default is wrong."""
    out = copy.deepcopy(dict(config))
    for key, expressions in family.config.items():
        if not expressions[0].axes <= sizes.keys():
            continue
        value = expressions[0].size(sizes)
        if get(out, key) is not None or key not in family.defaults:
            put(out, key, value)
    for key in family.defaults:  # after the keys that the defaults are made of
        expression = family.config[key][0]
        if get(out, key) is None and expression.axes <= sizes.keys():
            value = expression.size(sizes)
            if _default(family, out, key) != value:
                put(out, key, value)
    return out


def scale_eps(family: Family, config: dict[str, Any], factor: float) -> None:
    """Multiply the norm eps in a config, where it must be."""
    eps = get(config, family.eps)
    if not isinstance(eps, int | float):
        raise RecipeError(
            f"lemon changes the norm eps, but config.json has no {family.eps}",
            hint="add it, or use the map pad, which leaves eps as it is",
        )
    put(config, family.eps, eps * factor)


def remap_layers(
    family: Family, config: Mapping[str, Any], layers: Mapping[str, LayerMap]
) -> dict[str, Any]:
    """Per-layer config lists follow the layer map; numbers that name a layer are moved with it."""
    out = copy.deepcopy(dict(config))
    for key, axis in family.lists.items():
        old = get(out, key)
        if axis in layers and isinstance(old, list):
            if len(old) <= max(n.source for n in layers[axis]):
                raise CheckpointError(f"config.json: {key}: {len(old)} entries are too few")
            put(out, key, [old[n.source] for n in layers[axis]])
    for key, axis in family.thresholds.items():
        old = get(out, key)
        if axis in layers and isinstance(old, int):
            source = [n.source for n in layers[axis]]
            top = max(source) + 1
            put(out, key, sum(i < old for i in source) if old <= top else old - top + len(source))
    return out
