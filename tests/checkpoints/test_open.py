"""Store, reading: strict headers, one sentence for whatever is not a checkpoint, rows by pread."""

from __future__ import annotations

import json
import os
import re
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from support.raw_checkpoints import CONFIG, SHARDS, TENSORS, refused, save, write_index

from growkit.checkpoints.open import open_checkpoint
from growkit.checkpoints.rows import SourceRows
from growkit.checkpoints.types import Stored
from growkit.errors import CheckpointError, ResourceError


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def raw_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


# -- what can be read ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["file", "folder", "index", "shards", "shards without index"])
def test_all_layouts_give_the_same_bytes(tmp_path, how):
    """Every tensor of every dtype comes back, however the checkpoint is laid out and named."""
    folder = save(tmp_path / "m", shards=1 if how in ("file", "folder") else 2)
    if how == "shards without index":
        (folder / "model.safetensors.index.json").unlink()
    path = {"file": "model.safetensors", "index": "model.safetensors.index.json"}.get(how, "")
    checkpoint = open_checkpoint(folder / path)
    assert checkpoint.config == CONFIG
    assert {*checkpoint.tensors} == {*TENSORS}
    assert checkpoint.path == str(folder / path if how == "file" else folder)
    with SourceRows({"small": checkpoint}) as rows:
        for name, tensor in TENSORS.items():
            info = checkpoint.tensors[name]
            assert info.shape == tuple(tensor.shape)
            stored = Stored("small", name, info.shape, info.dtype)
            whole = rows(stored, 0, info.shape[0] if info.shape else 0)
            assert bytes(whole) == bytes(tensor.reshape(-1).view(torch.uint8).tolist()), name


def test_rows_are_slices_of_dim_0(tmp_path):
    """Rows [start, stop) are those bytes, and the memory belongs to the caller."""
    checkpoint = open_checkpoint(save(tmp_path))
    stored = Stored("a", "t1", (4, 3), "F32")
    with SourceRows({"a": checkpoint}) as rows:
        first, second = rows(stored, 1, 3), rows(stored, 3, 4)
        assert torch.frombuffer(first, dtype=torch.float32).tolist() == [3, 4, 5, 6, 7, 8]
        assert torch.frombuffer(second, dtype=torch.float32).tolist() == [9, 10, 11]
        assert len(rows(stored, 2, 2)) == 0


def test_tensors_stand_in_file_order(tmp_path):
    """By offset, file after file, whatever order the header has."""
    infos = [*open_checkpoint(save(tmp_path, shards=2)).tensors.values()]
    assert infos == sorted(infos, key=lambda t: (t.file, t.start, t.stop))


def test_config_from_elsewhere(tmp_path):
    """`config` stands in for a config.json that is not beside the weights."""
    file = save(tmp_path) / "model.safetensors"
    other = (tmp_path / "config.json").rename(tmp_path / "other.json")
    refused(file, match="config.json is missing", hint="--config")
    assert open_checkpoint(file, config=other).config == CONFIG


def test_retrained_source_has_another_identity(tmp_path):
    """Equal shapes, other values: the modification time tells, so the digest does."""
    folder = save(tmp_path)
    before = open_checkpoint(folder).files
    save_file({k: t + 1 for k, t in TENSORS.items() if k != "mask"}, folder / "model.safetensors")
    os.utime(folder / "model.safetensors", ns=(1, before[0].mtime_ns + 1))
    assert open_checkpoint(folder).files != before


# -- damaged files -------------------------------------------------------------------------------

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = bytes(8)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "truncated: found 0 bytes, expected at least 8"),
        (b"1234567", "truncated: found 7 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        ((10**9).to_bytes(8, "little"), "header of 1000000000 bytes, expected at most 100000000"),
        ((99).to_bytes(8, "little") + b"{}", "truncated: found 10 bytes, the header ends at 107"),
        (raw_file(b"{'a': 1}"), "header is not valid JSON"),
        (raw_file(b"[" * 50_000), "header is not valid JSON"),
        (raw_file(b"\xff\xfe"), "header is not valid JSON"),
        (raw_file(b'{"\\ud800": 1}'), "header is not valid JSON"),
        (raw_file([1]), "header is not a JSON object: found list"),
        (raw_file(b'{"a": 1, "a": 2}'), 'header is not valid JSON: "a" appears twice'),
        (raw_file({"__metadata__": {"format": 1}}), "__metadata__ is not a table of texts"),
        (raw_file({"a": 1}), "tensor a: expected dtype, shape and data_offsets, found 1"),
        (raw_file({"a": {**ENTRY, "x": 1}}, DATA), "tensor a: expected dtype, shape and data_off"),
        (raw_file({"a": {**ENTRY, "dtype": "F33"}}, DATA), "tensor a: dtype 'F33' is not known"),
        (raw_file({"a": {**ENTRY, "dtype": []}}, DATA), r"tensor a: dtype \[\] is not known"),
        (raw_file({"a": {**ENTRY, "shape": [-2]}}, DATA), r"shape \[-2\] is not a list of whole"),
        (raw_file({"a": {**ENTRY, "shape": [2.0]}}, DATA), r"shape \[2.0\] is not a list of whole"),
        (raw_file({"a": {**ENTRY, "shape": [True]}}, DATA), r"shape \[True\] is not a list"),
        (
            raw_file({"a": {**ENTRY, "data_offsets": [0]}}, DATA),
            r"data_offsets \[0\] is not a pair",
        ),
        (raw_file({"a": {**ENTRY, "shape": [3]}}, DATA), r"found 8 bytes, F32 \[3\] takes 12"),
        (raw_file({"a": {**ENTRY, "data_offsets": [8, 0]}}, DATA), "found -8 bytes"),
        (raw_file({"a": {**ENTRY, "data_offsets": [1, 9]}}, DATA), "hole of 1 bytes before a"),
        (
            raw_file({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)),
            "overlap of 4 bytes between a and b",
        ),
        (
            raw_file({"a": ENTRY, "b": {**ENTRY, "data_offsets": [9, 17]}}, bytes(17)),
            "hole of 1 bytes between a and b",
        ),
        (raw_file({"a": ENTRY}, DATA[1:]), r"truncated: found \d+ bytes, expected \d+"),
        (raw_file({"a": ENTRY}, DATA + b"x"), "1 bytes too many"),
        (raw_file({}), "holds no tensors"),
    ],
)
def test_damaged_file(tmp_path, content, match):
    """The file, what is wrong with it, and what was expected."""
    folder = save(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, match=f"(?s){re.escape(str(folder))}.*{match}")


@settings(max_examples=150)
@given(st.data())
def test_mutated_header_is_never_more_than_the_reference_reads(tmp_path_factory, data):
    """Any damage gives a CheckpointError or a file that the reference reader reads alike."""
    folder = save(tmp_path_factory.mktemp("mutated"))
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(raw[:8], "little")
    at = data.draw(st.integers(0, end - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "drop", "digit"]))
    if kind == "flip":
        raw[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del raw[at:]
    elif kind == "drop":
        del raw[at]
    else:
        raw[at] = ord(data.draw(st.sampled_from("0123456789")))
    path.write_bytes(raw)
    try:
        tensors = open_checkpoint(folder).tensors
    except CheckpointError:
        return
    try:
        with safe_open(path, "pt") as reader:
            shapes = {k: tuple(reader.get_slice(k).get_shape()) for k in reader.keys()}  # noqa: SIM118
    except SafetensorError as error:
        pytest.fail(f"read what the reference refuses: {error}")
    assert shapes == {name: info.shape for name, info in tensors.items()}


# -- index, config, links ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m | {"t0": "../x.safetensors"}, 'file name "../x.safetensors" leads out'),
        (lambda m: m | {"t0": "/etc/passwd"}, 'file name "/etc/passwd" leads out of the folder'),
        (lambda m: m | {"t0": "a\0b"}, 'file name "a.b" leads out of the folder'),
        (lambda m: m | {"t0": ""}, 'file name "" leads out of the folder'),
        (lambda m: m | {"t0": 1}, '"weight_map" is not a table'),
        (lambda m: [], '"weight_map" is not a table'),
        (lambda m: m | {"t0": "gone.safetensors"}, "1 of 3 shards missing, the first is gone"),
        (lambda m: m | {"t0": SHARDS[1]}, f"t0 is in {SHARDS[1]} by the index, in {SHARDS[0]} by"),
        (lambda m: m | {"more": SHARDS[0]}, "disagree on 1 tensors: more is .* in no file by the"),
        (lambda m: {k: v for k, v in m.items() if k != "t0"}, "t0 is in no file by the index"),
    ],
)
def test_wrong_index(tmp_path, change, match):
    """Missing shards, names that lead elsewhere, and any disagreement with the headers."""
    folder = save(tmp_path, shards=2)
    write_index(folder, change(weight_map(folder)))
    refused(folder, match=match)


def test_index_that_is_not_json(tmp_path):
    """The index is read as strictly as a header."""
    folder = save(tmp_path, shards=2)
    (folder / "model.safetensors.index.json").write_text("{")
    refused(folder, match="index is not valid JSON")


def test_tensor_in_two_shards(tmp_path):
    """The same name twice is ambiguous, with or without an index."""
    folder = save(tmp_path, shards=2)
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[0]).read_bytes())
    refused(folder, match=f"tensor .* is in both {SHARDS[0]} and {SHARDS[1]}")


def test_shard_missing_without_index(tmp_path):
    """The names of the shards say how many there should be."""
    folder = save(tmp_path, shards=2)
    (folder / "model.safetensors.index.json").unlink()
    (folder / SHARDS[0]).unlink()
    refused(folder, match="1 of 2 shards missing")
    refused(folder / SHARDS[1], match="one shard of 2", hint=str(folder))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "config.json is missing"),
        ("{", "config is not valid JSON"),
        ("[]", "config is not a JSON object: found list"),
    ],
)
def test_wrong_config(tmp_path, text, match):
    """A missing or malformed config.json, and how to name another one."""
    folder = save(tmp_path)
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    refused(folder, match=match, hint="--config")


def test_links_out_of_the_folder(tmp_path):
    """Refused in a folder, followed where the user named the link; the Hub's cache is a folder."""
    real = save(tmp_path / "elsewhere")
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).symlink_to(real / name)
    refused(folder, match="a link that leads out of the folder", hint="copy")
    assert open_checkpoint(folder / "model.safetensors").tensors

    commit = "0123456789" * 4
    cache = save(tmp_path / "models--org--name" / "snapshots" / commit)
    (cache.parent.parent / "blobs").mkdir()
    for path in [*cache.iterdir()]:
        path.symlink_to(path.rename(cache.parent.parent / "blobs" / f"sha-{path.name}"))
    checkpoint = open_checkpoint(cache)
    assert checkpoint.revision == commit
    assert open_checkpoint(cache / "model.safetensors").tensors == checkpoint.tensors


# -- side files ----------------------------------------------------------------------------------

TRAVELS = ["1_Pooling/config.json", "modules.json", "tokenizer.json", "vocab.txt"]
OWN = ["LICENSE", "modeling_custom.py"]
STAYS = [
    *("README.md", ".gitattributes", "growkit.json", "recipe.yaml", "training_args.bin"),
    *("growth.html", "growth.svg"),
    *("optimizer.pt", "rng_state_0.pth", "scheduler.pt", "trainer_state.json", "tf_model.h5"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "flax_model.msgpack", "x.gguf"),
    *("onnx/model.onnx", "onnx/config.json", "openvino/m.xml", "checkpoint-10/vocab.txt"),
    *("1_Pooling/deep/x.json", ".cache/x.json", "model.safetensors.index.json"),
]


def test_side_files(tmp_path):
    """A folder's own files travel, training's and other frameworks' do not; a file's by name."""
    for name in [*TRAVELS, *OWN, *STAYS]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('"x"')
    (tmp_path / "modules.json").write_text(
        '[{"path": ""}, {"path": "1_Pooling"}, {"path": "../x"}]'
    )
    save(tmp_path)
    assert {*open_checkpoint(tmp_path).side_files} == {*TRAVELS, *OWN}
    assert {*open_checkpoint(tmp_path / "model.safetensors").side_files} == {*TRAVELS}
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("/etc/hostname")
    refused(tmp_path, match="a link that leads out of the folder, to /etc/hostname")


# -- changed during the run ----------------------------------------------------------------------


def test_source_changed_since_planning(tmp_path):
    """Another size or modification time on open is refused."""
    folder = save(tmp_path)
    checkpoint = open_checkpoint(folder)
    file = folder / "model.safetensors"
    os.utime(file, ns=(1, checkpoint.files[0].mtime_ns + 1))
    with pytest.raises(CheckpointError, match="changed during the run: its modification time"):
        SourceRows({"a": checkpoint})
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=r"changed during the run: \d+ bytes planned, \d+ fo"):
        SourceRows({"a": checkpoint})
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot read: No such file"):
        SourceRows({"a": checkpoint})


def test_too_many_open_files(tmp_path):
    """The limit is named; nothing that was opened stays open."""
    checkpoint = open_checkpoint(save(tmp_path))
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(ResourceError, match="Too many open files") as caught:
            SourceRows({"a": checkpoint})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "ulimit" in caught.value.hint


def test_source_cut_while_reading(tmp_path):
    """A short read is no zeros, and the last check sees what was written over."""
    checkpoint = open_checkpoint(save(tmp_path))
    with SourceRows({"a": checkpoint}) as rows:
        os.truncate(tmp_path / "model.safetensors", checkpoint.tensors["t5"].start)
        with pytest.raises(CheckpointError, match="changed during the run: it ends 12 bytes early"):
            rows(Stored("a", "t5", (4, 3), "U8"), 0, 4)
        with pytest.raises(CheckpointError, match="changed during the run"):
            rows.check_unchanged()
