"""Real runs as processes of their own: started, stopped, killed, resumed."""

import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

import torch
from nursery import MAKEMOE, Forked

DDP = ("--config", str(Path(__file__).parents[1] / "configs" / "ddp.yaml"), "--trainer.devices=2")
# One thread: with several, the order of additions depends on how many the machine lends.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "MAKEMOE_RUN_FOLDER"} | {
    "OMP_NUM_THREADS": "1"
}

TINY = (
    "--model.n_layer=2",
    "--model.n_embd=32",
    "--model.n_head=2",
    "--model.block_size=16",
    "--model.num_experts=4",
    "--run.sample_tokens=20",
    "--run.pictures=false",
    "--trainer.log_every_n_steps=5",
    "--trainer.val_check_interval=15",
)


def start(folder: Path, *arguments: str) -> Forked:
    """`makemoe fit` in `folder`, in a session of its own, its messages in a file."""
    with (folder / "stderr.txt").open("a") as messages:
        return Forked(
            [MAKEMOE, "fit", *arguments],
            folder,
            ENVIRONMENT,
            stderr=messages,
            start_new_session=True,
        )


def fit(folder: Path, *arguments: str) -> Path:
    """A run to its end; its folder's checkpoints."""
    process = start(folder, *arguments)
    assert process.wait(timeout=300) == 0, (folder / "stderr.txt").read_text()
    return folder / "checkpoints"


def stop_when(process: Forked, there: Path, number: signal.Signals) -> int:
    """Send a signal once a file is there: SIGKILL to all processes of the run, else to one."""
    deadline = time.monotonic() + 300
    while not there.exists():
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, f"{there} has not appeared"
        time.sleep(0.01)
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return process.wait(timeout=300)


def assert_same_run(one: Path, other: Path, but: Collection[str] = ()) -> None:
    """Two checkpoints agree bit for bit in step, weights (`but` these) and optimizer state."""
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    assert a["global_step"] == b["global_step"]
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name in a["state_dict"].keys() - set(but):
        weight = a["state_dict"][name]
        assert torch.equal(weight, b["state_dict"][name]), name
    states = (a["optimizer_states"][0]["state"], b["optimizer_states"][0]["state"])
    for parameter, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][parameter][name]), (parameter, name)
