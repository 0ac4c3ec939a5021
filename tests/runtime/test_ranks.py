"""Ranks: processes that share one OUT.partial without talking to each other, and the last step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.processes import ENV, done_files, ended, files, growkit_in, partial, start, until
from support.tiny import build, save

from growkit import api
from growkit.errors import OutputError, UsageError, VerifyError
from growkit.runtime.ranks import Rank

DEPTH = "--recipe double_depth --max-shard-size 1B"  # a file for each of 147 tensors
FEW = "--recipe double_depth --max-shard-size 8kB"  # 11 files


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny decoder, `m`, and it grown by one process, `whole` and `few`."""
    folder = tmp_path_factory.mktemp("ranks")
    small = save(build("llama", "causal", layers=8, dtype=torch.float32), folder / "m")
    (small / "1_Pooling").mkdir()
    (small / "1_Pooling" / "config.json").write_text("{}")
    (small / "vocab.txt").write_text("a\nb\n")
    growkit_in(folder, f"grow m {DEPTH} -o whole")
    growkit_in(folder, f"grow m {FEW} -o few")
    return folder


@pytest.fixture
def out(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the result of a test goes; its ranks run beside the model."""
    monkeypatch.chdir(home)
    return tmp_path / "out"


def rank(number: object, world: object, out: Path, line: str = DEPTH) -> subprocess.Popen[str]:
    """A rank, in a process of its own."""
    return start("grow", "m", *line.split(), "--rank", number, "--world", world, "-o", out)


def share(number: int, world: int, out: Path, **options: object) -> api.RankResult:
    """A rank, in this process."""
    writing = api.WriteOptions(**{"max_shard_size": "8kB"} | options)
    return api.grow_rank("m", "double_depth", Rank(number, world), out=out, options=writing)


@contextmanager
def stopped(child: subprocess.Popen[str], out: Path) -> Iterator[None]:
    """Inside, a growkit that has finished some files stands still; then it ends well."""
    until(lambda: done_files(out))
    os.kill(child.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(child.pid, signal.SIGCONT)
    assert ended(child)[0] == 0


# -- together ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_ranks_at_once(workers: int, home: Path, out: Path) -> None:
    """Started together, each writes its files; the last step makes the same result of them."""
    ranks = [rank(r, 3, out, f"{DEPTH} --workers {workers} --json") for r in (2, 0, 1)]
    told = [ended(child) for child in ranks]
    assert [code for code, _, _ in told] == [0, 0, 0], told
    parts = [json.loads(stdout) for _, stdout, _ in told]
    assert [(p["rank"], p["world"], len(p["files"])) for p in parts] == [
        *((2, 3, 49), (0, 3, 49), (1, 3, 49))
    ]
    assert sorted(n for p in parts for n in p["files"]) == sorted(done_files(out))
    assert not out.exists()
    result = api.finish(out)
    assert (result.out, result.already_done) == (out, False)
    assert files(out) == files(home / "whole")
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    record, wanted = (json.loads((f / "growkit.json").read_text()) for f in (out, home / "whole"))
    for report in (record, wanted):
        for measured in ("timings", "peak_memory_bytes"):
            assert report.pop(measured)
        assert report["checksums"].pop("growkit.json")  # which holds these two
    assert record == wanted
    assert api.check_files(out) == []


def test_one_after_the_other(home: Path, out: Path) -> None:
    """In any order, and twice; the same command without ranks would do the last step too."""
    names = sorted(path.name for path in home.glob("few/*.safetensors"))
    assert [*share(1, 2, out).missing] == names[::2]
    with pytest.raises(VerifyError, match=r"6 of 11 files are not finished: model-00001-of-00011"):
        api.finish(out)
    first = share(0, 2, out)
    assert (first.already_done, [*first.missing]) == (False, [])
    before = (partial(out) / "model" / next(iter(first.files))).stat().st_ino
    assert [*share(0, 2, out).missing] == []
    assert (partial(out) / "model" / next(iter(first.files))).stat().st_ino == before
    assert "written in" in growkit_in(home, f"grow m {FEW} -o {out}")
    assert files(out) == files(home / "few")
    assert share(1, 2, out).already_done
    assert api.finish(out).already_done
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_more_ranks_than_files(home: Path, out: Path) -> None:
    """Some have nothing to write."""
    parts = [share(r, 13, out) for r in range(13)]
    assert [len(p.files) for p in parts] == [1] * 11 + [0] * 2
    api.finish(out)
    assert files(out) == files(home / "few")


@pytest.mark.alone
def test_a_killed_rank_is_run_again(home: Path, out: Path) -> None:
    """While the other one goes on; finished files are kept, and nothing is left of the others."""
    first, second = rank(0, 2, out), rank(1, 2, out)
    until(lambda: len(done_files(out)) > 9)
    os.killpg(first.pid, signal.SIGKILL)
    ended(first)
    kept = {n: (partial(out) / "model" / n).stat().st_ino for n in done_files(out)}
    (partial(out) / "model-00001-of-00147.safetensors.0123.tmp").write_bytes(b"half")
    assert ended(rank(0, 2, out))[0] == 0
    assert ended(second)[0] == 0
    api.finish(out)
    assert {n: (out / n).stat().st_ino for n in kept} == kept
    assert files(out) == files(home / "whole")
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_rank(number: signal.Signals, home: Path, out: Path) -> None:
    """The same words and codes as always, and nothing is taken away from others."""
    child = rank(0, 1, out)
    until(lambda: done_files(out))
    os.kill(child.pid, number)
    code, _, stderr = ended(child)
    assert code == 128 + number
    assert "run the same command again to resume" in stderr
    assert ended(rank(0, 1, out))[0] == 0
    assert growkit_in(home, f"finish {out} -q") == f"{out}\n"
    assert files(out) == files(home / "whole")


def test_overwrite_is_remembered(home: Path, out: Path) -> None:
    """The last step replaces OUT if the ranks were allowed to; until then it stays."""
    growkit_in(home, f"grow m --recipe double_depth --dtype bf16 -o {out}")
    before = files(out)
    with pytest.raises(OutputError, match="holds the result of another recipe"):
        share(0, 1, out)
    share(0, 1, out, overwrite=True)
    assert files(out) == before
    api.finish(out)
    assert files(out) == files(home / "few")
    assert [p.name for p in out.parent.iterdir()] == ["out"]


# -- refused -------------------------------------------------------------------------------------


@pytest.mark.alone
def test_while_a_rank_works(home: Path, out: Path) -> None:
    """Other ranks may come; a run of its own, the last step, and the same rank again may not."""
    with stopped(rank(0, 2, out), out):
        for line in (f"grow m {DEPTH} -o {out}", f"finish {out}"):
            code, _, stderr = ended(start(*line.split()))
            assert (code, stderr.splitlines()[0]) == (
                6,
                f"error: {out}: another growkit is writing it",
            )
        code, _, stderr = ended(rank(1, 2, out, FEW))
        assert code == 6
        assert "out.partial: unfinished work of another recipe, source or version" in stderr
        code, _, stderr = ended(rank(0, 2, out))
        if code:  # unless it was stopped between two files
            assert code == 6
            assert "another growkit is writing it\nhint: is this rank running twice?" in stderr
        assert ended(rank(1, 2, out))[0] == 0
    api.finish(out)
    assert files(out) == files(home / "whole")


def test_unfinished_work_of_another_plan(home: Path, out: Path) -> None:
    """A rank removes nothing; a run of its own starts anew."""
    share(0, 2, out)
    with pytest.raises(OutputError, match=r"work of another recipe.* other files of w") as caught:
        share(0, 2, out, max_shard_size="30kB")
    assert "remove that folder" in caught.value.hint
    growkit_in(home, f"grow m {DEPTH} -o {out}")
    assert files(out) == files(home / "whole")


def test_nothing_to_finish(home: Path, out: Path) -> None:
    """No OUT at all, one that is not ours, one that a run of its own has left."""
    with pytest.raises(UsageError, match="no rank has written anything for it") as caught:
        api.finish(out)
    assert "--rank R --world W" in caught.value.hint
    out.mkdir()
    with pytest.raises(UsageError, match="no rank has written anything for it"):
        api.finish(out)
    assert api.finish(home / "few").already_done
    assert not partial(out).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--rank 0 --world 2 --cluster tcp://x:1", "--rank goes with none of --cluster"),
        (
            "--rank 0 --world 2 --verify",
            "--rank goes with none of --cluster, --verify and --push-to",
        ),
        ("--cluster tcp://x:1 --workers 2", "--workers is for this machine"),
        ("--rank 0", "--rank without --world"),
        ("--rank 0 --world 0", "0 is not in the range"),
        ("--workers 0", "0 is not in the range"),
    ],
)
def test_what_does_not_go_together(options: str, words: str, out: Path) -> None:
    """Exit code 2 before anything is read."""
    code, _, stderr = ended(start("grow", "none", *DEPTH.split(), *options.split(), "-o", out))
    assert code == 2
    assert words in stderr


def test_what_a_rank_says(home: Path, out: Path) -> None:
    """What it wrote, what is still to come, and what to do last."""
    first = growkit_in(home, f"grow m {FEW} --rank 0 --world 2 -o {out}")
    assert first.startswith(f"{out}: rank 0 of 2 has written its 6 files, ")
    assert "\n  5 files of other ranks to come\n" in first
    environment = ENV | {"RANK": "1", "WORLD_SIZE": "2"}
    line = f"grow m {FEW} --rank auto -o {out}".split()
    code, stdout, _ = ended(start(*line, env=environment))
    assert code == 0
    assert stdout.endswith("\n  all are there\n  after the last rank: growkit finish OUT\n")
    assert json.loads(growkit_in(home, f"finish {out} --json"))["already_done"] is False
    assert growkit_in(home, f"finish {out}").startswith(f"{out}: already done\n")
    assert ended(start(*line, env=environment))[1] == f"{out}: already done\n"
