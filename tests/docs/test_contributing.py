"""What contributors are given holds: CI's files agree, and what the guide names is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import lowest

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, flags=re.MULTILINE))
with (ROOT / "pyproject.toml").open("rb") as file:
    PROJECT: dict[str, Any] = tomllib.load(file)["project"]


def load(path: str) -> Any:
    """A YAML file of the checkout."""
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def ci_targets() -> list[str]:
    """What .ci/run makes."""
    last = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    make, _, *targets = last.split()
    assert make == "make"
    return targets


def test_the_workflow_makes_what_ci_makes() -> None:
    """The same targets, on the Python that the package names."""
    job = load(".github/workflows/ci.yml")["jobs"]["make"]
    assert job["strategy"]["matrix"]["target"] == ci_targets()
    assert {*ci_targets()} <= TARGETS
    *_, setup, run = job["steps"]
    assert run == {"run": "make ${{ matrix.target }}"}
    assert PROJECT["requires-python"] == f">={setup['with']['python-version']}"
    assert (ROOT / setup["with"]["cache-dependency-path"]).is_file()


def test_python_versions_are_those_that_ran() -> None:
    """A classifier for the version that CI has, and for no other."""
    named = re.findall(r"Python :: (\d\.\d+)", " ".join(PROJECT["classifiers"]))
    assert [f">={version}" for version in named] == [PROJECT["requires-python"]]


def test_commits_pass_lint() -> None:
    """The hook is make's own target: no tool of another version, nothing from a network."""
    (repo,) = load(".pre-commit-config.yaml")["repos"]
    (hook,) = repo["hooks"]
    assert (repo["repo"], hook["language"]) == ("local", "system")
    assert hook["entry"].split()[-1] in TARGETS


@pytest.mark.parametrize("form", ["bug", "family", "operator"])
def test_issue_forms(form: str) -> None:
    """Each question has an id of its own and a label, and something is required."""
    data = load(f".github/ISSUE_TEMPLATE/{form}.yml")
    assert data["name"]
    assert data["description"]
    ids = [question["id"] for question in data["body"]]
    assert len({*ids}) == len(ids)
    assert all(question["attributes"]["label"] for question in data["body"])
    assert any(q.get("validations", {}).get("required") for q in data["body"])


def test_the_guide_names_what_is_there() -> None:
    """Targets of make, files and folders, links."""
    guide = (GITHUB / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {*re.findall(r"`make ([a-z-]+)`", guide)} <= TARGETS
    named = re.findall(r"`([\w.-]+(?:/[\w.-]*)+)`", guide)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
    links = re.findall(r"\]\(([^)]+)\)", guide)
    assert [link for link in links if not (GITHUB / link).exists()] == []


def test_every_dependency_has_a_floor_and_a_pin() -> None:
    """`make lowest` knows the floor of each, and constraints.txt the version that CI has."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    names = {re.split(r"[>=<\[]", line)[0] for line in lines} - {"growkit"}
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    assert names - pins.keys() == set()
    tools = {"torch", "build", "mypy", "ruff", "types-PyYAML", "furo", "myst-parser", "sphinx"}
    assert lowest.floors().keys() == names - tools
