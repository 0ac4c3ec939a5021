"""Packages that only some tests need: in CI they are there, elsewhere such tests are skipped."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import NoReturn

import pytest

IN_CI = os.environ.get("CI") == "true"


def package(name: str) -> ModuleType:
    """The package; without it the test that asks is skipped, and fails in CI."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        lacking(f"{name} cannot be imported ({error}): pip install 'growkit[test]'")


def lacking(why: str) -> NoReturn:
    """Skip the test that asks; fail it in CI."""
    if IN_CI:
        pytest.fail(why, pytrace=False)
    pytest.skip(why)
