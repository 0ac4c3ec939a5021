"""What travels with the weights: tokenizer, processor, generation config, custom code, modules.

A folder is a model's own, so everything in it travels that is not a weight, not written by growkit
itself and not left over from training. A single file may lie among strangers, so only files with
well-known names beside it do.
"""

from __future__ import annotations

import re
from pathlib import Path

from growkit.errors import GrowkitError
from growkit.store.header import read_json

# written by growkit, or weights, or left over from training; matched against the whole file name
_LEFT_OUT = re.compile(
    r"\..*|config\.json|README\.md|growkit\.json|recipe\.yaml"
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


def in_folder(folder: Path) -> tuple[str, ...]:
    """Files of a model's folder, and of the folders in it."""
    names = _files(folder)
    for inner in sorted(p for p in folder.iterdir() if p.is_dir()):
        if not _FOLDERS_LEFT_OUT.fullmatch(inner.name):
            names += [f"{inner.name}/{name}" for name in _files(inner, module=True)]
    return tuple(names)


def beside_file(folder: Path) -> tuple[str, ...]:
    """Files with well-known names, and the folders that modules.json names."""
    names = [p.name for p in sorted(folder.iterdir()) if _WELL_KNOWN.fullmatch(p.name)]
    for module in _modules(folder / "modules.json"):
        inner = folder / module
        if Path(module).name == module and inner.is_dir():
            names += [f"{module}/{name}" for name in _files(inner, module=True)]
    return tuple(name for name in names if (folder / name).is_file())


def _files(folder: Path, *, module: bool = False) -> list[str]:
    """Names of the files that travel; a module's own config.json does."""
    return [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_file()
        and (not _LEFT_OUT.fullmatch(path.name) or (module and path.name == "config.json"))
    ]


def _modules(path: Path) -> list[str]:
    """Folder names in a sentence-transformers modules.json; none where it is not one."""
    try:
        listed = read_json(path, "list of modules") if path.is_file() else []
    except GrowkitError:
        return []
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    named = [e.get("path") for e in entries]
    return [name for name in named if name and isinstance(name, str) and "\0" not in name]
