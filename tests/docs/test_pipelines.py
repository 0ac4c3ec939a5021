"""The examples of pipelines, run by their tools: everything, nothing, and what has changed.

DVC and Snakemake come from `make slow`, which puts them into an environment of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from support.pages import BIN, ROOT, Block, blocks, walk
from support.pipelines_page import rows
from support.processes import ENV, growkit_in
from support.tiny import build, save

PAGE = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
TOOLS = ROOT / "build" / "pipelines" / "bin"


def section(title: str) -> list[Block]:
    """The blocks of a section of the page."""
    return blocks(PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0])


def code(title: str, kind: str) -> str:
    """Of the only block of a kind there."""
    (found,) = [block.code for block in section(title) if block.kind == kind]
    return found


def commands(title: str) -> list[Block]:
    """What is typed there, if the program that it is about is installed."""
    found = [block for block in section(title) if block.kind == "console"]
    program = TOOLS / found[-1].code.split()[0]
    if not program.exists():
        message = f"{program} is missing: `make slow` installs it"
        pytest.fail(message, pytrace=False) if os.environ.get("CI") else pytest.skip(message)
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the examples, and what is called there on the PATH; nothing else is touched."""
    settings = {
        "PATH": os.pathsep.join([str(BIN), str(TOOLS), ENV["PATH"]]),
        "PYTHONPATH": ENV["PYTHONPATH"],
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(tmp_path / "config"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return shutil.copytree(ROOT / "examples", tmp_path / "examples")


def run(folder: Path, line: str, code: int = 0) -> str:
    """All that a command prints; how it ends is known."""
    done = subprocess.run(
        line.split(),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


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
    shutil.rmtree(folder / "grown")
    run(folder, "growkit grow small --recipe recipe.yaml --seed 0 -o grown --rank 0 --world 2")
    assert not (folder / "grown").exists()
    return inode(folder / "grown.partial" / "model")


@pytest.mark.slow
def test_dvc(home: Path) -> None:
    """The page's commands; then a change runs what depends on it, and a killed growth resumes."""
    assert walk(commands("DVC"), home) == []
    here = home / "dvc"
    assert json.loads((here / "verified.json").read_text())["passed"] is True
    assert "exactness.claim" in run(here, "dvc metrics show --md")

    def repro(stage: str = "") -> list[str]:
        return re.findall(r"^Running stage '(\w+)'", run(here, f"dvc repro {stage}"), re.M)

    edit(here / "recipe.yaml", "layers: 2x", "layers: 3x")
    assert repro() == ["grown", "verified"]
    assert layers(here) == 6
    edit(here / "recipe.yaml", "steps:", "# the same\nsteps:")
    assert repro() == []
    edit(here / "params.yaml", "layers: 2", "layers: 1")
    assert repro("small") == ["small"]
    written = left_behind(here)
    assert repro() == ["grown", "verified"]
    assert (layers(here), inode(here / "grown")) == (3, written), "it was not resumed"
    edit(here / "recipe.yaml", "layers: 3x", "layers: lots")
    assert '"lots" is not a size' in run(here, "dvc repro", 255)


@pytest.mark.slow
def test_snakemake(home: Path) -> None:
    """The page's commands; then a change runs what depends on it, and a killed growth resumes."""
    assert walk(commands("Snakemake"), home) == []
    here = home / "snakemake"
    assert json.loads((here / "verified.json").read_text())["passed"] is True
    edit(here / "recipe.yaml", "layers: 2x", "layers: 3x")
    written = left_behind(here)
    again = re.findall(r"^localrule (\w+):", run(here, "snakemake -c1"), re.M)
    assert again == ["grow", "verify", "all"]
    assert (layers(here), inode(here / "grown")) == (6, written), "it was not resumed"
    assert "every file is as it was written" in run(here, "growkit verify --files grown")


@pytest.mark.slow
def test_make(home: Path) -> None:
    """Everything, nothing, another recipe in place of the old result, which a failure keeps."""
    here = home / "dvc"  # for its recipe
    (here / "Makefile").write_text(code("Make", "make"))
    save(build("llama", "causal", dtype=torch.float32), here / "small")
    assert len(re.findall("^growkit ", run(here, "make verified.json"), re.M)) == 2
    assert "is up to date" in run(here, "make verified.json")
    edit(here / "recipe.yaml", "layers: 2x", "layers: 3x")
    run(here, "make verified.json")
    assert layers(here) == 6
    edit(here / "recipe.yaml", "layers: 3x", "layers: lots")
    assert '"lots" is not a size' in run(here, "make verified.json", 2)
    assert layers(here) == 6, "the old result is gone"


def test_argo(home: Path) -> None:
    """The command with its parameters runs, and retries are those of the table of exit codes."""
    page = yaml.safe_load(code("Argo Workflows", "yaml"))
    parameters = page["spec"]["arguments"]["parameters"]
    (template,) = page["spec"]["templates"]
    assert [p["name"] for p in template["inputs"]["parameters"]] == [p["name"] for p in parameters]
    (output,) = template["outputs"]["parameters"]
    summary = output["valueFrom"]["path"]

    container = template["container"]
    line = " ".join([*container["command"], *container["args"]])
    for parameter in parameters:
        line = line.replace("{{inputs.parameters." + parameter["name"] + "}}", parameter["value"])
    assert "{{" not in line
    assert f"--summary={summary}" in line.split()
    save(build("llama", "causal", dtype=torch.float32), home / "small")
    growkit_in(home, line.replace(summary, "summary.json").removeprefix("growkit "))
    assert json.loads((home / "summary.json").read_text())["out"] == str(home / "grown")

    retried = re.findall(r"\d+", template["retryStrategy"]["expression"])
    again = [codes for codes, _, what in rows("Exit codes") if re.match(r"tries again|runs", what)]
    assert sorted(retried) == sorted(re.findall(r"\d+", " ".join(again)))


def test_json(home: Path) -> None:
    """The failure that the page shows."""
    assert walk(section("`--json`"), home) == []


@pytest.mark.parametrize(
    ("title", "kind", "file"),
    [("DVC", "yaml", "dvc/dvc.yaml"), ("Snakemake", "py", "snakemake/Snakefile")],
)
def test_the_page_shows_the_examples(title: str, kind: str, file: str, home: Path) -> None:
    """As they are."""
    assert code(title, kind) in (home / file).read_text(encoding="utf-8")
