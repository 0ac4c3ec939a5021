"""Constraints that hold every dependency at its floor in pyproject.toml, for `make lowest`.

torch is left out: its floor is what the code asks of it, and each of its versions is a download of
gigabytes. So are the tools of `dev` that no test asks for.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

EXTRAS = ("verify", "cluster", "test")


def floors() -> dict[str, str]:
    """The lowest version of each dependency that the package and its tests ask for."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    found = (re.match(r"([\w-]+)>=([\d.]+)", line) for line in wanted)
    return {m[1]: m[2] for m in found if m and m[1] != "torch"}


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in floors().items()))
