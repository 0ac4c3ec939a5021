"""Pushes and pulls through everything that can break: the client goes on, or says what happened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub_client import grown, user
from support.hub_server import WRITE, Hub

pytestmark = pytest.mark.slow  # the client takes its time before it tries again


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result in several shards."""
    return grown(tmp_path_factory.mktemp("faults"), "2MB")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """An empty Hub."""
    with Hub(tmp_path / "server") as server:
        yield server


def whole(hub: Hub, big: Path) -> bool:
    """Whether every file of the result is on the Hub, byte for byte; the card is addressed."""
    files = hub.repos["org/big"].files()
    names = [p.name for p in big.iterdir() if p.name != "README.md"]
    return all(files[n].read() == (big / n).read_bytes() for n in names)


@pytest.mark.parametrize(
    ("method", "pattern", "what", "xet"),
    [
        ("PUT", "/lfs/", {"drop": 1000}, False),
        ("PUT", "/lfs/", {"status": 500}, False),
        ("POST", "objects/batch", {"status": 500}, False),
        ("POST", "/v1/xorbs/", {"drop": 1000}, True),
        ("POST", "/v1/shards", {"status": 500}, True),
        ("GET", "xet-write-token", {"status": 500}, True),
        ("GET", "/api/models/org/big", {"status": 503}, False),
        ("POST", "/api/repos/create", {"status": 500}, False),
        ("POST", "/preupload/", {"drop": 10}, False),
        ("POST", "/commit/", {"status": 500}, False),
        ("POST", "/commit/", {"status": 412}, False),
        ("POST", "/commit/", {"cut": 10}, False),  # made, but the answer never arrives
    ],
)
def test_push_goes_on(
    method: str, pattern: str, what: dict[str, Any], xet: bool, hub: Hub, tmp_path: Path, big: Path
) -> None:
    """A fault that passes is not the user's business: the push is whole, and made once."""
    hub.fail(method, pattern, **what)
    me = user(hub, tmp_path, xet=xet)
    me.ok("push", big, "org/big", "--check")
    assert hub.faults[0].times == 0
    assert whole(hub, big)
    assert len(hub.repos["org/big"].titles) == 2


@pytest.mark.parametrize(
    ("status", "error", "retryable"),
    [
        (401, "does not accept the token", False),
        (403, "does not allow this", False),
        (404, "has no such file or page", False),
        (412, "was written to by somebody else meanwhile", True),
        (422, "refuses the request (422)", False),
        (429, "asks for fewer requests", True),
        (502, "answers with an error of its own (502)", True),
    ],
)
def test_push_gives_up(
    status: int, error: str, retryable: bool, hub: Hub, tmp_path: Path, big: Path
) -> None:
    """A fault that stays: exit 5, one sentence, and whether to try again; then it goes on."""
    hub.fail("POST", "/commit/", status=status, times=99)
    me = user(hub, tmp_path)
    told = me.refused("push", big, "org/big")
    assert error in told["error"]
    assert told["retryable"] is retryable
    assert hub.repos["org/big"].titles == ["initial commit"]
    hub.faults.clear()
    hub.requests.clear()
    me.ok("push", big, "org/big", "--check")
    assert whole(hub, big)
    assert not hub.asked("PUT", "/lfs/")  # what was sent is not sent again


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_killed_in_the_middle(xet: bool, hub: Hub, tmp_path: Path, big: Path) -> None:
    """An upload that breaks off for good leaves nothing visible, and is finished by the same."""
    hub.fail("POST" if xet else "PUT", "/v1/shards" if xet else "/lfs/.*/1$", status=403, times=99)
    me = user(hub, tmp_path, xet=xet)
    told = me.refused("push", big, "org/big")
    assert told["error"].endswith(" does not allow this" + (": as the test asked for" * (not xet)))
    assert told["retryable"] is False
    assert [*hub.repos["org/big"].files()] == [".gitattributes"]
    hub.faults.clear()
    me.ok("push", big, "org/big", "--check")
    assert whole(hub, big)


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        (r"resolve/.*\.safetensors", {"cut": 300_000}),
        (r"resolve/.*\.safetensors", {"status": 500}),
        (r"resolve/.*/config.json", {"cut": 10}),
        (r"/tree/", {"status": 503}),
    ],
)
def test_pull_goes_on(
    pattern: str, what: dict[str, Any], hub: Hub, tmp_path: Path, big: Path
) -> None:
    """A download that breaks off is taken up again."""
    hub.add("org/big", big)
    hub.fail("GET", pattern, **what)
    me = user(hub, tmp_path)
    folder = Path(me.ok("pull", "org/big", "-q").out.strip())
    assert hub.faults[0].times == 0
    assert all((folder / p.name).read_bytes() == p.read_bytes() for p in big.iterdir())


def test_nothing_secret_is_told(hub: Hub, tmp_path: Path, big: Path) -> None:
    """A token in the environment, another in the address, faults and tracebacks: none is shown."""
    endpoint = hub.url.replace("http://", f"http://me:{WRITE}@")
    me = user(hub, tmp_path, extra={"HF_ENDPOINT": endpoint, "GROWKIT_DEBUG": "1"})
    hub.fail("PUT", "/lfs/", status=500)
    done = me.ok("push", big, "org/big", "--check", "--json")
    assert done.json["url"] == f"{hub.url}/org/big"
    assert "HTTP Error 500 thrown while requesting PUT" in done.err
    hub.fail("POST", "/commit/", status=400, times=99)
    (big / "notes.md").write_text("x", encoding="utf-8")
    told = me.growkit("push", big, "org/big", "--json")
    assert told.code == 5
    assert "Traceback" in told.err
    assert f"org/big: {hub.url.removeprefix('http://')} refuses the request (400)" in told.err
    me.ok("grow", "org/big", "--recipe", "double_depth", "-o", "deep")
    for path in (p for p in me.folder.rglob("*") if p.is_file()):
        assert WRITE.encode() not in path.read_bytes()
