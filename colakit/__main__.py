"""`python -m colakit` is the `colakit` command."""

import sys

from colakit.cli import main

if __name__ == "__main__":
    sys.exit(main())
