"""Results pushed to a loopback Hub by the real client, over LFS and over Xet, and pulled back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.hub_client import User, grown, user
from support.hub_server import READ, Hub

from growkit import api
from growkit.report import model_card

over = pytest.mark.parametrize(
    "xet", [pytest.param(False, marks=pytest.mark.slow), True], ids=["lfs", "xet"]
)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result in several shards."""
    return grown(tmp_path_factory.mktemp("push"), "1MB")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """An empty Hub."""
    with Hub(tmp_path / "server") as server:
        yield server


@pytest.fixture
def me(hub: Hub, tmp_path: Path) -> User:
    """Somebody who may write."""
    return user(hub, tmp_path)


@pytest.fixture
def mine(big: Path, me: User) -> Path:
    """The result, in a copy of one's own."""
    return shutil.copytree(big, me.folder / "big")


def content(folder: Path) -> dict[str, bytes]:
    """All files but hidden ones, and but the card, which is addressed to the place it goes to."""
    files = (p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name != "README.md"}


def there(hub: Hub, name: str, repo: str = "org/big", revision: str = "main") -> str:
    """The text of a file on the Hub."""
    return hub.repos[repo].files(revision)[name].read().decode()


# -- there and back ------------------------------------------------------------------------------


@over
def test_round_trip(xet: bool, hub: Hub, tmp_path: Path, big: Path) -> None:
    """Made, pushed in one commit, checked; again: nothing to do; pulled: the same bytes."""
    me = user(hub, tmp_path, xet=xet)
    first = me.ok("push", big, "org/big", "--check", "--json").json
    repo = hub.repos["org/big"]
    assert (first["changed"], first["checked"], first["private"]) == (True, True, True)
    assert repo.titles == ["initial commit", "growkit 0.1.0: double_width"]
    assert repo.files().keys() == {".gitattributes", *(p.name for p in big.iterdir())}
    assert bool(hub.asked("PUT", "/lfs/")) is not xet
    assert bool(hub.asked("POST", "/v1/xorbs/")) is xet
    hub.requests.clear()
    again = me.ok("push", big, "org/big", "--check").out.splitlines()
    assert again[0] == f"{hub.url}/org/big: already there, private"
    assert again[-1] == "  read back: names, sizes and hashes agree"
    assert len(repo.titles) == 2
    assert not hub.asked("PUT", "/lfs/")
    assert not hub.asked("POST", "/v1/xorbs/")
    back = me.ok("pull", "org/big", "-o", "back", "-q").out.strip()
    assert content(Path(back)) == content(big)
    cached = Path(me.ok("pull", "org/big@main", "--json").json["path"])
    assert content(cached) == content(big)
    assert me.ok("verify", "--files", cached).out.endswith("every file is as it was written\n")
    assert model_card.is_ours((cached / "README.md").read_text(encoding="utf-8"))
    assert me.ok("pull", "org/big", "-o", "back").out.strip() == back  # again: it is there


@over
def test_grow_and_push(xet: bool, hub: Hub, tmp_path: Path, big: Path) -> None:
    """One command; the grown model is a source on the Hub itself, and its parent is named."""
    me = user(hub, tmp_path, xet=xet)
    hub.add("org/small", big.parent / "small")
    command = ("grow", "org/small", "--recipe", "double_width", "--push-to", "org/grown")
    told = me.ok(*command, "--json").json
    assert told["pushed"]["url"] == f"{hub.url}/org/grown"
    front = yaml.safe_load(there(hub, "README.md", "org/grown").split("---\n")[1])
    assert front == {
        "library_name": "transformers",
        "base_model": "org/small",
        "tags": ["growkit", "model-growth"],
    }
    text = there(hub, "README.md", "org/grown")
    assert 'LlamaForCausalLM.from_pretrained("org/grown")' in text
    assert "Claim: **exact**" in text
    lines = me.ok(*command).out.splitlines()  # done already, and pushed already
    assert lines[0].endswith("already done")
    assert f"{hub.url}/org/grown: already there, private" in lines
    assert me.ok("plan", "org/grown", "--recipe", "double_depth", "--json").json["digest"]


# -- where it goes -------------------------------------------------------------------------------


@pytest.mark.slow
def test_public_or_not(hub: Hub, me: User, big: Path) -> None:
    """Private unless asked otherwise, and what is there already is neither published nor hidden."""
    assert me.ok("push", big, "org/open", "--public", "--json").json["private"] is False
    told = me.refused("push", big, "org/open", code=2)
    assert told["error"] == "org/open: exists and is public, and --public was not given"
    me.ok("push", big, "org/closed", "-q")
    told = me.refused("push", big, "org/closed", "--public", code=2)
    assert told["error"] == "org/closed: exists and is private, and --public was given"
    assert f"{hub.url}/org/closed/settings" in told["hint"]
    assert hub.repos["org/closed"].private


@pytest.mark.slow
def test_branch_and_pull_request(hub: Hub, me: User, mine: Path) -> None:
    """--revision makes a branch, --create-pr a pull request; the main branch stays as it was."""
    me.ok("push", mine, "org/big", "-m", "a title")
    assert hub.repos["org/big"].titles[-1] == "a title"
    main = hub.repos["org/big"].branches["main"]
    (mine / "notes.md").write_text("more", encoding="utf-8")
    assert me.ok("push", mine, "org/big", "--revision", "next").out.count("next, commit")
    assert there(hub, "notes.md", revision="next") == "more"
    told = me.ok("push", mine, "org/big", "--create-pr", "--check", "--json").json
    assert told["pull_request"] == f"{hub.url}/org/big/discussions/1"
    assert there(hub, "notes.md", revision="refs/pr/1") == "more"
    me.ok("push", mine, "org/big", "--revision", "refs/pr/1")
    assert hub.repos["org/big"].branches["main"] == main
    told = me.refused("push", mine, "org/big", "--create-pr", "--revision", "x", code=2)
    assert "pull request is made against the main branch" in told["error"]


@pytest.mark.slow
def test_pull_of_a_branch(hub: Hub, me: User, mine: Path) -> None:
    """A branch is pulled by its name; a folder with something else in it is left alone."""
    me.ok("push", mine, "org/big", "--revision", "next")
    assert me.ok("pull", "org/big@next", "-o", "next").out
    assert content(me.folder / "next") == content(mine)
    told = me.refused("pull", "org/big@next", "-o", mine, code=6)
    assert told["error"] == f"{mine}: exists and holds something else"
    assert me.refused("pull", "org/big@none")["error"].endswith('has no revision "none"')
    assert me.refused("pull", mine, code=2)["hint"] == "expected org/name[@revision]"


# -- what a person wrote -------------------------------------------------------------------------


def edit(hub: Hub, text: str) -> None:
    """Somebody changes the card on the Hub."""
    repo = hub.repos["org/big"]
    repo.commit("main", {**repo.files(), "README.md": hub.keep("in git", text.encode())}, "edited")


def test_a_written_card_stays(hub: Hub, me: User, mine: Path) -> None:
    """A README that a person wrote, or one of ours that a person changed, is never replaced."""
    me.ok("push", mine, "org/big")
    for text in ("# Mine\n", there(hub, "README.md").replace("Load", "How to load")):
        edit(hub, text)
        (mine / "notes.md").write_text(text, encoding="utf-8")
        told = me.ok("push", mine, "org/big", "--check").out
        assert "README.md is as it was: a person wrote or changed it" in told
        assert there(hub, "README.md") == text
        assert there(hub, "notes.md") == text


@pytest.mark.slow
def test_our_card_is_renewed(hub: Hub, me: User, mine: Path) -> None:
    """A card that nobody touched gives way to a newer one, and to one written here."""
    me.ok("push", mine, "org/big")
    before = there(hub, "README.md")
    (mine / "README.md").write_text("# Written here\n", encoding="utf-8")
    me.ok("push", mine, "org/big")
    assert there(hub, "README.md") == "# Written here\n"
    (mine / "README.md").write_text(before, encoding="utf-8")
    assert me.ok("push", mine, "org/big", "--json").json["card_kept"] is True
    edit(hub, model_card.sealed("# An older card of growkit\n"))
    assert me.ok("push", mine, "org/big", "--json").json["card_kept"] is False
    assert there(hub, "README.md") == before


@pytest.mark.slow
def test_strange_weights_stay(hub: Hub, me: User, big: Path) -> None:
    """A repository with weights that growkit did not push is refused; a pull request is not."""
    repo = hub.add("org/big", big.parent / "small", private=True)
    before = dict(repo.files())
    told = me.refused("push", big, "org/big", code=6)
    assert told["error"] == "org/big: holds model.safetensors, which growkit did not push"
    told = me.refused("grow", big, "--recipe", "double_depth", "--push-to", "org/big", code=6)
    assert not (me.folder / "big-double_depth").exists()
    me.ok("push", big, "org/big", "--create-pr")
    assert repo.files() == before


@pytest.mark.slow
def test_shards_of_an_earlier_push_go(hub: Hub, me: User, big: Path) -> None:
    """Files that the earlier result had and this one has not would mislead a reader: removed."""
    me.ok("push", big, "org/big")
    api.grow(big.parent / "small", "double_width", out=me.folder / "one")
    told = me.ok("push", "one", "org/big", "--check", "--json").json
    assert told["removed"] == sorted(p.name for p in big.glob("model*"))
    names = hub.repos["org/big"].files().keys()
    assert {n for n in names if n.startswith("model")} == {"model.safetensors"}
    assert ".gitattributes" in names


# -- what is refused before the work -------------------------------------------------------------


def test_what_is_not_a_result(me: User, big: Path, mine: Path) -> None:
    """Only whole results of growkit are pushed."""
    told = me.refused("push", big.parent / "small", "org/x", code=3)
    assert "not a folder that growkit wrote" in told["error"]
    assert "hf upload" in told["hint"]
    next(mine.glob("model-00002*")).unlink()
    assert "damaged: model-00002" in me.refused("push", mine, "org/x", code=3)["error"]
    assert me.refused("push", big, "x", code=2)["error"].startswith("x: not the name of a model")
    assert me.hub.repos == {}


@pytest.mark.parametrize(
    ("token", "offline", "error", "retryable"),
    [
        (None, "0", "org/x: no token to push with", False),
        ("hf_wrongWrongWrongWrong", "0", "does not accept the token", False),
        (READ, "0", "does not allow this: this token may only read", False),
        (READ, "1", "org/x: HF_HUB_OFFLINE forbids to push", False),
    ],
)
def test_who_may_not_push(
    token: str | None, offline: str, error: str, retryable: bool, me: User, big: Path
) -> None:
    """No token, a wrong one, one that may only read, no network: exit 5, and nothing is made."""
    me.token = token
    told = me.refused("push", big, "org/x", HF_HUB_OFFLINE=offline)
    assert error in told["error"]
    assert told["retryable"] is retryable
    assert me.hub.repos == {}


def test_growing_waits_for_the_token(me: User, big: Path) -> None:
    """Without a token nothing is grown that should have been pushed."""
    me.token = None
    me.refused("grow", big, "--recipe", "double_depth", "--push-to", "org/x")
    assert list(me.folder.iterdir()) == []


# -- reading back --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "harm", "error"),
    [
        ("recipe.yaml", "size", "recipe.yaml: found 1 bytes, expected "),
        ("recipe.yaml", "hash", "recipe.yaml: its hash is another"),
        ("model.safetensors.index.json", "name", "model.safetensors.index.json is missing"),
        ("growkit.json", "hash", "growkit.json: its hash is another"),
    ],
)
def test_check_finds(name: str, harm: str, error: str, hub: Hub, me: User, big: Path) -> None:
    """A file that is not there as it was sent is a failure of its own: exit 1."""
    hub.lost[name] = harm
    told = me.refused("push", big, "org/big", "--check", code=1)
    assert told["error"].startswith(f"org/big: {error}")
    assert told["hint"] == "push again"


# -- cards ---------------------------------------------------------------------------------------


def test_card_names_all_parents(big: Path) -> None:
    """One parent is a name, several are a list and a merge; an image is shown."""
    plan = api.plan_growth(big, "double_depth")
    record = json.loads((big / "growkit.json").read_bytes())
    source = next(iter(plan.sources.values()))
    named = {plan.main: "org/a", "other": "org/b"}
    hubs = {n: replace(source, path=path, revision="0a1b") for n, path in named.items()}
    text = model_card.model_card(replace(plan, sources=hubs), record, image="growth.svg")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == ["org/a", "org/b"]
    assert front["base_model_relation"] == "merge"
    assert "# org/a and org/b grown by `double_depth`" in text
    assert "![How it was grown](growth.svg)" in text
    assert "growth.svg" not in model_card.model_card(plan, record)


def test_card_is_addressed(big: Path) -> None:
    """Only an untouched card is addressed to the place it is pushed to, and stays one of ours."""
    text = (big / "README.md").read_text(encoding="utf-8")
    assert model_card.is_ours(text)
    sent = model_card.addressed(text, "org/big")
    assert 'from_pretrained("org/big")' in sent
    assert model_card.is_ours(sent)
    assert model_card.addressed(sent, "org/big") == sent
    changed = text.replace("Grown", "Made")
    assert not model_card.is_ours(changed)
    assert model_card.addressed(changed, "org/big") == changed
