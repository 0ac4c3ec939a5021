"""How the command line fails: with a sentence, a hint and an exit code.

The law: one sentence and the next action on stderr, a traceback only with GROWKIT_DEBUG=1; with
--json, stdout still holds exactly one JSON object.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from shutil import get_terminal_size
from typing import Any, NoReturn

import click

from growkit.cli.colour import plain_wanted, say_failure

PIECES = 10_000  # of JSON, printed at once: the whole may be more text than memory should hold
RESUME = "run the same command again to resume; finished shards are kept"


def print_json(value: Mapping[str, Any], later: Callable[[Any], Any] | None = None) -> None:
    """One JSON object on stdout; `later` makes JSON of what is none yet, when its turn comes."""
    pieces = _encoder(later).iterencode(value)
    while text := "".join(islice(pieces, PIECES)):
        click.echo(text, nl=False)
    click.echo()


def as_text(value: Mapping[str, Any]) -> str:
    """JSON as it is printed and saved."""
    return _encoder().encode(value)


def _encoder(later: Callable[[Any], Any] | None = None) -> json.JSONEncoder:
    return json.JSONEncoder(indent=2, allow_nan=False, default=later)


def typed_words() -> list[str]:
    """The command line that is being run, from the name of the command on."""
    words: list[str] = click.get_current_context().meta["growkit.typed"]
    return words


def failure(message: str, hint: str, exit_code: int) -> dict[str, Any]:
    """What JSON says about every failure."""
    return {"error": message, "hint": hint, "exit_code": exit_code}


class _Terminated(BaseException):
    """SIGTERM arrived."""


class ReportingGroup(click.Group):
    """A group of commands; whatever fails in one of them is reported here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember what was typed, and whether the answer has to be JSON, also if that is wrong."""
        ctx.meta["growkit.json"] = "--json" in args
        ctx.meta["growkit.typed"] = [*args]
        ctx.color = False if plain_wanted() else None
        if not args and not ctx.resilient_parsing:  # which Tab asks for
            click.echo(ctx.get_help())
            ctx.exit()
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            _fail(ctx, *_usage(error))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; say what went wrong and with which code."""
        from growkit import text_width

        wide = get_terminal_size().columns if sys.stdout.isatty() else text_width.NARROW
        text_width.columns.set(min(max(wide, text_width.NARROW), text_width.WIDE))
        try:
            with _sigterm():
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except click.ClickException as error:
            _fail(ctx, *_usage(error))
        except KeyboardInterrupt:
            _fail(ctx, "interrupted", RESUME, 130)
        except _Terminated:
            _fail(ctx, "terminated", RESUME, 143)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # click ends quietly when the reader of a pipe has gone
            _fail(ctx, *_sentence(error), retryable=getattr(error, "retryable", None))


def _usage(error: click.ClickException) -> tuple[str, str, int]:
    """Message, hint and exit code of a wrong command line."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "growkit"
    hint = f"`{path} --help` shows how it is called"
    return error.format_message().rstrip("."), hint, error.exit_code


def _sentence(error: Exception) -> tuple[str, str, int]:
    """Message, hint and exit code of a failure."""
    from growkit import errors

    # the next action, where the one who raised had nothing closer to say
    hints = {
        errors.RecipeError: "`growkit recipes --schema` prints every key and what it may hold",
        errors.FamilyError: "`growkit families NAME` prints a family file that works",
        errors.CheckpointError: "mend the checkpoint, or get it anew from where it came",
    }
    if isinstance(error, errors.GrowkitError):
        return error.message, error.hint or hints.get(type(error), ""), error.exit_code
    if isinstance(error, MemoryError):
        message = f"not enough memory: {error}" if str(error) else "not enough memory"
        return message, "lower --max-memory or the sizes asked for", errors.ResourceError.exit_code
    message = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, PermissionError) or getattr(error, "errno", 0) == errno.ENOSPC:
        return message, "check the path and the disk it is on", errors.ResourceError.exit_code
    from growkit.hub import redact

    return f"unexpected {redact(message)}", "GROWKIT_DEBUG=1 shows where it happened", 1


def _fail(
    ctx: click.Context, message: str, hint: str, exit_code: int, *, retryable: bool | None = None
) -> NoReturn:
    """Say what the exception being handled is about, and end."""
    from growkit.errors import shown

    if os.environ.get("GROWKIT_DEBUG") == "1":
        import traceback

        from growkit.hub import redact

        click.echo(redact(traceback.format_exc()), err=True, nl=False)
    lines = message.split("\n  ")  # a list of problems; every other newline came with the input
    message = "\n  ".join(shown(line, max(100, 1000 // len(lines))) for line in lines)
    hint = shown(hint)
    say_failure(message, hint)
    if ctx.meta["growkit.json"]:
        answer = failure(message, hint, exit_code)
        print_json(answer if retryable is None else {**answer, "retryable": retryable})
    ctx.exit(exit_code)


@contextmanager
def _sigterm() -> Iterator[None]:
    """Inside, SIGTERM unwinds like Ctrl-C, so that locks and handles are let go."""

    def stop(number: int, frame: Any) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
