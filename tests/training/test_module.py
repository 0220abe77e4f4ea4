"""What the model takes from a checkpoint, and what it refuses."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from makemoe.errors import CheckpointError, UsageError
from makemoe.model.router import BiasedTopKRouter, Router, Routing, TopKRouter
from makemoe.training.balance import BiasBalance, SwitchLoss, ZLoss
from makemoe.training.metrics import summed_state
from makemoe.training.module import ROUTER_STATE, LanguageModel


def model(**settings: Any) -> LanguageModel:
    sizes = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "num_experts": 2}
    return LanguageModel(vocab_size=5, **sizes, **settings)


def test_weights_of_another_model_are_refused_in_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"^the checkpoint's weights do not fit .*\S$"):
        model().load_state_dict(model(top_k=1, capacity_factor=1.0).state_dict() | {"net.x": 1})


class Wrapped(Router):
    """A router made of another one."""

    def __init__(self, n_embd: int, num_experts: int, top_k: int) -> None:
        super().__init__(n_embd, num_experts, top_k)
        self.inner = TopKRouter(n_embd, num_experts, top_k)

    def forward(self, x_ND: torch.Tensor) -> Routing:
        return self.inner(x_ND)


def test_a_router_may_be_made_of_routers_and_is_still_one_a_layer() -> None:
    net = model(router=Wrapped, top_k=1, balancers=[ZLoss(), SwitchLoss()])
    routings = net.net(torch.zeros(1, 8, dtype=torch.int64))[1]
    losses = net.balance.raw_losses(routings)
    load_E = routings[0].experts_NK.flatten().bincount(minlength=2) / 8
    expected = 2 * (load_E * routings[0].probs_NE.mean(0)).sum()
    torch.testing.assert_close(losses["SwitchLoss"], expected)
    net.balance.end_step()


def test_what_is_measured_keeps_its_precision_in_a_model_of_another() -> None:
    net = model().to(torch.bfloat16)
    assert net.net.head.weight.dtype == torch.bfloat16
    assert net.eval_loss.nats.dtype == torch.float64
    assert net.val_router.mass_LE.dtype == torch.float32


def test_figures_of_another_number_of_experts_a_token_are_not_taken_up() -> None:
    net, other = model(top_k=2), model(top_k=1)
    held = {metric: summed_state(metric) for metric in net.carried()}
    checkpoint = {"hyper_parameters": dict(net.hparams), ROUTER_STATE: list(held.values())}
    other.take_up_metrics(checkpoint)
    assert other.drift.before_LBTK.shape[-1] == 1


@pytest.mark.filterwarnings("ignore")  # Lightning advises on loaders, and calls torch in old ways
def test_calibration_on_data_that_gives_no_windows_is_refused_in_words() -> None:
    ids_BT = torch.zeros(2, 8, dtype=torch.int64)
    loader = DataLoader([(ids_BT, ids_BT)], batch_size=None)
    balancers = [BiasBalance(calibration_tokens=16)]
    calibrated = model(router=BiasedTopKRouter, top_k=1, balancers=balancers)
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_steps=1, num_sanity_val_steps=0, **quiet)
    with pytest.raises(UsageError, match=r"calibration_tokens .* TextDataModule .* set it to 0"):
        trainer.fit(calibrated, loader, loader)
