"""Names that training leaves, tensors that are left out, and tokens that a tokenizer has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.raw_checkpoints import save

from growkit.checkpoints.names import Named, named
from growkit.checkpoints.open import open_checkpoint
from growkit.checkpoints.rows import SourceRows
from growkit.checkpoints.tokens import count_tokens
from growkit.checkpoints.types import Stored, TensorInfo
from growkit.errors import CheckpointError, UsageError


def named_as(*names: str, drop: tuple[str, ...] = ()) -> Named:
    """What becomes of tensors with these names."""
    return named({n: TensorInfo(n, "F32", (1,), "", 0, 4) for n in names}, drop)


@pytest.mark.parametrize(
    ("on_disk", "bare", "wrappers"),
    [
        (["module.a.b", "module.c"], ["a.b", "c"], "module."),
        (["_orig_mod.a", "_orig_mod.module.b"], ["a", "module.b"], "_orig_mod."),
        (["module._orig_mod.a"], ["a"], "module._orig_mod."),
        (["_orig_mod.module.a"], ["a"], "_orig_mod., module."),
        (["base_model.model.model.a"], ["model.a"], "base_model.model."),
        (["model._orig_mod.model.a", "model._orig_mod.head"], ["model.a", "head"],
         "model._orig_mod."),
        (["model._orig_mod.a", "head"], ["model.a", "head"], "_orig_mod."),
        (["l.0._fsdp_wrapped_module.a", "l.1._checkpoint_wrapped_module.a"], ["l.0.a", "l.1.a"],
         "_checkpoint_wrapped_module., _fsdp_wrapped_module."),
        (["module.a", "b"], ["module.a", "b"], ""),
        (["sub_module.a", "not_orig_mod.a"], ["sub_module.a", "not_orig_mod.a"], ""),
    ],
)  # fmt: skip
def test_words_of_wrappers(on_disk: list[str], bare: list[str], wrappers: str) -> None:
    """They are taken off and told; a module of the model itself keeps its name."""
    model = named_as(*on_disk)
    assert [*model.tensors] == bare
    assert [info.name for info in model.tensors.values()] == on_disk
    assert ", ".join(model.wrappers) == wrappers
    said = [f"names lose {wrappers}, which a wrapper of training put there"] if wrappers else []
    assert [*model.notes] == said


def test_two_names_that_are_one_without_wrappers() -> None:
    """Which of the two it is cannot be known."""
    with pytest.raises(CheckpointError, match=r"tensor a is there twice, once as _orig_mod\.a"):
        named_as("a", "_orig_mod.a")


def test_dropped_by_pattern() -> None:
    """Each is told with its pattern, before wrappers are looked for; the others stay."""
    model = named_as("module.a.scale", "n", "module.b", drop=("*.scale", "n"))
    assert [*model.tensors] == ["b"]
    assert model.dropped == (
        "module.a.scale: left out by --drop *.scale",
        "n: left out by --drop n",
    )
    with pytest.raises(UsageError, match=r'--drop: no tensor fits "x\.\*"'):
        named_as("a", drop=("x.*",))
    with pytest.raises(UsageError, match="--drop leaves no tensor"):
        named_as("a", drop=("*",))


def test_rows_by_the_names_without_wrappers(tmp_path: Path) -> None:
    """A checkpoint has its own names only, and its rows are found by them."""
    folder = save(tmp_path)
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    entries = {
        n if n.startswith("__") else f"module.{n}": e for n, e in json.loads(raw[8:end]).items()
    }
    header = json.dumps(entries).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[end:])
    checkpoint = open_checkpoint(folder, drop=["module.empty"])
    info = checkpoint.tensors["t1"]
    with SourceRows({"s": checkpoint}) as rows:
        assert (
            bytes(rows(Stored("s", "t1", info.shape, info.dtype), 0, 1))
            == raw[end + info.start - 8 - len(header) :][:12]
        )


VOCAB = {"model": {"vocab": {"a": 0, "b": 4}, "merges": ["a b"]}}


@pytest.mark.parametrize(
    ("tokenizer", "count"),
    [
        (VOCAB, 5),
        (VOCAB | {"added_tokens": [{"id": 7, "content": '"vocab": {'}]}, 8),
        ({"added_tokens": [{"id": 1}, {}, 3], **VOCAB}, 5),
        ({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}, 2),
        ({"model": {"vocab": {}}}, None),
        ({"model": 3, "added_tokens": 3}, None),
        ([], None),
        ({"model": {"vocab": [0] * 1_000_002}}, None),
    ],
)
def test_tokens_of_a_tokenizer(tmp_path: Path, tokenizer: object, count: int | None) -> None:
    """The highest id counts, of tokens that were added, too; what says none is no error."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(tokenizer))
    assert count_tokens(tmp_path, [file.name]) == count
    file.write_text('{"model": {"vocab": {"a": 0, ')
    assert count_tokens(tmp_path, [file.name]) is None
    assert count_tokens(tmp_path, []) is None
