"""What is measured, and against what."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.measure import Run, run, summary

GROWKIT = (sys.executable, "-m", "growkit")
FIRST_FILES = (sys.executable, "-m", "benchmarks.first_files")
BLOCK = "bs=8M"
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Job:
    """One growth."""

    name: str
    size: str  # of the model, a key of models.LLAMA
    recipe: str
    layers: tuple[int, ...] = ()  # for mergekit: which layers stand one after the other


# SOLAR's way to 33 layers, and every layer twice
OVERLAP = (*range(17), *range(6, 22))
TWICE = tuple(i for i in range(24) for _ in range(2))


def _depth(layers: Sequence[int]) -> str:
    return f"steps: [{{op: depth, to: {{layers: {len(layers)}}}, layers: {[*layers]}}}]"


JOBS = (
    Job("depth 22 → 33", "1.1B", _depth(OVERLAP), OVERLAP),
    Job("depth 24 → 48", "0.35B", _depth(TWICE), TWICE),
    Job("width 2x, tile", "1.1B", "steps: [{op: width, to: {axes: 2x}, how: tile}]"),
    Job(
        "width 3/2x, isometric, noise",
        "1.1B",
        "steps: [{op: width, to: {axes: 3/2x}, how: {hidden: isometric}}, {op: noise, snr_db: 10}]",
    ),
    Job("coalesce", "1.1B", "steps: [{op: coalesce, to: {axes: 1/2x, layers: 1/2x}}]"),
    Job("fuse of two", "0.35B", "sources: [small, other]\nsteps: [{op: fuse, with: [other]}]"),
)
TINY = (
    Job("depth 2 → 4", "tiny", _depth((0, 0, 1, 1))),
    *(Job(job.name, "tiny", job.recipe) for job in JOBS[2:]),
)


def growths(work: Path, jobs: Sequence[Job], rounds: int, mergekit: str | None) -> Iterator[Rows]:
    """Each job by growkit, by cp and dd of its output, and by mergekit; in turn, `rounds` times."""
    for job in jobs:
        runs: dict[str, list[Run]] = {}
        size = 0
        for _ in range(rounds):
            out, copy = work / "out", work / "copy"
            for tool, command, env in _contestants(job, work, out, copy, mergekit):
                _warm(_folder(work, job.size, "a"), _folder(work, job.size, "b"), out)
                shutil.rmtree(copy, ignore_errors=True)
                os.sync()
                runs.setdefault(tool, []).append(run(command, env=env))
                size = size or _weights(out)
            shutil.rmtree(out)
            shutil.rmtree(copy)
        yield [
            {"job": f"{job.name} ({job.size})", "tool": tool, "bytes": size, **asdict(summary(r))}
            for tool, r in runs.items()
        ]


def _contestants(
    job: Job, work: Path, out: Path, copy: Path, mergekit: str | None
) -> Iterator[tuple[str, Sequence[str], dict[str, str]]]:
    yield "growkit", (*_grow(job, work), "-o", str(out)), {}
    write = f"for f in {out}/*.safetensors; do dd if=$f of={copy}/${{f##*/}} {BLOCK}"
    made = f"mkdir {copy}; "
    yield "cp", ("sh", "-ec", f"{made} cp {out}/*.safetensors {copy}"), {}
    yield "dd conv=fsync", ("sh", "-ec", f"{made} {write} conv=fsync; done"), {}
    yield "dd oflag=direct", ("sh", "-ec", f"{made} {write} oflag=direct; done"), {}
    if mergekit and job.layers:
        model = str(_folder(work, job.size, "a").absolute())
        slices = [
            {"sources": [{"model": model, "layer_range": [a, b]}]} for a, b in _ranges(job.layers)
        ]
        config = work / "passthrough.yaml"  # JSON is YAML
        settings = {"merge_method": "passthrough", "dtype": "bfloat16", "slices": slices}
        config.write_text(json.dumps(settings), encoding="utf-8")
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        yield "mergekit", (mergekit, str(config), str(copy.absolute())), offline


def _ranges(layers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of layers as [start, stop)."""
    start = 0
    for i in range(1, len(layers) + 1):
        if i == len(layers) or layers[i] != layers[i - 1] + 1:
            yield layers[start], layers[i - 1] + 1
            start = i


def memory(work: Path, sizes: Sequence[str]) -> Iterator[Rows]:
    """Peak memory for models of different sizes, against what the plan said."""
    job = Job("width 2x, tile", "", JOBS[2].recipe)
    for size in sizes:
        sparse = models.LLAMA[size]["hidden"] > 2048
        recipe = _recipe(work, job)
        source = _folder(work, size, "a", sparse=sparse)
        plan = run_json((*GROWKIT, "plan", str(source), "--recipe", str(recipe), "--json"))
        out = work / "out"
        command = [*GROWKIT, "grow", str(source), "--recipe", str(recipe), "-o", str(out)]
        if sparse:  # the result would be too large for most disks
            command = [*FIRST_FILES, str(source), str(recipe), str(out)]
        found = run(command)
        shutil.rmtree(out)
        row = {"model": size, "planned": plan["peak_memory_bytes"], "measured": found.peak_bytes}
        yield [row]


def planning(work: Path, counts: Sequence[int], rounds: int) -> Iterator[Rows]:
    """`growkit plan` of mixtures of experts of ever more tensors, and `growkit --help`."""
    recipe = work / "planning.yaml"
    recipe.write_text(
        "steps: [{op: width, to: {axes: 2x}}, {op: noise, snr_db: 10}]\n", encoding="utf-8"
    )
    commands: dict[str, Sequence[str]] = {
        "--help": (*GROWKIT, "--help"),
        "(python that imports torch)": (sys.executable, "-c", "import torch"),
    }
    for count in counts:
        source = models.mixture(work / f"mixture{count}", count)
        words = f"plan of {count:,} tensors"
        commands[words] = (*GROWKIT, "plan", str(source), "--recipe", str(recipe))
    runs: dict[str, list[Run]] = {words: [] for words in commands}
    for _ in range(rounds):
        for words, command in commands.items():
            runs[words].append(run(command))
    for words, found in runs.items():
        yield [{"command": words, **asdict(summary(found))}]


def run_json(command: Sequence[str]) -> Any:
    """What a command prints, as JSON."""
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _grow(job: Job, work: Path) -> tuple[str, ...]:
    source = _folder(work, job.size, "a")
    words = [*GROWKIT, "grow", str(source), "--recipe", str(_recipe(work, job)), "-q"]
    if "other" in job.recipe:
        words += ["--source", f"other={_folder(work, job.size, 'b')}"]
    return tuple(words)


def _recipe(work: Path, job: Job) -> Path:
    path = work / f"{re.sub(r'[^0-9a-z]+', '_', job.name)}.yaml"
    path.write_text(job.recipe + "\n", encoding="utf-8")
    return path


def _folder(work: Path, size: str, letter: str, *, sparse: bool = False) -> Path:
    folder = work / f"llama-{size}-{letter}"
    if letter == "b" and size not in ("0.35B", "tiny"):
        return folder  # only small ones are fused
    return models.llama(folder, size, sparse=sparse, seed=ord(letter))


def _warm(*folders: Path) -> None:
    """Read all weights once, so that every contestant finds them in the page cache."""
    buffer = bytearray(8 << 20)
    for folder in folders:
        for path in folder.glob("*.safetensors"):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def _weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
