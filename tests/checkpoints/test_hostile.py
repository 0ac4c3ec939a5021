"""Damaged and hostile input: one sentence, exit code 2 or 3, in time, in memory, nothing else hurt.

Every kind of input is changed in structure (values, keys, sizes) and in bytes. A thorough run is
`make slow`; it prints how many cases there were and how they ended.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile import Ending, Files, Runner, fault
from support.tiny import build, save

from growkit.api import grow
from growkit.families.load import family_names, family_text
from growkit.recipe.recipe import builtin_recipes

COMMIT = "0123456789" * 4
HUB = f"models--org--name/snapshots/{COMMIT}"
CASES = 25  # per kind of input
MANY = 1500  # per kind in the thorough run

Case = tuple[Files, list[str]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every case gets a copy of: checkpoints of all layouts, and a finished result."""
    folder = tmp_path_factory.mktemp("base")
    for family, head in (("llama", "causal"), ("bert", "base"), ("gpt2", "base")):
        model = build(family, head, heads=2, mlp=12, dtype=torch.float32)
        small = save(model, folder / family)
        (small / "tokenizer.json").write_text('{"model": {}}')
        (small / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
        (small / "1_Pooling").mkdir()
        (small / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 8}')
    model = build("llama", "causal", heads=2, mlp=12, dtype=torch.float32)
    model.save_pretrained(folder / "sharded", max_shard_size="5KB")
    grow(folder / "llama", "double_depth", out=folder / "done")
    blobs = folder / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (folder / HUB).mkdir(parents=True)
    for path in (folder / "llama").iterdir():
        if path.is_file():
            (blobs / path.name).write_bytes(path.read_bytes())
            (folder / HUB / path.name).symlink_to(Path("../../blobs", path.name))
    (folder / "secret").write_bytes((folder / "llama" / "model.safetensors").read_bytes())
    return folder


@pytest.fixture(scope="module")
def runner(base: Path) -> Iterator[Runner]:
    """One worker for all cases."""
    with Runner(base) as runner:
        yield runner


def deeper(source: str) -> list[str]:
    """A growth that copies bytes only."""
    return ["grow", source, "--recipe", "double_depth", "-o", "out", "-q"]


# -- how input is changed --------------------------------------------------------------------------

NASTY = (
    *(None, True, False, 0, 1, -1, 2**31 - 1, 2**31, 2**63, 10**30, 1e308, math.nan, math.inf),
    *("", "a\nb\x1b[31m", "../secret", "/etc/passwd", "x" * 3000, "9" * 5000, "2x", "1/0x", "-1x"),
    *("é😀\u202e", [], {}, [[]], [{}], {"a": {}}, [0] * 3000, {"x": 1}, "llama", "hidden", "tile"),
)
KEYS = ("", "a\nb", "x" * 3000, "__metadata__", "model.layers.0.mlp.up_proj.weight", "to", "1")


@st.composite
def changed(draw: Callable[..., Any], tree: Any) -> Any:
    """A tree of tables and lists with one to three places made another."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        parent, key, here = None, None, tree
        while isinstance(here, dict | list) and here and (parent is None or draw(st.booleans())):
            keys = list(here) if isinstance(here, dict) else range(len(here))
            parent, key = here, draw(st.sampled_from(keys))
            here = here[key]
        if parent is None:
            return draw(st.sampled_from(NASTY))
        match draw(st.sampled_from(("value", "value", "number", "text", "drop", "key", "wrap"))):
            case "value":
                parent[key] = copy.deepcopy(draw(st.sampled_from(NASTY)))
            case "number":
                parent[key] = draw(st.integers() | st.floats() | st.integers(0, 99))
            case "text":
                parent[key] = draw(st.text(max_size=20))
            case "drop":
                del parent[key]
            case "wrap":
                parent[key] = [here, here]
            case "key" if isinstance(parent, dict):
                parent[draw(st.sampled_from(KEYS) | st.text(max_size=20))] = parent.pop(key)
    return tree


TOKENS = (
    *(b"{", b"}", b"[", b"]", b",", b":", b": ", b"- ", b'"', b"'", b"\0", b"\xff", b"\\ud800"),
    *(
        b"&a ",
        b"*a",
        b"<<: *a",
        b"!!python/object/apply:os.system ['touch x']",
        b"!include x",
        b"\t",
    ),
    *(b"%YAML 9", b"---\n", b"NaN", b"-1", b"1e999", b"0x" + b"f" * 200, b"1:1:1:1", b"[" * 3000),
    *(b"null", b"2x", b"../secret", b"(", b"|", b".", b"{layers}", b"?", b">"),
)


@st.composite
def edited(draw: Callable[..., Any], raw: bytes) -> bytes:
    """Bytes with one to four places overwritten, inserted, left out, repeated or cut."""
    out = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(out)))
        end = min(len(out), at + draw(st.integers(0, 20)))
        match draw(st.sampled_from(("flip", "token", "insert", "drop", "repeat", "cut"))):
            case "flip" if at < len(out):
                out[at] ^= 1 << draw(st.integers(0, 7))
            case "token":
                out[at:end] = draw(st.sampled_from(TOKENS))
            case "insert":
                out[at:at] = draw(st.sampled_from(TOKENS) | st.binary(max_size=8))
            case "drop":
                del out[at:end]
            case "repeat":
                out[at:at] = out[at:end] * 3
            case "cut" if draw(st.integers(0, 4)) == 0:
                del out[at:]
    return bytes(out)


def json_bytes(value: Any) -> bytes:
    """JSON as lenient as Python's: NaN, and halves of surrogate pairs."""
    return json.dumps(value).encode()


def json_files(path: Path) -> st.SearchStrategy[bytes]:
    """A JSON file, changed in either way."""
    raw = path.read_bytes()
    return changed(json.loads(raw)).map(json_bytes) | edited(raw)


def header_files(path: Path) -> st.SearchStrategy[bytes]:
    """A safetensors file whose header is changed; its length usually fits."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    tables = changed(json.loads(raw[8:end])).map(json_bytes) | edited(raw[8:end])
    fitting = tables.map(lambda text: len(text).to_bytes(8, "little") + text + raw[end:])
    return fitting | edited(raw[:end]).map(lambda head: head + raw[end:])


def yaml_files(text: str) -> st.SearchStrategy[bytes]:
    """A YAML file, changed in either way; JSON is YAML."""
    return changed(yaml.safe_load(text)).map(json_bytes) | edited(text.encode())


# -- the kinds of input ----------------------------------------------------------------------------

LINKS = (b"->../secret", b"->/etc/passwd", b"->model.safetensors", b"->..", b"->gone", b"->.")


def headers(base: Path) -> st.SearchStrategy[Case]:
    """The weights of a single file."""
    files = header_files(base / "llama" / "model.safetensors")
    return files.map(lambda raw: ({"llama/model.safetensors": raw}, deeper("llama")))


def indices(base: Path) -> st.SearchStrategy[Case]:
    """The index of a sharded checkpoint; a shard swapped for a link or for another shard."""
    name = "model.safetensors.index.json"
    shards = sorted(p.name for p in (base / "sharded").glob("*.safetensors"))
    table = json_files(base / "sharded" / name).map(lambda raw: {f"sharded/{name}": raw})
    other = (base / "sharded" / shards[0]).read_bytes()
    swapped = st.tuples(st.sampled_from(shards), st.sampled_from((*LINKS, other)))
    shard = swapped.map(lambda pair: {f"sharded/{pair[0]}": pair[1]})
    one = header_files(base / "sharded" / shards[-1]).map(lambda r: {f"sharded/{shards[-1]}": r})
    both = st.tuples(table, shard).map(lambda pair: pair[0] | pair[1])
    return (table | table | shard | one | both).map(lambda files: (files, deeper("sharded")))


def configs(base: Path) -> st.SearchStrategy[Case]:
    """config.json of three families."""
    return st.sampled_from(("llama", "bert", "gpt2")).flatmap(
        lambda name: json_files(base / name / "config.json").map(
            lambda raw: ({f"{name}/config.json": raw}, deeper(name))
        )
    )


def side_files(base: Path) -> st.SearchStrategy[Case]:
    """What travels with the weights, by folder and by file; links, also in the Hub's cache."""
    names = ("modules.json", "1_Pooling/config.json", "generation_config.json", "tokenizer.json")
    changes = st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), json_files(base / "llama" / name))
    )
    links = st.tuples(st.sampled_from((*names, "new.txt", "new")), st.sampled_from(LINKS))
    at = st.sampled_from(("llama", "llama/model.safetensors"))
    ours = st.tuples(changes | links, at).map(
        lambda drawn: ({f"llama/{drawn[0][0]}": drawn[0][1]}, deeper(drawn[1]))
    )
    cached = st.tuples(
        st.sampled_from(("config.json", "model.safetensors")), st.sampled_from(LINKS)
    )
    return ours | cached.map(lambda pair: ({f"{HUB}/{pair[0]}": pair[1]}, deeper(HUB)))


def recipes(base: Path) -> st.SearchStrategy[Case]:
    """The recipes that come with growkit."""
    texts = [path.read_text() for path in builtin_recipes().values()]
    arguments = ["plan", "llama", "--recipe", "r.yaml"]
    return st.sampled_from(texts).flatmap(yaml_files).map(lambda raw: ({"r.yaml": raw}, arguments))


def families(base: Path) -> st.SearchStrategy[Case]:
    """The family files that come with growkit, for a checkpoint that they are made for if any."""

    def of(name: str) -> st.SearchStrategy[Case]:
        model = name if (base / name).is_dir() else "llama"
        return yaml_files(family_text(name)).map(
            lambda raw: ({"f.yaml": raw}, [*deeper(model), "--family", "f.yaml"])
        )

    known = st.sampled_from(("llama", "bert", "gpt2"))
    return (known | st.sampled_from(family_names())).flatmap(of)


def records(base: Path) -> st.SearchStrategy[Case]:
    """growkit.json of a result, which is read to check its files."""
    return json_files(base / "done" / "growkit.json").map(
        lambda raw: ({"done/growkit.json": raw}, ["verify", "--files", "done"])
    )


KINDS = {f.__name__: f for f in (headers, indices, configs, side_files, recipes, families, records)}


def judge(kind: str, ending: Ending) -> str:
    """What is wrong with how a case ended."""
    if ending.code == 4 and ending.stderr.startswith("error: --max-memory"):
        return ""  # a size that is allowed, and told in numbers to be too large for this machine
    return fault(ending, (0, 1, 3) if kind == "records" else (0, 2, 3))


def examine(kind: str, base: Path, runner: Runner, count: int) -> None:
    """`count` cases of a kind; the smallest that goes wrong is what Hypothesis shows."""

    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
    @given(KINDS[kind](base))
    def check(case: Case) -> None:
        files, arguments = case
        wrong = judge(kind, runner.run(files, arguments))
        assert not wrong, wrong

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_hostile(kind: str, base: Path, runner: Runner) -> None:
    """A few cases of each kind."""
    examine(kind, base, runner, CASES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_by_the_thousand(
    kind: str, base: Path, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than 10,000 cases over all kinds, and how they ended."""
    assert MANY * len(KINDS) > 10_000
    before = runner.endings.copy()
    examine(kind, base, runner, MANY)
    endings = runner.endings - before
    assert endings.total() >= MANY
    with capsys.disabled():
        codes = ", ".join(f"{n} times {code}" for code, n in sorted(endings.items()))
        print(
            f"\n{kind}: {endings.total()} cases; exit code {codes}; {runner.peak:,} bytes at most",
            file=sys.stderr,  # which the processes of pytest-xdist share with their parent
        )
