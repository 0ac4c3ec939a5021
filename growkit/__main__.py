"""`python -m growkit` is `growkit`."""

import sys

from growkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
