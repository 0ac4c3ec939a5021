"""docs/hub.md as a new user follows it: a trained model is grown, pushed, pulled and trained."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import trained
from hub_client import Ran, User, user
from hub_server import Hub
from test_readme import same

from growkit.cli import app

PAGE = (trained.ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(console|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def typed(me: User, kind: str, code: str) -> Ran:
    """Run a command or a program as it stands in the page."""
    program = ["bash", "-c"] if kind == "console" else [sys.executable, "-c"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return me.run(*program, code, PATH=path)


def agrees(hub: Hub, shown: str, printed: str) -> bool:
    """What was printed is what the page shows, in the folder of somebody else."""
    printed = printed.replace(hub.url, "https://huggingface.co")
    paths = r"/\S+/(?=(big|back)\b)"
    shown, printed = (re.sub(paths, "", text) for text in (shown, printed))
    commits = r"commit [0-9a-f]{8}"
    return same(re.sub(commits, "commit", shown), re.sub(commits, "commit", printed))


@pytest.mark.slow
def test_the_page_holds(tmp_path: Path) -> None:
    """Every command and program of the page, in its order, prints what is shown."""
    with Hub(tmp_path / "server") as hub:
        me = user(hub, tmp_path, xet=True)  # the client's own choice
        shutil.copytree(trained.small().parent, me.folder, dirs_exist_ok=True)
        blocks = BLOCK.findall(PAGE)
        for i, (kind, body) in enumerate(blocks):
            if kind == "console":
                for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                    command, _, shown = part.partition("\n")
                    done = typed(me, kind, command)
                    assert done.code == 0, f"{command}: {done.err}"
                    assert agrees(hub, shown, done.out), f"{command} printed:\n{done.out}"
            elif kind == "python":
                done = typed(me, kind, body)
                assert done.code == 0, done.err
                assert same(blocks[i + 1][1], done.out), done.out
        weights = hub.repos["org/big"].files()["model.safetensors"].read()
        assert weights == (me.folder / "big" / "model.safetensors").read_bytes()
        card = hub.repos["org/bigger"].files()["README.md"].read()
        assert b"base_model: org/big\n" in card


def test_options_are_named() -> None:
    """Every option of push and pull that is not common to all commands stands in the page."""
    for name in ("push", "pull"):
        options = {o for p in app.commands[name].params for o in p.opts if o.startswith("-")}
        options -= {"--json", "-q", "--quiet", "--out"}
        assert [o for o in options if f"`{o}" not in PAGE] == []


def test_settings_are_those_of_the_client() -> None:
    """The variables of the table are read by huggingface_hub."""
    import huggingface_hub

    source = Path(huggingface_hub.__file__).parent
    known = "".join(
        (source / name).read_text(encoding="utf-8") for name in ("constants.py", "utils/_auth.py")
    )
    names = re.findall(r"^\| `(HF_\w+)", PAGE, flags=re.MULTILINE)
    assert len(names) > 4
    assert [n for n in names if f'"{n}"' not in known] == []
