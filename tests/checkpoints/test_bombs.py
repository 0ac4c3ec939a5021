"""Input that was made, or that would serve, to hang, to fill the memory, or to crash: each by name.

Most of these once did. `test_hostile.py` finds such cases by chance; here they stay found.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hostile import Files, Runner, fault
from support.tiny import build, save

import growkit as package
from growkit.families.load import family_text

QUERY = "model.layers.0.self_attn.q_proj.weight"
WEIGHTS, CONFIG = "small/model.safetensors", "small/config.json"
ONE_FILE = "small/model.safetensors"
NEARLY = 24_900_000  # bytes that are just allowed


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, and a file beside it that is nobody's business."""
    folder = tmp_path_factory.mktemp("base")
    save(build("llama", "causal", heads=2, mlp=12, dtype=torch.float32), folder / "small")
    (folder / "secret").write_bytes((folder / WEIGHTS).read_bytes())
    return folder


@pytest.fixture(scope="module")
def runner(base: Path) -> Iterator[Runner]:
    """One worker for all cases."""
    with Runner(base) as runner:
        yield runner


def weights(base: Path, header: Any = None, **changes: Any) -> Files:
    """The weight file with another header, or with other values in one entry of it."""
    raw = (base / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:end])
    if header is None:
        entries[QUERY] |= changes
        header = entries
    elif callable(header):
        header = header(entries)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return {WEIGHTS: len(text).to_bytes(8, "little") + text + raw[end:]}


def config(base: Path, **changes: Any) -> Files:
    """config.json with other values."""
    old = json.loads((base / CONFIG).read_text())
    return {CONFIG: json.dumps({**old, **changes}).encode()}


def renamed(new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """One tensor under another name."""
    return lambda entries: {new if k == QUERY else k: v for k, v in entries.items()}


def meta(text: str) -> bytes:
    """A header with much metadata."""
    return json.dumps({"__metadata__": {"a": text}}, ensure_ascii=False).encode()


# a tensor without bytes, as a header has it
EMPTY = b'"model.layers.%d.mlp.up_proj.weight":{"dtype":"F32","shape":[0,8],"data_offsets":[0,0]}'


class Trap:
    """Unpickled, it leaves a trace."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


Make = Callable[[Path], Files]

# what it is → (files, the sentence)
CHECKPOINTS: dict[str, tuple[Make, str]] = {
    "header of 100 MB": (
        lambda b: {WEIGHTS: (10**8).to_bytes(8, "little") + b"{" * 1000},
        "truncated: found 1008 bytes, the header ends at 100000008",
    ),
    "longer header": (
        lambda b: {WEIGHTS: (10**8 + 1).to_bytes(8, "little") + b"{" * 1000},
        "header of 100000001 bytes, expected at most 100000000",
    ),
    "long header of lists": (
        lambda b: weights(b, b"[" + b"[]," * 9_000_000 + b"0]"),
        "header has more than 25000000 bytes",
    ),
    "long header of a text": (
        lambda b: weights(b, meta("x" * 26_000_000 + "😀")),
        "header has more than 25000000 bytes",
    ),
    "long header of tensors": (
        lambda b: weights(b, b"{" + b",".join(EMPTY % i for i in range(300_000)) + b"}"),
        "bytes too many",
    ),
    "a tensor twice, far apart": (
        lambda b: weights(b, b"{" + b",".join(EMPTY % (i % 499) for i in range(300_000)) + b"}"),
        '"model.layers.0.mlp.up_proj.weight" appears twice',
    ),
    "many lists": (
        lambda b: weights(b, b"[" + b"[]," * (NEARLY // 3) + b"0]"),
        "header holds more than 1000000 values",
    ),
    "many tables": (
        lambda b: weights(b, b"{" + b",".join(b'"%09d":{}' % i for i in range(499_000)) + b"}"),
        "expected dtype, shape and data_offsets, found {}",
    ),
    "wide characters": (lambda b: weights(b, meta("x" * NEARLY + "😀")), "bytes too many"),
    "wide characters, escaped": (
        lambda b: weights(b, meta("x" * NEARLY + "😀").replace(b"{", rb'{"\ud83d\ude00": 1,', 1)),
        "tensor 😀: expected dtype",
    ),
    "late duplicate": (
        lambda b: weights(b, b"{" + b"".join(b'"%d":1,' % i for i in range(300_000)) + b'"9":1}'),
        '"9" appears twice',
    ),
    "many tensors": (
        lambda b: weights(
            b,
            {
                f"model.layers.{i}.mlp.up_proj.weight": {
                    "dtype": "F32",
                    "shape": [0, 8],
                    "data_offsets": [0, 0],
                }
                for i in range(70_000)
            },
        ),
        "bytes too many",
    ),
    "newline in a name": (lambda b: weights(b, renamed("a\n\x1b[31m")), "not the name of a tensor"),
    "long name": (lambda b: weights(b, renamed("a" * 500_000)), "not the name of a tensor"),
    "long number in a name": (
        lambda b: weights(b, renamed(f"model.layers.{'9' * 5000}.mlp.up_proj.weight")),
        "not the name of a tensor",
    ),
    "foreign digits in a name": (
        lambda b: weights(b, renamed(QUERY.replace("0", "٠"))),
        "no pattern of family llama fits",
    ),
    "many dims": (lambda b: weights(b, shape=[1] * 100_000), "100000 dims, expected at most 64"),
    "huge dims": (lambda b: weights(b, shape=[2**62] * 64), r"found 256 bytes, F32 \[46.* bytes"),
    "empty and huge": (lambda b: weights(b, shape=[0, 2**62]), "found 256 bytes, F32 .* takes 0"),
    "long entry": (lambda b: weights(b, x="y" * 10**6), "expected dtype, shape and data_offsets"),
    "long shape": (lambda b: weights(b, shape=[-1] * 10**5), "is not a list of whole numbers"),
    "long dtype": (lambda b: weights(b, dtype="F" * 10**6), "dtype 'FFF.* is not known"),
    "config of lists": (
        lambda b: {CONFIG: b'{"a":[' + b"[]," * 2_000_000 + b"0]}"},
        "config holds more than 1000000 values",
    ),
    "long config": (
        lambda b: {CONFIG: b'{"a":"' + b"x" * 26_000_000 + b'"}'},
        "config has more than 25000000 bytes",
    ),
    "deep config": (
        lambda b: {CONFIG: b'{"a":' * 400 + b"1" + b"}" * 400},
        "config is nested more than 50 deep",
    ),
    "very deep config": (lambda b: {CONFIG: b"[" * 100_000}, "config is not valid JSON: maximum"),
    "two billion layers": (lambda b: config(b, num_hidden_layers=2**31 - 1), "2 of 2147483647"),
    "unprintable family": (lambda b: config(b, model_type="a\n\x1b[31m"), r"a\\n\\x1b\[31m"),
    "long family": (lambda b: config(b, model_type="a" * 10**6), "aaa … aaa"),
    "unprintable class": (
        lambda b: config(b, architectures=["a\x1b[31m"]),
        "architectures: expected a list of names",
    ),
    "shards without end": (
        lambda b: {WEIGHTS: b"->gone", "small/a-00001-of-999999999999.safetensors": b"x"},
        "999999999998 of 999999999999 shards missing, the first is a-",
    ),
    "rubbish in a module": (
        lambda b: {"small/1_Pooling/config.json": b"\xff"},
        "1_Pooling/config.json: config is not valid JSON",
    ),
    "deep module": (
        lambda b: {"small/1_Pooling/config.json": b"[" * 100_000},
        "1_Pooling/config.json: config is not valid JSON",
    ),
    "link to a secret": (lambda b: {"small/vocab.txt": b"->/etc/passwd"}, "a link that leads out"),
    "link to all": (lambda b: {"small/all": b"->/etc"}, "a link that leads out of the folder"),
    "weights elsewhere": (lambda b: {WEIGHTS: b"->../secret"}, "a link that leads out"),
    "pickle": (
        lambda b: {WEIGHTS: b"->gone", "small/pytorch_model.bin": pickle.dumps(Trap())},
        "pickled weights only, which can run code",
    ),
}  # fmt: skip

LLAMA = family_text("llama")
SEED, NOISE = b"seed: %s\nsteps: [{op: noise}]", b"steps: [{op: noise}]\n"

# what it is → (YAML, exit code, the sentence)
RECIPES: dict[str, tuple[bytes, str]] = {
    "code": (b"steps: !!python/object/apply:os.mkdir [unpickled]", "tags such as .* are not read"),
    "laughs": (b"a: &a [x, x]\nb: &b [*a, *a]\nsteps: [*b]", "anchors and aliases are not read"),
    "deep": (b"steps: " + b"[" * 400_000, "nested more than 20 deep"),
    "base 60": (SEED % (b"1" + b":1" * 400_000), "line 1: a number of 800001 characters"),
    "base 60, float": (SEED % (b"1" + b":1" * 400_000 + b".5"), "a number of 800003 characters"),
    "hexadecimal": (SEED % (b"0x" + b"f" * 800_000), "line 1: a number of 800002 characters"),
    "large": (b"steps: [{op: width, to: {mlp: 0x" + b"f" * 90 + b"}}]", "at most 1,000,000, found"),
    "50,000 steps": (
        b"steps: [" + b"{op: noise}," * 50_000 + b"]",
        "at most 100 items, found a list of 50000",
    ),
    "50,000 wrong steps": (b"steps: [" + b"{a: 1}," * 50_000 + b"]", "more than 20 problems"),
    "90,000 keys": (
        NOISE + b"".join(b"k%d: 1\n" % i for i in range(90_000)),
        "more than 20 problems",
    ),
    "a key 90,000 times": (NOISE + b"k: 1\n" * 90_000, "more than 20 problems"),
    "400,000 layers": (
        b"steps: [{op: depth, layers: [" + b"0," * 400_000 + b"]}]",
        "at most 10,000, found 4e\\+05",
    ),
    "vocabulary": (b"steps: [{op: resize, vocab: 999999999999}]", "less than or equal to 1000000"),
    "positions": (b"steps: [{op: resize, positions: 99999999}]", "less than or equal to 1000000"),
    "doublings": (
        b"steps: [" + b"{op: width, to: {mlp: 2x}}," * 40 + b"]",
        "at most 1,000,000, found",
    ),
    "unprintable": (b'steps: [{op: "\\e[31m\\n"}]', r'unknown op "\\x1b\[31m\\n"'),
}

# what it is → (family file, the sentence)
FAMILIES: dict[str, tuple[str, str]] = {
    "laughs": (
        "a0: &a0 {x: lin hidden hidden}\n"
        + "".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 40))
        + LLAMA.partition("modules:")[0]
        + "modules: *a39\n",
        "anchors and aliases are not read",
    ),
    "deep": ("a: " + "[" * 400_000, "nested more than 20 deep"),  # these two ended in a
    "deep tables": ("a: " + "{a: " * 100_000, "nested more than 20 deep"),  # segmentation fault
    "large": ("# " + "x" * 2_000_000, "a family file has at most 1,000,000 bytes"),
    "parentheses": (
        LLAMA.replace("lin heads.q hidden", "lin " + "(" * 100_000 + "q hidden"),
        "axis expression .* not well formed",
    ),
    "endless aliases": (
        LLAMA + "alias: {" + ", ".join(f"{'l' * i}: {'l' * 99}" for i in range(1, 40)) + "}",
        "the aliases make names without end",
    ),
    "alias that is no text": (LLAMA + "alias: {model: 3}", "does not describe this model: TypeErr"),
    "default that needs itself": (
        LLAMA.replace("heads: num_attention_heads, h", "heads: head_dim, h").replace(
            "hidden_size // num_attention_heads", "num_key_value_heads"
        ),
        "does not describe this model: RecursionError",
    ),
}  # fmt: skip

DEEPER = "grow small --recipe double_depth -o out -q"


def check(runner: Runner, files: Files, line: str, code: int, match: str) -> None:
    """It ends as it should, with these words."""
    ending = runner.run(files, line.split())
    assert not fault(ending, (code,)), fault(ending, (code,))
    assert re.search(match, ending.stderr), ending.stderr
    assert "hint: " in ending.stderr


@pytest.mark.parametrize(("make", "match"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoint(make: Make, match: str, base: Path, runner: Runner) -> None:
    """A checkpoint that nobody can want to grow."""
    check(runner, make(base), DEEPER, 3, match)


@pytest.mark.parametrize(("text", "match"), RECIPES.values(), ids=RECIPES)
def test_recipe(text: bytes, match: str, runner: Runner) -> None:
    """A recipe that nobody can want to follow."""
    check(runner, {"r.yaml": text}, "grow small --recipe r.yaml -o out", 2, match)


@pytest.mark.parametrize(("text", "match"), FAMILIES.values(), ids=FAMILIES)
def test_family(text: str, match: str, base: Path, runner: Runner) -> None:
    """A family file that describes no family; what its defaults are for is not in config.json."""
    old = json.loads((base / CONFIG).read_text())
    bare = {k: v for k, v in old.items() if k not in ("head_dim", "num_key_value_heads")}
    files = {"f.yaml": text.encode(), CONFIG: json.dumps(bare).encode()}
    check(runner, files, f"{DEEPER} --family f.yaml", 3, match)


@pytest.mark.parametrize(
    ("line", "code", "match"),
    [
        ("grow small --recipe /dev/zero -o out", 2, "a recipe has at most 1,000,000 bytes"),
        (f"{DEEPER} --family /dev/zero", 3, "a family file has at most 1,000,000 bytes"),
        (f"{DEEPER} --config /dev/zero", 3, "/dev/zero is missing"),
        ("grow /dev/zero --recipe double_depth -o out", 3, "neither a file nor a folder"),
    ],
)
def test_devices(line: str, code: int, match: str, runner: Runner) -> None:
    """A file without an end."""
    check(runner, {}, line, code, match)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'[{"path": 3}, 4, {"path": "a\\u0000b"}]', b"3"])
def test_modules_that_are_none(text: bytes, runner: Runner) -> None:
    """Beside a single file modules.json is only looked at; what it is not, it is not."""
    files = {"small/modules.json": text}
    ending = runner.run(files, f"grow {ONE_FILE} --recipe double_depth -o out -q".split())
    assert not fault(ending, (0,)), ending.stderr


@pytest.mark.alone
def test_the_worker_sees_what_it_is_for(base: Path) -> None:
    """A hang is killed, memory is counted, and what is changed elsewhere is told."""
    with Runner(base, "faults", patience=2) as runner:
        assert "longer than" in fault(runner.run({}, ["hang"]))
        assert "memory" in fault(runner.run({}, ["eat"]))
        assert "changed ../elsewhere" in fault(runner.run({}, ["stray"]))
        assert "-2" in fault(runner.run({}, ["crash"]))


@pytest.mark.parametrize("name", ["many lists", "unprintable family", "link to all", "pickle"])
def test_process(name: str, base: Path, tmp_path: Path) -> None:
    """A sample of these as a shell would run them."""
    with Runner(base) as runner:
        runner.lay_out(tmp_path / "case", CHECKPOINTS[name][0](base))
    done = subprocess.run(
        [sys.executable, "-m", "growkit", *DEEPER.split()],
        cwd=tmp_path / "case",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(package.__file__).parents[1])},
    )
    assert done.returncode == 3
    assert re.fullmatch(r"error: [^\n]+\nhint: [^\n]+\n", done.stderr), done.stderr
    assert {path.name for path in (tmp_path / "case").iterdir()} == {"small", "secret"}
