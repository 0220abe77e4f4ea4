"""Timing things in turn, and the memory each takes."""

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch

from makemoe.training.memory import keep_freed_memory

FLOAT32, BF16 = "float32", "bf16 autocast"
CLOSE = 1.5
"""What takes this many times as long as the fastest at first is not tried further."""

Run = Callable[[], float | None]
"""Does the work once; the seconds it took, where it times itself."""


class Contestant(NamedTuple):
    """Something to be timed.

    Attributes:
        name: what it is.
        build: prepares it. Can be pickled: memory is measured in a process of its own.
        dtype: what it computes in.
        amount: what one run makes, in tokens, for rates.
    """

    name: str
    build: Callable[[], Run]
    dtype: str = ""
    amount: float = 1


class Measured(NamedTuple):
    """Median seconds of a run, and MB above what its process held before it was built."""

    seconds: float
    peak_mb: float | None
    amount: float

    @property
    def ms(self) -> float:
        return 1000 * self.seconds

    @property
    def rate(self) -> float:
        return self.amount / self.seconds


@dataclass(frozen=True)
class Bench:
    """How to measure.

    Args:
        device: cpu or cuda.
        seconds: for each comparison; rounds that have begun are finished, and three are made.
        say: told what is going on.
    """

    device: str = "cpu"
    seconds: float = 4.0
    say: Callable[[str], None] = lambda what: None

    def race(self, what: str, *contestants: Contestant) -> list[Measured]:
        """Time contestants in turn, A B A B ...: medians, in their order."""
        self.say(f"{what}: memory")
        peaks = self.peaks(contestants)
        self.say(f"{what}: {' / '.join(c.name for c in contestants)}")
        runs = [contestant.build() for contestant in contestants]
        times = alternate(runs, self.seconds, self.synchronize)
        return [
            Measured(statistics.median(seconds), peak, contestant.amount)
            for seconds, peak, contestant in zip(times, peaks, contestants, strict=True)
        ]

    def fastest(self, what: str, contestants: Sequence[Contestant]) -> Contestant:
        """The one with the shortest median; those that fail, or begin far behind, are left out."""
        begun: list[tuple[float, Contestant, Run]] = []
        fault: Exception | None = None
        for contestant in contestants:
            self.say(f"{what}: trying {contestant.name}, {contestant.dtype}")
            try:
                run = contestant.build()
                timed(run, self.synchronize)
                begun.append((timed(run, self.synchronize), contestant, run))
            except Exception as error:
                fault = error
        if not begun:
            raise fault or ValueError("nothing to choose from")
        limit = CLOSE * min(seconds for seconds, _, _ in begun)
        close = [(contestant, run) for seconds, contestant, run in begun if seconds <= limit]
        del begun
        if len(close) == 1:
            return close[0][0]
        times = alternate([run for _, run in close], self.seconds / 4, self.synchronize)
        medians = [statistics.median(seconds) for seconds in times]
        return close[medians.index(min(medians))][0]

    def synchronize(self) -> None:
        """Wait for the device: a GPU works on while the program has gone on."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peaks(self, contestants: Sequence[Contestant]) -> list[float | None]:
        """Each one's peak memory, MB: of a process of its own, or of the GPU."""
        builds = [contestant.build for contestant in contestants]
        if self.device == "cuda":
            return [gpu_growth(build) for build in builds]
        # From a server that has imported everything and run nothing: an import takes seconds.
        fresh = multiprocessing.get_context("forkserver")
        fresh.set_forkserver_preload(["benchmarks.rows"])
        # One after another: two programs with two threads each, on two cores, wait for each other.
        with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
            return list(pool.map(growth, builds))


def alternate(
    runs: Sequence[Run], seconds: float, synchronize: Callable[[], None] = lambda: None
) -> list[list[float]]:
    """Seconds of each run, taken in turn for that long, after a quarter of that to warm up."""
    for _ in rounds(seconds / 4, least=2):
        for run in runs:
            timed(run, synchronize)
    times: list[list[float]] = [[] for _ in runs]
    for _ in rounds(seconds, least=3):
        for mine, run in zip(times, runs, strict=True):
            mine.append(timed(run, synchronize))
    return times


def rounds(seconds: float, least: int) -> Iterator[int]:
    """Numbers from 0 on until the time is over, `least` of them at least."""
    end = time.perf_counter() + seconds
    for number in count():
        if number >= least and time.perf_counter() >= end:
            return
        yield number


def timed(run: Run, synchronize: Callable[[], None] = lambda: None) -> float:
    """Seconds of one run."""
    begin = time.perf_counter()
    own = run()
    synchronize()
    return time.perf_counter() - begin if own is None else own


def growth(build: Callable[[], Run]) -> float | None:
    """Peak memory of two runs, MB above what this process held before."""
    keep_freed_memory()
    before = resident_mb("VmRSS")
    run = build()
    for _ in range(2):  # what an optimizer keeps is there from the second on
        run()
    peak = resident_mb("VmHWM")
    return None if peak is None or before is None else peak - before


def gpu_growth(build: Callable[[], Run]) -> float:
    """The same of the GPU's memory."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run = build()
    for _ in range(3):
        run()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def resident_mb(field: str, pid: int | str = "self") -> float | None:
    """A process's memory in MB: VmRSS now, VmHWM at most; None where the system does not say.

    Not `ru_maxrss`: a process inherits it from the one that started it.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith(field))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024 / 1e6
