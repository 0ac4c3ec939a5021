"""Models of the Hub as sources: the real client against a loopback Hub."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.hub_client import User, user
from support.hub_server import READ, Hub, Repository
from support.tiny import build, save

from growkit import api
from growkit.checkpoints.header import read_header
from growkit.errors import UsageError
from growkit.hub import Repo, redact, repo_named, repo_required
from growkit.report.as_json import hub_id

SHARDED = 400_000  # bytes of a shard of the small model


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder in several shards, with side files and things that nobody needs."""
    folder = tmp_path_factory.mktemp("hub") / "small"
    model = build("llama", "causal", heads=4, head_dim=32, mlp=256, dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size=SHARDED)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}' + " " * 12_000, encoding="utf-8")
    (folder / "README.md").write_text("# Small\n", encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    for name in ("onnx/model.onnx", "1_Pooling/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"word_embedding_dimension": 128}', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def hub(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub with one public model; more are added by the tests."""
    with Hub(tmp_path_factory.mktemp("server")) as server:
        repo = server.add("org/small", small)
        repo.branches["v1"] = repo.branches["main"]
        yield server


@pytest.fixture
def me(hub: Hub, tmp_path: Path) -> User:
    """A new user; requests and faults of others are forgotten."""
    hub.requests.clear()
    hub.faults.clear()
    return user(hub, tmp_path)


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", Repo("org/name")),
        ("Org-1/na.me_2@v1.0", Repo("Org-1/na.me_2", "v1.0")),
        ("org/name@refs/pr/1", Repo("org/name", "refs/pr/1")),
        (Path("org/name"), None),
        ("./org/name", None),
        ("/org/name", None),
        ("org/name/", None),
        ("org/name/model", None),
        ("org/name.safetensors", None),
        ("org/model.safetensors.index.json", None),
        ("name", None),
        ("~/name", None),
        ("here/name", None),  # a folder: a slip in a path is no question to a server
    ],
)
def test_names(
    source: str | Path, expected: Repo | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`org/name[@revision]` is a model on the Hub, unless it can be a path here."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert repo_named(source) == expected


@pytest.mark.parametrize("text", ["name", "./a/b", "a/b/c", "org/name@main", "a b/c", ""])
def test_wrong_names(text: str) -> None:
    """Where only a model on the Hub will do, anything else is refused."""
    with pytest.raises(UsageError, match="not the name of a model on the Hub"):
        repo_required(text)


@pytest.mark.parametrize(
    "text",
    [
        "GET http://me:hf_0123456789abcdefghij@host/x failed",
        "Bearer hf_0123456789abcdefghij",
        "a token of another kind: sesame-street",
        "https://host/x?X-Signature=hf_0123456789abcdefghij&y=1",
        "the password of the address: open%20up, open up",
    ],
)
def test_secrets(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, log-ins in addresses and signed addresses are taken out."""
    monkeypatch.setenv("HF_TOKEN", "sesame-street")
    monkeypatch.setenv("HF_ENDPOINT", "http://someone:open%20up@host")
    for secret in ("hf_0123456789", "sesame-street", "open up", "open%20up"):
        assert secret not in redact(text)


# -- planning ------------------------------------------------------------------------------------


def weights_asked(hub: Hub) -> dict[str, int]:
    """Bytes of each weight file that were asked for; the whole of one counts as -1."""
    out: dict[str, int] = {}
    for _, path, reach in hub.asked("GET", r"\.safetensors$"):
        start, _, last = reach.removeprefix("bytes=").partition("-")
        out[path.rpartition("/")[2]] = int(last) - int(start) + 1 if reach else -1
    return out


def test_plan_by_ranges(small: Path, hub: Hub, me: User) -> None:
    """A plan is the same as that of the files, and no weights are downloaded for it."""
    told = me.ok("plan", "org/small@v1", "--recipe", "double_width", "--json").json
    here = api.plan_growth(small, "double_width")
    assert told["tensors"].keys() == {f.name for f in here.formulas}
    assert told["exactness"]["claim"] == here.claim.claim
    assert told["parameters"]["after"] == here.parameters_after
    asked = weights_asked(hub)
    files = {f.name: f.size for f in next(iter(here.sources.values())).files}
    assert asked.keys() == files.keys()
    assert len(asked) > 2
    assert all(0 < size < files[name] for name, size in asked.items())
    assert not hub.asked("GET", "onnx|pytorch_model|1_Pooling")
    assert not list(me.home.rglob("*.safetensors"))


def test_header_longer_than_the_first_range(me: User, hub: Hub, tmp_path: Path) -> None:
    """The rest of a long header is asked for; no byte of the weights is needed."""
    folder = save(build("llama", "causal", dtype=torch.float32), tmp_path / "long")
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = 8 + int.from_bytes(raw[:8], "little")
    padded = raw[8:size].rstrip() + b" " * 300_000
    path.write_bytes(struct.pack("<Q", len(padded)) + padded + raw[size:])
    hub.add("org/long", folder)
    assert me.ok("inspect", "org/long", "--json").json["path"] == "org/long"
    reaches = [r for *_, r in hub.asked("GET", r"org/long/resolve/.*model\.safetensors")]
    assert len(reaches) == 2
    assert reaches[1].startswith("bytes=131072-")


@pytest.mark.parametrize("what", [{"keep": 20}, {"cut": 20}, {"status": 500}, {"status": 429}])
def test_plan_survives(what: dict[str, int], me: User, hub: Hub) -> None:
    """A range that is answered in part, broken off or refused once is asked for again."""
    hub.fail("GET", r"model-00002-of-.*\.safetensors", **what)
    told = me.ok("plan", "org/small", "--recipe", "double_width", "--json").json
    assert told["exactness"]["claim"] == "exact"
    assert hub.faults[0].times == 0


def test_inspect_names_the_model(me: User) -> None:
    """An error about a model of the Hub names it as the user did, not its place in the cache."""
    me.hub.add("org/odd", me.folder)
    odd = me.folder / "odd"
    odd.mkdir()
    (odd / "config.json").write_text('{"model_type": "odd"}', encoding="utf-8")
    me.hub.add("org/odd", odd)
    told = me.refused("inspect", "org/odd", code=3)
    assert told["error"] == "org/odd: no safetensors file in this folder"
    assert "retryable" not in told


# -- growing -------------------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, bytes]:
    """Content of the weight files."""
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


@pytest.mark.parametrize(
    "xet", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["lfs", "xet"]
)
def test_grow_from_the_hub(
    xet: bool, small: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as from the files; lineage is kept; the second run needs no weights."""
    hub.requests.clear()
    me = user(hub, tmp_path, xet=xet, token=READ)
    command = ("grow", "org/small", "--recipe", "double_width")
    digest = me.ok("plan", *command[1:], "--json").json["digest"]
    told = me.ok(*command, "--json").json
    out = me.folder / "small-double_width"
    assert told["out"] == str(out)
    assert told["digest"] == digest
    api.grow(small, "double_width", out=tmp_path / "here")
    assert weights(out) == weights(tmp_path / "here")
    assert (out / "tokenizer.json").read_bytes() == (small / "tokenizer.json").read_bytes()
    pooling = json.loads((out / "1_Pooling" / "config.json").read_bytes())
    assert pooling == {"word_embedding_dimension": 256}
    record = json.loads((out / "growkit.json").read_bytes())
    source = next(iter(record["sources"].values()))
    repo = hub.repos["org/small"]
    assert (source["path"], source["revision"]) == ("org/small", repo.branches["main"])
    assert {f["name"]: f["blob"] for f in source["files"]} == {
        n: f.sha256 for n, f in repo.files().items() if n.endswith(".safetensors")
    }
    assert "base_model: org/small\n" in (out / "README.md").read_text(encoding="utf-8")
    assert not hub.asked("GET", "onnx|pytorch_model")
    assert str(tmp_path) not in json.dumps(record)
    # again: nothing to do, here or without a network; from the cache's folder: the same result
    hub.requests.clear()
    assert me.ok(*command, "--json").json["already_done"] is True
    assert -1 not in weights_asked(hub).values()
    hub.requests.clear()
    again = me.ok(*command, "--json", HF_HUB_OFFLINE="1").json
    assert again["already_done"] is True
    assert hub.requests == []
    snapshot = me.home / "hub/models--org--small/snapshots" / repo.branches["main"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert api.grow(snapshot, "double_width", out=out).already_done
    assert me.ok("verify", "org/small", out, HF_HUB_OFFLINE="1").out.endswith("passed\n")


def test_grow_stages_from_the_hub(me: User, hub: Hub, small: Path, tmp_path: Path) -> None:
    """A plan needs the headers of what stands behind the model, and the growth its weights."""
    staged = Path(shutil.copytree(small, tmp_path / "staged"))
    listed = [{"path": "1_Pooling", "type": "x.Pooling"}, {"path": "2_Dense", "type": "x.Dense"}]
    (staged / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    (staged / "2_Dense").mkdir()
    sizes = {"in_features": 128, "out_features": 1024}
    (staged / "2_Dense" / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    save_file({"linear.weight": torch.randn(1024, 128)}, staged / "2_Dense" / "model.safetensors")
    hub.add("org/staged", staged)
    hub.requests.clear()
    command = ("grow", "org/staged", "--recipe", "double_width")
    digest = me.ok("plan", *command[1:], "--json").json["digest"]
    assert 0 < weights_asked(hub)["model.safetensors"] < 4 * 1024 * 128
    assert not list(me.home.rglob("*.safetensors"))
    told = me.ok(*command, "--json").json
    assert told["digest"] == digest
    out, here = Path(told["out"]), api.grow(staged, "double_width", out=tmp_path / "here").out
    for name in ("config.json", "model.safetensors"):
        assert (out / "2_Dense" / name).read_bytes() == (here / "2_Dense" / name).read_bytes()
    assert weights(out) == weights(here)
    pulled = Path(me.ok("pull", "org/staged").out.strip())
    assert (pulled / "2_Dense" / "model.safetensors").exists()


def test_no_download_before_a_refusal(me: User, hub: Hub) -> None:
    """An output that is in the way is told before the weights are fetched."""
    (me.folder / "big").mkdir()
    (me.folder / "big" / "notes.txt").write_text("mine", encoding="utf-8")
    me.refused("grow", "org/small", "--recipe", "double_width", "-o", "big", code=6)
    assert -1 not in weights_asked(hub).values()


def test_disk_is_checked_before_the_download(me: User, hub: Hub, tmp_path: Path) -> None:
    """Terabytes can be planned with, and are refused before a byte of them is fetched."""
    rows, heads = 4_000_000, 768
    model = build("llama", "causal", heads=12, head_dim=64, layers=1, dtype=torch.float32)
    folder = save(model, tmp_path / "huge")
    path = folder / "model.safetensors"
    header = json.loads(path.read_bytes()[8:][: int.from_bytes(path.read_bytes()[:8], "little")])
    larger = {768: 64 * heads, 29: rows}
    at = 0
    for entry in (entry for name, entry in header.items() if name != "__metadata__"):
        entry["shape"] = [larger.get(size, size) for size in entry["shape"]]
        size = 4 * math.prod(entry["shape"])
        entry["data_offsets"] = [at, at + size]
        at += size
    config = json.loads((folder / "config.json").read_bytes())
    config |= {"vocab_size": rows, "hidden_size": 64 * heads}
    config |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    raw = json.dumps(header).encode()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    hub.add("org/huge", folder)
    file = hub.repos["org/huge"].files()["model.safetensors"]
    os.truncate(file.path, 8 + len(raw) + at)
    hub.repos["org/huge"].commits[hub.repos["org/huge"].branches["main"]]["model.safetensors"] = (
        hub.pointer(file.sha256 or "")
    )
    assert me.ok("plan", "org/huge", "--recipe", "double_depth", "--json").json
    told = me.refused("grow", "org/huge", "--recipe", "double_depth", code=4)
    wanted = r"org/huge: the download needs \S+ TB and the result \S+ TB of the disk that .* free"
    assert re.fullmatch(wanted, told["error"])
    assert "HF_HOME" in told["hint"]
    assert not list(me.home.rglob("*.incomplete"))


def test_fusion_of_the_hub(me: User, hub: Hub) -> None:
    """A further source may be on the Hub; the card names both parents."""
    other = save(build("llama", "causal", dtype=torch.float32, seed=1), me.folder / "x" / "other")
    hub.add("org/other", other)
    hub.add("org/one", save(build("llama", "causal", dtype=torch.float32), me.folder / "x" / "one"))
    me.ok(
        *("grow", "org/one", "--recipe", "deep_fusion", "-o", "both"),
        *("--source", "other=org/other"),
    )
    card = (me.folder / "both" / "README.md").read_text(encoding="utf-8")
    assert "base_model:\n- org/one\n- org/other\nbase_model_relation: merge\n" in card


# -- what goes wrong -----------------------------------------------------------------------------


def gated(hub: Hub, small: Path) -> Repository:
    """A model whose owner wants terms accepted."""
    return hub.add("org/gated", small, gated=True)


@pytest.mark.parametrize(
    ("source", "token", "error", "hint", "retryable"),
    [
        ("org/none", READ, "org/none: no such model on 127.0.0.1:", "check the name", False),
        ("org/private", None, "org/private: no such model on", "HF_TOKEN", False),
        ("org/small@v9", READ, 'org/small@v9: has no revision "v9"', "/tree/main", False),
        ("org/gated", READ, "org/gated: gated: its owner asks you to", "accept them on", False),
        ("org/small", "hf_wrongWrongWrongWrong", "does not accept the token", "HF_TOKEN", False),
        ("org/busy", READ, "answers with an error of its own (503)", "in a while", True),
    ],
)
def test_what_the_hub_refuses(
    source: str, token: str | None, error: str, hint: str, retryable: bool,
    small: Path, hub: Hub, me: User,
) -> None:  # fmt: skip
    """One sentence, the next action, exit 5, and whether another try is worth it."""
    gated(hub, small)
    hub.add("org/private", small, private=True)
    hub.fail("GET", "org/busy", status=503, times=99)
    me.token = token
    told = me.refused("plan", source, "--recipe", "double_width")
    assert error in told["error"]
    assert hint in told["hint"]
    assert told["retryable"] is retryable


def test_no_network(me: User) -> None:
    """Nobody answers: worth another try. Without permission to ask: not."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        told = me.refused("inspect", "org/small", HF_ENDPOINT=nobody)
    assert "failed or broke off (ConnectError)" in told["error"]
    assert "HF_HUB_OFFLINE=1" in told["hint"]
    assert told["retryable"] is True
    told = me.refused("inspect", "org/small", HF_HUB_OFFLINE="1")
    assert told["error"] == "org/small: not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub"
    assert told["retryable"] is False


def test_offline_without_weights(me: User) -> None:
    """A cache that has seen a plan has no weights to grow from."""
    me.ok("inspect", "org/small")
    told = me.refused("grow", "org/small", "--recipe", "double_width", HF_HUB_OFFLINE="1")
    assert told["error"].startswith("org/small: the cache holds no weights of it")


def test_cache_that_cannot_be_written(me: User) -> None:
    """A cache that is no folder is a matter of this disk, not of the network: exit 4."""
    (me.folder / "file").write_text("in the way", encoding="utf-8")
    told = me.refused("inspect", "org/small", code=4, HF_HOME=str(me.folder / "file"))
    assert f"{me.folder / 'file'}" in told["error"]
    assert "cannot write: Not a directory" in told["error"]


# -- never the network for a path ----------------------------------------------------------------

NO_SOCKETS = """
import sys
def guard(event, arguments):
    if event.startswith("socket."):
        raise SystemExit(f"network: {event} {arguments}")
sys.addaudithook(guard)
sys.argv = ["growkit", *sys.argv[1:]]
from growkit.cli import main
try:
    main()
finally:
    print("huggingface_hub" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "loaded"),
    [
        ("plan SMALL --recipe double_width", False),
        ("inspect SMALL", False),
        ("grow SMALL --recipe double_width -o big", False),
        ("grow SMALL --recipe double_width -o big --verify", True),  # by transformers
    ],
)
def test_a_path_never_meets_the_network(
    command: str, loaded: bool, small: Path, hub: Hub, me: User
) -> None:
    """No socket is made at any step, though the Hub could be asked; nor is its client loaded."""
    line = command.replace("SMALL", str(small)).split()
    done = me.run(sys.executable, "-c", NO_SOCKETS, *line)
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1] == str(loaded)
    assert hub.requests == []


@pytest.mark.parametrize("source", ["./org/small", "work/small", "nothing"])
def test_a_missing_path_is_not_asked_for(source: str, hub: Hub, me: User) -> None:
    """What looks like a path stays one when it is missing: exit 3, no request."""
    (me.folder / "work").mkdir()
    told = me.refused("plan", source, "--recipe", "double_width", code=3)
    assert told["error"] == f"{source}: no such file or folder"
    assert hub.requests == []


def test_snapshot_of_shared_blobs(small: Path, tmp_path: Path) -> None:
    """The links of a cache may lead from a repository's blobs on to shared ones, and no farther."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--org--name" / "snapshots" / ("0a1b" * 10)
    blobs, shared = cache / "models--org--name" / "blobs", cache / "blobs" / "ab"
    for folder in (snapshot, blobs, shared):
        folder.mkdir(parents=True)
    for path in small.glob("model*"):
        (shared / path.name).write_bytes(path.read_bytes())
        (blobs / f"blob-{path.name}").symlink_to(shared / path.name)
        (snapshot / path.name).symlink_to(blobs / f"blob-{path.name}")
    (snapshot / "config.json").write_bytes((small / "config.json").read_bytes())
    plan = api.plan_growth(snapshot, "double_width")
    files = next(iter(plan.sources.values())).files
    assert all(file.blob == f"blob-{file.name}" and file.mtime_ns == 0 for file in files)
    checkpoint = next(iter(plan.sources.values()))
    assert hub_id(checkpoint.path, checkpoint.revision) == "org/name"


def test_identity_of_a_blob(small: Path) -> None:
    """A blob is identified by its name and not by a time; an ordinary file by its time."""
    name = next(p.name for p in small.glob("*.safetensors"))
    assert read_header(small / name, name)[0].mtime_ns > 0
    assert read_header(small / name, name, blob="b")[0].mtime_ns == 0


def test_client_settings_stay_out(hub: Hub, me: User) -> None:
    """The address is shown without log-in, and no token is printed or written, debugging or not."""
    host = hub.url.removeprefix("http://")
    me.token = None
    hub.fail("GET", "org/small", status=500, times=2)
    endpoint = f"http://me:{READ}@{host}"
    command = ("grow", "org/small", "--recipe", "double_width", "-o", "big")
    me.ok(*command, HF_ENDPOINT=endpoint, GROWKIT_DEBUG="1")
    told = me.growkit("plan", "org/none", *command[2:4], HF_ENDPOINT=endpoint, GROWKIT_DEBUG="1")
    assert told.code == 5
    assert "Traceback" in told.err
    assert f"org/none: no such model on {host}" in told.err
    found: list[Any] = [p for p in me.folder.rglob("*") if p.is_file()]
    assert len(found) > 5
    assert not [p for p in found if READ.encode() in p.read_bytes()]
