"""The trained checkpoint that `make fetch` puts into build/: MiniLM, 384 wide, 6 layers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEFAULT = ROOT / "build" / "minilm" / "small.safetensors"


def small() -> Path:
    """Its file; config.json, tokenizer and sentences.txt lie beside it. Without it tests fail."""
    path = Path(os.environ.get("GROWKIT_CHECKPOINT", DEFAULT))
    if not path.is_file():
        pytest.fail(f"{path} is missing: run `make fetch`", pytrace=False)
    return path
