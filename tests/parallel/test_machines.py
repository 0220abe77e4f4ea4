"""Runs on several machines: network namespaces, with links that are slow, lossy or cut."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from machines import Machines, bad_link, machines, wait_for, why_not
from processes import ENVIRONMENT, assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

PORT = "29500"
SMALL = (
    "--model.n_layer=2",
    "--model.n_embd=16",
    "--model.n_head=2",
    "--model.block_size=16",
    "--model.num_experts=4",
    "--data.batch_size=7",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=5",
    "--trainer.val_check_interval=50",
    "--run.pictures=false",
    "--run.sample_tokens=20",
    "--run.save_every_n_steps=10",
    "--run.name=run",
)
STEPS = 300
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
Launch = Callable[[Machines, int], list[str]]
TIMEOUT_S = 10
ENDED_S = 100
"""So long after a cut, all have ended on a busy machine too; an idle one needs 17 s."""

DDP = (
    "--trainer.strategy.class_path=lightning.pytorch.strategies.DDPStrategy",
    f"--trainer.strategy.init_args.timeout=0:00:{TIMEOUT_S}",
)
EXPERTS = (
    "--trainer.strategy.class_path=makemoe.parallel.Sharded",
    "--trainer.strategy.init_args.experts=2",
    f"--trainer.strategy.init_args.timeout=0:00:{TIMEOUT_S}",
)


def static(made: Machines, machine: int) -> list[str]:
    """Options of torchrun: the first machine is told to all."""
    first = ("--master_addr", made.address(0), "--master_port", PORT)
    return ["--node_rank", str(machine), *first, "--max_restarts=3"]


def c10d(made: Machines, machine: int) -> list[str]:
    """Options of torchrun: the machines find out who is the first."""
    place = f"--rdzv_endpoint={made.address(0)}:{PORT}"
    return ["--rdzv_backend=c10d", place, "--rdzv_id=job", "--max_restarts=3"]


def fit(made: Machines, machine: int, *options: str, launch: Launch | None = None) -> list[str]:
    """The command that torchrun takes on a machine."""
    size = len(made.names)
    how = static(made, machine)[:-1] if launch is None else launch(made, machine)
    return [
        *(sys.executable, str(Path(sys.executable).parent / "torchrun")),
        *("--nnodes", str(size), "--nproc_per_node", "1", *how),
        *("-m", "makemoe", "fit", *options, f"--trainer.num_nodes={size}"),
        "--trainer.devices=1",
    ]


def start(
    made: Machines,
    folder: Path,
    *options: str,
    clocks: Sequence[int] = (),
    launch: Launch | None = None,
) -> list["subprocess.Popen[bytes]"]:
    """Start a run on all machines."""
    return [
        made.start(n, fit(made, n, *options, launch=launch), folder, ONE_THREAD, clock)
        for n, clock in enumerate(clocks or [0] * len(made.names))
    ]


def trains(made: Machines, machine: int) -> int:
    """The process that trains on a machine."""
    [pid] = [pid for pid in made.processes(machine) if b"LOCAL_RANK" in environ(pid)]
    return pid


def said(folder: Path, machine: int) -> str:
    """What a machine has printed."""
    return (folder / f"machine{machine + 1}.txt").read_text()


def finish(processes: Sequence["subprocess.Popen[bytes]"], folder: Path) -> None:
    """Wait for a run that must succeed."""
    statuses = [process.wait(timeout=200) for process in processes]
    told = "\n".join(said(folder, n) for n in range(len(processes)))
    assert statuses == [0] * len(processes), told


def errors(folder: Path, machine: int) -> list[str]:
    """The error lines of makemoe on a machine; torchrun adds its own words afterwards."""
    return [line for line in said(folder, machine).splitlines() if "makemoe: error" in line]


def column(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machines, Path]]:
    """Two machines, and the folder of a run of theirs that nothing disturbed."""
    folder = tmp_path_factory.mktemp("two")
    with machines(2) as made:
        finish(start(made, folder, *SMALL, *DDP, f"--trainer.max_steps={STEPS}"), folder)
        yield made, folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one")
    done = subprocess.run(
        [sys.executable, "-m", "makemoe", "fit", *SMALL, f"--trainer.max_steps={STEPS}"],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "checkpoints" / "run"


def test_training_over_a_link_equals_one_process(two: tuple[Machines, Path], one: Path) -> None:
    run = two[1] / "checkpoints" / "run"
    # In the first 50 steps: later, rounding has sent a token to another expert, and grows.
    for name, rows in (("train_loss", 10), ("val_loss", 1)):
        assert column(run, name)[:rows] == pytest.approx(column(one, name)[:rows], abs=1e-5)


def test_a_cut_link_ends_both_machines_in_time_and_the_resumed_run_is_the_same(
    two: tuple[Machines, Path], tmp_path: Path
) -> None:
    with machines(2) as made:
        processes = start(made, tmp_path, *SMALL, *DDP, f"--trainer.max_steps={STEPS}")
        run = tmp_path / "checkpoints" / "run"
        wait_for((run / "last.ckpt").exists)
        made.cut(1)
        for process in processes:
            assert process.wait(timeout=ENDED_S) != 0
        first, second = errors(tmp_path, 0), errors(tmp_path, 1)
        assert len(first) == len(second) == 1
        assert "process 1 on machine2 has ended, or cannot be reached" in first[0]
        assert "the first process, on 10.77.0.1, has ended, or cannot be reached" in second[0]
        for n in range(2):
            assert "makemoe/cli" not in said(tmp_path, n)  # as in a traceback, which torchrun has
            assert made.processes(n) == []
    step = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert step < STEPS, "cut too late to show anything"
    finish(start(two[0], tmp_path, f"--ckpt_path={run}/last.ckpt", *DDP), tmp_path)
    assert_same_run(two[1] / "checkpoints" / "run" / "last.ckpt", run / "last.ckpt")


@pytest.mark.parametrize(("launch", "killed"), [(static, 1), (c10d, 0)])
def test_torchrun_starts_both_machines_again_and_the_run_goes_on(
    two: tuple[Machines, Path], tmp_path: Path, launch: Launch, killed: int
) -> None:
    with machines(2) as made:
        steps = f"--trainer.max_steps={STEPS}"
        processes = start(made, tmp_path, *SMALL, *DDP, steps, launch=launch)
        run = tmp_path / "checkpoints" / "run"
        wait_for((run / "last.ckpt").exists)
        os.kill(trains(made, killed), signal.SIGKILL)
        finish(processes, tmp_path)
    # One line of the machine that was left, and no start that came to nothing.
    assert [len(errors(tmp_path, n)) for n in range(2)] == [killed, 1 - killed]
    assert_same_run(two[1] / "checkpoints" / "run" / "last.ckpt", run / "last.ckpt")


@pytest.mark.parametrize("gone", [(1,), (0, 1)], ids=["one", "both"])
def test_a_run_goes_on_when_machines_have_come_back(
    two: tuple[Machines, Path],
    tmp_path: Path,
    gone: Sequence[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # as docs/cluster.md says
    options = (*SMALL, *DDP, f"--trainer.max_steps={STEPS}")
    run = tmp_path / "checkpoints" / "run"
    with machines(2) as made:
        processes = start(made, tmp_path, *options, launch=c10d)
        wait_for((run / "last.ckpt").exists)
        for n in gone:
            for pid in made.processes(n):
                os.kill(pid, signal.SIGKILL)
        for n in gone:
            command = fit(made, n, *options, launch=c10d)
            processes[n] = made.start(n, command, tmp_path, ONE_THREAD)
        finish(processes, tmp_path)
    assert [path.name for path in run.parent.iterdir()] == ["run"]
    assert_same_run(two[1] / "checkpoints" / "run" / "last.ckpt", run / "last.ckpt")


def test_a_slow_and_lossy_link_changes_nothing(one: Path, tmp_path: Path) -> None:
    steps = ("--trainer.max_steps=20", "--trainer.limit_val_batches=0")
    with bad_link(delay_s=0.005, loss=0.01) as made:
        finish(start(made, tmp_path, *SMALL, *EXPERTS, *steps), tmp_path)
    losses = column(tmp_path / "checkpoints" / "run", "train_loss")
    assert losses == pytest.approx(column(one, "train_loss")[: len(losses)], abs=1e-5)


def test_three_machines_with_other_clocks_stop_together_at_a_signal_to_one(tmp_path: Path) -> None:
    with machines(3) as made:
        endless = ("--trainer.max_steps=1000000",)
        processes = start(made, tmp_path, *SMALL, *DDP, *endless, clocks=(0, 5000, 90000))
        run = tmp_path / "checkpoints" / "run"
        wait_for((run / "last.ckpt").exists)
        before = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
        os.kill(trains(made, 2), signal.SIGTERM)
        for process in processes:
            process.wait(timeout=ENDED_S)
        assert all(made.processes(n) == [] for n in range(3))
    assert "SIGTERM: stopped at step" in said(tmp_path, 0)
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] > before


def environ(pid: int) -> bytes:
    """The environment a process began with."""
    return Path(f"/proc/{pid}/environ").read_bytes()
