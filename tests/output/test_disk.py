"""Disks that are full or read-only, and sources that change: nothing lost, nothing half-written.

The disks are real: a few megabytes in a mount namespace of their own. What goes wrong in the middle
of a run does so in the callback that reports its progress.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.full_disk import on_small_disk
from support.tiny import build, save

from growkit.api import grow
from growkit.errors import CheckpointError
from growkit.output.record import check_files

NAMED = ("growkit.json", "README.md")  # files that name times

# Grows on a disk that is filled but for so many bytes once a share of the work is done; makes room;
# grows again.
FILLED = """
import errno, json, os, shutil, sys
from growkit.errors import GrowkitError
from growkit.api import grow

source, moment, left, keep = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def fill(done, total):
    if done < moment * total or os.path.exists("filler"):
        return
    with open("filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(file.tell() - left)

def run(**options):
    return grow(source, "double_depth", out="out", max_shard_size="2MB", **options)

try:
    run(progress=fill)
except GrowkitError as error:
    told = {"code": error.exit_code, "message": error.message, "hint": error.hint}
told["visible"] = os.path.exists("out")
os.remove("filler")
marks = [name for name in os.listdir("out.partial" if os.path.exists("out.partial") else ".")]
told["kept"] = sorted(name[:-5] for name in marks if name.endswith(".done"))
before = {name: os.stat(f"out.partial/model/{name}").st_ino for name in told["kept"]}
run()
told["same"] = before == {name: os.stat(f"out/{name}").st_ino for name in before}
shutil.copytree("out", keep)
print(json.dumps(told))
"""

# Grows on a disk that is read-only, or too small from the start, through the command itself.
REFUSED = """
import os, subprocess, sys
from growkit.cli import app

if sys.argv[2:] == ["read-only"]:
    subprocess.run(["mount", "-o", "remount,ro", "."], check=True)
try:
    app(["grow", sys.argv[1], "--recipe", "double_depth", "-o", "out", "--json", "-q"])
except SystemExit as error:
    assert error.code == 4, error.code
assert not os.listdir(".")
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 3 MB with a tokenizer of 1 MB."""
    model = build("llama", "causal", heads=8, head_dim=16, mlp=300, vocab=2000, dtype=torch.float32)
    folder = save(model, tmp_path_factory.mktemp("model") / "small")
    (folder / "tokenizer.json").write_text(f'"{"x" * 1_000_000}"')
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder that does not name times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in NAMED)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def deeper(source: Path, out: Path, **options: Any) -> None:
    """The growth that all these tests do."""
    grow(source, "double_depth", out=out, max_shard_size="2MB", **options)


@pytest.fixture(scope="module")
def whole(small: Path) -> dict[str, bytes]:
    """What an undisturbed run gives."""
    deeper(small, small.parent / "whole")
    return contents(small.parent / "whole")


@pytest.mark.alone
@pytest.mark.parametrize(
    ("moment", "left", "kept", "match"),
    [
        (0.01, 200_000, 1, r"-00002-of-.* needs \d+(\.\d+)? MB, \d+(\.\d+)? kB free on this disk"),
        (0.5, 200_000, 2, r"-00003-of-.* needs \d+(\.\d+)? MB, \d+(\.\d+)? kB free on this disk"),
        (1.0, 200_000, 4, r"tokenizer\.json.*: 0 B free on this disk"),
        (0.5, 0, 1, r"-00002-of-.*done: .*: 0 B free on this disk"),
        (0.01, 0, 0, r"-00001-of-.*done: .*: 0 B free on this disk"),
    ],
    ids=["second file", "third file", "side file", "mark", "first mark"],
)
def test_disk_full(
    moment: float,
    left: int,
    kept: int,
    match: str,
    small: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """A disk that fills up in the middle: exit code 4, and the next run goes on from there."""
    before = contents(small)
    printed = on_small_disk(
        *(tmp_path / "disk", "32m", FILLED),
        *(str(small), str(moment), str(left), str(tmp_path / "out")),
    )
    told = json.loads(printed)
    assert told["code"] == 4
    assert "No space left on device" in told["message"]
    assert re.search(match, told["message"]), told["message"]
    assert told["hint"].startswith("free some space")
    assert not told["visible"]
    assert told["kept"] == sorted(name for name in whole if name.endswith("safetensors"))[:kept]
    assert told["same"]
    assert contents(tmp_path / "out") == whole
    assert check_files(tmp_path / "out") == []
    assert contents(small) == before


@pytest.mark.alone
@pytest.mark.parametrize(
    ("size", "option", "match"),
    [
        ("4m", "", r"disk/out: needs \d+(\.\d+)? MB of disk, 4\.19 MB free"),
        ("32m", "read-only", r"disk/out: no permission to write: Read-only file system"),
    ],
)
def test_disk_refused(size: str, option: str, match: str, small: Path, tmp_path: Path) -> None:
    """Too small for the plan, or read-only: exit code 4 before anything is written."""
    arguments = (str(small), *filter(None, [option]))
    told = json.loads(on_small_disk(tmp_path / "disk", size, REFUSED, *arguments))
    assert told["exit_code"] == 4
    assert re.search(match, told["error"]), told["error"]
    assert told["hint"]


# -- sources that change ---------------------------------------------------------------------------

WEIGHTS = "model.safetensors"


def replace(source: Path) -> None:
    """Another file of the same size and time, as rsync or git would put it there."""
    shutil.copy2(source / WEIGHTS, source / "new")
    (source / "new").replace(source / WEIGHTS)


def append(source: Path) -> None:
    """One byte more."""
    with (source / WEIGHTS).open("ab") as file:
        file.write(b"x")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "size": (append, r"changed during the run: \d+ bytes planned, \d+ found"),
    "cut": (lambda s: os.truncate(s / WEIGHTS, 5000), "changed during the run: "),
    "time": (lambda s: (s / WEIGHTS).touch(), "changed during the run: its modification time"),
    "replaced": (replace, "changed during the run: another file has its name"),
    "removed": (lambda s: (s / WEIGHTS).unlink(), "model.safetensors: .*no longer there|No such"),
    "folder": (shutil.rmtree, "model.safetensors: .*no longer there|No such file"),
    "tokenizer": (
        lambda s: (s / "tokenizer.json").unlink(),
        "tokenizer.json: cannot read: No such",
    ),
}


@pytest.mark.parametrize(("change", "match"), CHANGES.values(), ids=CHANGES)
def test_source_changes(
    change: Callable[[Path], object],
    match: str,
    small: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """A source that changes in the middle of a run: exit code 3; put back, the run goes on."""
    source, out = shutil.copytree(small, tmp_path / "small"), tmp_path / "out"
    done = False

    def disturb(count: int, total: int) -> None:
        nonlocal done
        if count > 0.6 * total and not done:
            done = True
            change(source)

    with pytest.raises(CheckpointError, match=match) as caught:
        deeper(source, out, progress=disturb)
    assert caught.value.hint
    assert not out.exists()
    marked = [path.stem for path in (tmp_path / "out.partial").glob("*.done")]
    kept = {name: (tmp_path / "out.partial/model" / name).stat().st_ino for name in marked}
    assert kept
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(small, source)
    deeper(source, out)
    assert kept == {name: (out / name).stat().st_ino for name in kept}
    assert contents(out) == whole
