"""What no machine has is refused at the command line before anything is begun."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import TINY, Ended, listing
from jsonargparse import Namespace

from makemoe.checkpoint.format import read, write
from makemoe.cli import sizes
from makemoe.cli.sizes import count_moments, count_processes, number_bytes, validates
from makemoe.machine import UNKNOWN, Memory
from makemoe.model import budget

Call = Callable[..., Ended]

TOO_LARGE = {
    "--model.n_embd 10000000000": "n_embd 10000000000 takes at least",
    "--model.n_layer 1000000000": "n_layer 1000000000 takes at least",
    "--model.num_experts 10000000000": "num_experts 10000000000 takes at least",
    "--model.experts.hidden 10000000000": "experts.hidden 10000000000 takes at least",
    "--data.batch_size 1000000000": "batch_size 1000000000 takes at least",
    "--data.num_workers 100000000": "--data.num_workers 100000000 is too many",
    "--run.sample_tokens 1000000000000000": "--run.sample_tokens 1000000000000000 is too long",
    "--data.eval_batch_size 1e400": "--data.eval_batch_size: expected int",
    f"--data.eval_batch_size {10**300}": "--data.eval_batch_size: a number of 2**63 or more",
    "--trainer.devices 500000 --data.batch_size 1000000": "devices 500000 takes at least",
    "--trainer.devices 99": "batch_size 8 is too small for 99 processes",
    "--trainer.num_nodes 99": "--trainer.num_nodes 99: the other machines are not known",
}


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", start)


@pytest.mark.parametrize("flags", TOO_LARGE)
def test_what_does_not_fit_is_refused(makemoe: Call, flags: str) -> None:
    ended = makemoe("fit", *TINY, *flags.split())
    assert ended.status == 2, ended
    assert TOO_LARGE[flags] in ended.error
    assert listing(Path()) == {}


def test_what_fits_in_training_is_told(makemoe: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "memory", lambda: Memory(1 << 30, UNKNOWN))
    ended = makemoe("fit", *TINY, "--model.n_embd=4096")
    assert ended.status == 2
    assert "(weights, gradients, optimizer state, processes)" in ended.error
    # 3 experts: 28 n_embd^2 weights of 16 bytes, in half of what a process leaves of 1 GiB.
    assert 750 < int(ended.error.split()[-3]) < 800


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "inspect"])
@pytest.mark.parametrize("name", ["n_embd", "n_layer"])
def test_a_checkpoint_s_sizes_are_refused_too(
    makemoe: Call, copied: Path, command: str, name: str
) -> None:
    content = read(copied / "last.ckpt")
    content["hyper_parameters"][name] = 10**10
    write(content, "my.ckpt")
    ended = makemoe(command, "--ckpt_path", "my.ckpt")
    assert ended.status in (1, 2)
    assert f"{name} 10000000000 takes at least" in ended.error


def test_a_batch_as_large_as_the_text_evaluates_in_one_step(makemoe: Call, copied: Path) -> None:
    ended = makemoe("validate", "--ckpt_path", "last", f"--data.eval_batch_size={10**15}")
    assert ended.status == 0, ended
    assert ended.out.startswith("val_loss ")


@pytest.mark.parametrize(
    ("devices", "count"),
    [(3, 3), ("99", 99), ([0, 1], 2), ("0,1,3", 3), ("auto", 1), ("no", 1), (0, 1), (None, 1)],
)
def test_processes_are_counted_as_lightning_takes_them(devices: Any, count: int) -> None:
    trainer = Namespace(devices=devices, strategy="auto", accelerator="cpu")
    assert count_processes(trainer) == count


def test_gpus_are_counted_and_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    card = Namespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    for devices in ("auto", -1, "-1"):
        trainer = Namespace(devices=devices, strategy="ddp", accelerator="auto")
        assert count_processes(trainer) == 4
        assert sizes.card_memory(trainer) == 80 << 30
    assert sizes.card_memory(Namespace(accelerator="cpu")) is None


def model_with(optimizer: str, **more: Any) -> Namespace:
    return Namespace(optimizer=Namespace(class_path=optimizer, **more))


@pytest.mark.parametrize(
    ("name", "moments"),
    [("AdamW", 2), ("Adam", 2), ("SGD", 0), ("RMSprop", 1), ("Adafactor", 0), ("Rprop", 2)],
)
def test_what_an_optimizer_keeps_is_found_by_a_step_of_it(name: str, moments: int) -> None:
    before = torch.get_rng_state()
    assert count_moments(model_with(f"torch.optim.{name}")) == (moments, moments)
    assert torch.equal(torch.get_rng_state(), before), "the model gets other weights"


def test_momentum_counts_and_what_is_no_optimizer_does_not() -> None:
    arguments = Namespace(lr=0.1, momentum=0.9)
    assert count_moments(model_with("torch.optim.SGD", init_args=arguments)) == (1, 1)
    assert count_moments(model_with("nowhere.Optimizer")) == (0, 0)
    assert count_moments(Namespace(optimizer=None)) == (0, 0)


def test_moments_are_those_of_the_group_that_a_weight_is_in() -> None:
    settings = model_with("torch.optim.SGD", init_args=Namespace(lr=0.1))
    assert count_moments(settings) == (0, 0)
    settings.param_groups = Namespace(class_path="policies.MatrixMomentum")
    assert count_moments(settings) == (1, 0)


def test_muon_keeps_one_number_per_weight_of_a_matrix_and_two_of_others() -> None:
    settings = model_with("makemoe.training.muon.Muon", init_args=Namespace(lr=0.1))
    settings.param_groups = Namespace(class_path="makemoe.training.muon.MuonMatrices")
    assert count_moments(settings) == (1, 2)


@pytest.mark.parametrize(
    ("precision", "bytes_each"),
    [
        ("32-true", (4, 4)),
        ("bf16-mixed", (4, 2)),
        ("bf16-true", (2, 2)),
        ("64-true", (8, 8)),
        ("None", (4, 4)),
    ],
)
def test_numbers_are_as_wide_as_the_precision_says(
    precision: str, bytes_each: tuple[int, int]
) -> None:
    assert number_bytes(precision) == bytes_each


@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        ({}, True),
        ({"max_steps": 9}, False),
        ({"max_steps": 5, "accumulate_grad_batches": 2}, False),
        ({"max_steps": -1}, True),
        ({"limit_val_batches": 0}, False),
        ({"val_check_interval": 0.5}, True),
    ],
)
def test_whether_a_run_reaches_a_validation(changes: dict[str, Any], reached: bool) -> None:
    settings = {
        "max_steps": 10,
        "val_check_interval": 10,
        "accumulate_grad_batches": 1,
        "limit_val_batches": None,
        "check_val_every_n_epoch": None,
        "fast_dev_run": False,
    }
    assert validates(Namespace(**settings | changes)) == reached
