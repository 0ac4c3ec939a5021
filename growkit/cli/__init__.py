"""The command line, and the only room that prints."""

from growkit.cli.main import app, main

__all__ = ["app", "main"]
