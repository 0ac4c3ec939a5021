"""The benchmark runs, on a model that is tiny; what it measures is not for tests to judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_runs_and_writes_its_tables(tmp_path: Path) -> None:
    """One job: Markdown between the marks, the same as JSON, and no path of this machine."""
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--rounds", "1", "--only", "depth"]
    command += ["--work", str(tmp_path / "work"), "--out", str(page.parent)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    found = json.loads((page.parent / "benchmarks.json").read_text(encoding="utf-8"))
    tools = [row["tool"] for row in found["growths"]]
    assert tools == ["growkit", "cp", "dd conv=fsync", "dd oflag=direct"]
    assert all(f"| {tool} |" in text for tool in tools)
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in found["growths"])
    assert str(tmp_path) not in text + json.dumps(found)
