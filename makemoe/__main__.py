"""The program: the console script `makemoe`, and `python -m makemoe`."""

import os
import signal
import sys


def main() -> int:
    """Run the command line and return the exit status."""
    # Set before all other imports: libraries swallow the exception that Python would raise.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from makemoe import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
