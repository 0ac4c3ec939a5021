"""Store, writing one file: every byte once, and as the reference reader expects it."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import zlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from support.shards import FORMULAS, content, expected, write_shard

from growkit.dtypes import ITEM_BYTES
from growkit.errors import ResourceError
from growkit.output import append as stream_room
from growkit.output.layout import lay_out
from growkit.output.shard_writer import ShardWriter
from growkit.planning.formula import Formula


def refuse_direct(pwrite: Callable[..., int], after: int = 40_000) -> Callable[..., int]:
    """A system that takes direct writes at first, and then no more."""

    def refusing(fd: int, data: memoryview, offset: int) -> int:
        if offset > after and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return pwrite(fd, data, offset)

    return refusing


def test_errors_of_the_thread_are_told(tmp_path, monkeypatch):
    """A disk that fills up behind our back: told at the latest when the file is finished."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    (shard,) = lay_out(FORMULAS, max_shard_bytes=10**9).shards
    with pytest.raises(ResourceError, match=r"No space left on device: needs 4.31 kB"):
        write_shard(tmp_path, shard)
    assert not [*tmp_path.iterdir()]


@given(
    st.lists(
        st.builds(
            Formula,
            name=st.text("abc.é", min_size=1, max_size=3),
            shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
            dtype=st.sampled_from(sorted(ITEM_BYTES)),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda f: f.name,
    ),
    st.integers(1, 50),
)
def test_reference_reader_gets_what_was_written(tmp_path_factory, formulas, step):
    """All dtypes and shapes, in blocks of any size, read back by safetensors itself."""
    folder = tmp_path_factory.mktemp("shard")
    (shard,) = lay_out(formulas, max_shard_bytes=10**9).shards
    checksums = write_shard(folder, shard, step)
    assert (folder / shard.name).read_bytes() == expected(shard)
    with safe_open(folder / shard.name, "pt") as reader:
        assert reader.metadata() == {"format": "pt"}
        for formula in formulas:
            tensor = reader.get_tensor(formula.name)
            assert tuple(tensor.shape) == formula.shape
            raw = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
            assert raw == content(formula)
            assert checksums[formula.name] == f"{zlib.crc32(raw):08x}"


@pytest.mark.parametrize("way", ["direct", "refused", "windows", "plain"])
def test_every_way_to_the_disk(tmp_path, monkeypatch, way):
    """Many buffers: past the cache, refused on the way, by windows, and without any such call."""
    monkeypatch.setattr(stream_room, "BUFFER", 1 << 12)
    monkeypatch.setattr(stream_room, "WINDOW", 1 << 14)
    if way == "refused":
        monkeypatch.setattr(os, "pwrite", refuse_direct(os.pwrite))
    if way in ("windows", "plain"):
        monkeypatch.delattr(os, "O_DIRECT")
    if way == "plain":
        monkeypatch.delattr(os, "posix_fadvise")
        monkeypatch.delattr(os, "posix_fallocate")
    (shard,) = lay_out([Formula("w", (100, 333), "F32"), *FORMULAS], max_shard_bytes=10**9).shards
    write_shard(tmp_path, shard, 1000)
    assert (tmp_path / shard.name).read_bytes() == expected(shard)


def test_every_byte_exactly_once(tmp_path):
    """A tensor out of order, too short, too long, or left out is our own mistake."""
    (shard,) = lay_out(FORMULAS, max_shard_bytes=10**9).shards
    first, second, *_ = shard.tensors
    with ShardWriter(tmp_path, shard) as writer:
        with pytest.raises(AssertionError, match="out of order"):
            writer.begin(second)
        writer.begin(first)
        writer.write(b"x")
        with pytest.raises(AssertionError, match="not written to its last byte"):
            writer.end()
        writer.write(bytes(first.stop - first.start))
        with pytest.raises(AssertionError, match="not written to its last byte"):
            writer.end()
        with pytest.raises(AssertionError, match="tensors are missing"):
            writer.finish()
    assert not [*tmp_path.iterdir()]


def test_no_room_for_the_file(tmp_path):
    """The file is reserved before the work; what does not fit leaves nothing behind."""
    (shard,) = lay_out([Formula("w", (1 << 20,), "F32")], max_shard_bytes=10**9).shards
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with (
            pytest.raises(ResourceError, match=r"File too large: needs 4.2 MB, .* free") as caught,
            ShardWriter(tmp_path, shard),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "run again to resume" in caught.value.hint
    assert not [*tmp_path.iterdir()]
