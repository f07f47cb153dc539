"""`python -m colakit` is the `colakit` command."""

import sys

from colakit.cli import main
from colakit.orphans import stop_with_parent

if __name__ == "__main__":
    stop_with_parent()
    sys.exit(main())
