"""`python -m colakit` is the `colakit` command."""

import sys

from colakit.cli.app import main
from colakit.utils.orphans import stop_with_parent

if __name__ == "__main__":
    stop_with_parent()
    sys.exit(main())
