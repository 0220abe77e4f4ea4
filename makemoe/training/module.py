"""The LightningModule: training step, validation and checkpoint."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from makemoe.checkpoint.format import stamp
from makemoe.checkpoint.pieces import refuse_unfilled
from makemoe.data.datamodule import batches_done, text_data
from makemoe.data.windows import IGNORE, Batch
from makemoe.devices import seed_step
from makemoe.errors import NotFiniteError
from makemoe.group import ALONE, Group, keep_buffers
from makemoe.model.moe import MoELayer
from makemoe.model.router import Routing
from makemoe.model.transformer import MoETransformer
from makemoe.shards import cut_each
from makemoe.training.averaged import Averaged
from makemoe.training.averaging import Averaging
from makemoe.training.balance import Balance, Balancer
from makemoe.training.bits import bits_of_validation
from makemoe.training.counts import as_numbers, count_assignments
from makemoe.training.described import check_described, describe
from makemoe.training.finite import WAYS_OUT
from makemoe.training.guard import Guard
from makemoe.training.losses import cross_entropy
from makemoe.training.metrics import RouterDrift, RouterStats, TokenLoss, completed, summed_state
from makemoe.training.misfit import check_sizes_held, explain_misfit, has_changed
from makemoe.training.optim import (
    blaming,
    build_optimizer,
    build_schedule,
    check_clipping,
    clipped_by_hand,
    rates,
    try_schedule,
    with_schedule,
)
from makemoe.training.param_groups import OneGroup, ParamGroups, weights_of
from makemoe.training.resuming import (
    GROUPS,
    check_optimizer,
    check_resumable,
    names_by_group,
    overrule,
    refuse_unlike,
    regroup,
    widen,
)
from makemoe.training.sampled import sampled_routings
from makemoe.training.steps import ends_step, logs_step, steps_taken
from makemoe.training.work import work_of
from makemoe.training.work_done import WORK_DONE, WorkDone

ROUTER_STATE = "router_metrics"
"""Key under which a checkpoint stores the state of the router metrics."""

OPTIMIZED_BY = ("optimizer", "lr_scheduler", "param_groups")
"""Settings of the optimizer and its schedule."""


class LanguageModel(LightningModule):
    """Trains a sparse MoE transformer to predict the next token.

    Args:
        optimizer: the optimizer, called with the parameters, or with their groups.
        lr_scheduler: the learning-rate schedule, called with the optimizer and updated after every
            step, or, for ReduceLROnPlateau, with the loss of every validation; null: none.
        balancers: keep the expert load even: a list of classes, see `makemoe.training.balance`.
        seed: seed of dropout and router noise.
        param_groups: which weights get which options of the optimizer, see
            `makemoe.training.param_groups`; null: all the same.
        averaging: average of the weights, for all evaluation; null: none.
        **net: sizes and parts of the `MoETransformer`.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        balancers: Sequence[Balancer] = (),
        seed: int = 1337,
        param_groups: ParamGroups | None = None,
        averaging: Averaging | None = None,
        **net: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = MoETransformer(**net)
        self.optimizer, self.lr_scheduler, self.seed = optimizer, lr_scheduler, seed
        self.param_groups = param_groups
        routers = self.net.routers()
        self.balance = Balance(balancers, list(routers.values()))
        L, E, K, layers = len(routers), self.net.num_experts, self.net.top_k, list(routers)
        self.train_router, self.val_router = (RouterStats(L, E, K, layers) for _ in range(2))
        self.drift = RouterDrift(L, K, self.net.block_size, layers)
        # One per text: the validation split, the training split.
        self.eval_loss, self.train_split_loss = TokenLoss(), TokenLoss()
        self.guard = Guard(self.net)
        self.done = WorkDone(work_of(self.net))
        self.work_logged: int | None = None
        self.averaged = Averaged(averaging, self.net)
        self.group: Group = ALONE
        policy = param_groups or OneGroup()
        self.undescribed = describe(self.hparams, optimizer, policy, weights_of(self.net))

    def setup(self, stage: str) -> None:
        """Tell everything that depends on who shares a batch; forget a run that was broken off."""
        self.group = Group.joined(self.trainer.world_size)
        keep_buffers(self)
        self.balance.join(self.group)
        self.guard.join(self.group)
        self.train_router.reset()
        self.drift.discard()
        self.reset_losses()
        self.work_logged = None
        for part in self.net.modules():
            if isinstance(part, MoELayer):
                part.group = self.group
        if (data := text_data(self.trainer)) is not None:
            data.group = self.group

    def configure_callbacks(self) -> list[Callback]:
        return self.averaged.callbacks()

    def on_fit_start(self) -> None:
        if self.trainer.checkpoint_callbacks:
            check_described(self.undescribed)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, schedule = self.build_optimizer()
        check_clipping(optimizer, self.trainer)
        return with_schedule(optimizer, schedule)

    def build_optimizer(self) -> tuple[Optimizer, LRScheduler | None]:
        """Build the optimizer for all parameters, and its schedule if there is one."""
        policy = self.param_groups or OneGroup()
        optimizer = build_optimizer(self.optimizer, policy, weights_of(self.net))
        return optimizer, build_schedule(self.lr_scheduler, optimizer)

    def try_optimizer(self, steps: int) -> Optimizer:
        """Raise UsageError for an optimizer or a schedule that cannot take so many; -1: no end."""
        optimizer, schedule = self.build_optimizer()
        try_schedule(schedule, steps)
        return optimizer

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        with blaming("--model.lr_scheduler"):
            super().lr_scheduler_step(scheduler, metric)

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **how: Any) -> None:
        if not clipped_by_hand(optimizer, self.trainer, self.group):
            super().configure_gradient_clipping(optimizer, *args, **how)

    def on_train_start(self) -> None:
        self.balance.begin_fit()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Random numbers are a function of (seed, step, rank), like the data, so that a resumed run
        # equals an uninterrupted one.
        seed_step(self.device, self.seed, batches_done(self.trainer), self.group.rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x_BT, y_BT = batch
        logits_BTV, routings = self.net(x_BT)
        loss = cross_entropy(logits_BTV, y_BT)
        counts_LE = count_assignments(routings)
        self.train_router.update(routings, counts_LE=counts_LE)
        balance_losses = self.balance.raw_losses(routings, counts_LE)
        # Gradients are averaged over processes whose parts of the batch may differ by one window.
        windows = self.global_batch_size(len(x_BT))
        share = len(x_BT) * self.group.size / windows
        total = (loss + self.balance.weighted(balance_losses)) * share
        again = partial(self.forward_again, x_BT)
        self.guard.see(total, self.trainer, again, self.logs_now())
        self.done.add(windows * x_BT.shape[1])
        if self.logs_now():
            mean_loss = self.trainer.strategy.reduce(loss.detach() * share, reduce_op="mean")
            step = self.trainer.global_step + 1
            # Lightning would log it after the callbacks, so after a checkpoint of this step: a run
            # that is killed in between would miss it.
            self.log("train_loss", mean_loss, prog_bar=True, logger=False)
            self.log_now({"train_loss": mean_loss} | rates(self.trainer.optimizers[0]), step)
            self.log("step", float(step))
            self.log_figures("balance", self.balance.figures(balance_losses), step)
            self.log_figures("router", self.train_router.compute(), step)
            self.train_router.reset()
            self.log_work(step)
        return total

    def log_work(self, step: int) -> None:
        """Log what the run has spent so far, once per step.

        Directly, because Lightning's `log` rounds to floats of 32 bits.
        """
        if step == self.work_logged:
            return
        self.work_logged = step
        for logger in self.loggers:
            logger.log_metrics(self.done.logged(), step)

    def forward_again(self, x_BT: Tensor) -> None:
        """Compute the outputs of the current batch again, with the same random numbers."""
        seed_step(self.device, self.seed, batches_done(self.trainer), self.group.rank)
        self.net(x_BT)

    def on_validation_model_zero_grad(self) -> None:
        # Lightning calls this before a validation, at the end of a step.
        self.guard.check(self.trainer)
        super().on_validation_model_zero_grad()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Optimizer | LightningOptimizer, *args: Any
    ) -> None:
        with steps_taken(optimizer) as taken:
            super().optimizer_step(epoch, batch_idx, optimizer, *args)
        # Before any callback, so that a checkpoint of this step includes it.
        self.balance.end_step(any(taken))
        self.averaged.end_step(self.trainer.global_step + 1, any(taken))

    def global_batch_size(self, local: int) -> int:
        """Number of windows per step over all processes, given the number in this one."""
        data = text_data(self.trainer)
        return data.batch_size if data is not None else local * self.group.size

    def logs_now(self) -> bool:
        """Whether metrics are logged for this batch; reducing them over processes costs time."""
        return ends_step(self.trainer) and logs_step(self.trainer)

    def log_figures(
        self, group: str, figures: Mapping[str, Tensor | float], step: int
    ) -> dict[str, float]:
        """Log metrics that are already reduced over processes; return what was logged."""
        named = {f"{group}/{name}": figure for name, figure in figures.items()}
        return self.log_now(named, step)

    def log_now(self, figures: Mapping[str, Tensor | float], step: int) -> dict[str, float]:
        """Log metrics directly, by their names; return what was logged.

        Lightning's `log` takes a millisecond per metric, and there are hundreds of them.
        """
        if not figures or self.trainer.sanity_checking:
            return {}
        named = as_numbers(figures, self.device)
        for logger in self.loggers:
            logger.log_metrics(named, step)
        return named

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.balance.before_evaluation(partial(sampled_routings, self.net, self.trainer))

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[Routing]]:
        # For callbacks that use the routings.
        return {"routings": self.evaluate(batch, dataloader_idx)}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch, 0)

    def evaluate(self, batch: Batch, text: int) -> list[Routing]:
        """Add a batch to the exact loss of a text; for the first text, also to the router metrics.

        Returns the routings, one per layer that has a router.
        """
        x_BT, y_BT = batch
        routings: list[Routing]
        logits_BTV, routings = self.net(x_BT)
        if text == 0:
            self.eval_loss.update(logits_BTV, y_BT)
            counted_N = (y_BT != IGNORE).flatten()
            self.val_router.update(routings, counted_N)
            self.drift.update(routings, counted_N, self.group)
        else:
            self.train_split_loss.update(logits_BTV, y_BT)
        return routings

    def on_validation_epoch_end(self) -> None:
        val_loss = self.finite_loss("val_loss")
        self.log("val_loss", val_loss, prog_bar=True)
        if (bits := bits_of_validation(val_loss.item(), self.trainer)) is not None:
            self.log("val_bits_per_byte", bits)
        schedule = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau) and not self.trainer.sanity_checking:
            schedule.step(val_loss)
        if self.train_split_loss.update_called:
            self.log("train_split_loss", self.train_split_loss.compute())
        figures = self.val_router.compute() | self.drift.compute()
        logged = self.log_figures("val_router", figures, self.trainer.global_step)
        # Callbacks get the means over layers, for example to choose a checkpoint by them.
        of_all = {name: value for name, value in logged.items() if "/layer_" not in name}
        self.log_dict(of_all, logger=False)
        self.log("step", float(self.trainer.global_step))
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.log_work(self.trainer.global_step)
        self.reset_evaluation()
        if self.trainer.sanity_checking:
            self.drift.reset()  # the second reset: drift is from one whole validation to the next

    def on_test_epoch_end(self) -> None:
        self.log("test_loss", self.finite_loss("test_loss"))
        self.reset_evaluation()

    def finite_loss(self, name: str) -> Tensor:
        """The exact loss; NotFiniteError if it is not finite, although the weights are."""
        loss: Tensor = self.eval_loss.compute()
        if not loss.isfinite():
            raise NotFiniteError(
                f"{name} is not finite: the weights are, but too large to compute with; {WAYS_OUT}"
            )
        return loss

    def reset_evaluation(self) -> None:
        """Reset the metrics of the evaluation."""
        self.reset_losses()
        self.drift.reset()

    def reset_losses(self) -> None:
        """Reset those that know nothing of the evaluation before."""
        for metric in (self.eval_loss, self.train_split_loss, self.val_router):
            metric.reset()

    held_settings: Mapping[str, Any] | None = None
    """Settings of the checkpoint that is being loaded."""

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights; raise CheckpointError, naming what differs, if the model is different."""
        state_dict = cut_each(state_dict, self.state_dict(keep_vars=True))
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            raise explain_misfit(self.hparams, self.held_settings, error) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        refuse_unfilled(checkpoint)
        held = self.held_settings = checkpoint.get("hyper_parameters", {})
        check_sizes_held(self.hparams, held)
        if self._trainer is None:  # as by `load_from_checkpoint`
            return
        widen(self)
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        # Before Lightning does: of a model with other weights, nothing else fits either.
        self.load_state_dict(checkpoint["state_dict"])
        self.averaged.resume(checkpoint, self.hparams)
        check_resumable(checkpoint, self.trainer)
        optimizer, schedule = self.build_optimizer()
        regrouped = regroup(checkpoint, optimizer, weights_of(self.net))
        # The saved state of optimizer and schedule includes their settings, which would override
        # changes by the user.
        if regrouped or any(has_changed(key, self.hparams, held) for key in OPTIMIZED_BY):
            overrule(checkpoint, optimizer, schedule)
        check_optimizer(checkpoint, optimizer, schedule)
        self.take_up_metrics(checkpoint)
        self.done.resume(checkpoint, self.trainer)

    def take_up_metrics(self, checkpoint: Mapping[str, Any]) -> None:
        """Continue the router metrics from the state in the checkpoint, if it has the same K."""
        if checkpoint.get("hyper_parameters", {}).get("top_k") != self.hparams.get("top_k"):
            return
        own = [metric.metric_state for metric in self.carried()]
        states = completed(checkpoint.get(ROUTER_STATE, []), own)
        if states:
            refuse_unlike(states, own, ROUTER_STATE)
        # The other processes start at zero, because sums are over all processes.
        carried = self.carried() if self.group.rank == 0 else ()
        for metric, state in zip(carried, states, strict=False):
            for name in metric.metric_state:
                setattr(metric, name, state[name].to(self.device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_described(self.undescribed)
        self.guard.check(self.trainer)
        data = text_data(self.trainer)
        text = None if data is None else data.fingerprint._asdict()
        stamp(checkpoint, None if data is None else data.tokenizer.spec(), text)
        # Stored so that a resumed run logs the same values; kept apart from the weights, which
        # sampling reads.
        checkpoint[ROUTER_STATE] = [summed_state(metric) for metric in self.carried()]
        checkpoint[WORK_DONE] = self.done.figures()
        self.averaged.save(checkpoint)
        for optimizer in self.trainer.optimizers:
            checkpoint[GROUPS] = names_by_group(optimizer, weights_of(self.net))

    def carried(self) -> tuple[Metric, ...]:
        """Metrics stored in a checkpoint: those that span several steps."""
        return self.train_router, self.drift
