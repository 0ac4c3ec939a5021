"""`python -m benchmarks`: measure, print the tables, and write them where `--out` says."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import jobs, parts, tables

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="models, outputs")
    parser.add_argument("--out", type=Path, help="folder of benchmarks.md and benchmarks.json")
    parser.add_argument("--mergekit", help="the command mergekit-yaml of an environment of its own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="jobs with this in their name")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does it run at all?")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": tables.machine(given.work), "rounds": given.rounds}
    chosen = [j for j in (jobs.TINY if given.tiny else jobs.JOBS) if given.only in j.name]
    sizes = ("tiny",) if given.tiny else ("0.35B", "1.1B", "7B")
    counts = (100, 300) if given.tiny else (1_000, 3_000, 10_000, 30_000)
    found["growths"] = _told(jobs.growths(given.work, chosen, given.rounds, given.mergekit))
    found["parts"] = _told(parts.parts(given.rounds))
    if not given.only:
        found["memory"] = _told(jobs.memory(given.work, sizes))
        found["planning"] = _told(jobs.planning(given.work, counts, given.rounds))
    text = _markdown(found)
    print(text)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        content = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        (given.out / "benchmarks.json").write_text(content, encoding="utf-8")
        _replace(given.out / "benchmarks.md", text)


def _told(results: Iterator[jobs.Rows]) -> jobs.Rows:
    """All rows; each is told as it comes, for this takes minutes."""
    rows: jobs.Rows = []
    for some in results:
        for row in some:
            print(json.dumps(row, ensure_ascii=False), file=sys.stderr, flush=True)
        rows += some
    return rows


def _markdown(found: dict[str, Any]) -> str:
    machine = "; ".join(f"{k}: {v}" for k, v in found["machine"].items())
    pieces = [
        f"Measured on {machine}; medians of {found['rounds']}.",
        tables.growths(found["growths"]),
        tables.parts(found["parts"]),
    ]
    if "memory" in found:
        pieces += [tables.memory(found["memory"]), tables.planning(found["planning"])]
    return "\n\n".join(pieces)


def _replace(page: Path, text: str) -> None:
    """Put the tables into a page between the two marks; the words around them stay."""
    old = page.read_text(encoding="utf-8") if page.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
