"""A process of a run that does not train: it does what its arguments say, one after another."""

import os
import signal
import sys
import time
from pathlib import Path

from makemoe.cli import others
from makemoe.cli.failures import tell
from makemoe.errors import DataError


def main() -> int:
    """Take part; the exit status."""
    others.BEAT_S, others.SILENT_S, others.BROKEN_S, others.LINGER_S = 0.2, 2.0, 1.0, 0.6
    others.PAUSED_S = 1.5
    if "mute" in sys.argv:
        others.BEAT_S = 20.0
    if "patient" in sys.argv:
        others.SILENT_S = others.BROKEN_S = 40.0
    if "impatient" in sys.argv:
        others.JOIN_S = 1.0
    try:
        with others.Others(lambda: print("cleaned up"), lambda: "; to resume: X") as own:
            own.start()
            for word in sys.argv[1:]:
                what, _, value = word.partition("=")
                if what == "agree":
                    own.agree({"--seed": value, "makemoe": "1"})
                elif what == "ask":
                    print("first:", own.of_first("key", lambda value=value: value))
                elif what == "fail":
                    raise DataError(value)
                elif what == "until":
                    while not Path(value).exists():
                        time.sleep(0.02)
                elif what == "touch":
                    Path(value).touch()
                elif what == "vanish":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif what == "broken":
                    raise RuntimeError("[gloo] Connection closed by peer")
                elif what == "busy":
                    while own.beats < 3:  # until the others can know of this one
                        time.sleep(0.1)
                    print("busy", flush=True)
                    time.sleep(float(value))
    except Exception as error:
        return tell(error, ["fit"])
    print("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
