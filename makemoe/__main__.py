"""`python -m makemoe` is the console script `makemoe`."""

import sys

from makemoe.cli import main

if __name__ == "__main__":
    sys.exit(main())
