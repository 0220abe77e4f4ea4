"""Times contestants alternately and measures the memory of each."""

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from makemoe.training.memory import keep_freed_memory

FLOAT32, BF16 = "float32", "bf16 autocast"
T = TypeVar("T")

CLOSE = 1.5
"""A contestant that first takes this many times as long as the fastest is not measured further."""

Run = Callable[[], float | None]
"""Does the work once; returns the seconds it took if it times itself."""


class Contestant(NamedTuple):
    """Something to be timed.

    Attributes:
        name: what it is.
        build: prepares it; must be picklable, because memory is measured in a separate process.
        dtype: the dtype it computes in.
        amount: tokens per run, for rates.
    """

    name: str
    build: Callable[[], Run]
    dtype: str = ""
    amount: float = 1


class Measured(NamedTuple):
    """Median seconds of a run, and MB above the memory of its process before it was built."""

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
    """Settings of the measurements.

    Args:
        device: cpu or cuda.
        seconds: time per comparison; a started round is finished, and there are at least three.
        quick: only show that everything runs: small sizes, one round, no memory.
        say: called with progress messages.
    """

    device: str = "cpu"
    seconds: float = 4.0
    quick: bool = False
    say: Callable[[str], None] = lambda what: None

    def choose(self, full: T, small: T) -> T:
        """A size or a count: `full`, or `small` if this is quick."""
        return small if self.quick else full

    def alternate(self, runs: Sequence[Run], share: float = 1.0) -> list[list[float]]:
        """Seconds of each run, measured alternately in that share of the time."""
        least, seconds = self.choose(3, 1), self.choose(self.seconds, 0.0)
        return alternate(runs, seconds * share, self.synchronize, least)

    def race(self, what: str, *contestants: Contestant) -> list[Measured]:
        """Time contestants alternately, A B A B ...; return medians in their order."""
        self.say(f"{what}: memory")
        peaks = self.peaks(contestants)
        self.say(f"{what}: {' / '.join(c.name for c in contestants)}")
        runs = [contestant.build() for contestant in contestants]
        times = self.alternate(runs)
        return [
            Measured(statistics.median(seconds), peak, contestant.amount)
            for seconds, peak, contestant in zip(times, peaks, contestants, strict=True)
        ]

    def fastest(self, what: str, contestants: Sequence[Contestant]) -> Contestant:
        """The contestant with the shortest median, without those that fail or start far behind."""
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
        times = self.alternate([run for _, run in close], 1 / 4)
        medians = [statistics.median(seconds) for seconds in times]
        return close[medians.index(min(medians))][0]

    def synchronize(self) -> None:
        """Wait for the device, because GPU work is asynchronous."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peaks(self, contestants: Sequence[Contestant]) -> list[float | None]:
        """Peak memory of each in MB, in a separate process or on the GPU."""
        if self.quick:
            return [None] * len(contestants)
        builds = [contestant.build for contestant in contestants]
        if self.device == "cuda":
            return [gpu_growth(build) for build in builds]
        # Fork from a server that has imported everything, because an import takes seconds.
        fresh = multiprocessing.get_context("forkserver")
        fresh.set_forkserver_preload(["benchmarks.rows"])
        # One after another: two programs with two threads each on two cores slow each other down.
        with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
            return list(pool.map(growth, builds))


def alternate(
    runs: Sequence[Run],
    seconds: float,
    synchronize: Callable[[], None] = lambda: None,
    least: int = 3,
) -> list[list[float]]:
    """Seconds of each run, measured alternately for that long, after a quarter of it as warm-up."""
    for _ in rounds(seconds / 4, least - 1):
        for run in runs:
            timed(run, synchronize)
    times: list[list[float]] = [[] for _ in runs]
    for _ in rounds(seconds, least):
        for mine, run in zip(times, runs, strict=True):
            mine.append(timed(run, synchronize))
    return times


def rounds(seconds: float, least: int) -> Iterator[int]:
    """Yield numbers from 0 until the time is over, at least `least` of them."""
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
    for _ in range(2):  # the optimizer's state exists from the second run on
        run()
    peak = resident_mb("VmHWM")
    return None if peak is None or before is None else peak - before


def gpu_growth(build: Callable[[], Run]) -> float:
    """The same for GPU memory."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run = build()
    for _ in range(3):
        run()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def resident_mb(field: str, pid: int | str = "self") -> float | None:
    """A process's memory in MB: VmRSS now, VmHWM at most; None if the system does not report it.

    Does not use `ru_maxrss`, which a process inherits from its parent.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith(field))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024 / 1e6
