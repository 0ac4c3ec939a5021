"""Files of the user beside OUT: the page of --html, the maps of --maps, a --summary, a shell's own.

The law: a page replaces a page and nothing else; maps replace nothing, and the very same maps that
are there already will do; a summary is written to whatever has its name, a pipe as well; what a
shell reads when it starts is only added to.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from growkit.algebra.kernel import FloatArray
from growkit.checkpoints.matrices import read_matrices
from growkit.errors import CheckpointError, OutputError
from growkit.os_errors import writing

DOCTYPE = b"<!doctype html>"


def write_page(path: Path, text: str) -> None:
    """Write a page. Raises OutputError where another file is, such as the one next to it."""
    with writing(path):
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(len(DOCTYPE))
            if start and start.lower() != DOCTYPE:
                raise OutputError(
                    f"{path}: is there and holds no page", hint="give --html another name"
                )
        path.write_text(text, encoding="utf-8")


def write_maps(path: Path, arrays: Mapping[str, FloatArray]) -> None:
    """Write these arrays in float64. A file that is there must already hold the very same."""
    with writing(path, size=sum(8 * array.size for array in arrays.values())):
        if path.exists():
            if path.is_file() and _same(path, arrays):
                return
            raise OutputError(
                f"{path}: is there already, with something else in it",
                hint="choose another name, or remove it first",
            )
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            doubles = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
            save_file(doubles, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(path)
        except SafetensorError as error:  # what the disk says stands in its text
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
        finally:
            temporary.unlink(missing_ok=True)


def _same(path: Path, arrays: Mapping[str, FloatArray]) -> bool:
    try:
        present = read_matrices(path)
    except CheckpointError:
        return False
    return present.keys() == arrays.keys() and all(
        np.array_equal(present[name], array) for name, array in arrays.items()
    )


def add_line(path: Path, line: str) -> None:
    """A line at the end of a text file, unless it is there."""
    with writing(path):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if line not in text.splitlines():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(("\n" if text and not text.endswith("\n") else "") + line + "\n")


def refuse_unwritable(path: Path) -> None:
    """Raise ResourceError if there can be no such file; nothing is made or changed."""
    with writing(path):
        if not path.exists():
            tempfile.TemporaryFile(dir=path.parent).close()
        elif path.is_file() or path.is_dir():  # a pipe would end for its reader
            os.close(os.open(path, os.O_WRONLY))


def write_summary(path: Path, text: str) -> None:
    """Write the file; what a link leads to, a device or a pipe will do as well."""
    with writing(path):
        path.write_text(text, encoding="utf-8")
