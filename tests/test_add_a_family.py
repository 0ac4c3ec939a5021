"""docs/add_a_family.md: every word of the grammar is on the page, and its commands run in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zoo

from growkit.family import KINDS
from growkit.family_file import KEYS

PAGE = (Path(__file__).parent.parent / "docs" / "add_a_family.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (growkit .*)$", PAGE, flags=re.M)


@pytest.mark.parametrize("word", [*KINDS, *KEYS])
def test_the_grammar_is_explained(word: str) -> None:
    """Every kind of axis and every key of the file."""
    assert re.search(rf"`[^`]*\b{word}\b[^`]*`|^ *{word}:", PAGE, flags=re.M), word


@pytest.mark.slow
def test_the_page_is_walked(tmp_path: Path) -> None:
    """The commands of the page, on the draft that they make."""
    model = zoo.build(zoo.models()["qwen3/causal"])
    zoo.save(model, tmp_path / "small")
    (tmp_path / "config.json").write_bytes((tmp_path / "small" / "config.json").read_bytes())
    assert len(COMMANDS) == 3
    for command in COMMANDS:
        line = command.replace("growkit ", f"{sys.executable} -m growkit ", 1)
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=os.environ, capture_output=True)
        assert done.returncode == 0, f"{command}: {done.stderr.decode()} {done.stdout.decode()}"
    assert (tmp_path / "big" / "model.safetensors").is_file()
