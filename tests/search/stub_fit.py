"""Stands for `makemoe fit`: trains ten steps, 0.1 s each, and writes what a run writes."""

import os
import signal
import sys
import time
from pathlib import Path

from makemoe.locks import Lock

options = dict(word.lstrip("-").split("=", 1) for word in sys.argv[2:])
folder = Path(options["run.root"], options["run.name"])
assert sys.argv[1] == "fit"
stopped = False


def stop(*_: object) -> None:
    global stopped
    stopped = True


signal.signal(signal.SIGTERM, stop)
folder.mkdir(exist_ok="ckpt_path" in options)
parent = os.getppid()
assert Lock(folder / ".lock").take()
last, metrics = folder / "last.ckpt", folder / "metrics.csv"
begin = int(last.read_text()) if "ckpt_path" in options else 0
if not begin:
    metrics.write_text("step,val_loss\n")
print(f"threads {os.environ.get('OMP_NUM_THREADS')}", file=sys.stderr, flush=True)
for step in range(begin + 1, 11):
    time.sleep(0.1)
    fails = options.get("fails") == "yes" or os.environ.get("STUB_FAILS") in sys.argv
    if fails and step == 2:
        print("makemoe: error: the loss is not finite at step 2", file=sys.stderr)
        sys.exit(1)
    if options.get("dies") == "yes":
        os.kill(os.getpid(), signal.SIGKILL)
    with metrics.open("a") as file:
        file.write(f"{step},{float(options.get('loss', options['seed'])) + 1 / step}\n")
    last.write_text(str(step))
    if stopped or os.getppid() != parent:
        sys.exit(143)
