"""What travels with the weights: tokenizer, processor, generation config, custom code, modules.

A folder is a model's own, so everything in it travels that is not a weight, not written by growkit
itself and not left over from training. A single file may lie among strangers, so only files with
well-known names beside it do. What says the model's sizes to other tools in a format of theirs
stays behind: it would contradict the result, and those tools take it before config.json. The
weights of modules, which modules.json of sentence-transformers lists and which run behind the
model, travel with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from growkit.checkpoints.header import read_header, read_json
from growkit.checkpoints.hub_cache import Listing, blob_of
from growkit.checkpoints.types import Checkpoint, FileIdentity, TensorInfo, TrailingModule
from growkit.errors import GrowkitError

# written by growkit, or weights, or left over from training; matched against the whole file name
_LEFT_OUT = re.compile(
    r"\..*|config\.json|README\.md|growkit\.json|recipe\.yaml|growth\.(html|svg)"
    r"|.*\.(safetensors|bin|pt|pth|ckpt|pkl|gguf|h5|msgpack|npz|ot|onnx|distcp|tflite|tmp)"
    r"|.*\.index\.json|pytorch_model.*|(optimizer|scheduler|rng_state|training_args|trainer_state).*"
    r"|events\.out\.tfevents.*|zero_to_fp32\.py|latest"
)
_FOLDERS_LEFT_OUT = re.compile(
    r"[._].*|onnx|openvino|coreml|original|runs|logs|wandb|checkpoint-\d+|global_step.*"
)

# the sizes of a model in the formats of other tools: Mistral's, OpenCLIP's, litgpt's, others
_DESCRIPTIONS = re.compile(
    r"(params|open_clip_config|lit_config|model_config|model_args|hparams)\.(json|ya?ml)"
)
_SETTINGS = re.compile(r".*\.(json|ya?ml|toml|ini|cfg|conf)")  # may say sizes in any format
_SETTING = re.compile(r"\w[\"']?\s*[:=]\s*([0-9]{1,9})\b(?!\.)")  # key: number, key = number
_MOST = 1 << 16  # bytes of a file of settings

_WELL_KNOWN = re.compile(
    r"tokenizer\.(json|model)|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(txt|json)|merges\.txt|spiece\.model|sentencepiece(\.bpe)?\.model"
    r"|generation_config\.json|(video_)?preprocessor_config\.json|processor_config\.json"
    r"|chat_template\.(jinja|json)"
    r"|modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json"
)

MODULES = "modules.json"
GENERATION_CONFIG = "generation_config.json"
MODULE_WEIGHTS = "model.safetensors"
_PICKLED = "pytorch_model.bin"  # of a module: carried unopened, where nothing in it has to change


def files_below(folder: Path) -> list[str]:
    """Files of a folder and of the folders in it, as paths relative to it."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    for inner in sorted(p for p in folder.iterdir() if p.is_dir()):
        if not _FOLDERS_LEFT_OUT.fullmatch(inner.name):
            names += sorted(f"{inner.name}/{p.name}" for p in inner.iterdir() if p.is_file())
    return names


def in_folder(names: Iterable[str], modules: Iterable[str]) -> tuple[str, ...]:
    """Those of a model's files that travel: its own, and those of the folders in it.

    `modules` are the folders of its modules.
    """
    present, folders = {*names}, {*modules}
    travelling = (
        name for name in present if _travels(name) or _module_weights(name, folders, present)
    )
    return tuple(sorted(travelling, key=lambda name: (name.count("/"), name)))


def _travels(name: str) -> bool:
    """Whether a file travels; the config.json of a module in a folder does."""
    *above, file = name.split("/")
    if len(above) > 1 or any(_FOLDERS_LEFT_OUT.fullmatch(folder) for folder in above):
        return False
    if not above and _DESCRIPTIONS.fullmatch(file):
        return False
    return not _LEFT_OUT.fullmatch(file) or (bool(above) and file == "config.json")


def _module_weights(name: str, modules: set[str], present: set[str]) -> bool:
    """Whether a file is the weights of a module; of two kinds, safetensors are."""
    folder, _, file = name.rpartition("/")
    if folder not in modules or _FOLDERS_LEFT_OUT.fullmatch(folder):
        return False
    return file == MODULE_WEIGHTS or (
        file == _PICKLED and f"{folder}/{MODULE_WEIGHTS}" not in present
    )


def descriptions(names: Iterable[str]) -> tuple[str, ...]:
    """Those of a folder's files that describe the model to other tools; they do not travel."""
    return tuple(sorted(name for name in names if _DESCRIPTIONS.fullmatch(name)))


def stated_numbers(folder: Path, side_files: Iterable[str]) -> dict[str, frozenset[int]]:
    """The whole numbers that small files of settings state; well-known files state no sizes."""
    out = {}
    for name in side_files:
        path = folder / name
        if not _SETTINGS.fullmatch(name) or "/" in name or _WELL_KNOWN.fullmatch(name):
            continue
        if path.is_file() and path.stat().st_size <= _MOST:
            text = path.read_bytes().decode("utf-8", "replace")
            out[name] = frozenset(map(int, _SETTING.findall(text)))
    return {name: numbers for name, numbers in out.items() if numbers}


def beside_file(folder: Path) -> tuple[str, ...]:
    """Files with well-known names, and the folders of modules."""
    names = [p.name for p in sorted(folder.iterdir()) if _WELL_KNOWN.fullmatch(p.name)]
    modules = [inner for inner, _ in listed_modules(folder) if (folder / inner).is_dir()]
    for module in modules:
        within = (f"{module}/{path.name}" for path in (folder / module).iterdir())
        names += in_folder(within, modules)
    return tuple(name for name in names if (folder / name).is_file())


def listed_modules(folder: Path) -> list[tuple[str, str]]:
    """Folder and kind of each module in modules.json; none where it is not such a list."""
    path = folder / MODULES
    try:
        listed = read_json(path, "list of modules") if path.is_file() else []
    except GrowkitError:
        return []
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    named = [(e.get("path"), str(e.get("type")).rpartition(".")[2]) for e in entries]
    return [(n, kind) for n, kind in named if isinstance(n, str) and _is_folder_name(n)]


def _is_folder_name(name: str) -> bool:
    return bool(name) and "\0" not in name and Path(name).name == name


def read_modules(folder: Path, side_files: Iterable[str], far: Listing) -> Iterator[TrailingModule]:
    """The modules of a checkpoint, with the headers of those weights that are in safetensors.

    Names are relative to the checkpoint's folder, which is where files are looked for.
    """
    present = {*side_files}
    for inner, kind in listed_modules(folder):
        path, weights = folder / inner / "config.json", f"{inner}/{MODULE_WEIGHTS}"
        has_config = f"{inner}/config.json" in present and path.is_file()
        config = read_json(path, "config") if has_config else None
        files: tuple[FileIdentity, ...] = ()
        tensors: dict[str, TensorInfo] = {}
        if weights in present:
            absent = None if (folder / weights).exists() else far.get(weights)
            blob = blob_of(folder, weights)
            identity, tensors, _ = read_header(folder / weights, weights, blob=blob, far=absent)
            files = (identity,)
        settings: dict[str, Any] = config if isinstance(config, dict) else {}
        yield TrailingModule(inner, kind, Checkpoint(str(folder), settings, tensors, files))
