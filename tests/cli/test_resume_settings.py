"""Flags given with --ckpt_path overrule the checkpoint, the optimizer's settings too."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from commandline import TINY as SMALL
from commandline import Ended, refused
from processes import TINY, fit

Call = Callable[..., Ended]


@pytest.mark.parametrize(("flags", "lr"), [((), 1e-3), (("--model.optimizer.lr=0.025",), 0.025)])
def test_a_learning_rate_given_at_a_resume_is_used(
    tmp_path: Path, flags: tuple[str, ...], lr: float
) -> None:
    fit(tmp_path, *TINY, "--trainer.max_steps=4", "--run.name=run")
    runs = fit(tmp_path, "--ckpt_path=last", "--trainer.max_steps=6", *flags)
    checkpoint = torch.load(runs / "run" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == lr


def test_a_schedule_and_groups_given_at_a_resume_start_where_the_run_stands(tmp_path: Path) -> None:
    flags = (
        "--model.lr_scheduler=WarmupCosine",
        "--model.lr_scheduler.warmup_steps=2",
        "--model.lr_scheduler.total_steps=8",
    )
    fit(tmp_path, *TINY, "--trainer.max_steps=4", "--run.name=run")
    runs = fit(tmp_path, "--ckpt_path=last", "--trainer.max_steps=6", *flags)
    # After 4 of the 6 steps of half a cosine: a quarter of what is above the final tenth.
    assert held(runs) == (6, [3.25e-4], [0.01])
    groups = "--model.param_groups=DecayMatrices"
    runs = fit(tmp_path, "--ckpt_path=last", "--trainer.max_steps=8", groups)
    assert held(runs) == (8, [1e-4, 1e-4], [0.01, 0.0])
    runs = fit(tmp_path, "--ckpt_path=last", "--trainer.max_steps=9", "--model.lr_scheduler=null")
    assert held(runs) == (9, [1e-3, 1e-3], [0.01, 0.0])


def held(runs: Path) -> tuple[int, list[float], list[float]]:
    """The step of a run's last checkpoint, and the learning rate and decay of each group."""
    checkpoint = torch.load(runs / "run" / "last.ckpt", weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    rates = [round(group["lr"], 9) for group in groups]
    return checkpoint["global_step"], rates, [group["weight_decay"] for group in groups]


def test_a_plateau_named_without_its_module_is_torch_s(tmp_path: Path) -> None:
    plateau = ("--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.factor=0.5")
    patience = ("--model.lr_scheduler.patience=0", "--model.lr_scheduler.threshold=0.9")
    steps = ("--trainer.max_steps=5", "--trainer.val_check_interval=2")
    runs = fit(tmp_path, *TINY, *plateau, *patience, *steps, "--run.name=run")
    assert held(runs) == (5, [5e-4], [0.01])


SCHEDULED = (
    *("--model.optimizer=Muon", "--model.param_groups=MuonMatrices"),
    *("--model.lr_scheduler=WarmupStableDecay", "--model.lr_scheduler.warmup_steps=2"),
    *(
        "--model.lr_scheduler.total_steps=8",
        "--trainer.max_steps=2",
        "--trainer.limit_val_batches=0",
    ),
)


@pytest.fixture
def resuming(makemoe: Call) -> Callable[..., Ended]:
    """Shows the settings of a resumed run that has a schedule and Muon."""
    assert makemoe("fit", *SMALL, *SCHEDULED, "--run.name=run").status == 0
    return lambda *flags: makemoe("fit", "--ckpt_path=run", *flags, "--print_config")


def test_arguments_of_the_checkpoint_s_classes_are_set_without_naming_them(
    resuming: Callable[..., Ended],
) -> None:
    flags = ("--model.lr_scheduler.total_steps", "9", "--model.optimizer.init_args.adamw_lr=0.5")
    model = yaml.safe_load(resuming(*flags).out)["model"]
    assert model["optimizer"]["class_path"] == "makemoe.training.muon.Muon"
    assert (model["optimizer"]["init_args"]["lr"], model["optimizer"]["init_args"]["adamw_lr"]) == (
        *(0.02, 0.5),
    )
    assert model["lr_scheduler"]["init_args"] == {
        **{"warmup_steps": 2, "total_steps": 9, "decay_share": 0.2, "final_share": 0.0}
    }


def test_a_file_may_set_them_too(resuming: Callable[..., Ended]) -> None:
    Path("my.yaml").write_text("model: {lr_scheduler: {init_args: {total_steps: 9}}, top_k: 1}")
    model = yaml.safe_load(resuming("--config=my.yaml").out)["model"]
    assert (model["lr_scheduler"]["init_args"]["total_steps"], model["top_k"]) == (9, 1)
    assert model["lr_scheduler"]["class_path"].endswith("WarmupStableDecay")


def test_an_unknown_argument_of_the_checkpoint_s_class_is_refused_with_the_nearest(
    resuming: Callable[..., Ended],
) -> None:
    ended = resuming("--model.lr_scheduler.total_step=9")
    assert (ended.status, ended.error) == (
        *(2, "--model.lr_scheduler: unknown key total_step: did you mean total_steps?"),
    )


def test_without_a_checkpoint_they_are_refused(makemoe: Call) -> None:
    refused(
        makemoe,
        2,
        ["--model.optimizer: unknown key adamw_lr"],
        "fit",
        "--model.optimizer.adamw_lr=1",
    )


def test_a_class_given_in_place_of_an_untrusted_one_needs_no_trust(makemoe: Call) -> None:
    Path("stranger.py").write_text(
        "from torch.optim import AdamW\nclass Own(AdamW):\n"
        "    def __init__(self, params, lr: float = 0.1, odd: int = 3):\n"
        "        super().__init__(params, lr)\n"
    )
    few = ("--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--run.name=run")
    assert makemoe("fit", *SMALL, *few, "--model.optimizer=stranger.Own").status == 0
    shows = ("fit", "--ckpt_path=run", "--print_config")
    ended = makemoe(*shows, "--model.optimizer.odd=4")
    assert (ended.status, "add --trust stranger" in ended.error) == (1, True)
    assert makemoe(*shows, "--model.optimizer=SGD").status == 0
    ended = makemoe(*shows, "--model.optimizer.odd=4", "--trust=stranger")
    assert yaml.safe_load(ended.out)["model"]["optimizer"]["init_args"]["odd"] == 4
