"""The pages of the documentation, walked as a reader walks them: every command is typed and run.

For authors. A page begins in a folder of its own, a copy of what `make fetch` brings (a trained
BERT as `small.safetensors`, its config and tokenizer, `sentences.txt`), and is walked from top to
bottom. What stands in it is run by its kind:

    console   A line that starts with "$ " is a command, as are the lines after one that ends in a
              backslash; what follows is its output. One shell for the page: `cd`, `export` and
              variables stay. A command fails exactly where the output shows a line "error: …", or
              the same in JSON.
    python    A program of its own; a block of the kind text right after it is its output. What is
              only to be read, such as a signature, is of the kind py.
    others    A first line (or a second, after #!) "# NAME.yaml", with any ending, is a file of
              that name, which is written. Without one the block is only read.
    sh        Commands, without "$ ", that cannot run in a test. The line above the block says why:
              <!-- not run: needs a Slurm cluster -->

What is shown must be what is printed, to the word: stdout, or stderr and stdout. A line … stands
for any lines. Left out of the comparison are line breaks and spaces, the folders of an absolute
path (write /home/you/big), times and sizes with their unit (4.1 s, 438 MB), measurements (2.5e-08),
digests, and the commit after the word "commit".

Commands that name a model as org/NAME find a Hub on this machine, at first empty; write its address
as https://huggingface.co. Commands that set up the reader's machine (make, pip, git, and those that
name build/) are looked at and not run. `<!-- slow -->` above a block of README.md moves it to `make
slow`; the pages under docs/ are run there as a whole.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from support import trained
from support.hub_server import READ, WRITE, Hub

ROOT = trained.ROOT
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("console", "python")
LEFT_OUT = "…"
SET_UP = ("make", "pip", "git")
MASKS = {
    r"\b[0-9a-f]{64}\b": "DIGEST",
    r"\bcommit [0-9a-f]{8,40}\b": "commit",
    r"(?<![\w:/.])/[^\s:]+/(?=[^\s/])": "",  # the folder that the user is in
    r"\d[\d.]*e[-+]\d+": "MEASURED",
    r"\d[\d.]* (s|[kMGT]?B)\b": r"N \1",
}
BIN = Path(sys.executable).parent  # of the environment that runs the tests
FENCE = re.compile(r"(?:^<!-- (.*?) -->\n)?^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.M | re.S)
NAME = re.compile(r"(?:#!.*\n)?# ([\w./-]+\.\w+)\n")

# $0 holds what the shell knew after the last command: variables, folder, exit status
TYPED = """set -a
trap 'code=$?; { export -p; printf "%s\\n" "cd \\"\\$PWD\\"" "(exit $code)"; } > "$0"' EXIT
. "$0"
eval "$1"
"""


@dataclass(frozen=True, slots=True)
class Block:
    """What a page says to run, and what it shows as the output."""

    kind: str  # "console", "python", …
    code: str
    line: int  # of the page
    shown: str = ""
    note: str = ""  # the comment above it: "slow", "not run: …"

    @property
    def fails(self) -> bool:
        """The page shows that it fails."""
        return bool(re.search(r'^(error|  "error"): ', self.shown, re.M))

    @property
    def is_set_up(self) -> bool:
        """It changes the user's machine or is about the checkout."""
        about_checkout = re.search(r"(^|[ .])(build|venv)/", self.code)
        return self.kind == "console" and (self.code.split()[0] in SET_UP or bool(about_checkout))


def blocks(text: str) -> list[Block]:
    """All of a page, in order; a console block gives one for each command."""
    found: list[Block] = []
    for match in FENCE.finditer(text):
        note, indent, kind, body = match.groups(default="")
        body = re.sub(rf"^{indent}", "", body, flags=re.M)
        line = text.count("\n", 0, match.start(4)) + 1
        if kind == "console":
            for part in re.finditer(r"^\$ ((?:.*\\\n)*.*)\n?((?:(?!\$ ).*\n)*)", body, re.M):
                below = line + body.count("\n", 0, part.start())
                found.append(Block(kind, part[1], below, part[2], note))
        elif kind == "text" and found and found[-1].kind == "python" and not found[-1].shown:
            found[-1] = replace(found[-1], shown=body)
        else:
            found.append(Block(kind, body, line, note=note))
    return found


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


def begin(folder: Path) -> Path:
    """A new folder with what a reader has who has set up: the checkpoint, what is beside it."""
    return Path(shutil.copytree(trained.small().parent, folder))


def walk(chosen: Iterable[Block], folder: Path, hub: Hub | None = None) -> list[str]:
    """Run blocks in order in `folder`, as a user of this Hub if there is one; what is wrong."""
    env = os.environ | {"COLUMNS": "80", "LC_ALL": "C.UTF-8"}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    if hub:
        mine = hub.environment(folder.parent / "home", xet=True)  # the client's own choice
        env = {k: v for k, v in env.items() if not k.startswith("HF_")} | mine
        env["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    shell = folder.parent / f"{folder.name}.shell"
    shell.touch()
    wrong = []
    for block in chosen:
        if block.kind not in RUN and (name := NAME.match(block.code)):
            (folder / name[1]).write_text(block.code, encoding="utf-8")
        if block.kind not in RUN or block.is_set_up:
            continue
        command = {
            "console": ["bash", "-c", TYPED, str(shell), block.code],
            "python": ["python", "-c", block.code],
        }[block.kind]
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        out, err = done.stdout, done.stderr
        if hub:
            out, err = (text.replace(hub.url, "https://huggingface.co") for text in (out, err))
            if any(secret in out + err for secret in (WRITE, READ)):
                wrong.append(f"line {block.line}: {block.code} prints a token")
        agrees = same(block.shown, out) or same(block.shown, err + out)
        if bool(done.returncode) != block.fails or not agrees:
            code = f", exit code {done.returncode}" if done.returncode else ""
            wrong.append(f"line {block.line}: {block.code}{code}, printed:\n{out}{err}")
    return wrong
