"""growkit as a step of a pipeline: what docs/pipelines.md promises to every engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.pipelines_page import rows
from support.processes import ENV, ended, growkit_in, pressed, start
from support.tiny import build, save

from growkit import errors
from growkit.cli.main import app

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
W = "--recipe double_width"
Told = tuple[int, dict[str, Any], str]


def first(section: str, number: int = 0) -> list[str]:
    """The names or numbers in the first column of a table."""
    return re.findall(r"\w+", " ".join(row[0] for row in rows(section, number)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny decoder, `small`, it grown, `big`, and `bad`, which is damaged."""
    folder = tmp_path_factory.mktemp("step")
    save(build("llama", "causal", dtype=torch.float32), folder / "small")
    growkit_in(folder, f"grow small {W} -o big")
    bad = shutil.copytree(folder / "big", folder / "bad")
    with (bad / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    return folder


@pytest.fixture
def told(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Told]:
    """`growkit LINE --json`: exit code, the object on stdout, the text on stderr."""
    monkeypatch.chdir(home)

    def call(line: str) -> Told:
        result = CliRunner().invoke(app, [*line.split(), "--json"], prog_name="growkit")
        return result.exit_code, json.loads(result.stdout), result.stderr

    return call


def test_the_page_has_every_exit_code() -> None:
    """Those of the errors, of signals, and 0."""
    kinds = [v for v in vars(errors).values() if isinstance(v, type)]
    own = {k.exit_code for k in kinds if issubclass(k, errors.GrowkitError)}
    assert sorted(map(int, first("Exit codes"))) == sorted({0, *own, 130, 143, 137})


def test_the_page_has_every_field(told: Callable[[str], Told]) -> None:
    """Of a growth, but for `pushed`, which only a push adds; and again, when it is done already."""
    for already in (False, True):
        code, object_, stderr = told(f"grow small {W} -o fields")
        assert (code, stderr, object_["already_done"]) == (0, "", already)
        assert sorted([*object_, "pushed"]) == sorted(first("`--json`"))


FAILURES = {
    1: ["verify small bad", "verify --files bad"],
    2: ["grow small", "grow small --recipe none", "finish nothing"],
    3: [f"grow ./none {W}", "families check README.md --config none.json", "verify --files none"],
    4: [f"grow small {W} -o o --max-memory 1MB", f"grow small {W} -o o --summary none/s.json"],
    5: [f"grow org/none {W}"],
    6: [f"grow small {W} -o big --seed 1"],
}


@pytest.mark.parametrize("line", [line for lines in FAILURES.values() for line in lines])
def test_every_failure_says_the_same(line: str, told: Callable[[str], Told]) -> None:
    """One object with the fields of the page, and the same sentence on stderr."""
    code, object_, stderr = told(line)
    assert line in FAILURES[code]
    assert object_["exit_code"] == code
    assert stderr == f"error: {object_['error']}\nhint: {object_['hint']}\n"
    common = first("`--json`", 1)
    if code != 5:
        common.remove("retryable")
    assert set(common) <= set(object_)
    if not line.startswith("verify"):
        assert set(common) == set(object_)


@pytest.mark.alone
def test_terminated(home: Path) -> None:
    """SIGTERM is exit code 143 in the object, too."""
    os.mkfifo(home / "slow.yaml")  # whoever reads it waits
    with start("grow", "small", "--recipe", "slow.yaml", "--json", cwd=home) as child:
        writer = os.open(home / "slow.yaml", os.O_WRONLY)  # returns when it is being read
        try:
            stdout, _ = pressed(child, signal.SIGTERM)
        finally:
            child.kill()
            os.close(writer)
    assert (child.returncode, json.loads(stdout)["exit_code"]) == (143, 143)


@pytest.mark.slow
def test_nothing_around(home: Path) -> None:
    """No terminal, no standard input, no HOME, no settings: lines of text and no control codes."""
    kept = {name: ENV[name] for name in ("PATH", "PYTHONPATH")}
    line = f"grow small {W} -o alone --max-shard-size 2kB --verify"
    child = start(
        *line.split(),
        cwd=home,
        env={**kept, "HOME": "/dev/null/home"},
        preexec_fn=lambda: os.close(0),  # and not an empty one
    )
    code, stdout, stderr = ended(child)
    assert code == 0, stderr
    assert stdout.endswith("passed\n")
    assert not CONTROL.search(stdout + stderr)
    assert all(said.startswith("growing: ") for said in stderr.splitlines())
