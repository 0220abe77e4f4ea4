"""What a strategy cannot do is refused before anything starts, in one line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commandline import TINY, Ended, refused
from jsonargparse import Namespace

from makemoe.cli.checks import count_devices

SHARDED = "--trainer.strategy.class_path makemoe.parallel.Sharded --trainer.devices "
OPTION = "--trainer.strategy.init_args."
DOTTED = "lightning.pytorch.strategies."

REFUSALS = (
    (f"{SHARDED} 2 {OPTION}experts 2", ["experts 2 does not divide --model.num_experts 3"]),
    (f"{SHARDED} 4 {OPTION}experts 3", [f"{OPTION}experts 3", "4 processes", "divisor"]),
    (f"{SHARDED} 4 {OPTION}replicate 3", [f"{OPTION}replicate 3", "4 processes", "divisor"]),
    (
        f"{SHARDED} 6 {OPTION}replicate 2 {OPTION}experts 2",
        [f"{OPTION}experts 2", "3 processes per copy"],
    ),
    (f"{SHARDED} 4 {OPTION}replicate 2 {OPTION}shard false", [f"{OPTION}replicate 2", "shard"]),
    (f"{SHARDED} 2 {OPTION}experts 0", [f"{OPTION}experts 0 is too small"]),
    (f"{SHARDED} 9", ["batch_size 8 is too small for 9 processes"]),
    (f"{SHARDED} 2 --trainer.precision 16-mixed", ["--trainer.precision 16-mixed", "bf16-mixed"]),
    (
        f"{SHARDED} 3 {OPTION}experts 3 --model.dense_layers [0]",
        [f"{OPTION}experts 3", "no layer that routes"],
    ),
    ("--trainer.strategy makemoe.parallel.Sharded", ["--trainer.strategy.class_path"]),
    ("--trainer.strategy ddp_notebook", ["--trainer.strategy ddp_notebook", "use ddp"]),
    ("--trainer.strategy ddp_fork", ["--trainer.strategy ddp_fork", "use ddp"]),
    ("--trainer.strategy fsdp", ["--trainer.strategy fsdp", "--config fsdp"]),
    ("--trainer.strategy deepspeed_stage_2", ["deepspeed_stage_2", "--config fsdp"]),
    (f"--trainer.strategy.class_path {DOTTED}FSDPStrategy", ["FSDPStrategy", "--config fsdp"]),
    (f"--trainer.strategy.class_path {DOTTED}ModelParallelStrategy", ["--config fsdp"]),
    (
        f"--trainer.strategy.class_path {DOTTED}DDPStrategy "
        f"{OPTION}start_method spawn --trainer.devices 2",
        ["DDPStrategy", "use ddp"],
    ),
)


@pytest.mark.parametrize(("arguments", "words"), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_refused_in_one_line(
    makemoe: Callable[..., Ended], arguments: str, words: list[str]
) -> None:
    refused(makemoe, 2, words, "fit", *TINY, *arguments.split())


def test_other_processes_than_were_started_are_refused(
    makemoe: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "3")
    words = ["--trainer.devices 2 x --trainer.num_nodes 1", "3 processes were started"]
    for strategy in ("--trainer.strategy=ddp", SHARDED.split()[0] + "=makemoe.parallel.Sharded"):
        refused(makemoe, 2, words, "fit", *TINY, strategy, "--trainer.devices=2")


def test_the_help_of_the_strategy_names_its_options(makemoe: Callable[..., Ended]) -> None:
    shown = makemoe("fit", "--trainer.strategy.help=makemoe.parallel.Sharded").out
    assert all(name in shown for name in ("experts", "replicate", "shard", "timeout"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "expert_parallel"])
def test_on_a_cpu_each_way_uses_all_cores_and_torchrun_s_processes(
    makemoe: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    printed = yaml.safe_load(makemoe("fit", "--config", strategy, "--print_config").out)
    way = printed["trainer"]["strategy"]
    trainer = Namespace(
        devices=printed["trainer"]["devices"],
        accelerator="cpu",
        strategy=way if isinstance(way, str) else Namespace(way),
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    assert count_devices(trainer) == 3
    trainer.devices = 7
    assert count_devices(trainer) == 7
    trainer.devices = "auto"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    assert count_devices(trainer) == 5


def test_an_option_of_the_strategy_leaves_the_others(makemoe: Callable[..., Ended]) -> None:
    both = ("--config=expert_parallel", f"{OPTION}shard=true")
    printed = yaml.safe_load(makemoe("fit", *both, "--print_config").out)["trainer"]["strategy"]
    assert (printed["init_args"]["experts"], printed["init_args"]["shard"]) == (2, True)


def test_a_way_of_training_is_no_recipe_whose_runs_are_meant(
    makemoe: Callable[..., Ended], copied: Path
) -> None:
    last = ("fit", "--ckpt_path=last", "--print_config")
    for strategy in ("ddp", "fsdp", "expert_parallel"):
        printed = yaml.safe_load(makemoe(*last, f"--config={strategy}").out)
        assert printed["ckpt_path"] == "checkpoints/tiny/last.ckpt"
        assert printed["trainer"]["strategy"] != "auto"
        assert printed["model"]["n_embd"] == 16
    words = ["no run quickstart in checkpoints/"]
    refused(makemoe, 1, words, *last, "--config=quickstart", "--config=fsdp")
