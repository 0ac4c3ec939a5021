"""Python code on a small disk of its own, which really is full when it is full.

The disk is a tmpfs in a mount namespace: no privileges are needed where the system lets users make
namespaces, and it goes with the last process that sees it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import growkit as package


def on_small_disk(folder: Path, size: str, code: str, *args: str) -> str:
    """What `code` prints, run in `folder`, which is a disk of `size` for it alone."""
    folder.mkdir()
    at = shlex.quote(str(folder))
    script = f'mount -t tmpfs -o size={size} tmpfs {at} && cd {at} && exec "$0" "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(
        [*command, sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(package.__file__).parents[1])},
    )
    assert done.returncode == 0, f"does this machine allow mount namespaces? {done.stderr}"
    return done.stdout
