"""A model that is built in Python, from classes and functions, and trained with a Trainer."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from makemoe.checkpoint.format import read
from makemoe.checkpoint.inference import load_for_inference
from makemoe.cli import main
from makemoe.data.datamodule import TextDataModule
from makemoe.data.tokenizer import CharTokenizer
from makemoe.errors import UsageError
from makemoe.model.experts import MLPExperts
from makemoe.model.init import GPT2Normal
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter
from makemoe.training.balance import BiasBalance, ZLoss
from makemoe.training.module import LanguageModel
from makemoe.training.optim import WarmupCosine
from makemoe.training.param_groups import DecayMatrices

# Lightning advises on loaders and folders, and calls torch in old ways.
pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS: dict[str, Any] = {
    "optimizer": lambda params: AdamW(params, lr=0.01),
    "lr_scheduler": partial(WarmupCosine, warmup_steps=2, total_steps=8),
    "param_groups": DecayMatrices(),
    "router": partial(BiasedTopKRouter, score="softmax"),
    "experts": partial(MLPExperts, hidden=12, activation="gelu"),
    "init": GPT2Normal(0.05),
    "balancers": [ZLoss(0.02), BiasBalance()],
}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def built(**changes: Any) -> tuple[LanguageModel, TextDataModule]:
    """A model and its data; the same weights every time."""
    torch.manual_seed(0)
    data = TextDataModule(block_size=8, batch_size=4, tokenizer=CharTokenizer())
    sizes = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "num_experts": 2, "top_k": 1}
    return LanguageModel(vocab_size=data.vocab_size, **sizes, **SETTINGS | changes), data


def trainer(max_steps: int, **changes: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": -1,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 1,
    }
    return Trainer(max_steps=max_steps, **quiet | changes)


def fit(
    steps: int, resume: str | None = None, *callbacks: Callback, **changes: Any
) -> LanguageModel:
    """Train; the checkpoint is `steps.ckpt`, such as 4.ckpt."""
    model, data = built(**changes)
    by = trainer(steps, callbacks=list(callbacks))
    by.fit(model, data, ckpt_path=resume, weights_only=None if resume is None else True)
    by.save_checkpoint(f"{steps}.ckpt")
    return model


def test_its_checkpoint_is_one_that_every_command_reads(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = fit(2).eval()
    loaded, tokenizer = load_for_inference("2.ckpt")
    ids_BT = torch.tensor(tokenizer.encode("the mill"), dtype=torch.int64)[None]
    assert torch.equal(loaded(ids_BT)[0], model.net(ids_BT)[0])
    assert main(["predict", "--ckpt_path", "2.ckpt", "--max_new_tokens", "5"]) == 0
    assert main(["inspect", "--ckpt_path", "2.ckpt"]) in (0, 3)
    assert "BiasedTopKRouter (score softmax)" in " ".join(capfd.readouterr().out.split())
    again = LanguageModel.load_from_checkpoint("2.ckpt", weights_only=True)
    assert torch.equal(again.net(ids_BT)[0], model.net(ids_BT)[0])


def test_a_function_that_builds_an_optimizer_is_described_by_what_it_builds() -> None:
    held = built()[0].hparams
    assert held["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert held["optimizer"]["init_args"]["lr"] == 0.01
    assert held["balancers"][0] == {
        "class_path": "makemoe.training.balance.ZLoss",
        "init_args": {"weight": 0.02},
    }
    assert held["dispatch"] == "auto", "defaults are stored too"


def test_it_resumes_to_the_same_weights_bit_for_bit() -> None:
    whole = fit(5)
    fit(3)
    resumed = fit(5, resume="3.ckpt")
    for one, other in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(one, other)


def in_two_groups(params: Any) -> SGD:
    weights = [p for group in params for p in group["params"]]
    return SGD([{"params": weights[:3], "lr": 0.1}, {"params": weights[3:]}], lr=0.2)


def test_an_optimizer_that_cannot_be_described_is_left_out_and_needed_to_resume(
    capfd: pytest.CaptureFixture[str],
) -> None:
    own = {
        "optimizer": in_two_groups,
        "lr_scheduler": lambda optimizer: LambdaLR(optimizer, lambda step: 0.5**step),
    }
    whole = fit(3, **own)
    fit(2, **own)
    assert not read("2.ckpt")["hyper_parameters"].keys() & own.keys()
    load_for_inference("2.ckpt")
    assert main(["validate", "--ckpt_path", "2.ckpt"]) == 0
    assert main(["fit", "--ckpt_path", "2.ckpt", "--model.optimizer.lr", "0.3"]) == 1
    assert "2.ckpt does not hold the lr_scheduler it was trained" in capfd.readouterr().err
    resumed = fit(3, resume="2.ckpt", **own)
    for one, other in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_router_that_cannot_be_described_is_refused_before_training_if_it_is_to_be_saved() -> (
    None
):
    function = {"router": lambda *sizes: NoisyTopKRouter(*sizes), "balancers": []}
    model, data = built(**function)
    with pytest.raises(UsageError, match=r"its router is a function, .*functools\.partial"):
        trainer(1).fit(model, data)
    model, data = built(**function)
    unsaved = trainer(1, enable_checkpointing=False)
    unsaved.fit(model, data)
    with pytest.raises(UsageError, match="its router is a function"):
        unsaved.save_checkpoint("a.ckpt")
    assert not Path("a.ckpt").exists()


class Watch(Callback):
    """Notes the loss of each validation, and the learning rate after it."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses.append(float(trainer.callback_metrics["val_loss"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def losses_and_rates(steps: int, resume: str | None = None) -> tuple[list[float], list[float]]:
    watch = Watch()
    fit(steps, resume, watch, **PLATEAU)
    return watch.losses, watch.rates


PLATEAU: dict[str, Any] = {
    "optimizer": partial(AdamW, lr=1.0),
    "lr_scheduler": partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=0.05),
}


def rates_of(losses: list[float]) -> list[float]:
    """The rule of ReduceLROnPlateau with these settings, in plain Python."""
    best, rate, rates = float("inf"), 1.0, []
    for loss in losses:
        if loss < best * 0.95:
            best = loss
        else:
            rate *= 0.5
        rates.append(rate)
    return rates


def test_a_plateau_of_the_validation_loss_lowers_the_learning_rate_once_per_validation() -> None:
    losses, rates = losses_and_rates(9)
    assert len(losses) == 4
    assert len(set(rates)) > 1, "a run that shows nothing"
    assert rates == rates_of(losses)


@pytest.mark.parametrize("stop", [4, 5])
def test_a_plateau_goes_on_after_a_resume_bit_for_bit(stop: int) -> None:
    whole = losses_and_rates(9)
    before = losses_and_rates(stop)
    after = losses_and_rates(9, f"{stop}.ckpt")
    assert tuple(a + b for a, b in zip(before, after, strict=True)) == whole


def test_a_schedule_that_ends_before_the_run_ends_it_in_words() -> None:
    short = partial(OneCycleLR, max_lr=0.1, total_steps=2)
    with pytest.raises(UsageError, match=r"^--model\.lr_scheduler: Tried to step 3 times"):
        fit(4, lr_scheduler=short)


def scaled(clip: float | None) -> Trainer:
    """With the scaler of 16-mixed, which Lightning makes on a GPU only."""
    return trainer(1, gradient_clip_val=clip, plugins=[MixedPrecision("16-mixed", "cpu")])


def test_clipping_that_a_fused_optimizer_cannot_do_is_refused_before_training() -> None:
    fused = partial(AdamW, lr=0.01, fused=True)
    with pytest.raises(
        UsageError, match=r"gradient_clip_val 1\.0: .* --model\.optimizer\.fused fa"
    ):
        scaled(1.0).fit(*built(optimizer=fused))
    scaled(1.0).fit(*built())
    scaled(None).fit(*built(optimizer=fused))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_optimizer_s_gradients_are_clipped_where_none_are_scaled(algorithm: str) -> None:
    def weights(clip: float | None, fused: bool) -> torch.Tensor:
        model, data = built(optimizer=partial(SGD, lr=0.1, fused=fused), lr_scheduler=None)
        clipping = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm}
        trainer(3, precision="bf16-mixed", **clipping).fit(model, data)
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    clipped = weights(0.01, fused=True)
    torch.testing.assert_close(clipped, weights(0.01, fused=False), rtol=0, atol=1e-6)
    assert (clipped - weights(None, fused=True)).abs().max() > 1e-3
