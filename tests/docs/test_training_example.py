"""The example of growth inside a training run, run as a user would, at its full length."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import trained
from support.processes import ENV
from support.tiny import build, save
from transformers import AutoModelForCausalLM

from growkit import api
from growkit.planning.proof.claim import EXACT
from growkit.verify.compare import tolerance

FOLDER = trained.ROOT / "examples" / "transformers_training"
LINE = re.compile(r"^(\w.*?) +([\d,]+) parameters  loss ([\d.]+)$", flags=re.MULTILINE)


def test_the_recipe_is_exact(tmp_path: Path) -> None:
    """What the comments of the example say about its recipe."""
    small = save(build("llama", "causal"), tmp_path / "small")
    assert api.plan_growth(small, FOLDER / "recipe.yaml").claim.claim == EXACT


@pytest.mark.slow
def test_it_trains_grows_and_trains_on(tmp_path: Path) -> None:
    """Growth keeps the loss as the claim says, training lowers it further, and the model loads."""
    command = [sys.executable, FOLDER / "train.py", tmp_path / "out"]
    done = subprocess.run(
        command, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    found, shown = LINE.findall(done.stdout), LINE.findall((FOLDER / "README.md").read_text())
    assert [row[:2] for row in found] == [row[:2] for row in shown]
    before, right_after, later = (float(loss) for _, _, loss in found)
    allowed = tolerance(EXACT, "float32")
    assert allowed
    assert abs(right_after - before) <= allowed * before
    assert later < before - 0.05

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    text = torch.tensor([list(b"def main(argument")])
    assert model(text).logits.isfinite().all()
    assert f"{model.num_parameters():,}" == found[-1][1]
