"""What a strategy cannot do is refused before anything starts, in one line."""

from collections.abc import Callable

import pytest
from commandline import TINY, Ended, refused

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
