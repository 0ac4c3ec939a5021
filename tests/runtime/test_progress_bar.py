"""The bar of Python's grow: who sees it, and how it is turned off."""

from __future__ import annotations

import os

import pytest

from growkit.runtime.progress_bar import bar_shown


@pytest.mark.parametrize(
    ("progress", "terminal", "off", "drawn"),
    [
        (True, True, "", True),
        (True, False, "", False),
        (True, True, "1", False),
        (False, True, "", False),
        (None, True, "", False),
    ],
)
def test_bar(
    progress: bool | None,
    terminal: bool,
    off: str,
    drawn: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a terminal, unless it is turned off; the bytes of an earlier run count as done."""
    monkeypatch.setattr(os, "isatty", lambda fd: terminal)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", off)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    with bar_shown(progress) as counted:
        assert (counted is not None) == drawn
        for done in (4, 7, 10) if counted else ():
            counted(done, 10)
    assert capsys.readouterr().out == ""


def test_a_function_of_the_caller() -> None:
    """It is called as it is, terminal or none."""
    counted: list[tuple[int, int]] = []
    with bar_shown(lambda done, total: counted.append((done, total))) as progress:
        assert progress is not None
        progress(1, 2)
    assert counted == [(1, 2)]
