"""docs/hub.md as a new user follows it: a trained model is grown, pushed, pulled and trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.hub_server import Hub
from support.pages import ROOT, begin, blocks, walk

from growkit.cli.main import app

PAGE = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_holds(tmp_path: Path) -> None:
    """Every command and program of the page, in its order, prints what is shown."""
    folder = begin(tmp_path / "work")
    with Hub(tmp_path / "server") as hub:
        wrong = walk(blocks(PAGE), folder, hub)
        assert not wrong, "\n\n".join(wrong)
        weights = hub.repos["org/big"].files()["model.safetensors"].read()
        assert weights == (folder / "big" / "model.safetensors").read_bytes()
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
