"""What the model takes from a checkpoint, and what it refuses."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import MPS, SimulatedMps
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, TensorDataset
from trainers import QUIET

from makemoe.errors import CheckpointError, NotFiniteError, UsageError
from makemoe.model.router import BiasedTopKRouter, Router, Routing, TopKRouter
from makemoe.training.balance import Balancer, BiasBalance, SwitchLoss, ZLoss
from makemoe.training.metrics import summed_state
from makemoe.training.module import ROUTER_STATE, LanguageModel


def model(**settings: Any) -> LanguageModel:
    sizes = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "num_experts": 2}
    return LanguageModel(vocab_size=5, **sizes, **settings)


def test_weights_of_another_model_are_refused_in_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"^the checkpoint's weights do not fit .*\S$"):
        model().load_state_dict(model(top_k=1, capacity_factor=1.0).state_dict() | {"net.x": 1})


class Own(LightningDataModule):
    """Data that is not ours, with an attribute that ours has with another meaning."""

    batch_size = 32

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*torch.arange(512).view(2, 32, 8) % 5), 4)


@pytest.mark.filterwarnings("ignore")  # Lightning advises
def test_a_data_module_of_one_s_own_trains_as_its_loader_alone_and_is_saved(tmp_path: Path) -> None:
    states = []
    for data in ({"train_dataloaders": Own().train_dataloader()}, {"datamodule": Own()}):
        torch.manual_seed(0)
        net = model(optimizer=partial(torch.optim.SGD, lr=0.1))
        trainer = Trainer(**QUIET | {"max_steps": 3}, logger=False, enable_checkpointing=False)
        trainer.fit(net, **data)
        trainer.save_checkpoint(tmp_path / "own.ckpt")
        states.append(net.state_dict())
    for name, weight in states[0].items():
        assert torch.equal(states[1][name], weight)


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


def quiet_trainer(**settings: Any) -> Trainer:
    """A trainer on the CPU that writes nothing."""
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


def batches(count: int = 1) -> DataLoader[Any]:
    """Batches of two windows, which are no TextDataModule's."""
    ids_BT = torch.arange(16).view(2, 8) % 5
    return DataLoader([(ids_BT, ids_BT)] * count, batch_size=None)


# Lightning advises on loaders, and calls torch in old ways.
lightning_warns = pytest.mark.filterwarnings("ignore")


@lightning_warns
def test_calibration_on_data_that_gives_no_windows_is_refused_in_words() -> None:
    balancers = [BiasBalance(calibration_tokens=16)]
    calibrated = model(router=BiasedTopKRouter, top_k=1, balancers=balancers)
    with pytest.raises(UsageError, match=r"calibration_tokens .* TextDataModule .* set it to 0"):
        quiet_trainer(max_steps=1).fit(calibrated, batches(), batches())


@lightning_warns
def test_figures_of_a_run_in_bfloat16_are_logged_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: dict[str, float] = {}
    original = LanguageModel.log_figures

    def log_figures(self: LanguageModel, *args: Any) -> dict[str, float]:
        named = original(self, *args)
        logged.update(named)
        return named

    monkeypatch.setattr(LanguageModel, "log_figures", log_figures)
    net = model(top_k=1, balancers=[SwitchLoss(0.01)])
    quiet_trainer(precision="bf16-true", max_steps=1, log_every_n_steps=1).fit(net, batches())
    assert logged["balance/SwitchLoss_weight"] == pytest.approx(0.01, rel=1e-6)
    loads = [logged[f"router/layer_0/load_{expert}"] for expert in (0, 1)]
    assert sum(loads) == pytest.approx(1, rel=1e-6)


@lightning_warns
@pytest.mark.parametrize("overflows", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_a_bias_stays_where_a_gradient_scaler_skips_the_step(fused: bool, overflows: bool) -> None:
    net = model(
        router=BiasedTopKRouter,
        top_k=1,
        balancers=[BiasBalance(0.25)],
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.1, fused=fused),
    )
    before = net.net.head.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1e30 if overflows else 1.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    quiet_trainer(plugins=[precision], max_steps=1).fit(net, batches())
    (router,) = net.net.routers().values()
    assert torch.equal(net.net.head.weight, before) == overflows
    assert (router.get_buffer("bias_E") == 0).all() == overflows
    assert net.balance.sums is None


@lightning_warns
@pytest.mark.parametrize(
    ("balancers", "shift"),
    [([], 0), ([ZLoss()], 0), ([BiasBalance()], 0), ([BiasBalance(calibration_tokens=16)], 0.5)],
)
def test_a_shift_is_undone_unless_a_balancer_still_calibrates(
    balancers: list[Balancer], shift: float
) -> None:
    net = model(router=BiasedTopKRouter, top_k=1, balancers=balancers)
    (router,) = net.net.routers().values()
    router.get_buffer("eval_shift_E").fill_(0.5)  # as from a checkpoint
    quiet_trainer(max_steps=1).fit(net, batches())
    assert router.get_buffer("eval_shift_E").tolist() == [shift, shift]


def test_router_metrics_of_a_checkpoint_without_compensation_are_taken_up() -> None:
    net, other = model(top_k=1), model(top_k=1)
    net.train_router.sums_3L += 3
    states = [summed_state(metric) for metric in net.carried()]
    older = [{k: v for k, v in state.items() if not k.startswith("lost_")} for state in states]
    assert older != states
    other.take_up_metrics({"hyper_parameters": dict(net.hparams), ROUTER_STATE: older})
    assert torch.equal(other.train_router.sums_3L, net.train_router.sums_3L)
    del older[0]["sums_3L"]
    with pytest.raises(CheckpointError, match="damaged"):
        other.take_up_metrics({"hyper_parameters": dict(net.hparams), ROUTER_STATE: older})


def evaluated(net: LanguageModel, device: torch.device) -> dict[str, float]:
    """Figures of an evaluation and of a batch of training on that device."""
    net.to(device)
    ids_BT = (torch.arange(16).view(2, 8) % 5).to(device)
    net.eval().evaluate((ids_BT, ids_BT), 0)
    _, routings = net.train().net(ids_BT)
    net.train_router.update(routings)
    losses = net.balance.raw_losses(routings)
    net.balance.end_step()
    assert net.eval_loss.compute().dtype == torch.float64
    figures = net.val_router.compute() | net.train_router.compute() | losses
    return {k: v.item() for k, v in figures.items()} | {"loss": net.eval_loss.compute().item()}


def test_a_model_is_trained_and_evaluated_on_a_device_without_float64() -> None:
    sizes: dict[str, Any] = {"router": BiasedTopKRouter, "top_k": 1}
    net = model(**sizes, balancers=[BiasBalance(), SwitchLoss(), ZLoss()])
    other = copy.deepcopy(net)
    with SimulatedMps():
        there = evaluated(other, MPS)
        biases = [net.net.routers()[0].get_buffer("bias_E") for net in (net, other)]
        assert biases[1].device == MPS
        assert there == pytest.approx(evaluated(net, torch.device("cpu")), rel=1e-6)
        assert torch.equal(biases[0], biases[1].cpu())


# -- the same model after a run that was broken off


class BreakOff(Callback):
    """Breaks off the second batch of an evaluation, once."""

    def __init__(self) -> None:
        self.was_there = False

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 1 and not self.was_there:
            self.was_there = True
            raise OSError("broken off")


@lightning_warns
def test_the_loss_after_a_validation_that_was_broken_off_is_exact() -> None:
    net, trainer = model(), quiet_trainer(callbacks=[BreakOff()])
    with pytest.raises(OSError, match="broken off"):
        trainer.validate(net, batches(3), verbose=False)
    # The same batch three times has the loss of one.
    ids_BT, _ = next(iter(batches()))
    logits_BTV, _ = net.eval().net(ids_BT)
    expected = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT.flatten())
    (found,) = trainer.validate(net, batches(3), verbose=False)
    assert found["val_loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert (net.drift.before_LBTK > 0).all(-1).sum() == 3 * 16


@lightning_warns
def test_a_validation_that_was_broken_off_leaves_the_one_before_to_compare_with() -> None:
    net, trainer = model(top_k=1), quiet_trainer()
    trainer.validate(net, batches(2), verbose=False)
    with pytest.raises(OSError, match="broken off"):
        quiet_trainer(callbacks=[BreakOff()]).validate(net, batches(2), verbose=False)
    trainer.validate(net, batches(2), verbose=False)
    assert trainer.callback_metrics["val_router/drift"] == 0


@lightning_warns
def test_a_model_is_trained_again_after_a_loss_that_was_not_finite() -> None:
    net = model(balancers=[SwitchLoss()])
    good = copy.deepcopy(net.state_dict())
    net.net.head.weight.data.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="step 1"):
        quiet_trainer(max_steps=2).fit(net, batches(2))
    net.load_state_dict(good)
    quiet_trainer(max_steps=2, log_every_n_steps=5).fit(net, batches(2))
    assert net.net.head.weight.isfinite().all()
    figures = net.train_router.compute()
    assert all(figure.isfinite().all() for figure in figures.values())
    assert net.train_router._update_count == 2
