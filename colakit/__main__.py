"""`python -m colakit` runs the `colakit` command."""

import sys

from colakit.cli.app import main
from colakit.runtime.subprocesses import stop_with_parent

if __name__ == "__main__":
    stop_with_parent()
    sys.exit(main())
