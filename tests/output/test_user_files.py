"""Store, the file of --summary: there is a place for it, or the work does not begin."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from growkit.errors import ResourceError
from growkit.output.user_files import refuse_unwritable, write_summary


@pytest.mark.parametrize("there", [True, False])
def test_a_file_is_replaced(tmp_path: Path, there: bool) -> None:
    """Asking changes nothing; writing replaces what is there."""
    path = tmp_path / "summary.json"
    if there:
        path.write_text("older")
    refuse_unwritable(path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["older"] * there
    write_summary(path, "new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_a_link_and_a_pipe_are_written_to(tmp_path: Path) -> None:
    """They stay what they are, so `--summary /dev/stderr` works; asking ends no pipe."""
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").write_text("old and longer")
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    for name in ("link", "pipe"):
        refuse_unwritable(tmp_path / name)
        write_summary(tmp_path / name, "new")
    reader.join(timeout=10)
    assert read == ["new"]
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["none/s.json", ".", "file/s.json"])
def test_no_place(tmp_path: Path, name: str) -> None:
    """No such folder, a folder in its place, or a file above it."""
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot write: (No such file|Is a dir|Not a dir)"):
        refuse_unwritable(tmp_path / name)
