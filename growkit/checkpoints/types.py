"""What is known of a checkpoint before any weight is read: its headers, config and file names.

    Checkpoint      all of it, for one model
    TensorInfo      where one tensor lies, and of what dtype and shape it is
    FileIdentity    what tells that a file is still the one that was planned with
    TrailingModule  one module of sentence-transformers behind the model, such as Dense
    Stored          a tensor of a checkpoint, as a term of a formula names it

Nouns only: nothing is opened here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a safetensors header; `start` and `stop` are byte offsets in `file`."""

    name: str
    dtype: str
    shape: Shape
    file: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells that a source file is still the same one."""

    name: str  # relative to the checkpoint's folder
    size: int  # bytes
    mtime_ns: int  # 0 where the blob says more
    header_sha256: str
    blob: str | None = None  # its id on the Hub: sha256, or git's sha1 of a small file


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The headers and the config of one checkpoint: everything planning may know about it."""

    path: str  # the folder (or the single file) it was read from
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]  # by name on disk, less `wrappers`, in file order
    files: tuple[FileIdentity, ...]
    side_files: tuple[str, ...] = ()  # tokenizer and the like, relative paths, to be carried along
    descriptions: tuple[str, ...] = ()  # files that say its sizes to other tools; left behind
    numbers: Mapping[str, frozenset[int]] = field(default_factory=dict)  # that side files state
    revision: str | None = None
    vocabulary: str | None = None  # sha256 of the tokenizer's files, if there are any
    tokens: int | None = None  # that the tokenizer has, where its files say so
    modules: tuple[
        TrailingModule, ...
    ] = ()  # what sentence-transformers runs behind the model, in order
    dropped: tuple[str, ...] = ()  # "name: reason" of tensors that are on disk, but not here
    notes: tuple[str, ...] = ()  # what else was done to read it, for the user to know
    absent: tuple[str, ...] = ()  # names in an index that no shard holds
    shared: tuple[tuple[str, str], ...] = ()  # names of one memory, each with the first for it
    wrappers: tuple[str, ...] = ()  # words that names on disk have, and names here lack
    card: Mapping[str, Any] = field(default_factory=dict)  # what its model card says, by key


@dataclass(frozen=True, slots=True)
class TrailingModule:
    """What sentence-transformers calls a module: it runs behind the model, from a folder inside.

    `stored` are its config and the headers of its weights; it has no tensors where they are not in
    safetensors, or where there are none.
    """

    folder: str
    kind: str  # the last word of its class's name, such as Dense
    stored: Checkpoint


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the checkpoint called `source` in the recipe."""

    source: str
    name: str
    shape: Shape
    dtype: str
    by: Stored | None = None  # a vector, by whose entries the rows are multiplied
