"""One model, loaded by transformers and run on what it takes.

The law: only what lies beside the weights is read, no code of a checkpoint is run, and nothing that
is missing is made up: a parameter that no file holds is NaN, so that it shows where it matters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from growkit.checkpoints.types import Checkpoint
from growkit.errors import UsageError, VerifyError

try:
    import transformers
    from tokenizers import Tokenizer
except ImportError as error:
    raise UsageError(
        f"verify: transformers cannot be imported ({error})",
        hint="pip install 'growkit[verify]'",
    ) from error

LENGTHS = (8, 32, 128)  # tokens of the random sequences, cut to the model's positions
TEXT_TOKENS = 1024  # of a given text, at most: one model's outputs for them are held in memory
HIDDEN = "last_hidden_state"
RUNS = "verify runs models of tokens, images or spectrograms that give logits or hidden states"
HEADS = re.compile(r"logits|_embeds$|^reconstruction$")  # what heads give, by name


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and where its files and its class disagree."""

    path: Path
    model: Any
    missing: frozenset[str]  # parameters that no file holds
    unexpected: frozenset[str]  # stored tensors that the class has no place for


def load(checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float64) -> Loaded:
    """The model of a checkpoint, of the class that its config names, with eager attention."""
    path = Path(checkpoint.path)
    if not {"architectures", "model_type"} & checkpoint.config.keys():
        raise UsageError(
            f"{path}: config.json names no class of transformers, and verify runs no others",
            hint="timm.create_model('local-dir:FOLDER', pretrained=True) loads models of timm, "
            "SMALL and BIG, to compare their outputs",
        )
    try:
        cls, config = class_and_config(checkpoint.config)
        names = [path.name] if path.is_file() else [file.name for file in checkpoint.files]
        if len(names) == 1:  # which may be called as its author likes
            config.transformers_weights = names[0]
        if getattr(config, "reorder_and_upcast_attn", False):
            config.reorder_and_upcast_attn = False  # the same scores, but insists on float32
        with silence():
            model, info = cls.from_pretrained(
                _folder(path),
                config=config,
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
                local_files_only=True,
                key_mapping={rf"(^|\.){re.escape(w)}": r"\1" for w in checkpoint.wrappers} or None,
            )
            if hasattr(model, "set_experts_implementation"):
                model.set_experts_implementation("eager")  # the others insist on float32
    except Exception as error:  # transformers raises all kinds; each is about this checkpoint
        raise VerifyError(
            f"{path}: transformers {transformers.__version__} cannot load it: {reason(error)}",
            hint="`growkit inspect` shows what the files hold",
        ) from error
    missing = frozenset(info["missing_keys"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in missing:
                parameter.fill_(torch.nan)
    return Loaded(path, model.eval(), missing, frozenset(info["unexpected_keys"]))


def class_and_config(config: Mapping[str, Any]) -> tuple[Any, Any]:
    names = config.get("architectures") or [""]
    cls = getattr(transformers, names[0], None)
    if cls is None:
        kind = transformers.CONFIG_MAPPING[config["model_type"]]
        return transformers.AutoModel, kind.from_dict(dict(config))
    return cls, cls.config_class.from_dict(dict(config))


def build(config: Mapping[str, Any]) -> Any:
    """A model of a config, of the class that it names, with eager attention."""
    cls, parsed = class_and_config(config)
    parsed._attn_implementation = "eager"
    return cls(parsed) if config.get("architectures") else cls.from_config(parsed)


def token_table(model: Any) -> Any:
    """The table of tokens; None for a class with two towers, or with none."""
    towers = {"text_config", "vision_config"} & {*vars(model.config)}
    return None if towers else model.get_input_embeddings()


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def reason(error: Exception) -> str:
    """The first line of what transformers has to say."""
    return f"{type(error).__name__}: {[*str(error).strip().splitlines(), ''][0]}"


@contextmanager
def silence() -> Iterator[None]:
    """No load report and no progress bars of transformers: only `cli` speaks."""
    log: Any = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def text_tokens(loaded: Loaded, text: str) -> tuple[list[torch.Tensor], list[str]]:
    """The tokens of each line of `text` by the tokenizer beside it, each (1, length); and notes."""
    file = _folder(loaded.path) / "tokenizer.json"
    if not file.is_file():
        raise UsageError(
            f"{file}: not found, so the text cannot be turned into tokens",
            hint="leave --text out: random tokens need no tokenizer",
        )
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    batches: list[torch.Tensor] = []
    room, most = TEXT_TOKENS, longest(loaded.model)
    for line in filter(None, map(str.strip, text.splitlines())):
        ids = tokenizer.encode(line).ids
        used = ids[:room]
        room -= len(used)
        batches += [torch.tensor([used[i : i + most]]) for i in range(0, len(used), most)]
        if len(used) < len(ids):
            return batches, [f"text: only its first {TEXT_TOKENS} tokens were used"]
    return batches, []


def longest(model: Any) -> int:
    """How many tokens a model is given at once.

    Where a table of positions has a row for padding, positions are counted from behind it.
    """
    config = model.config.get_text_config(decoder=True)
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    padded = [m for m in tables if getattr(m, "padding_idx", None) is not None]
    room: list[int] = [m.num_embeddings - m.padding_idx - 1 for m in padded]
    names = ("max_position_embeddings", "max_target_positions", "max_seq_len")
    limits = [int(getattr(config, name, None) or LENGTHS[-1]) for name in names]
    return min(LENGTHS[-1], *limits, *room)


def outputs(
    loaded: Loaded, batches: Sequence[Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """All that the heads of the class give, else the last hidden state, by name.

    Each is (predictions, classes) or (tokens, hidden), over all batches. A head that gives one
    number for every token, such as where a span starts, has predictions of one class.
    """
    rows: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        try:
            with torch.no_grad():
                result = loaded.model(**batch)
            heads = {name: value for name, value in result.items() if HEADS.search(name)}
            named = heads or {HIDDEN: result[HIDDEN]}
        except Exception as error:  # as in `load`
            raise VerifyError(
                f"{loaded.path}: {type(loaded.model).__name__} does not run: " + reason(error),
                hint=RUNS,
            ) from error
        for name, value in named.items():
            rows.setdefault(name, []).append(value.reshape(-1, value.shape[-1]))
    for name, values in rows.items():
        if len({value.shape[1] for value in values}) > 1:  # texts of several lengths
            rows[name] = [value.reshape(-1, 1) for value in values]
    return {name: torch.cat(values) for name, values in rows.items()}
