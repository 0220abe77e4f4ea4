"""A worker of a sweep whose runs are those of stub_fit.py: URL, NAME, FOLDER, TRIALS, LOG."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from makemoe.search import attempt, runs, study, sweeping
from makemoe.search.plan import Timing, Variant
from makemoe.search.space import Value, read_sweep
from makemoe.search.study import Trials
from makemoe.search.sweeping import Sweeping

url, name, folder, trials, log = sys.argv[1:]
runs.COMMAND = (sys.executable, str(Path(__file__).parent / "stub_fit.py"))
attempt.BEAT_S = 0.3
study.SILENT_S = 10.0
sweeping.LOOK_S = 0.2


def look(number: int, values: Mapping[str, Value]) -> Variant:
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {number} {values['x']}\n")
    trial = f"trial-{number:04}"
    words = (f"--loss={values['x']}",)
    return Variant(trial, trial, words, {"model": {}}, 9, 9, 6, 8, 10, 1, Timing(0, 0.1, 0))


sweep = read_sweep({"space": {"x": {"float": [1, 2]}}, "trials": int(trials), "pruner": None})
shared = Trials(url, name, sweep, seed=1)
shared.begin({})
print(os.getpid(), flush=True)
worker = Sweeping(shared, look, (1,), Path(folder), 1, dict(os.environ), 1.0)
worker.work(lambda: None)
