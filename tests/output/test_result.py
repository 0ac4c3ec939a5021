"""What stands in OUT: which files, which bytes, which dtype, and when it is already there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from support.tiny import build, save

import growkit as package
from growkit import api
from growkit.cli.main import app
from growkit.engine.working_memory import block_rows, working_bytes
from growkit.runtime.estimate import BASE_BYTES, TORCH_BYTES, WRITER_BYTES, plan_bytes

EDITED = {"growkit.json", "README.md"}  # they hold times, and what a person writes
ENV = os.environ | {"PYTHONPATH": str(Path(package.__file__).parents[1])}
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder, saved."""
    folder = tmp_path_factory.mktemp("output") / "model"
    return save(build("llama", "causal", heads=2, mlp=12, dtype=torch.float32), folder)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with many tensors, to be interrupted between them."""
    folder = tmp_path_factory.mktemp("output") / "deep"
    return save(build("llama", "causal", layers=8, dtype=torch.float32), folder)


@pytest.fixture
def small(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in the working folder, to be changed."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(model, tmp_path / "small")


def grow(line: str) -> tuple[int, str]:
    """Exit code and all that `growkit grow LINE` says."""
    result = CliRunner().invoke(app, ["grow", *line.split()], prog_name="growkit")
    return result.exit_code, result.output


def ok(line: str) -> Path:
    """The OUT of a growth that succeeds."""
    code, said = grow(f"{line} -q")
    assert code == 0, said
    return Path(said.splitlines()[-1])


def files(folder: Path) -> Files:
    """The files that are the same for the same plan."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in EDITED}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Which files these are, and when they were last written."""
    stats = {p.name: p.stat() for p in (folder, *folder.iterdir())}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def tensors(folder: Path) -> dict[str, tuple[torch.dtype, Any]]:
    """Dtype and bits of every tensor of all shards."""
    shards = (load_file(path) for path in sorted(folder.glob("*.safetensors")))
    whole = {name: tensor for shard in shards for name, tensor in shard.items()}
    return {n: (t.dtype, t.contiguous().view(torch.uint8).tolist()) for n, t in whole.items()}


# -- files ---------------------------------------------------------------------------------------


def test_files_of_a_result(small: Path) -> None:
    """All that the contract names, and nothing else; what holds a size is edited."""
    (small / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}
    (small / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    copied = ["tokenizer.json", "modules.json", "modeling_own.py", "generation_config.json"]
    for name in copied[:3]:
        (small / name).write_bytes(f"{name}\r\n\xff".encode("latin-1"))
    (small / "pytorch_model.bin").write_bytes(b"left behind")

    before = os.umask(0o027)
    try:
        out = ok("small --recipe double_width -o out")
    finally:
        os.umask(before)
    own = ["README.md", "config.json", "growkit.json", "model.safetensors", "recipe.yaml"]
    own += ["growth.html", "growth.svg"]
    found = {str(p.relative_to(out)): p.stat().st_mode & 0o777 for p in out.rglob("*")}
    assert found == {
        **dict.fromkeys([*own, *copied, "1_Pooling/config.json"], 0o640),
        "1_Pooling": 0o750,
    }
    assert all((out / name).read_bytes() == (small / name).read_bytes() for name in copied)
    edited = json.loads((out / "1_Pooling" / "config.json").read_text())
    assert edited == {**pooling, "word_embedding_dimension": 16}
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["out", "small"]

    record = json.loads((out / "growkit.json").read_text())
    sizes = {name: (out / name).stat().st_size for name in found if (out / name).is_file()}
    assert record["files"] == {n: size for n, size in sizes.items() if n not in EDITED}


def test_files_of_several_shards(small: Path) -> None:
    """Shards are numbered, and the index names the one of each tensor."""
    out = ok("small --recipe double_width -o out --max-shard-size 8kB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    found = {name: shard for shard in shards for name in load_file(out / shard)}
    assert index["weight_map"] == found


@pytest.mark.parametrize("given", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtypes(given: str, key: str, small: Path) -> None:
    """All four in and out, rounded once; the config's key follows, under its own name."""
    old = {
        n: t.to(getattr(torch, given)) for n, t in load_file(small / "model.safetensors").items()
    }
    save_file(old, small / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((small / "config.json").read_text())
    del config["dtype"]
    (small / "config.json").write_text(json.dumps(config | {key: given}))
    for wanted in ("keep", "f64", "fp32", "half", "bf16"):
        out = ok(f"small --recipe double_depth -o {wanted} --dtype {wanted}")
        full = {"f64": "float64", "fp32": "float32", "half": "float16", "bf16": "bfloat16"}
        name = full.get(wanted, given)
        new = load_file(out / "model.safetensors")
        assert {t.dtype for t in new.values()} == {getattr(torch, name)}
        stored = old["model.layers.1.mlp.up_proj.weight"].to(getattr(torch, name))
        assert new["model.layers.2.mlp.up_proj.weight"].equal(stored)
        told = json.loads((out / "config.json").read_text())
        assert (told[key], "dtype" in told, "torch_dtype" in told) == (
            name,
            key == "dtype",
            key == "torch_dtype",
        )


# -- already done --------------------------------------------------------------------------------


def test_the_same_is_already_done(small: Path) -> None:
    """The second time nothing is written and no weight is read; memory does not matter."""
    out = ok("small --recipe double_width -o out")
    before = stamps(out)
    code, said = grow("small --recipe double_width -o out --max-memory 1GB")
    assert (code, said.splitlines()[0]) == (0, f"{out}: already done")
    assert json.loads(grow("small --recipe double_width -o out --json")[1])["already_done"] is True
    run_it = "from growkit.cli import app\napp(['grow', 'small', '--recipe', 'double_width', '-o', "
    run_it += "'out', '-q'], standalone_mode=False)\nimport sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", run_it], capture_output=True, text=True, env=ENV, check=True
    )
    assert done.stdout.split() == [str(out), "False"]
    assert stamps(out) == before
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["out", "small"]


def test_a_copy_elsewhere_is_the_same(small: Path, tmp_path: Path) -> None:
    """Where a source lies does not matter, as long as it is the same file."""
    out = ok("small --recipe double_width -o out")
    small.rename(tmp_path / "moved")
    assert "already done" in grow(f"moved --recipe double_width -o {out}")[1]


def retrained(small: Path) -> None:
    """Other values, equal shapes."""
    path = small / "model.safetensors"
    old, size = load_file(path), path.stat().st_size
    save_file({n: t + 1 for n, t in old.items()}, path, metadata={"format": "pt"})
    assert path.stat().st_size == size


def touched(small: Path) -> None:
    """The same bytes, written later."""
    path = small / "model.safetensors"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def configured(small: Path) -> None:
    """Another config."""
    text = (small / "config.json").read_text()
    (small / "config.json").write_text(text.replace('"rope_theta": 10000.0', '"rope_theta": 5e5'))


SOURCE = "source small: model.safetensors is another"
CHANGES: dict[str, Any] = {
    "retrained": (retrained, "", SOURCE),
    "config": (configured, "", "config.json: rope_parameters {"),
    "--set": (None, "--set noise.snr_db=11", "step 1 (noise): snr_db 10.0 there, 11.0 asked"),
    "--seed": (None, "--seed 1", "seed 0 there, 1 asked"),
    "--dtype": (None, "--dtype bfloat16", "dtype keep there, bfloat16 asked"),
    "--max-shard-size": (None, "--max-shard-size 8kB", "other files of weights there than"),
    "--recipe": (None, "--recipe double_depth", "steps width, noise there, depth asked"),
    "--allow-nonfinite": (None, "--allow-nonfinite", "source or version\nhint: "),
}


def test_a_touched_source_is_the_same(small: Path) -> None:
    """Its bytes decide, also with further sources; a changed one with the same time is found."""
    out = ok("small --recipe deep_fusion --source other=small -o out")
    before, path = stamps(out), small / "model.safetensors"
    touched(small)
    line = f"small --recipe deep_fusion --source other=small -o {out}"
    assert "already done" in grow(line)[1]
    assert stamps(out) == before
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    touched(small)
    code, said = grow(line)
    assert (code, said.count("model.safetensors is another")) == (6, 2)


@pytest.mark.parametrize("change", CHANGES)
def test_another_is_not_already_done(change: str, small: Path) -> None:
    """Exit code 6 and the old OUT as it was; --overwrite replaces it."""
    spoil, options, difference = CHANGES[change]
    out = ok("small --recipe double_width -o out")
    before, digest = stamps(out), json.loads((out / "growkit.json").read_text())["digest"]
    if spoil:
        spoil(small)
    line = f"small --recipe double_width -o out {options}"
    code, said = grow(line)
    assert code == 6
    assert "out: holds the result of another recipe, source or version" in said
    assert difference in said
    assert stamps(out) == before
    ok(f"{line} --overwrite")
    assert json.loads((out / "growkit.json").read_text())["digest"] != digest
    assert "already done" in grow(line)[1]


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_a_result_that_lacks_a_file_is_not_done(name: str, small: Path) -> None:
    """Weights alone are no result; what people may edit, the model card, does not count."""
    out = ok("small --recipe double_depth -o out")
    (out / "README.md").write_text("My model")
    assert "already done" in grow("small --recipe double_depth -o out")[1]
    (out / name).unlink()
    code, said = grow("small --recipe double_depth -o out")
    assert code == 6
    assert f"holds this result, but damaged: {name}: missing" in said
    result = CliRunner().invoke(app, ["verify", "--files", "out"])
    assert (result.exit_code, result.stdout) == (1, f"{name}: missing\n")


# -- the same bytes ------------------------------------------------------------------------------


def test_memory_does_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan under the least memory that it can be written with."""
    monkeypatch.chdir(tmp_path)
    save(build("llama", "causal", heads=8, head_dim=16, mlp=400, layers=1), Path("m"))
    plan = api.plan_growth("m", "double_width")
    fixed = plan_bytes(plan) + BASE_BYTES + TORCH_BYTES + WRITER_BYTES
    least = fixed + max(working_bytes(f, 1) for f in plan.formulas)
    rows = [(block_rows(f, least - fixed), f.shape[0]) for f in plan.formulas]
    assert sum(some < whole for some, whole in rows) > 5
    wide = ok("m --recipe double_width -o wide")
    narrow = ok(f"m --recipe double_width -o narrow --max-memory {least}B")
    assert files(narrow) == files(wide)


@pytest.mark.parametrize("recipe", ["double_width", "double_depth"])
def test_shards_do_not_change_a_tensor(recipe: str, small: Path) -> None:
    """The same tensors, bit for bit, in one file, in some, and in one each."""
    whole = tensors(ok(f"small --recipe {recipe} -o whole"))
    for size in ("8kB", "1B"):
        assert tensors(ok(f"small --recipe {recipe} -o {size} --max-shard-size {size}")) == whole


@pytest.mark.alone
@pytest.mark.parametrize(
    ("number", "code", "word", "recipe"),
    [
        (signal.SIGKILL, -9, "", "double_width"),
        (signal.SIGTERM, 143, "error: terminated\n", "double_depth"),
        (signal.SIGINT, 130, "error: interrupted\n", "double_depth"),
    ],
)
def test_interrupted_and_resumed(
    number: signal.Signals, code: int, word: str, recipe: str, deep: Path, tmp_path: Path
) -> None:
    """Only OUT.partial is left; the same command goes on from there to the same bytes."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    line = f"{deep} --recipe {recipe} --max-shard-size 1B -o"
    child = subprocess.Popen(
        [sys.executable, "-m", "growkit", "grow", *line.split(), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )
    while child.poll() is None and len([*partial.glob("*.done")]) < 5:
        time.sleep(0.001)
    child.send_signal(number)
    stdout, stderr = child.communicate(timeout=300)
    assert (child.returncode, stdout) == (code, "")
    assert stderr.startswith(word)
    assert "finished shards are kept" in stderr or not word
    assert [p.name for p in tmp_path.iterdir()] == ["out.partial"]

    kept = {path.name.removesuffix(".done") for path in partial.glob("*.done")}
    before = stamps(partial / "model")
    assert ok(f"{line} {out}") == out
    assert {n: stamps(out)[n] for n in kept} == {n: before[n] for n in kept}
    assert files(out) == files(ok(f"{line} {tmp_path / 'whole'}"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
