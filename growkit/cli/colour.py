"""Colours where a terminal asks for them: what is claimed, what was measured, what went wrong.

click leaves them out in files and pipes; with NO_COLOR or TERM=dumb they are left out everywhere.
"""

from __future__ import annotations

import os
import re

import click

_FIRST_WORDS = re.compile(
    r"^( *)(?:(exact|exact up to norm eps|passed)|(approximate|measured)|(FAILED))(?=:|$)", re.M
)


def plain_wanted() -> bool:
    """Whether nothing but text may be written to a terminal."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def coloured(text: str) -> str:
    """The text with its verdicts in colour: lines that begin with a claim, or end a comparison."""

    def styled(line: re.Match[str]) -> str:
        indent, good, open_, bad = line.groups()
        colour = "green" if good else "yellow" if open_ else "red"
        return f"{indent}{click.style(good or open_ or bad, fg=colour, bold=True)}"

    return _FIRST_WORDS.sub(styled, text)


def say_failure(message: str, hint: str) -> None:
    """What went wrong and what to do about it, on stderr."""
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', fg='cyan', bold=True)} {hint}", err=True)


def say_warning(text: str) -> None:
    """What the user should know of something that goes well, on stderr."""
    click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {text}", err=True)
