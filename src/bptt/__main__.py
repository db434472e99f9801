"""`python -m bptt`, and the entry point of the command `bptt`."""

import sys

from bptt.cli import main

if __name__ == "__main__":
    sys.exit(main())
