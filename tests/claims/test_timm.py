"""Models of timm itself, grown: timm loads the result, and it computes the same function."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import trained
from support.packages import lacking
from support.timm_models import MODELS, STEPS

import growkit as package
from growkit.planning.proof.claim import APPROXIMATE, EXACT

pytestmark = pytest.mark.slow
TIMM = Path(os.environ.get("GROWKIT_TIMM", trained.ROOT / "build" / "timm"))
# a LayerNorm writes the stream: only whole ratios are exact
UNEVEN = {"vit_base_patch16_clip_224, half again"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are."""
    return tmp_path_factory.mktemp("timm")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What the program beside this file measures, in a process of its own."""
    if not (TIMM / "timm").is_dir():
        lacking(f"no timm in {TIMM}: run `make timm`")
    paths = [str(Path(package.__file__).parents[1]), str(TIMM)]
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "support" / "timm_models.py", folder],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("growth", STEPS)
@pytest.mark.parametrize("name", MODELS)
def test_timm_loads_what_was_grown(name: str, growth: str, found: dict[str, Any]) -> None:
    """By its own way of loading a folder, at the new size, and with the same function."""
    key = f"{name}, {growth}"
    told = found[key]
    assert told["loaded"]
    assert told["width"] == {"twice": 96, "half again": 72}[growth]
    assert told["claim"] == (APPROXIMATE if key in UNEVEN else EXACT)
    assert (told["drift"] < 1e-12) is (key not in UNEVEN)
