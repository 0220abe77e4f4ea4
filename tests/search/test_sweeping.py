"""Workers of a sweep, with a program that stands for `makemoe fit`."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from stops import stopped_after

from makemoe.errors import DataError, UsageError
from makemoe.locks import Lock
from makemoe.run import logged_losses
from makemoe.search import attempt as attempt_module
from makemoe.search import runs as runs_module
from makemoe.search import sweeping as sweeping_module
from makemoe.search.plan import Timing, Variant
from makemoe.search.runs import Run
from makemoe.search.space import Part, Sweep, Value, read_sweep
from makemoe.search.study import Attempted, Trials
from makemoe.search.sweeping import Sweeping, time_left

HERE = Path(__file__).parent
SWEEP = replace(read_sweep({"space": {"x": {"float": [1, 2]}}}), trials=3, pruner=None)
FINAL = 1 / 10
"""What the program adds to the loss at its last step."""


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    command = (sys.executable, str(HERE / "stub_fit.py"))
    monkeypatch.setattr(runs_module, "COMMAND", command)
    monkeypatch.setattr(sweeping_module, "LOOK_S", 0.2)
    monkeypatch.setattr(attempt_module, "JUDGE_S", 0.05)


def variant(number: int, *words: str, steps: int = 10) -> Variant:
    name = f"trial-{number:04}"
    return Variant(name, name, words, {"model": {}}, 9, 9, 6, 8, steps, 1, Timing(0, 0.1, 0))


def look(number: int, values: Mapping[str, Value]) -> Variant:
    return variant(number, f"--loss={values['x']}")


opened: list[Trials] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close the databases of a test."""
    yield
    while opened:
        opened.pop().close()


def trials_in(folder: Path, sweep: Sweep = SWEEP, **more: Any) -> Trials:
    trials = Trials(f"sqlite:///{folder}/study.db", "s", sweep, seed=1, **more)
    opened.append(trials)
    trials.begin({})
    return trials


def sweeping(
    trials: Trials,
    folder: Path,
    look: Callable[..., Variant] = look,
    seeds: tuple[int, ...] = (1,),
    jobs: int = 3,
) -> Sweeping:
    return Sweeping(trials, look, seeds, folder, jobs, dict(os.environ), 1.0)


def test_every_trial_has_the_mean_of_its_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = trials_in(tmp_path, replace(SWEEP, trials=2, seeds=2))
    kept: list[int] = []
    sweeping(trials, tmp_path, lambda n, _: variant(n), (3, 5), jobs=1).work(lambda: kept.append(1))
    found = trials.attempted()
    assert [one.loss for one in found] == [4 + FINAL, 4 + FINAL]  # the stub's loss is its seed
    assert found[0].facts["losses"] == {"3": 3 + FINAL, "5": 5 + FINAL}
    assert found[0].facts["parameters"] == 9
    assert found[0].facts["seconds"] > 1.9
    assert kept == [1, 1]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("1 of 2: trial ")
    assert "val_loss 4.1000 in " in lines[0]
    assert "; best 4.1000 (trial " in lines[0]
    assert "left" in lines[0]
    assert "left" not in lines[1]


def test_a_pruned_trial_is_stopped_and_its_other_seeds_are_not_trained(tmp_path: Path) -> None:
    pruner = Part("optuna.pruners.ThresholdPruner", {"upper": 2.0, "n_warmup_steps": 3})
    trials = trials_in(tmp_path, replace(SWEEP, trials=2, seeds=2, pruner=pruner))

    def by_number(number: int, values: Mapping[str, Value]) -> Variant:
        return variant(number, f"--loss={1 + number}", steps=10)

    sweeping(trials, tmp_path, by_number, (1, 2), jobs=2).work(lambda: None)
    good, bad = trials.attempted()
    assert (good.state, good.loss) == ("complete", 1 + FINAL)
    assert bad.state == "pruned"
    assert max(step for step, _ in logged_losses(tmp_path / "trial-0001" / "seed-1")) < 10
    assert not (tmp_path / "trial-0001" / "seed-2").exists()


def test_a_failing_trial_stops_no_other_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = trials_in(tmp_path)

    def odd(number: int, values: Mapping[str, Value]) -> Variant:
        if number == 0:
            raise UsageError("top_k 9 is more than num_experts 8")
        return variant(number, *(("--fails=yes",) if number == 1 else ()))

    sweeping(trials, tmp_path, odd).work(lambda: None)
    states = [(one.state, one.facts.get("why")) for one in trials.attempted()]
    assert states == [
        ("failed", "top_k 9 is more than num_experts 8"),
        ("failed", "the loss is not finite at step 2"),
        ("complete", None),
    ]
    assert "failed: top_k 9 is more than num_experts 8" in capsys.readouterr().err


def test_a_sweep_of_which_nothing_but_failures_comes_ends(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, replace(SWEEP, trials=50))

    def none(number: int, values: Mapping[str, Value]) -> Variant:
        raise UsageError("nothing fits")

    with pytest.raises(DataError, match="the first 3 trials failed; the last one: nothing fits"):
        sweeping(trials, tmp_path, none).work(lambda: None)
    assert [one.state for one in trials.attempted()][2:4] == ["failed", "waiting"]


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, replace(SWEEP, trials=1))
    first = sweeping(trials, tmp_path)
    with stopped_after(tmp_path / "trial-0000" / "seed-1", 3):
        first.work(lambda: None)
    assert first.stopped_by == signal.SIGTERM
    (waiting,) = trials.attempted()
    assert waiting.state == "waiting"
    again = trials_in(tmp_path, replace(SWEEP, trials=1))
    sweeping(again, tmp_path).work(lambda: None)
    (done,) = again.attempted()
    assert (done.values, done.loss) == (waiting.values, waiting.values["x"] + FINAL)
    # Every step was trained once.
    steps = [step for step, _ in logged_losses(tmp_path / "trial-0000" / "seed-1")]
    assert steps == list(range(1, 11))


def test_a_worker_that_lost_its_trial_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attempt_module, "BEAT_S", 0.1)
    sweep = replace(SWEEP, trials=1)
    slow = trials_in(tmp_path, sweep)
    other = trials_in(tmp_path, sweep, lives=lambda name: name != slow.worker)

    def steal() -> None:
        while not list(logged_losses(tmp_path / "trial-0000" / "seed-1")):
            if over.wait(0.01):
                return
        taken = other.take()
        assert taken is not None
        other.end(taken, "complete", 7.0)

    over = threading.Event()
    thread = threading.Thread(target=steal)
    thread.start()
    try:
        sweeping(slow, tmp_path, jobs=1).work(lambda: None)
    finally:
        over.set()
        thread.join()
    assert slow.attempted()[0].loss == 7.0
    assert "trial 0: another worker has taken it" in capsys.readouterr().err


def test_a_trial_whose_run_another_process_still_trains_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker that was taken for dead too soon has started it in the same moment.
    lock, start = Lock(tmp_path / "trial-0000" / "seed-1" / ".lock"), Run.start
    starts: list[bool] = []

    def start_second(run: Run, environment: Mapping[str, str]) -> None:
        starts.append(run.is_taken)
        if len(starts) == 1:
            lock.path.parent.mkdir(parents=True)
            (lock.path.parent / "last.ckpt").write_text("0")
            assert lock.take()
            threading.Timer(1.0, lock.release, [False]).start()
        start(run, environment)

    monkeypatch.setattr(Run, "start", start_second)
    trials = trials_in(tmp_path, replace(SWEEP, trials=1))
    sweeping(trials, tmp_path, jobs=1).work(lambda: None)
    (done,) = trials.attempted()
    assert (done.state, done.loss) == ("complete", done.values["x"] + FINAL)
    assert starts == [False, False]


def test_the_time_left_counts_what_is_done_of_running_trials() -> None:
    def trial(number: int, state: str, **facts: Any) -> Attempted:
        return Attempted(number, state, {}, 1.0, facts)

    trials = [
        trial(0, "complete", seconds=10.0),
        trial(1, "pruned", seconds=6.0),
        trial(2, "running"),
        trial(3, "waiting"),
    ]
    assert time_left(trials, 1, None, {2: 0.25}) == 8 * 0.75 + 8
    assert time_left(trials, 2, None, {}) == 8
    assert time_left(trials[2:], 1, 5.0, {}) == 10
    assert time_left(trials[2:], 1, None, {}) is None


# -- several workers


def programs() -> Path | None:
    """The folder of PostgreSQL's programs."""
    found = shutil.which("initdb")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(found).parent if found else installed[-1].parent if installed else None


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """The URL of a database on a server of its own, on loopback."""
    where = programs()
    if where is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # It refuses to run as root.
    user: dict[str, Any] = {"user": "nobody"} if os.getuid() == 0 else {}
    home = Path("/tmp", f"makemoe-postgresql-{os.getpid()}")
    home.mkdir()
    if user:
        shutil.chown(home, "nobody")
    port = free_port()
    command = [str(where / "initdb"), "-D", f"{home}/data", "-A", "trust", "-U", "me"]
    try:
        subprocess.run(command, check=True, capture_output=True, cwd=home, **user)
        server = subprocess.Popen(
            [
                *(str(where / "postgres"), "-D", f"{home}/data", "-k", str(home)),
                *("-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=home,
            **user,
        )
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            time.sleep(0.5)  # it answers before it lets anybody in
            yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(30)
    finally:
        shutil.rmtree(home)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_four_workers_train_every_trial_although_one_is_killed(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgresql")
    log, number = tmp_path / "log", 12
    log.touch()
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def worker() -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "stub_worker.py"), url, "s", str(tmp_path)]
        return subprocess.Popen(
            [*command, str(number), str(log)], stdout=subprocess.PIPE, text=True, env=environment
        )

    workers = [worker()]
    assert workers[0].stdout is not None
    workers[0].stdout.readline()  # has begun: the others find its study
    workers += [worker() for _ in range(3)]

    def begun(of: int) -> int:
        return sum(line.startswith(f"{of} ") for line in log.read_text().splitlines())

    # Whoever is the first to begin a second trial, which takes a second.
    while not (busy := [one for one in workers if begun(one.pid) > 1]):
        assert any(one.poll() is None for one in workers)
        time.sleep(0.02)
    os.kill(busy[0].pid, signal.SIGKILL)
    for one in workers:
        one.communicate(timeout=60)
    statuses = {one.pid: one.returncode for one in workers}
    assert statuses.pop(busy[0].pid) == -signal.SIGKILL
    assert set(statuses.values()) == {0}
    with Trials(url, "s", replace(SWEEP, trials=number), seed=1) as trials:
        found = trials.attempted()
    assert [one.state for one in found] == ["complete"] * number
    assert [one.loss for one in found] == pytest.approx(
        [float(one.values["x"]) + FINAL for one in found]
    )
    # The killed worker's trial was looked at twice, with the same values; no other was.
    looked = [line.partition(" ")[2] for line in log.read_text().splitlines()]
    assert len(looked) == number + 1
    assert len(set(looked)) == number
    assert not Lock(tmp_path / "trial-0000" / "seed-1" / ".lock").made
