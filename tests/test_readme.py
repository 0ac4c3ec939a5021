"""The README holds: its commands and programs run and print what it shows, its tables are true.

Blocks run in the order of the README, in one folder that starts as a copy of the real checkpoint.
Compared is stdout, with what may differ from run to run masked. A line … stands for any lines.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tiny
import trained
import yaml

import growkit
from growkit import run
from growkit.errors import RecipeError
from growkit.facts import APPROXIMATE, EPS, EXACT
from growkit.ops import OPERATORS
from growkit.recipe import parse_recipe

ROOT = trained.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")
LEFT_OUT = "…"
SET_UP = ("make", "pip", "source", "cp", "cd")  # commands that are looked at and not run
MASKS = {
    r"\b[0-9a-f]{64}\b": "DIGEST",
    r"\S+/(?=small-)": "",  # the folder that the user is in
    r"\d[\d.]*e[-+]\d+": "MEASURED",
    r"\d[\d.]* (s|[kMGT]?B)\b": r"N \1",
}
BIN = Path(sys.executable).parent  # of the environment that runs the tests
SETTINGS = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}


# -- commands and programs -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """What the README says to run, and what it shows as the output."""

    kind: str  # "console", "python" or "yaml"
    code: str
    shown: str = ""
    slow: bool = False


def blocks() -> list[Block]:
    """All of the README, in order; a console block gives one for each command."""
    found: list[Block] = []
    fence = re.compile(r"(<!-- slow -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for slow, kind, body in fence.findall(README):
        if kind == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, _, shown = part.partition("\n")
                found.append(Block(kind, command, shown, bool(slow)))
        elif kind == "text":
            found[-1] = replace(found[-1], shown=body)
        else:
            found.append(Block(kind, body, slow=bool(slow)))
    return found


def is_set_up(block: Block) -> bool:
    """It changes the user's machine or shell."""
    return block.kind == "console" and block.code.split()[0] in SET_UP


def parameters(chosen: list[Block]) -> list[object]:
    """Blocks as parameters of a test, named by their first words."""
    marks = {True: [pytest.mark.slow], False: []}
    return [
        pytest.param(b, marks=marks[b.slow], id=b.code.splitlines()[0][:70].strip()) for b in chosen
    ]


def masked(text: str) -> list[str]:
    """The words of a text, without what may differ from run to run."""
    for pattern, name in MASKS.items():
        text = re.sub(pattern, name, text)
    return text.split()


def same(shown: str, printed: str) -> bool:
    """What was printed is what is shown, up to masks, line breaks and lines left out."""
    gap = "<any-lines>"
    words = masked(re.sub(rf"^{LEFT_OUT}$", gap, shown, flags=re.MULTILINE))
    pattern = "".join(r"(?:\S+ )*" if word == gap else re.escape(word) + " " for word in words)
    return bool(re.fullmatch(pattern, "".join(f"{word} " for word in masked(printed))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader is after setting up: a copy of the checkpoint and what is beside it."""
    here = tmp_path_factory.mktemp("readme") / "try"
    return Path(shutil.copytree(trained.small().parent, here))


@pytest.mark.parametrize("block", parameters([b for b in blocks() if not is_set_up(b)]))
def test_block_runs_and_prints_what_is_shown(block: Block, folder: Path) -> None:
    """As a user would type it, in the order of the README."""
    if block.kind == "yaml":
        name = block.code.splitlines()[0].removeprefix("# ")
        (folder / name).write_text(block.code, encoding="utf-8")
        return
    command = {"console": ["bash", "-c", block.code], "python": ["python", "-c", block.code]}
    done = subprocess.run(
        command[block.kind], cwd=folder, env=SETTINGS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert same(block.shown, done.stdout), f"printed:\n{done.stdout}"


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        ("a 2.5e-08 b\n", "a 7e-9\nb\n", True),
        ("/home/you/small-x: written in 4.1 s\n", "/srv/small-x: written in 12 s\n", True),
        ("438 MB\n", "1.2 MB\n", True),
        ("438 MB\n", "1.2 GB\n", False),
        ("6 layers\n", "7 layers\n", False),
        ("a\n…\nc\n", "a\nb 1\nb 2\nc\n", True),
        ("a\n…\nc\n", "a\nb 1\n", False),
        ("…\nc\n", "a\nc\n", True),
        ("…\nc\n", "abc\n", False),
        ("a\n…\n", "a\nb\n", True),
        ("a\n", "a\nb\n", False),
        ("", "", True),
        ("", "a\n", False),
    ],
)
def test_what_counts_as_the_same(shown: str, printed: str, agree: bool) -> None:
    """Sizes, times, digests and measurements may differ; counts and words may not."""
    assert same(shown, printed) is agree


@pytest.mark.parametrize("block", parameters([b for b in blocks() if is_set_up(b)]))
def test_set_up_is_there(block: Block) -> None:
    """What the README says to set up with exists: targets, extras and folders."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    match block.code.split():
        case ["make", target]:
            assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE)
        case ["pip", "install", what]:
            extra = re.fullmatch(r"'\.\[(\w+)\]'", what)
            with (ROOT / "pyproject.toml").open("rb") as file:
                assert extra
                assert extra[1] in tomllib.load(file)["project"]["optional-dependencies"]
        case ["source", script]:
            assert f"VENV ?= {Path(script).parts[0]}\n" in makefile
        case ["cp", "-R", fetched, copy]:
            assert f"SMALL := {fetched}/{trained.DEFAULT.name}\n" in makefile
            assert trained.DEFAULT.parent == ROOT / fetched
            assert f"$ cd {copy}\n" in README
        case other:
            assert other[0] == "cd"


# -- tables --------------------------------------------------------------------------------------


def table(title: str) -> list[list[str]]:
    """The cells of the first table below a heading or sentence, without its head."""
    lines = README.partition(title)[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def test_rooms_are_those_of_the_map() -> None:
    """The table of rooms has those that the package's own map lists, in its order."""
    the_map = (growkit.__doc__ or "").partition("The words")[0]
    rooms = re.findall(r"^    (\w+) {2,}\w", the_map, flags=re.MULTILINE)
    assert [row[0].strip("`") for row in table("The rooms of the code")] == rooms


def test_operators_are_all_there() -> None:
    """The table of operators has each of them, with every option and every choice."""
    rows = {row[0].strip("`"): " ".join(row[1:]) for row in table("without editing the file")}
    assert rows.keys() == OPERATORS.keys()
    for name, operator in OPERATORS.items():
        schema = operator.model_json_schema()
        words = schema["properties"].keys() - {"op", "kind"}
        words |= {word for choice in choices(schema) for word in choice}
        missing = [word for word in words if not re.search(rf"`[^`]*\b{word}\b[^`]*`", rows[name])]
        assert not missing, f"{name}: {missing}"


def choices(schema: object) -> Iterator[list[str]]:
    """Every list of allowed words in a JSON Schema."""
    if isinstance(schema, dict):
        if "enum" in schema:
            yield schema["enum"]
        schema = list(schema.values())
    for part in schema if isinstance(schema, list) else ():
        yield from choices(part)


CLAIMS = {"exact": EXACT, "up to norm eps": EPS, "approximate": APPROXIMATE}
STEPS = table("## What stays exact")
COLUMNS = {
    1: [("bert", "base"), ("bert", "masked_lm")],
    2: [("gpt2", "base"), ("gpt2", "causal"), ("gpt2", "untied")],
    3: [("llama", "base"), ("llama", "causal"), ("llama", "tied"),
        ("mistral", "causal"), ("qwen2", "causal"), ("qwen2", "tied")],
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A tiny model of each kind that the table of claims is about."""
    sizes = {"heads": 4, "head_dim": 6, "mlp": 18, "layers": 2}
    free = {**sizes, "head_dim": 4, "kv_heads": 2, "hidden": 24}
    return {
        (family, head): tiny.save(
            tiny.build(family, head, **(sizes if column < 3 else free)),
            tmp_path_factory.mktemp("models") / f"{family}-{head}",
        )
        for column, kinds in COLUMNS.items()
        for family, head in kinds
    }


@pytest.mark.parametrize("row", STEPS, ids=lambda row: row[0].strip("`"))
def test_claims_are_those_of_the_plans(row: list[str], models: dict[tuple[str, str], Path]) -> None:
    """Each cell of the table is what the plan says, with and without noise."""
    (op, to), *more = yaml.safe_load("{" + row[0].strip("`") + "}").items()
    step = {"op": op, "to": to, **dict(more)}
    for column, kinds in COLUMNS.items():
        for kind in kinds:
            for noise in ([], [{"op": "noise"}]):
                recipe = parse_recipe({"steps": [step, *noise]})
                if row[column] == "refused":
                    with pytest.raises(RecipeError, match=r"must equal|has no axis"):
                        run.plan_growth(models[kind], recipe)
                else:
                    claim = run.plan_growth(models[kind], recipe).claim
                    assert claim.claim == CLAIMS[row[column]], (kind, claim.reasons)
