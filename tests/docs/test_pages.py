"""Every page holds: its commands and programs run and print what it shows.

What that means and how authors write is said in `pages`. Pages that need more around them have a
test of their own, built on the same.
"""

from __future__ import annotations

import re
import tomllib
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import trained
from support.hub_server import Hub
from support.pages import PAGES, README, ROOT, RUN, Block, begin, blocks, same, walk

OWN = {
    "docs/hub.md": "docs/test_hub.py",  # looks at what is on the Hub afterwards
    "docs/clusters.md": "docs/test_clusters.py",  # has a batch system and a cluster
    "docs/pipelines.md": "docs/test_pipelines.py",  # has the engines, in their own environment
}


def name_of(page: Path) -> str:
    """Its path in the project."""
    return page.relative_to(ROOT).as_posix()


def walks() -> list[object]:
    """Pages with what of them to run, as parameters: README in two parts, all others slow."""
    found = []
    for page in PAGES:
        every = blocks(page.read_text(encoding="utf-8"))
        runs = [b for b in every if b.kind in RUN and not b.is_set_up]
        if not runs or name_of(page) in OWN:
            continue
        parts = {"": [b for b in every if b.note != "slow"]}
        if page == README:
            parts["slow"] = [b for b in every if b.note == "slow"]
        for part, chosen in parts.items():
            marks = () if page == README and not part else pytest.mark.slow
            found.append(pytest.param(chosen, id=f"{name_of(page)} {part}".strip(), marks=marks))
    return found


@pytest.mark.parametrize("chosen", walks())
def test_a_page_runs_and_prints_what_it_shows(chosen: list[Block], tmp_path: Path) -> None:
    """As a user would type it, in the order of the page."""
    folder = begin(tmp_path / "try")
    with ExitStack() as stack:
        hub = None
        if any(re.search(r"\borg/\w", b.code) for b in chosen if b.kind in RUN):
            hub = stack.enter_context(Hub(tmp_path / "server"))
        wrong = walk(chosen, folder, hub)
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("page", OWN)
def test_other_pages_have_a_test_of_their_own(page: str) -> None:
    """It is there and walks the page."""
    text = (ROOT / "tests" / OWN[page]).read_text(encoding="utf-8")
    assert f'"{Path(page).name}"' in text
    assert "from support.pages import" in text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_says_why_commands_are_not_run(page: Path) -> None:
    """Commands that no test runs have their reason above them; console blocks hold commands."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(text):
        if block.kind in ("sh", "bash") and not block.code.startswith("#"):
            assert block.note.startswith("not run: "), f"line {block.line}"
    opened = text.count("```console\n")
    assert opened == len(re.findall(r"```console\n *\$ ", text)), "a console block starts with $"


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        ("a 2.5e-08 b\n", "a 7e-9\nb\n", True),
        ("/home/you/small-x: written in 4.1 s\n", "/srv/small-x: written in 12 s\n", True),
        ("/home/you/a/big\n", "/tmp/x/y/big\n", True),
        ("/home/you/big\n", "/home/you/small\n", False),
        ("org/big\n", "org/small\n", False),
        ("https://a.org/b/c: d\n", "https://e.org/b/c: d\n", False),
        ("main, commit 0f3c2a1b\n", "main, commit 11111111\n", True),
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
    """Sizes, times, digests, folders and measurements may differ; counts and words may not."""
    assert same(shown, printed) is agree


PAGE = """
```console
$ cat note.txt
cat: note.txt: No such file or directory
error: …
```

```text
# note.txt
one two
```

```console
$ export WORD=three; cd .
$ cat note.txt \\
    | tail -n 1
one two
$ echo $WORD; false
error: 1
$ echo $?
1
$ make tea
```

```python
print(1 + 1)
```

```text
2
```

<!-- not run: nobody knows what it does -->
```sh
rm -rf everything
```
"""


def test_the_walk_itself(tmp_path: Path) -> None:
    """Files are written, the shell remembers, exit codes count, and what is wrong is told."""
    (tmp_path / "here").mkdir()
    wrong = walk(blocks(PAGE), tmp_path / "here")
    assert [text.partition(",")[0] for text in wrong] == [
        "line 3: cat note.txt",
        "line 18: echo $WORD; false",
    ]
    assert wrong[1].endswith("exit code 1, printed:\nthree\n")
    assert walk([Block("python", "raise SystemExit(3)", 1)], tmp_path / "here")


# -- set-up ---------------------------------------------------------------------------------------

SET_UPS = sorted({b.code for p in PAGES for b in blocks(p.read_text("utf-8")) if b.is_set_up})


@pytest.mark.parametrize("command", SET_UPS)
def test_set_up_is_there(command: str) -> None:
    """What pages say to set up with exists: targets, extras and folders."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    match command.split():
        case ["make", target]:
            assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE)
        case ["pip", "install", what]:
            wanted = re.fullmatch(r"'?(?:\.|growkit)(?:\[([\w,]+)\])?'?", what)
            assert wanted
            assert set((wanted[1] or "").split(",")) - {""} <= extras.keys()
        case ["source", script]:
            assert f"VENV ?= {Path(script).parts[0]}\n" in makefile
        case ["cp", "-R", fetched, copy]:
            assert f"SMALL := {fetched}/{trained.DEFAULT.name}\n" in makefile
            assert trained.DEFAULT.parent == ROOT / fetched
            assert f"cd {copy}" in SET_UPS
        case ["git", "clone", *_]:
            pass
        case other:
            assert other[0] == "cd"
            assert other[1].startswith("build/")
