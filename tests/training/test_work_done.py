"""A run counts the tokens it trains on and their FLOPs: accumulated, resumed, in processes."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import TINY
from ranks import fit_in_two
from torch.optim import SGD
from trainers import rows, run

from makemoe.checkpoint.format import Checkpoint, read, write
from makemoe.errors import CheckpointError
from makemoe.training.module import LanguageModel
from makemoe.training.optim import WarmupLinear
from makemoe.training.work import Work
from makemoe.training.work_done import MOST, WORK_DONE, WorkDone

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning advises, and calls torch in old ways

PER_BATCH = 4 * 8
"""Windows and their length in a run of `trainers`."""


def counted(folder: Path) -> dict[int, tuple[str, str]]:
    found = ((int(r["step"]), (r["tokens"], r["flops"])) for r in rows(folder) if "tokens" in r)
    return dict(found)


def test_logged_and_validated_steps_have_the_tokens_so_far(tmp_path: Path) -> None:
    trainer = run(tmp_path, max_steps=7, val_check_interval=3, log_every_n_steps=2)
    model = trainer.lightning_module
    assert isinstance(model, LanguageModel)
    flops = model.done.work.flops
    seen = {step: step * PER_BATCH for step in (2, 3, 4, 6)}
    assert counted(tmp_path) == {
        step: (str(tokens), f"{tokens * flops:.9g}") for step, tokens in seen.items()
    }


def test_the_size_of_the_model_stands_beside_the_work(tmp_path: Path) -> None:
    net = run(tmp_path, max_steps=4, val_check_interval=4).lightning_module.net
    total = sum(parameter.numel() for parameter in net.parameters())
    one = sum(p.numel() for p in net.blocks[0].moe.experts.parameters()) // net.num_experts
    idle = len(net.blocks) * (net.num_experts - net.top_k) * one
    row = next(row for row in rows(tmp_path) if "tokens" in row)
    assert (row["parameters"], row["active_parameters"]) == (str(total), str(total - idle))


def test_every_logged_step_has_the_rate_that_it_was_taken_with(tmp_path: Path) -> None:
    parts = {
        "optimizer": partial(SGD, lr=0.4),
        "lr_scheduler": partial(WarmupLinear, warmup_steps=3, total_steps=8, final_share=0.0),
    }
    run(tmp_path, parts=parts, max_steps=8, val_check_interval=4, log_every_n_steps=1)
    used = [float(row["lr"]) for row in rows(tmp_path) if "lr" in row]
    assert used == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.32, 0.24, 0.16, 0.08], rel=1e-8)


def test_every_batch_of_an_accumulated_step_counts(tmp_path: Path) -> None:
    run(tmp_path, max_steps=4, val_check_interval=4, accumulate_grad_batches=3)
    assert [tokens for tokens, _ in counted(tmp_path).values()] == [
        str(step * 3 * PER_BATCH) for step in (2, 4)
    ]


def test_a_resumed_run_goes_on_counting_also_if_a_step_became_larger(tmp_path: Path) -> None:
    run(tmp_path, max_steps=4, val_check_interval=4)
    again = {"max_steps": 6, "val_check_interval": 6, "accumulate_grad_batches": 2}
    run(tmp_path, resume=tmp_path / "last.ckpt", **again)
    assert {step: tokens for step, (tokens, _) in counted(tmp_path).items()} == {
        2: str(2 * PER_BATCH),
        4: str(4 * PER_BATCH),
        6: str((4 + 2 * 2) * PER_BATCH),
    }
    held = read(tmp_path / "last.ckpt")[WORK_DONE]
    assert held["tokens"] == 8 * PER_BATCH
    assert held["flops"] % held["tokens"] == 0


def test_a_checkpoint_of_before_is_resumed_as_if_its_steps_were_as_large(tmp_path: Path) -> None:
    run(tmp_path, max_steps=4, val_check_interval=4)
    whole = read(tmp_path / "last.ckpt")
    write({k: v for k, v in whole.items() if k != WORK_DONE}, tmp_path / "last.ckpt")
    run(tmp_path, resume=tmp_path / "last.ckpt", max_steps=6, val_check_interval=6)
    assert counted(tmp_path)[6][0] == str(6 * PER_BATCH)


@pytest.mark.parametrize(
    "held",
    [
        {},
        {"tokens": 1},
        {"tokens": 1, "flops": 2, "more": 3},
        {"tokens": -1, "flops": 2},
        {"tokens": 1, "flops": MOST},
        {"tokens": True, "flops": 2},
        {"tokens": 1.0, "flops": 2},
        {"tokens": torch.ones(1), "flops": 2},
    ],
)
def test_counts_that_are_none_are_refused(tmp_path: Path, held: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="damaged or forged: its work_done"):
        WorkDone(Work(1, 1, 1)).take_up(held)


def test_a_forged_count_stops_a_resume(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2, val_check_interval=2)
    forged: Checkpoint = read(tmp_path / "last.ckpt") | {WORK_DONE: {"tokens": -7, "flops": 0}}
    write(forged, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="its work_done has tokens that are not a count"):
        run(tmp_path, resume=tmp_path / "last.ckpt", max_steps=4, val_check_interval=4)


def test_two_processes_count_the_tokens_of_both(tmp_path: Path) -> None:
    uneven = ("--data.batch_size=5", "--trainer.max_steps=5", "--run.name=run")
    folder = fit_in_two(tmp_path, *TINY, *uneven) / "run"
    assert read(folder / "last.ckpt")[WORK_DONE]["tokens"] == 5 * 5 * 16
    assert [tokens for tokens, _ in counted(folder).values()] == [str(5 * 5 * 16)]
