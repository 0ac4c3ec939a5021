"""`growkit` against a loopback Hub: a process of its own, for the client reads its settings once.

Whatever is printed, it must not hold a token.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from growkit import api
from support.hub_server import READ, WRITE, Hub
from support.tiny import build, save

SECRETS = (WRITE, READ)


@dataclass
class Ran:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class User:
    """Somebody with a cache, a working folder and a token."""

    hub: Hub
    home: Path
    folder: Path
    token: str | None = WRITE
    xet: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)

    def growkit(self, *arguments: object, **extra: str) -> Ran:
        """Run a command."""
        return self.run(sys.executable, "-m", "growkit", *arguments, **extra)

    def ok(self, *arguments: object, **extra: str) -> Ran:
        """Run a command that must go well."""
        done = self.growkit(*arguments, **extra)
        assert done.code == 0, done.err
        return done

    def refused(self, *arguments: object, code: int = 5, **extra: str) -> dict[str, Any]:
        """Run a command that must fail; its error as JSON."""
        done = self.growkit(*arguments, "--json", **extra)
        assert done.code == code, done.out + done.err
        told: dict[str, Any] = done.json
        assert told["exit_code"] == code
        assert f"error: {told['error']}\nhint: {told['hint']}" in done.err
        assert told["hint"]
        assert "Traceback" not in done.err
        return told

    def run(self, *command: object, **extra: str) -> Ran:
        """Run any program in the user's environment."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "GROWKIT_"))}
        env = self.hub.environment(self.home, token=self.token, xet=self.xet)
        done = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**keep, **env, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **self.extra, **extra},
            timeout=300,
            check=False,
        )
        for secret in SECRETS:
            assert secret not in done.stdout + done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)


def user(hub: Hub, folder: Path, **options: Any) -> User:
    """A new user whose cache and working folder lie in `folder`."""
    work = folder / "work"
    work.mkdir(parents=True)
    return User(hub, folder / "home", work, **options)


def grown(folder: Path, max_shard_size: str) -> Path:
    """A result in several shards."""
    model = build("llama", "causal", heads=4, head_dim=32, mlp=256, dtype=torch.float32)
    small = save(model, folder / "small")
    return api.grow(small, "double_width", out=folder / "big", max_shard_size=max_shard_size).out
