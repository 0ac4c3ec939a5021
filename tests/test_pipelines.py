"""The examples of pipelines.md, run by their tools: everything, nothing, and what has changed.

DVC and Snakemake come from `make slow`, which puts them into an environment of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trained
import yaml
from pages import LEFT_OUT, Block, blocks
from processes import ENV, growkit_in
from test_step import PAGE, rows
from tiny import build, save

TOOLS = trained.ROOT / "build" / "pipelines" / "bin"
STEPS = ["small", "grown", "verified"]
ROWS = rows("Exit codes")


def found_in(section: str, kind: str) -> list[Block]:
    """The blocks of a kind in a section of the page; console blocks by their commands."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return [block for block in blocks(text) if block.kind == kind]


def block(section: str, kind: str) -> str:
    """The only block of a kind in a section of the page."""
    (found,) = found_in(section, kind)
    return found.code


def tool(name: str) -> None:
    """A program that only the examples need is there."""
    path = TOOLS / name
    if not path.exists():
        message = f"{path} is missing: `make slow` installs it"
        pytest.fail(message, pytrace=False) if os.environ.get("CI") else pytest.skip(message)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A copy of the examples, which has its own HOME, and growkit and python to call."""
    folder = shutil.copytree(trained.ROOT / "examples", tmp_path / "examples")
    (tmp_path / "bin").mkdir()
    for name, words in (("python", ""), ("growkit", "-m growkit ")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {words}"$@"\n')
        program.chmod(0o755)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Of somebody who works in a copy of the examples."""
    top = next(path for path in folder.parents if (path / "bin").exists())
    return ENV | {
        "PATH": os.pathsep.join([str(top / "bin"), str(TOOLS), ENV["PATH"]]),
        "HOME": str(top),
        "XDG_CACHE_HOME": str(top / "cache"),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(top / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(top / "config"),
    }


def run(folder: Path, *command: str) -> str:
    """All that a successful command prints."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def typed(folder: Path, section: str) -> str:
    """All that the commands of a section print, with every line that the page shows."""
    commands = found_in(section, "console")
    said = run(folder, "bash", "-ec", "\n".join(command.code for command in commands))
    shown = {line for command in commands for line in command.shown.splitlines()}
    assert shown <= {LEFT_OUT, *said.splitlines()}
    return said


def layers(folder: Path) -> int:
    """Of the grown model."""
    return int(json.loads((folder / "grown" / "config.json").read_text())["num_hidden_layers"])


def edit(path: Path, old: str, new: str) -> None:
    """Change a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def inode(folder: Path) -> int:
    """Which file the weights are."""
    return (folder / "model.safetensors").stat().st_ino


def left_behind(folder: Path) -> int:
    """What a growth leaves that is killed when the weights are written, and before the end."""
    command = "grow small --recipe recipe.yaml --seed 0 -o grown --rank 0 --world 2"
    run(folder, "growkit", *command.split())
    assert not (folder / "grown").exists()
    return inode(folder / "grown.partial" / "model")


@pytest.mark.slow
def test_dvc(home: Path) -> None:
    """The page's commands; then a change runs what depends on it, and nothing else."""
    here, stages = home / "dvc", re.compile(r"^Running stage '(\w+)'", flags=re.MULTILINE)
    tool("dvc")
    said = typed(home, "DVC")
    assert stages.findall(said) == STEPS, "the second time there is nothing to do"
    assert "up to date" in said
    assert "exactness.claim" in said
    assert json.loads((here / "verified.json").read_text())["passed"] is True

    def repro(*more: str) -> list[str]:
        return stages.findall(run(here, "dvc", "repro", *more))

    edit(here / "recipe.yaml", "layers: 2x", "layers: 3x")
    assert repro() == STEPS[1:]
    assert layers(here) == 6
    edit(here / "recipe.yaml", "steps:", "# the same\nsteps:")
    assert repro() == []
    edit(here / "params.yaml", "layers: 2", "layers: 1")
    assert repro("small") == STEPS[:1]
    shutil.rmtree(here / "grown")
    written = left_behind(here)
    assert repro() == STEPS[1:]
    assert (layers(here), inode(here / "grown")) == (3, written), "it was not resumed"


@pytest.mark.slow
def test_snakemake(home: Path) -> None:
    """The page's commands; then a change runs what depends on it, and a killed growth resumes."""
    here, rules = home / "snakemake", re.compile(r"^(?:local)?rule (\w+):", flags=re.MULTILINE)
    tool("snakemake")
    said = typed(home, "Snakemake")
    found = [name for name in rules.findall(said) if name != "all"]
    assert found == ["small", "grow", "verify", "grow", "verify"], "all, nothing, another seed"
    assert "Nothing to be done" in said
    assert json.loads((here / "verified.json").read_text())["passed"] is True
    edit(here / "recipe.yaml", "layers: 2x", "layers: 3x")
    shutil.rmtree(here / "grown")
    written = left_behind(here)
    again = [name for name in rules.findall(run(here, "snakemake", "-c1")) if name != "all"]
    assert again == ["grow", "verify"]
    assert (layers(here), inode(here / "grown")) == (6, written), "it was not resumed"
    assert "every file is as it was written" in run(here, "growkit", "verify", "--files", "grown")


@pytest.mark.slow
def test_make(home: Path) -> None:
    """Everything, nothing, and another recipe in place of the old result."""
    here = home / "dvc"  # for its recipe
    (here / "Makefile").write_text(block("Make", "make"))
    save(build("llama", "causal", dtype=torch.float32), here / "small")
    assert len(re.findall("^growkit ", run(here, "make", "verified.json"), flags=re.M)) == 2
    assert "is up to date" in run(here, "make", "verified.json")
    edit(here / "recipe.yaml", "layers: 2x", "layers: 3x")
    run(here, "make", "verified.json")
    assert layers(here) == 6
    edit(here / "recipe.yaml", "layers: 3x", "layers: lots")
    failed = subprocess.run(["make", "verified.json"], cwd=here, env=environment(here), check=False)
    assert failed.returncode == 2
    assert layers(here) == 6, "the old result is gone"


def test_argo(home: Path) -> None:
    """The command with its parameters runs, and retries are those of the table of exit codes."""
    page = yaml.safe_load(block("Argo Workflows", "yaml"))
    parameters = page["spec"]["arguments"]["parameters"]
    (template,) = page["spec"]["templates"]
    assert [p["name"] for p in template["inputs"]["parameters"]] == [p["name"] for p in parameters]
    (output,) = template["outputs"]["parameters"]
    summary = output["valueFrom"]["path"]

    container = template["container"]
    line = "\n".join([*container["command"], *container["args"]])
    for parameter in parameters:
        line = line.replace("{{inputs.parameters." + parameter["name"] + "}}", parameter["value"])
    assert "{{" not in line
    assert f"--summary={summary}" in line.split("\n")
    save(build("llama", "causal", dtype=torch.float32), home / "small")
    growkit_in(home, line.replace(summary, "summary.json").removeprefix("growkit\n"))
    assert json.loads((home / "summary.json").read_text())["out"] == str(home / "grown")

    retried = {int(n) for n in re.findall(r"\d+", template["retryStrategy"]["expression"])}
    again = [row for row in ROWS if "again" in row[2] and not row[2].startswith("stops")]
    assert retried == {int(n) for row in again for n in row[0].split(",")}


@pytest.mark.parametrize(
    ("section", "kind", "file"),
    [("DVC", "yaml", "dvc/dvc.yaml"), ("Snakemake", "py", "snakemake/Snakefile")],
)
def test_the_page_shows_the_examples(section: str, kind: str, file: str, home: Path) -> None:
    """As they are."""
    assert block(section, kind) in (home / file).read_text(encoding="utf-8")
