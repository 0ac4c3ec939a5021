"""Which files of growkit have run and which of its data was read, by any process of an environment.

`make wheel` puts this file into the environment that it tests, and a line that imports it whenever
Python starts there. What a process reached it leaves in a folder when it ends; `tests/wheel.py`,
which runs last, asks for all of it.
"""

from __future__ import annotations

import atexit
import cProfile
import inspect
import json
import os
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "reached"
_profile = cProfile.Profile(builtins=False)
_read: set[str] = set()


def reached() -> set[str]:
    """Files of this process and of those that have ended: code of which a function ran, YAML."""
    _profile.disable()  # which counts the calls that it has not seen return
    found = _here()
    _profile.enable()
    for file in FOLDER.glob("*.json"):
        found |= {*json.loads(file.read_text(encoding="utf-8"))}
    return found


def _here() -> set[str]:
    codes = (entry.code for entry in _profile.getstats() if not isinstance(entry.code, str))
    functions = (c for c in codes if c.co_flags & inspect.CO_OPTIMIZED)  # no module, no class body
    return _read | {code.co_filename for code in functions if "growkit" in code.co_filename}


def _opened(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith(".yaml"):
        _read.add(str(arguments[0]))


def _leave() -> None:
    _profile.disable()
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(sorted(_here()))
    (FOLDER / f"{os.getpid()}.json").write_text(text, encoding="utf-8")


if __name__ == "reached":
    atexit.register(_leave)
    sys.addaudithook(_opened)
    _profile.enable()
