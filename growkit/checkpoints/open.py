"""A path → Checkpoint: headers and config, or one sentence on why not and what to do instead.

Weights are never looked at, pickles never opened, and nothing outside the checkpoint's folder is
followed, except from a snapshot in the Hub's cache to the files that it links to.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from growkit.checkpoints.card import read_card
from growkit.checkpoints.header import (
    WEIGHTS,
    most_json,
    read_header,
    read_json,
    read_table,
)
from growkit.checkpoints.hub_cache import Listing, blob_of, is_snapshot, leads_to_blob
from growkit.checkpoints.names import named
from growkit.checkpoints.refused import (
    adapter,
    refuse_format,
    refuse_names,
    without_quantisation,
)
from growkit.checkpoints.side_files import (
    GENERATION_CONFIG,
    beside_file,
    descriptions,
    files_below,
    in_folder,
    listed_modules,
    read_modules,
    stated_numbers,
)
from growkit.checkpoints.tokens import count_tokens
from growkit.checkpoints.types import Checkpoint, FileIdentity, TensorInfo
from growkit.errors import CheckpointError
from growkit.os_errors import reading

INDEX = ".safetensors.index.json"
_AT_ONCE = 8  # headers that are asked of a server at the same time
VOCABULARY = {"vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model"}
_SHARD = re.compile(r"(.+)-([0-9]{5,})-of-([0-9]{5,})\.safetensors")
_BLOCK = 1 << 20  # bytes


def open_checkpoint(
    path: str | Path,
    *,
    config: Path | None = None,
    drop: Sequence[str] = (),
    far: Listing | None = None,
) -> Checkpoint:
    """Read the headers and the config of a file, a folder, or a sharded index.

    `config` names another config.json than the one beside the weights, `drop` tensors to leave out
    (patterns of the shell). `far` is the listing of a snapshot of which only the small files are in
    the folder.
    """
    far = far or {}
    given = Path(path).absolute()
    with reading(given):
        if not given.exists():
            raise CheckpointError(
                f"{path}: no such file or folder",
                hint="give a .safetensors file, a folder, its index, or org/name of the Hub",
            )
        folder = given if given.is_dir() else given.parent
        names, weight_map = _weight_files(given, far)
        single = given.is_file() and weight_map is None  # named by hand, so a link is followed
        if config is None:
            config = folder / "config.json" if single else locate(folder, "config.json")
        settings = read_config(config, given)
        revision = folder.name if is_snapshot(folder) else None
    if not single:
        for name in names:
            locate(folder, name)
    files, tensors = _read_headers(folder, names, far)
    absent: tuple[str, ...] = ()
    if weight_map is not None:
        absent = _check_index(
            weight_map, tensors, folder, bool(settings.get("tie_word_embeddings"))
        )
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors", hint="give the file with the weights")
    model = named(tensors, drop)
    refuse_names(model.tensors.values(), given)
    settings, notes = without_quantisation(settings, model.tensors.values(), given)
    with reading(folder):
        described: tuple[str, ...] = ()
        if single:
            side_files = beside_file(folder)
        else:
            modules = (inner for inner, _ in listed_modules(folder))
            listed = far or files_below(folder)
            side_files, described = in_folder(listed, modules), descriptions(listed)
        for name in side_files:
            path = locate(folder, name)
            is_local = not far or path.exists()
            if is_local and (path.name == "config.json" or name == GENERATION_CONFIG):
                # what it says of sizes and layers will be edited
                read_json(path, "config")
        numbers = stated_numbers(folder, side_files)
    return Checkpoint(
        path=str(given if single else folder),
        config=settings,
        tensors={
            name: info if info.name == name else replace(info, name=name)
            for name, info in model.tensors.items()
        },
        files=files,
        side_files=side_files,
        descriptions=described,
        numbers=numbers,
        revision=revision,
        vocabulary=_vocabulary(folder, side_files),
        tokens=count_tokens(folder, side_files),
        modules=tuple(read_modules(folder, side_files, far)),
        dropped=model.dropped,
        notes=(*model.notes, *notes),
        absent=absent,
        wrappers=model.wrappers,
        card=read_card(folder),
    )


def _vocabulary(folder: Path, side_files: Iterable[str]) -> str | None:
    """sha256 of what turns text into tokens: models that differ in it do not belong together."""
    token_files = {"tokenizer.json"} & {*side_files} or VOCABULARY & {*side_files}
    if not token_files:
        return None
    sha = hashlib.sha256()
    for name in sorted(token_files):
        with reading(folder / name), (folder / name).open("rb") as file:
            while block := file.read(_BLOCK):
                sha.update(block)
    return sha.hexdigest()


def folder_of(checkpoint: Checkpoint) -> Path:
    """The folder that file names of the checkpoint are relative to."""
    path = Path(checkpoint.path)
    return path.parent if path.suffix == WEIGHTS and not path.is_dir() else path


def locate(folder: Path, name: str) -> Path:
    """The file called `name` in the folder; a name or a link that leads out of it is refused."""
    path = folder / name
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(
            f'{folder}: file name "{name}" leads out of the folder',
            hint="the index is not safe to follow: get the checkpoint from where it was made",
        )
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)) and not leads_to_blob(folder, real):
        raise CheckpointError(
            f"{path}: a link that leads out of the folder, to {real}",
            hint="put a copy of the file there instead of the link",
        )
    return path


# -- which files ---------------------------------------------------------------------------------


def _weight_files(given: Path, far: Listing) -> tuple[list[str], Mapping[str, str] | None]:
    """Names of the weight files, and the weight map where an index has one."""
    if given.is_dir():
        return _in_folder(given, far)
    if not given.is_file():
        raise CheckpointError(f"{given}: neither a file nor a folder", hint="give a folder or file")
    if given.name.endswith(INDEX):
        return _from_index(given.parent, given.name, far)
    if given.suffix != WEIGHTS:
        refuse_format(given, [given.name])
    if given.name.startswith("adapter_model"):
        raise adapter(given)
    shard = _SHARD.fullmatch(given.name)
    if shard and int(shard[3]) > 1:
        raise CheckpointError(
            f"{given}: one shard of {int(shard[3])}", hint=f"give the folder: {given.parent}"
        )
    return [given.name], None


def _in_folder(folder: Path, far: Listing) -> tuple[list[str], Mapping[str, str] | None]:
    names = sorted(n for n in (far or files_below(folder)) if "/" not in n)
    if {"adapter_config.json", "adapter_model.safetensors"} & {*names}:
        raise adapter(folder)
    weights = [n for n in names if n.endswith(WEIGHTS) and not n.startswith(".")]
    indices = [n for n in names if n.endswith(INDEX)]
    if "model.safetensors" in weights:  # before an index, as transformers does
        return ["model.safetensors"], None
    if "model.safetensors.index.json" in indices or len(indices) == 1:
        preferred = "model.safetensors.index.json"
        return _from_index(folder, preferred if preferred in indices else indices[0], far)
    if indices:
        raise CheckpointError(
            f"{folder}: several index files: {', '.join(indices)}", hint="give one of them"
        )
    if not weights:
        refuse_format(folder, names)
    shards = [m for m in map(_SHARD.fullmatch, weights) if m]
    if len(shards) == len(weights) and len({(m[1], m[3]) for m in shards}) == 1:
        stem, count = shards[0][1], shards[0][3]
        wanted = (f"{stem}-{i + 1:0{len(count)}d}-of-{count}{WEIGHTS}" for i in range(int(count)))
        present = {*weights}
        unbroken = [*takewhile(present.__contains__, wanted)]  # the count may be anything
        if len(unbroken) < int(count):
            first = f"{stem}-{len(unbroken) + 1:0{len(count)}d}-of-{count}{WEIGHTS}"
            raise _shards_missing(folder, int(count) - len(weights), int(count), first)
        return unbroken, None
    if len(weights) > 1:
        raise CheckpointError(
            f"{folder}: several safetensors files and no index: {', '.join(weights)}",
            hint="give the one file to grow",
        )
    return weights, None


def _from_index(folder: Path, name: str, far: Listing) -> tuple[list[str], Mapping[str, str]]:
    path = locate(folder, name)
    beside = sum(file.size for name, file in far.items() if name.endswith(WEIGHTS))
    most = most_json(beside or weight_bytes(folder))
    weight_map = read_table(path, "index", most=most).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(
            f'{path}: "weight_map" is not a table of tensor and file names',
            hint="the index is damaged: download or copy it anew",
        )
    names = sorted({*weight_map.values()})
    for shard in names:
        locate(folder, shard)
    _refuse_missing(folder, names, far)
    return names, weight_map


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files in a folder: what is said of their tensors may grow with them."""
    return sum(path.stat().st_size for path in folder.glob(f"*{WEIGHTS}") if path.is_file())


def _refuse_missing(folder: Path, wanted: list[str], far: Listing) -> None:
    missing = [name for name in wanted if name not in far and not (folder / name).is_file()]
    if missing:
        raise _shards_missing(folder, len(missing), len(wanted), missing[0])


def _shards_missing(folder: Path, missing: int, count: int, first: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: {missing} of {count} shards missing, the first is {first}",
        hint="download or copy the missing files",
    )


def _read_headers(
    folder: Path, names: list[str], far: Listing
) -> tuple[tuple[FileIdentity, ...], dict[str, TensorInfo]]:
    files = []
    tensors: dict[str, TensorInfo] = {}

    def read(name: str) -> tuple[FileIdentity, dict[str, TensorInfo], dict[str, str]]:
        absent = None if (folder / name).exists() else far.get(name)
        return read_header(folder / name, name, blob=blob_of(folder, name), far=absent)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        headers = [*(pool.map if far else map)(read, names)]
    for name, (identity, infos, metadata) in zip(names, headers, strict=True):
        if "DCP_SHARDING_INFO" in metadata:
            raise CheckpointError(
                f"{folder / name}: a partial shard of PyTorch's distributed checkpoint",
                hint="join the shards with "
                "torch.distributed.checkpoint._consolidate_hf_safetensors first",
            )
        twice = next((t for t in infos if t in tensors), None)
        if twice is not None:
            raise CheckpointError(
                f"{folder}: tensor {twice} is in both {tensors[twice].file} and {name}",
                hint="remove the files that do not belong to this checkpoint",
            )
        files.append(identity)
        tensors |= infos
    return tuple(files), tensors


def _check_index(
    weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo], folder: Path, tied: bool
) -> tuple[str, ...]:
    """The names that no shard holds, where a tie may be why; any other difference is refused."""
    holders = {name: info.file for name, info in tensors.items()}
    absent = tuple(name for name in weight_map if name not in holders)
    differing = [n for n in [*weight_map, *holders] if weight_map.get(n) != holders.get(n)]
    if tied and len(differing) == len(absent):
        return absent
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{folder}: the index and the shards disagree on {len({*differing})} tensors: "
            f"{name} is in {weight_map.get(name, 'no file')} by the index, "
            f"in {holders.get(name, 'no file')} by the headers",
            hint="download or copy the index and the shards of one checkpoint anew"
            if len(differing) > len(absent)
            else "copy what is missing, or take the names out of the index if nothing is",
        )
    return ()


def read_config(path: Path, given: Path | None = None) -> dict[str, Any]:
    """The config.json at `path`; `given` is what the user called the checkpoint."""
    if not path.is_file():
        raise CheckpointError(
            f"{given or path}: {path} is missing",
            hint="put the model's config.json beside the weights, or name it with --config",
        )
    try:
        return read_table(path, "config")
    except CheckpointError as error:
        error.hint = "mend the file, or name another one with --config"
        raise


# -- what is not a checkpoint to grow ------------------------------------------------------------
