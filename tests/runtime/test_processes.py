"""Several processes: the same bytes, shared memory, and nothing lost when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.processes import (
    ENV,
    done_files,
    ended,
    files,
    growkit_in,
    is_alive,
    partial,
    start,
    until,
    workers_of,
)
from support.tiny import build, save

from growkit import api
from growkit.engine.working_memory import working_bytes
from growkit.errors import ResourceError
from growkit.runtime.estimate import BASE_BYTES, TORCH_BYTES, WRITER_BYTES, WriteOptions, plan_bytes

DEPTH = "--recipe double_depth --max-shard-size 1B"  # a file for each of 147 tensors, and no torch


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny decoder of many tensors, `m`, and it grown by one process, `whole`."""
    folder = tmp_path_factory.mktemp("workers")
    save(build("llama", "causal", layers=8, dtype=torch.float32), folder / "m")
    growkit_in(folder, f"grow m {DEPTH} -o whole")
    return folder


def tensors(folder: Path) -> dict[str, bytes]:
    """The bytes of every tensor of all shards."""
    shards = (load_file(path) for path in sorted(folder.glob("*.safetensors")))
    return {n: t.view(torch.uint8).numpy().tobytes() for s in shards for n, t in s.items()}


# -- the same bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_workers_do_not_change_a_byte(count: int, home: Path, tmp_path: Path) -> None:
    """Every file is the same, and so is what growkit.json says of each."""
    growkit_in(home, f"grow m {DEPTH} --workers {count} -o {tmp_path / 'out'}")
    assert files(tmp_path / "out") == files(home / "whole")
    told, wanted = (
        json.loads((f / "growkit.json").read_text()) for f in (tmp_path / "out", home / "whole")
    )
    for record in (told, wanted):
        record["checksums"].pop("growkit.json")  # which holds the timings
    for measured in ("timings", "peak_memory_bytes"):
        assert told.pop(measured) != wanted.pop(measured)
    assert told == wanted
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_workers_blocks_and_shards_do_not_change_a_tensor(home: Path, tmp_path: Path) -> None:
    """Arithmetic and noise too: 1, 2, 4 workers, much and little memory, few and many files."""
    plan = api.plan_growth(home / "m", "double_width")
    fixed = BASE_BYTES + TORCH_BYTES + WRITER_BYTES
    least = fixed + max(working_bytes(f, 1) for f in plan.formulas)
    growkit_in(home, f"grow m --recipe double_width -o {tmp_path / 'whole'}")
    wanted = tensors(tmp_path / "whole")
    for count, each, size in [(2, least, "64kB"), (4, least + 10**8, "30kB"), (1, least, "9kB")]:
        memory = plan_bytes(plan) + count * each + (BASE_BYTES if count > 1 else 0)
        out = tmp_path / f"{count}"
        growkit_in(
            home,
            f"grow m --recipe double_width -o {out} --workers {count} --max-memory {memory}B "
            f"--max-shard-size {size}",
        )
        assert tensors(out) == wanted
        record = json.loads((out / "growkit.json").read_text())
        assert record["peak_memory_bytes"] < memory, "all processes together"


def test_a_copy_needs_no_torch(home: Path, tmp_path: Path) -> None:
    """Neither here nor in the workers; where there is arithmetic, only the workers load it."""
    (tmp_path / "fake" / "torch").mkdir(parents=True)
    told = tmp_path / "told"
    (tmp_path / "fake" / "torch" / "__init__.py").write_text(
        f"import os, sys\nopen({str(told)!r}, 'a').write('spawn_main' in ' '.join(sys.orig_argv)"
        " and 'worker ' or 'parent ')\nraise ImportError('no torch here')"
    )
    env = ENV | {"PYTHONPATH": f"{tmp_path / 'fake'}{os.pathsep}{ENV['PYTHONPATH']}"}
    line = f"grow m {DEPTH} --workers 2 -o {tmp_path / 'out'}"
    code, _, stderr = ended(start(*line.split(), cwd=home, env=env))
    assert (code, told.exists()) == (0, False), stderr
    line = f"grow m --recipe double_width --max-shard-size 1B --workers 2 -o {tmp_path / 'wide'}"
    code, _, stderr = ended(start(*line.split(), cwd=home, env=env))
    assert (code, stderr.splitlines()[0]) == (1, "error: unexpected ImportError: no torch here")
    assert {*told.read_text().split()} == {"worker"}


def test_progress_counts_bytes_of_all_workers(home: Path, tmp_path: Path) -> None:
    """It ends with every byte, and a second run starts with those of the first."""
    seen: list[tuple[int, int]] = []
    result = api.grow(
        home / "m",
        "double_depth",
        out=tmp_path / "out",
        max_shard_size="1B",
        workers=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    size = sum(p.stat().st_size for p in result.out.glob("*.safetensors"))
    assert seen[0] == (0, size)
    assert seen[-1] == (size, size)
    assert len({done for done, _ in seen}) > 2


# -- memory --------------------------------------------------------------------------------------


def test_memory_is_shared(home: Path) -> None:
    """What one process may have is divided; refused with numbers before anything is written."""
    plan = api.plan_growth(home / "m", "double_width")
    many = WriteOptions(workers=3, max_shard_size="1B", max_memory="700MB")
    with pytest.raises(ResourceError, match=r"700 MB for 3 workers: .* 31\d MB each") as no:
        api.estimate(plan, many)
    hint = no.value.hint
    assert hint.endswith("is enough, or use fewer --workers")
    enough = hint.split()[1]
    assert api.estimate(plan, replace(many, max_memory=enough))
    one, two = (
        api.estimate(plan, WriteOptions(workers=n, max_shard_size="1B")).peak_bytes for n in (1, 2)
    )
    assert two == 2 * one + BASE_BYTES - plan_bytes(plan), "there is one plan, not two"
    most = WriteOptions(workers=8, max_memory="700MB")
    assert api.estimate(plan, most), "one file is written by one worker"


# -- workers that die ----------------------------------------------------------------------------


@pytest.mark.alone
def test_a_killed_worker_is_replaced(home: Path, tmp_path: Path) -> None:
    """The work goes on with a new pool, and nothing of the lost one is left."""
    out = tmp_path / "out"
    child = start("grow", home / "m", *DEPTH.split(), "--workers", 2, "-o", out)
    until(lambda: len(done_files(out)) > 5)
    before = workers_of(child)
    os.kill(before[0], signal.SIGKILL)
    again = until(lambda: child.poll() is not None or {*workers_of(child)} - {*before})
    assert again is not True, "it ended before it had new workers"
    code, _, stderr = ended(child)
    assert (code, stderr) == (0, "")
    assert files(out) == files(home / "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_workers_that_always_die(home: Path, tmp_path: Path) -> None:
    """Given up after some pools without a finished file, with what to do about it."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import os; os._exit(9)")
    env = ENV | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ENV['PYTHONPATH']}"}
    line = f"grow {home / 'm'} --recipe double_width --max-shard-size 1B --workers 2"
    code, stdout, stderr = ended(start(*line.split(), "-o", tmp_path / "out", env=env))
    assert (code, stdout) == (4, "")
    assert stderr.startswith("error: workers: 3 times in a row one was killed or could not start")
    assert "hint: if memory ran out, use fewer --workers" in stderr
    assert [p.name for p in tmp_path.iterdir()] == ["torch"]


def test_a_script_without_a_guard(home: Path, tmp_path: Path) -> None:
    """Python then starts the script again in each worker; the error says what is missing."""
    script = tmp_path / "script.py"
    call = f"growkit.grow({str(home / 'm')!r}, 'double_depth', workers=2, max_shard_size=1)"
    script.write_text(f"import growkit\n{call}\n")
    command = [sys.executable, script]
    options = {"cwd": tmp_path, "env": ENV, "capture_output": True, "text": True}
    failed = subprocess.run(command, **options, check=False, timeout=300)
    assert failed.returncode == 1
    assert "ResourceError: workers: 3 times in a row" in failed.stderr
    script.write_text(f"import growkit\nif __name__ == '__main__':\n    {call}\n")
    subprocess.run(command, **options, check=True, timeout=300)
    assert files(tmp_path / "m-double_depth") == files(home / "whole")


def test_a_failure_in_a_worker(home: Path, tmp_path: Path) -> None:
    """It is told like one in this process, and the other workers end."""
    model = tmp_path / "m"
    model.mkdir()
    (model / "config.json").write_bytes((home / "m" / "config.json").read_bytes())
    weights = load_file(home / "m" / "model.safetensors")
    weights["model.layers.7.mlp.up_proj.weight"][3, 2] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    code, stdout, stderr = ended(start("grow", model, *DEPTH.split(), "--workers", 2, "-o", out))
    assert (code, stdout) == (3, "")
    assert stderr.splitlines()[0].endswith("mlp.up_proj.weight: 1 values are NaN or infinite"), (
        stderr
    )
    assert not out.exists()


STOPS = [
    (signal.SIGINT, 130, "error: interrupted\n"),
    (signal.SIGTERM, 143, "error: terminated\n"),
    (signal.SIGKILL, -9, ""),
]


@pytest.mark.alone
@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize(("number", "code", "word"), STOPS)
def test_no_worker_survives(
    number: signal.Signals, code: int, word: str, group: bool, home: Path, tmp_path: Path
) -> None:
    """Told alone, or with its workers as a terminal and a batch system do; and it resumes."""
    out = tmp_path / "out"
    command = ["grow", home / "m", *DEPTH.split(), "--workers", 2, "-o", out]
    child = start(*command)
    until(lambda: len(done_files(out)) > 5)
    workers = workers_of(child)
    assert len(workers) == 2
    (os.killpg if group else os.kill)(child.pid, number)
    found, stdout, stderr = ended(child)
    assert (found, stdout) == (code, "")
    assert stderr.startswith(word)
    assert stderr.count("\n") == 2 or not word, stderr  # Python's own tracker may mourn its parent
    until(lambda: not any(map(is_alive, workers)))
    assert [p.name for p in tmp_path.iterdir()] == ["out.partial"]
    kept = {n: (partial(out) / "model" / n).stat().st_ino for n in done_files(out)}
    assert ended(start(*command))[0] == 0
    assert {n: (out / n).stat().st_ino for n in kept} == kept
    assert files(out) == files(home / "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.alone
def test_the_second_growkit_is_refused(home: Path, tmp_path: Path) -> None:
    """At once, with or without workers, while the first one goes on."""
    out = tmp_path / "out"
    first = start("grow", home / "m", *DEPTH.split(), "--workers", 2, "-o", out)
    until(lambda: done_files(out))
    os.kill(first.pid, signal.SIGSTOP)
    try:
        for more in ([], ["--workers", 2], ["--rank", 0, "--world", 2]):
            code, _, stderr = ended(start("grow", home / "m", *DEPTH.split(), *more, "-o", out))
            assert code == 6
            assert f"{out}: another growkit is writing it\nhint: " in stderr
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert ended(first)[0] == 0
    assert files(out) == files(home / "whole")
