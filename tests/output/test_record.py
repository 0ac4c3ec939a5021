"""`verify --files` finds whatever is not as it was written, to the last bit, without a model."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.tiny import build, save

from growkit.api import grow
from growkit.output.record import check_files, write_record

EDITABLE = "README.md"


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result in shards, with all that may travel beside them."""
    folder = tmp_path_factory.mktemp("grown")
    small = save(build("llama", "causal", heads=2, mlp=12, dtype=torch.bfloat16), folder / "small")
    (small / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')
    (small / "merges.txt").write_bytes(bytes(range(256)))
    (small / "empty.txt").touch()
    (small / "1_Pooling").mkdir()
    (small / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 8}')
    grow(small, "double_depth", out=folder / "out", max_shard_size="3kB")
    return folder / "out"


@pytest.fixture
def out(grown: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(grown, tmp_path / "out")


def flip(out: Path, count: int, seed: int) -> None:
    """Flip bits one after the other, in every file in turn, and see that each is found."""
    rng = random.Random(seed)
    paths = [p for p in sorted(out.rglob("*")) if p.is_file() and p.stat().st_size]
    for _ in range(count):
        for path in paths:
            whole = path.read_bytes()
            place = rng.choice((rng.randrange(len(whole)), rng.randrange(min(200, len(whole)))))
            damaged = bytearray(whole)
            damaged[place] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            found = check_files(out)
            path.write_bytes(whole)
            if path.name == EDITABLE:
                assert found == []
            else:
                name = str(path.relative_to(out))
                assert found, f"{name}: byte {place} is {damaged[place]}, was {whole[place]}"
                assert any(name in problem for problem in found), (name, found)
    assert check_files(out) == []


def test_flipped_bits(out: Path) -> None:
    """A bit of a header, a weight, the index, config.json, growkit.json, the tokenizer …"""
    names = {path.name for path in out.rglob("*")}
    assert {"merges.txt", "recipe.yaml", "model.safetensors.index.json", "growkit.json"} <= names
    flip(out, 12, seed=1)


@pytest.mark.slow
def test_many_flipped_bits(out: Path) -> None:
    """The same, some thousand bits."""
    flip(out, 300, seed=2)


def edit(path: Path, old: bytes, new: bytes) -> None:
    """One text in a file made another of the same length."""
    raw = path.read_bytes()
    assert raw.count(old) >= 1
    path.write_bytes(raw.replace(old, new, 1))


def swap(out: Path) -> None:
    """Two shards under each other's name."""
    one, two = sorted(out.glob("*.safetensors"))[:2]
    one.rename(out / "x")
    two.rename(one)
    (out / "x").rename(two)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "longer": (lambda o: (o / "merges.txt").write_bytes(b"x" * 257), "found 257 bytes, exp"),
    "config": (lambda o: edit(o / "config.json", b"layers", b"lAyers"), "config.json: checksum"),
    "gone": (lambda o: (o / "1_Pooling/config.json").unlink(), "1_Pooling/config.json: missing"),
    "swapped": (swap, "checksum"),
    "record": (lambda o: edit(o / "growkit.json", b"exact", b"Exact"), "growkit.json: changed"),
    "seal": (
        lambda o: edit(o / "growkit.json", b'"growkit.json": "', b'"growkit.jsan": "'),
        "growkit.json: has no checksum of its own",
    ),
    "metadata": (
        lambda o: edit(sorted(o.glob("*.safetensors"))[0], b'"pt"', b'"tf"'),
        r"model-00001-of-\d+.safetensors: checksum",
    ),
    "link": (
        lambda o: ((o / "merges.txt").unlink(), (o / "merges.txt").symlink_to("/etc/passwd")),
        "merges.txt: .*a link that leads out of the folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "match"), DAMAGE.values(), ids=DAMAGE)
def test_damage(damage: Callable[[Path], object], match: str, out: Path) -> None:
    """Files that are longer, lost, swapped, edited or led elsewhere."""
    damage(out)
    assert re.search(match, "\n".join(check_files(out))), check_files(out)


def test_a_record_may_be_added_to(out: Path) -> None:
    """`grow --verify` writes its measurement into growkit.json, which is sealed again."""
    record = json.loads((out / "growkit.json").read_text())
    write_record(out, {**record, "verify": {"passed": True}})
    assert check_files(out) == []


def test_no_model_is_needed(out: Path) -> None:
    """Checking loads neither torch nor transformers."""
    code = (
        "import sys; from growkit.api import check_files; assert check_files(sys.argv[1]) == []; "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(out)], check=True)
