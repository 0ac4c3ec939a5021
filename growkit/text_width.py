"""How wide text for people is.

In files and pipes always the same, so that texts can be compared and pasted; a terminal may have
it wider, which the command line says before a command prints.
"""

from contextvars import ContextVar

NARROW, WIDE = 80, 120  # columns

columns: ContextVar[int] = ContextVar("columns", default=NARROW)
