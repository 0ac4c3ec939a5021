"""A checkpoint read through its family: sizes, and one entry per tensor.

The law: every tensor of the checkpoint matches exactly one pattern with exactly the shape that the
config's sizes give it, and no tensor that the family requires is missing; or the checkpoint is
refused with the tensor's name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any

from growkit.algebra.expression import Expression
from growkit.checkpoints.names import pattern_up_to
from growkit.checkpoints.types import Checkpoint, Shape, TensorInfo
from growkit.dtypes import FLOATS
from growkit.errors import CheckpointError
from growkit.families.config import default, get, layers_with, spelling, whole, written
from growkit.families.family import Family, Pattern, spell
from growkit.families.load import build_family, find_family

Equation = tuple[str, Expression, int]  # where it stands, axes, the size that they make


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
    described: Mapping[str, Any]  # the family file, as data

    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's config.json."""
        return self.checkpoint.config

    def user_sizes(self) -> dict[str, int]:
        """Sizes by the axis names that recipes use."""
        return self.family.user_sizes(self.sizes)

    def notes(self, sizes: Mapping[str, int] | None = None) -> tuple[str, ...]:
        """What was done to read it, and whether a vocabulary of `sizes` has all its tokens."""
        tokens, rows = self.checkpoint.tokens, (sizes or self.sizes).get("vocab")
        if tokens is None or rows is None or tokens <= rows:
            return self.checkpoint.notes
        more = (
            f"tokenizer.json has {tokens} tokens, the model {rows}: those without a row cannot be "
            f"used; add the step {{op: resize, vocab: {tokens}}}"
        )
        return (*self.checkpoint.notes, more)


def key_of(family: Family, name: str) -> str:
    """The family's name for a tensor on disk; nothing for a buffer."""
    match = family.match(name)
    return spell(match[0].name, match[1]) if match else ""


def read_model(checkpoint: Checkpoint, family_file: Path | None = None) -> Model:
    """Understand a checkpoint through its family file. Raises FamilyError or CheckpointError."""
    config, where = checkpoint.config, str(family_file) if family_file else ""
    shared = dict(checkpoint.shared)
    names = [name for name in checkpoint.tensors if name not in shared]
    described = find_family(config, family_file)
    family = build_family(described, config, names, where)
    if (kept := _tied_to_others(family, shared)) != shared:  # a head may stand before the embedding
        shared = kept
        names = [name for name in checkpoint.tensors if name not in shared]
        family = build_family(described, config, names, where)
    entries: dict[str, Entry] = {}
    shared_numbers: dict[tuple[int, ...], tuple[int, ...]] = {}  # of many tensors, the same few
    dropped = [*checkpoint.dropped]
    for name in names:
        info, match = checkpoint.tensors[name], family.match(name)
        if match is None:
            dropped.append(f"{name}: {family.why_ignored(name)}")
            continue
        pattern, numbers = match
        entry = Entry(info, pattern, shared_numbers.setdefault(numbers, numbers))
        other = entries.setdefault(entry.key, entry)
        if other is not entry:
            raise CheckpointError(
                f"{checkpoint.path}: {name} and {other.info.name} are the same tensor",
                hint="keep one of the two spellings",
            )
    sizes = solve_sizes(family, config, entries)
    _complete(family, checkpoint, _checked(entries, sizes), sizes)
    tied, same = _tie(family, checkpoint, entries)
    for name, twin in same:
        del entries[key_of(family, name)]
        dropped.append(f"{name}: a second copy of {twin}, to which config.json ties it")
    for name in checkpoint.absent:
        if not tied or family.head is None or key_of(family, name) not in family.head.ties:
            raise CheckpointError(
                f"{checkpoint.path}: the index lists {name}, which no shard holds",
                hint="copy what is missing, or take the name out of the index if nothing is",
            )
        dropped.append(f"{name}: listed by the index alone; config.json ties it")
    same = (*same, *((name, twin) for name, twin in shared.items() if family.match(name)))
    return Model(family, checkpoint, sizes, entries, tuple(dropped), tied, same, described)


def _tied_to_others(family: Family, shared: Mapping[str, str]) -> dict[str, str]:
    """Names of one memory, each with the one that is read: of those not what is tied to others."""
    tied = {family.head.weight, *family.head.ties} if family.head else set()
    out: dict[str, str] = {}
    for first in dict.fromkeys(shared.values()):
        names = [first, *(name for name, other in shared.items() if other == first)]
        kept = next((name for name in names if key_of(family, name) not in tied), first)
        out |= {name: kept for name in names if name != kept}
    return out


def check_whole(
    model: Model,
    config: Mapping[str, Any],
    kinds: Mapping[str, Entry],
    numbers: Mapping[str, set[tuple[int, ...]]],
) -> None:
    """Read tensors that are known by their patterns with another config, as `read_model` would.

    `kinds` holds one tensor of each pattern, by key, and `numbers` all that have it, by its name.
    They must be a whole model of that config in the family file of `model`; raises as it does.
    """
    names = [entry.key for entry in kinds.values()]
    family = build_family(model.described, config, names)
    for entry in kinds.values():
        if entry.pattern.name not in family.patterns:
            raise CheckpointError(f"tensor {entry.key}: config.json has no use for it")
    read = {
        key: Entry(e.info, family.patterns[e.pattern.name], e.numbers) for key, e in kinds.items()
    }
    sizes = solve_sizes(family, config, read)
    for entry in read.values():
        for place, slot in enumerate(entry.pattern.slots):
            last = max(numbers[entry.pattern.name], key=itemgetter(place))
            if isinstance(slot, str) and last[place] >= sizes[slot]:
                name = spell(entry.pattern.name, last)
                raise _beyond(name, slot, last[place], sizes)
    checkpoint = Checkpoint("result", config, {}, ())
    _complete(family, checkpoint, numbers, sizes)
    _tie(family, checkpoint, read)


def solve_sizes(
    family: Family, config: Mapping[str, Any], entries: Mapping[str, Entry]
) -> dict[str, int]:
    """Axis sizes from the config; what the config does not say is read off the shapes."""
    kinds: dict[tuple[str, Shape], Entry] = {}
    for entry in entries.values():
        kinds.setdefault((entry.pattern.name, entry.info.shape), entry)
    equations = [*_of_config(family, config), *_of_shapes(kinds.values())]
    sizes = _solved(equations)
    for axis, expression in family.derived.items():
        if expression.axes <= sizes.keys():
            size = sizes.setdefault(axis, expression.size(sizes))
            equations.append((f"{axis} = {expression}", expression, size))
    patterns = {e.pattern.name: e.pattern for e in kinds.values()}.values()
    _refuse_unknown_sizes(family, patterns, sizes)
    for where, expression, value in equations:
        if expression.axes <= sizes.keys() and expression.size(sizes) != value:
            bound = ", ".join(f"{a} = {sizes[a]}" for a in sorted(expression.axes))
            raise CheckpointError(
                f"{where}: expected {expression} = {expression.size(sizes)}, "
                f"found {value} ({bound})",
                hint=_more_tokens(family, expression, value, sizes)
                or "config.json and the tensors must belong together",
            )
    if not entries:  # a config alone: which stacks its class has is not known
        return sizes
    named = {s for pattern in patterns for s in pattern.slots}
    absent = {*family.of_kind("layers")} - named  # a stack that this class does not have
    return {axis: size for axis, size in sizes.items() if axis not in absent}


def _more_tokens(
    family: Family, expression: Expression, value: int, sizes: Mapping[str, int]
) -> str:
    """The hint for a table of more tokens than config.json says: some were added to it."""
    if expression.name != "vocab" or value <= sizes["vocab"]:
        return ""
    key = next(k for k, es in family.config.items() if any(e.name == "vocab" for e in es))
    return f"if tokens were added, set {key.partition('|')[0]}: {value} in config.json"


def _of_config(family: Family, config: Mapping[str, Any]) -> Iterator[Equation]:
    """What the config says of sizes, and what its missing keys mean."""
    for names, expressions in family.config.items():
        said = {key: whole(config, key, get(config, key)) for key in written(config, names)}
        if not said and (value := default(family, config, names)) is not None:
            said[spelling(config, names)] = value
        for key, value in said.items():
            yield from ((f"config.json: {key}", e, value) for e in expressions)


def _of_shapes(entries: Iterable[Entry]) -> Iterator[Equation]:
    """What the shapes say of sizes; a shape of another rank is for `_complete` to refuse."""
    for entry in entries:
        if len(entry.pattern.dims) == len(entry.info.shape):
            pairs = zip(entry.pattern.dims, entry.info.shape, strict=True)
            yield from ((entry.info.name, e, size) for (e, _), size in pairs)


def _solved(equations: Sequence[Equation]) -> dict[str, int]:
    """The sizes that these equations give, the first one that knows an axis first."""
    sizes: dict[str, int] = {}
    waiting = [e for e in equations if e[1].axes]
    while waiting:  # configs need two rounds, shapes one
        before = len(sizes)
        for _, expression, value in waiting:
            axis_size = expression.solve(value, sizes)
            if axis_size:
                sizes.setdefault(*axis_size)
        waiting = [e for e in waiting if e[1].axes - sizes.keys()]
        if len(sizes) == before:
            break
    return sizes


def _refuse_unknown_sizes(
    family: Family, patterns: Iterable[Pattern], sizes: Mapping[str, int]
) -> None:
    """Every axis of a tensor or of a name has a size."""
    used = {a for p in patterns for x, _ in p.dims for a in x.axes}
    used |= {s for p in patterns for s in p.slots if isinstance(s, str)}
    for axis in sorted(used - sizes.keys()):
        said = [names for names, es in family.config.items() if any(axis in e.axes for e in es)]
        keys = [key for names in said for key in names.split("|")]
        raise CheckpointError(
            f"config.json: {' or '.join(keys) or 'no key'} is missing, so the size of {axis} is "
            "unknown",
            hint="add the key to config.json",
        )


def _checked(
    entries: Mapping[str, Entry], sizes: Mapping[str, int]
) -> dict[str, set[tuple[int, ...]]]:
    """Every tensor has the right rank, dtype and layer; the numbers in the names, by pattern."""
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
                raise _beyond(entry.info.name, slot, number, sizes)
    return seen


def _beyond(name: str, slot: str, number: int, sizes: Mapping[str, int]) -> CheckpointError:
    """The number in a tensor's name is none of those that config.json says there are."""
    return CheckpointError(
        f"tensor {name}: {slot} number {number}, but config.json says there are {sizes[slot]}",
        hint="mend the checkpoint, or get it anew, or leave out what config.json does not "
        f"know: --drop {pattern_up_to(name, number)}",
    )


def _complete(
    family: Family,
    checkpoint: Checkpoint,
    seen: Mapping[str, set[tuple[int, ...]]],
    sizes: Mapping[str, int],
) -> None:
    """No required tensor is missing, and none is there without those that it comes with."""
    most = sum(map(len, seen.values())) + 1
    kinds = _layers_of_kinds(family, checkpoint.config, sizes, most)
    together: dict[str, list[Pattern]] = defaultdict(list)
    for pattern in family.patterns.values():
        have = seen.get(pattern.name, set())
        if pattern.group and pattern.optional:
            together[pattern.group].append(pattern)
        if pattern.optional and not have:
            continue
        ranges = _ranges(family, pattern, sizes, kinds)
        if pattern.by_layer:  # complete in every layer that has it at all
            layers = {n[0] for n in have}
            ranges = [sorted(layers), *ranges[1:]] if pattern.slots else ranges
        count = prod(map(len, ranges))
        if pattern.kind:
            _refuse_other_kinds(pattern, family.presence[pattern.kind].axis, have, kinds)
        if len(have) == count:
            continue
        near = product(*(r[: len(have) + 1] for r in ranges))  # config.json may say any number
        missing = next((n for n in near if n not in have), None)
        name = pattern.name if missing is None else spell(pattern.name, missing)
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name} is missing ({len(have)} of {count} found)",
            hint="the checkpoint is incomplete, or its config.json belongs to another one",
        )
    for patterns in together.values():
        here = [p.name for p in patterns if seen.get(p.name)]
        gone = [p.name for p in patterns if not seen.get(p.name)]
        if here and gone:
            raise CheckpointError(
                f"{checkpoint.path}: tensor {gone[0]} is missing, and {here[0]} is there",
                hint="they come together: the checkpoint is incomplete",
            )


def _layers_of_kinds(
    family: Family, config: Mapping[str, Any], sizes: Mapping[str, int], most: int
) -> dict[str, frozenset[int]]:
    """The layers that have what each word of `presence` marks, `most` of a stack: config.json may
    say any number of them, and each has a tensor."""
    words = {p.kind for p in family.patterns.values() if p.kind}
    return {
        word: layers_with(family, config, word, min(sizes.get(family.presence[word].axis, 0), most))
        for word in words
    }


def _ranges(
    family: Family,
    pattern: Pattern,
    sizes: Mapping[str, int],
    kinds: Mapping[str, frozenset[int]],
) -> list[Sequence[int]]:
    """The numbers that its tensors have in their names, slot by slot."""
    ranges: list[Sequence[int]] = []
    for slot in pattern.slots:
        if not isinstance(slot, str):
            ranges.append((slot,))
        elif pattern.kind and slot == family.presence[pattern.kind].axis:
            ranges.append(sorted(n for n in kinds[pattern.kind] if n >= pattern.first))
        else:
            start = pattern.first if family.axes[slot] == "layers" else 0
            ranges.append(range(start, sizes.get(slot, 0)))
    return ranges


def _refuse_other_kinds(
    pattern: Pattern,
    axis: str,
    have: Iterable[tuple[int, ...]],
    kinds: Mapping[str, frozenset[int]],
) -> None:
    """No layer has what config.json says belongs to layers of another kind."""
    slot = pattern.slots.index(axis)
    others = {n[slot] for n in have} - kinds[pattern.kind]
    if others:
        other = min(n for n in have if n[slot] in others)
        raise CheckpointError(
            f"tensor {spell(pattern.name, other)}: config.json says that layer {other[slot]} is of "
            "another kind",
            hint="config.json and the tensors must belong together",
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
    if head is None:
        return False, ()
    declared = checkpoint.config.get("tie_word_embeddings")
    tied = head.default if declared is None else bool(declared)
    both = [(n, t) for n, t in head.ties.items() if n in entries and t in entries]
    same = tuple((entries[n].info.name, entries[t].info.name) for n, t in both if tied)
    if head.tied not in entries:
        return False, same
    if head.weight in entries:
        alone = [n for n, t in head.ties.items() if t in entries and n not in entries]
        if alone and declared is False and not tied:
            raise CheckpointError(
                f"{checkpoint.path}: tensor {alone[0]} is missing and config.json does not tie it",
                hint='set "tie_word_embeddings": true if the head is the embedding',
            )
        return tied, same
    if any(head.weight == key_of(family, name) for pair in checkpoint.shared for name in pair):
        return True, same
    has_head = any(c in str(n) for n in names for c in head.classes)
    if has_head and not tied:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {head.weight} is missing and config.json does not tie it",
            hint='set "tie_word_embeddings": true if the head is the embedding',
        )
    feeds = any(e.pattern.module == head.scale_at for e in entries.values())
    return tied and (has_head or (not names and feeds)), same
