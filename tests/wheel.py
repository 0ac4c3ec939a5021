"""What `make wheel` has run reaches all of the installed growkit. It runs this file last."""

from __future__ import annotations

import ast
from pathlib import Path

import reached

import growkit

PACKAGE = Path(growkit.__file__).parent


def test_it_is_the_installed_one() -> None:
    """Not a checkout: the tests lie elsewhere."""
    assert "site-packages" in PACKAGE.parts
    assert not (Path(__file__).parents[1] / "growkit").exists()


def test_every_file_of_code_was_run() -> None:
    """A function of each file at least, of those that have any."""
    code = {str(file) for file in PACKAGE.rglob("*.py") if has_functions(file)}
    assert sorted(code - reached.reached()) == []


def has_functions(file: Path) -> bool:
    """Whether it defines any."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return any(isinstance(node, ast.FunctionDef) for node in nodes)


def test_all_data_was_read() -> None:
    """Each family and each recipe."""
    data = {str(file) for file in PACKAGE.rglob("*.yaml")}
    assert len(data) > 60
    assert sorted(data - reached.reached()) == []
