"""`python -m benchmarks.first_files SOURCE RECIPE FOLDER`: plan a growth, write two files of it.

For models whose result no disk here would hold: memory is the same for every file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from growkit.api import plan_growth
from growkit.byte_sizes import parse_size
from growkit.output.done_marks import Marks
from growkit.output.layout import lay_out
from growkit.runtime.task import in_this_process, tasks


def main(source: str, recipe: str, folder: str) -> None:
    """Write `FOLDER/model/model-00001-of-….safetensors` and the one after it, of 500 MB each."""
    plan = plan_growth(source, recipe)
    layout = lay_out(plan.formulas, max_shard_bytes=parse_size("500MB"))
    marks = Marks(Path(folder), digest="")
    marks.folder.mkdir(parents=True)
    todo = tasks(
        layout.shards[:2],
        plan.sources,
        marks,
        budget=parse_size("1.5GB"),
        allow_nonfinite=False,
        shared=False,
    )
    in_this_process(todo, lambda done: None)


if __name__ == "__main__":
    main(*sys.argv[1:])
