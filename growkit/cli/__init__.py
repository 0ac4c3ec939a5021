"""The command line: reads flags, calls `api`, prints. The only room that prints.

    main         the group of commands, and the entry point
    growth       grow, finish, plan
    look         verify, inspect, recipes
    families     families: list, show, check, infer
    hub          push, pull
    options      those that several commands share
    completion   what the Tab key offers
    progress     bytes, rate and time left
    failures     every error as a sentence, a hint and an exit code

Data goes to stdout, everything else to stderr.
"""

from growkit.cli.main import app, main

__all__ = ["app", "main"]
