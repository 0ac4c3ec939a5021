"""Store, committing: nothing half-written in sight, and a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.shards import DIGEST, LAYOUT, expected, workspace, write_shard
from support.unprivileged import unprivileged

from growkit.checkpoints.open import open_checkpoint
from growkit.errors import CheckpointError, OutputError, ResourceError, UsageError
from growkit.output import workspace as commit_room
from growkit.output.layout import Layout, lay_out
from growkit.output.record import check_files, checksums, seal
from growkit.output.workspace import Workspace
from growkit.planning.formula import Formula


def fill(work: Workspace, extra: str = "") -> None:
    """Write a whole result and commit it."""
    tensors = {}
    for shard in LAYOUT.shards:
        mark = work.marks.finished(shard.name)
        if mark is None:
            work.marks.mark(shard, write_shard(work.folder, shard), {"note": 1})
            mark = work.marks.finished(shard.name)
        assert mark["extra"] == {"note": 1}
        tensors |= {name: {"file": shard.name, "crc32": crc} for name, crc in mark["crc32"].items()}
    work.add("config.json", "{}" + extra)
    files = {p.name: p.stat().st_size for p in work.folder.iterdir()}
    listed = {"files": files, "checksums": checksums(work.folder, files), "tensors": tensors}
    work.add("growkit.json", seal(json.dumps({"digest": work.marks.digest, **listed}).encode()))
    work.commit()


def make(out: Path, **kwargs) -> Path:
    with workspace(out, **kwargs) as work:
        assert not work.already_done
        fill(work)
    return out


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_mode_follows_the_umask(tmp_path, umask):
    """For files of tensors, for text, and for the folder."""
    before = os.umask(umask)
    try:
        with workspace(tmp_path / "out") as work:
            fill(work)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {0o666 & ~umask}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_whole_run(tmp_path):
    """OUT holds the shards and what was written beside them; nothing else is left anywhere."""
    out = make(tmp_path / "new" / "parent" / "out")
    found = snapshot(out)
    assert {*found} == {*(s.name for s in LAYOUT.shards), "config.json", "growkit.json"}
    assert all(found[s.name] == expected(s) for s in LAYOUT.shards)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert check_files(out) == []


def test_already_done(tmp_path):
    """The same digest, complete, is done at once; an empty OUT is as good as none."""
    out = tmp_path / "out"
    out.mkdir()
    before = snapshot(make(out))
    with workspace(out) as work:
        assert work.already_done
    assert snapshot(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_leftover_of_a_done_run_is_removed(tmp_path):
    """Killed between the rename and the clean-up: done, and cleaned up now."""
    out = make(tmp_path / "out")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "growkit.lock").write_text(DIGEST)
    with workspace(out) as work:
        assert work.already_done
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda out: (out / "growkit.json").unlink(), "not empty and has no growkit.json"),
        (lambda out: (out / "growkit.json").write_text("{"), "not empty and has no growkit.json"),
        (
            lambda out: (out / "growkit.json").write_text('{"digest": "x"}'),
            "result of another reci",
        ),
        (lambda out: (out / "config.json").unlink(), "but damaged: config.json: missing"),
        (lambda out: (out / "config.json").write_text("{} "), "config.json: found 3 bytes, expec"),
        (
            lambda out: (out / "growkit.json").write_text(json.dumps({"digest": DIGEST})),
            "but damaged: growkit.json: lists no files",
        ),
    ],
)
def test_out_holds_something_else(tmp_path, spoil, match):
    """Refused with what it holds, left alone; --overwrite replaces it by the whole result."""
    out = make(tmp_path / "out")
    spoil(out)
    before = snapshot(out)
    with pytest.raises(OutputError, match=match) as caught, workspace(out):
        pass
    assert "--overwrite" in caught.value.hint
    assert snapshot(out) == before
    make(out, overwrite=True)
    assert check_files(out) == []
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_overwrite_keeps_the_old_one_until_the_end(tmp_path, monkeypatch, exchange):
    """By one exchange, or by two renames where the system has none."""
    if not exchange:
        monkeypatch.setattr(commit_room, "_swap_folders", lambda left, right: False)
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with workspace(out, overwrite=True) as work:
        assert snapshot(out) == {"precious": b"x"}
        fill(work)
    assert check_files(out) == []
    assert "precious" not in snapshot(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_killed_between_two_renames(tmp_path):
    """The old OUT is put back before anything else."""
    make(tmp_path / "out").rename(tmp_path / "old")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "growkit.lock").write_text("another")
    (tmp_path / "old").rename(tmp_path / "out.partial" / "old")
    with workspace(tmp_path / "out") as work:
        assert work.already_done
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_out_appears_during_the_run(tmp_path):
    """What somebody else put there meanwhile is not replaced, and the work is kept."""
    with workspace(tmp_path / "out") as work:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("x")
        with pytest.raises(OutputError, match="somebody else wrote to it"):
            fill(work)
    assert snapshot(tmp_path / "out") == {"theirs": b"x"}
    assert (tmp_path / "out.partial").is_dir()


# -- resuming ------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from growkit.output.shard_writer import ShardWriter
from support.shards import LAYOUT, workspace, write_shard
with workspace(Path(sys.argv[1])) as work:
    first, second, *_ = LAYOUT.shards
    work.marks.mark(first, write_shard(work.folder, first), {"note": 1})
    with ShardWriter(work.folder, second) as writer:
        writer.begin(second.tensors[0])
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.alone
def test_killed_run_goes_on(tmp_path):
    """Only OUT.partial is left; the next run keeps the finished shard and gives the same bytes."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(out), str(Path(__file__).parents[1])]
    assert subprocess.run(command, check=False, timeout=300).returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["out.partial"]
    first, second, *_ = LAYOUT.shards
    with workspace(out) as work:
        assert {p.name for p in work.folder.iterdir()} == {first.name}
        kept = (work.folder / first.name).stat()
        assert work.marks.finished(second.name) is None
        fill(work)
    assert (out / first.name).stat().st_ino == kept.st_ino
    whole = make(tmp_path / "whole")
    assert snapshot(out) == snapshot(whole)


def test_failed_run_keeps_finished_shards_only(tmp_path):
    """A failure after a finished shard leaves it to be resumed; one before leaves nothing."""
    first = LAYOUT.shards[0]
    with workspace(tmp_path / "new" / "parent" / "out") as work:
        work.add("config.json", "{}")
    assert not [*tmp_path.iterdir()]
    with workspace(tmp_path / "out") as work:
        work.marks.mark(first, write_shard(work.folder, first))
    assert [p.name for p in tmp_path.iterdir()] == ["out.partial"]
    with workspace(tmp_path / "out") as work:
        assert work.marks.finished(first.name)["crc32"].keys() == {
            t.formula.name for t in first.tensors
        }
        os.utime(work.folder / first.name, ns=(1, 1))
        assert work.marks.finished(first.name) is None, "a mark is for the very file"


def test_partial_of_another_plan_is_cleared(tmp_path):
    """Shards of another digest are worth nothing."""
    first = LAYOUT.shards[0]
    with workspace(tmp_path / "out", "another") as work:
        work.marks.mark(first, write_shard(work.folder, first))
    with workspace(tmp_path / "out") as work:
        assert work.marks.finished(first.name) is None
        assert not [*work.folder.iterdir()]


def test_second_growkit_is_refused(tmp_path):
    """The lock holds while the first one works, and dies with it."""
    out = tmp_path / "out"
    with workspace(out) as work:
        with pytest.raises(OutputError, match="another growkit is writing it"), workspace(out):
            pass
        fill(work)
    with workspace(out) as work:
        assert work.already_done


# -- refused before anything is written ----------------------------------------------------------


@pytest.fixture
def source(tmp_path) -> Path:
    """A checkpoint folder with a side file."""
    folder = tmp_path / "m" / "source"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text('{"size": 4, "name": "é"}')
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("given_source", "out", "match"),
    [
        ("m/source", "m/source", "the output is the source"),
        ("m/source", "m/source/grown", "the output is inside the source"),
        ("m/source", "m", "the output contains the source"),
        ("m/source", "link", "the output is the source"),
        ("m/source", "link/grown", "the output is inside the source"),
        ("m/source/model.safetensors", "m/source/model.safetensors", "the output is the source"),
        ("m/source/model.safetensors", "m/source", "the output contains the source"),
        ("m/source.partial", "m/source", "the output is the source"),
    ],
)
def test_out_and_source_overlap(tmp_path, source, given_source, out, match):
    """Refused even with --overwrite, through links, and for the folder that work happens in."""
    if given_source.endswith("partial"):
        source.rename(tmp_path / given_source)
    (tmp_path / "link").symlink_to(source)
    before = snapshot(tmp_path)
    checkpoint = open_checkpoint(tmp_path / given_source)
    for overwrite in (False, True):
        work = workspace(tmp_path / out, sources=[checkpoint], overwrite=overwrite)
        with pytest.raises(UsageError, match=match), work:
            pass
    assert snapshot(tmp_path) == before


def test_out_beside_a_single_file(source):
    """A file's folder is not the file: the result may lie in it."""
    checkpoint = open_checkpoint(source / "model.safetensors")
    make(source / "grown", sources=[checkpoint])
    assert check_files(source / "grown") == []


def test_disk_too_small(tmp_path):
    """Said before anything is written, in numbers."""
    huge: Layout = lay_out([Formula("w", (1 << 50,), "F32")], max_shard_bytes=1 << 60)
    with pytest.raises(ResourceError, match=r"needs 4.5 PB of disk, .* free") as caught:
        workspace(tmp_path / "a" / "out", layout=huge).__enter__()
    assert "free 4.5 PB" in caught.value.hint
    assert not [*tmp_path.iterdir()]


def test_no_permission(tmp_path):
    """The folder above OUT may not be written."""
    tmp_path.chmod(0o555)
    with unprivileged(), pytest.raises(ResourceError, match="no permission to write"):
        workspace(tmp_path / "out").__enter__()


@pytest.mark.parametrize(
    ("out", "error", "match"),
    [
        ("file", OutputError, "file: exists and is not a folder"),
        ("file/out", UsageError, "file is not a folder"),
        ("other", OutputError, "other.partial: exists and was not made by growkit"),
        (".", OutputError, "holds the working folder"),
        ("/proc", UsageError, "a mount point"),
        ("/", UsageError, "a mount point"),
        ("loop", OutputError, "loop: exists and is not a folder"),
        ("x" * 256, ResourceError, "cannot write: File name too long"),
    ],
)
def test_no_place_for_out(tmp_path, monkeypatch, out, error, match):
    """Names that are taken by something that is not ours to replace."""
    (tmp_path / "file").touch()
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "theirs").touch()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match) as caught:
        workspace(Path(out), overwrite=True).__enter__()
    assert caught.value.hint
    assert len([*tmp_path.rglob("*")]) == 4


def test_working_folder(tmp_path, monkeypatch):
    """An empty one is not replaced: whoever stands in it would not see the result."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="the working folder, which one rename would") as caught:
        workspace(Path()).__enter__()
    assert caught.value.hint == "cd .. and give -o here"


# -- side files and the check of a result --------------------------------------------------------


def test_side_files_are_copied_or_edited(tmp_path, source):
    """Byte for byte; or through JSON where a grown size stands in one."""
    checkpoint = open_checkpoint(source)
    (name,) = checkpoint.side_files
    with workspace(tmp_path / "out", sources=[checkpoint]) as work:
        work.copy_side_file(checkpoint, name)
        assert (work.folder / name).read_bytes() == (source / name).read_bytes()
        work.copy_side_file(checkpoint, name, lambda value: value | {"size": 8})
        assert (work.folder / name).read_text() == '{\n  "size": 8,\n  "name": "é"\n}\n'
        (source / name).write_text("{")
        with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json: not valid JSON"):
            work.copy_side_file(checkpoint, name, lambda value: value)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda d: d[:-1] + bytes([d[-1] ^ 1]), r"model-\d+-of-\d+.safetensors: \w: checksum"),
        (lambda d: d[:-1], "truncated: found"),
        (lambda d: d[:8] + b"x" + d[9:], "header is not valid JSON"),
        (lambda d: d.replace(b'"b"', b'"x"'), "x: checksum .* expected no such tensor by growkit"),
    ],
)
def test_check_finds_one_altered_byte(tmp_path, spoil, match):
    """In the values, in the header, or at the end."""
    out = make(tmp_path / "out")
    path = out / next(s.name for s in LAYOUT.shards if s.tensors[0].formula.name == "b")
    path.write_bytes(spoil(path.read_bytes()))
    problems = "; ".join(check_files(out))
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(problems)


def test_check_finds_missing_files(tmp_path):
    """A file of the list, a file with tensors, growkit.json, or OUT itself."""
    out = make(tmp_path / "out")
    (out / LAYOUT.shards[0].name).unlink()
    assert check_files(out) == [f"{LAYOUT.shards[0].name}: missing"]
    (out / "growkit.json").write_text("[]")
    assert check_files(out) == ["growkit.json: missing or not valid JSON"]
    (out / "growkit.json").write_text("{}")
    assert check_files(out) == [
        f"growkit.json: {what}"
        for what in ("has no checksum of its own", "lists no files", "lists no tensors")
    ]
    with pytest.raises(CheckpointError, match="no such folder"):
        check_files(tmp_path / "nowhere")
