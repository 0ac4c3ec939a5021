"""What travels with the weights: tokenizer, processor, generation config, custom code, modules.

A folder is a model's own, so everything in it travels that is not a weight, not written by growkit
itself and not left over from training. A single file may lie among strangers, so only files with
well-known names beside it do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from growkit.errors import GrowkitError
from growkit.store.header import read_json

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

_WELL_KNOWN = re.compile(
    r"tokenizer\.(json|model)|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(txt|json)|merges\.txt|spiece\.model|sentencepiece(\.bpe)?\.model"
    r"|generation_config\.json|(video_)?preprocessor_config\.json|processor_config\.json"
    r"|chat_template\.(jinja|json)"
    r"|modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json"
)


def files_below(folder: Path) -> list[str]:
    """Files of a folder and of the folders in it, as paths relative to it."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    for inner in sorted(p for p in folder.iterdir() if p.is_dir()):
        if not _FOLDERS_LEFT_OUT.fullmatch(inner.name):
            names += sorted(f"{inner.name}/{p.name}" for p in inner.iterdir() if p.is_file())
    return names


def in_folder(names: Iterable[str]) -> tuple[str, ...]:
    """Those of a model's files that travel: its own, and those of the folders in it."""
    return tuple(sorted(filter(_travels, names), key=lambda name: (name.count("/"), name)))


def _travels(name: str) -> bool:
    """Whether a file travels; the config.json of a module in a folder does."""
    *above, file = name.split("/")
    if len(above) > 1 or any(_FOLDERS_LEFT_OUT.fullmatch(folder) for folder in above):
        return False
    return not _LEFT_OUT.fullmatch(file) or (bool(above) and file == "config.json")


def beside_file(folder: Path) -> tuple[str, ...]:
    """Files with well-known names, and the folders that modules.json names."""
    names = [p.name for p in sorted(folder.iterdir()) if _WELL_KNOWN.fullmatch(p.name)]
    for module in _modules(folder / "modules.json"):
        inner = folder / module
        if Path(module).name == module and inner.is_dir():
            within = [f"{module}/{path.name}" for path in sorted(inner.iterdir())]
            names += [name for name in within if _travels(name)]
    return tuple(name for name in names if (folder / name).is_file())


def _modules(path: Path) -> list[str]:
    """Folder names in a sentence-transformers modules.json; none where it is not one."""
    try:
        listed = read_json(path, "list of modules") if path.is_file() else []
    except GrowkitError:
        return []
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    named = [e.get("path") for e in entries]
    return [name for name in named if name and isinstance(name, str) and "\0" not in name]
