"""A run whose loss is not finite stops, says where that began, and keeps its last checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from processes import DDP, TINY, start
from torch import Tensor, nn
from trainers import rows, run, step_of

from makemoe.checkpoint.format import read
from makemoe.errors import NotFiniteError
from makemoe.training.finite import Finding, Watch, first_output, not_finite

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning advises, and calls torch in old ways

SETTINGS = {"max_steps": 14, "val_check_interval": 5, "log_every_n_steps": 3}


class Poison(Callback):
    """Makes something not finite at a step, counted from 1."""

    def __init__(self, step: int, name: str) -> None:
        self.step, self.name = step, name

    def is_now(self, trainer: Trainer) -> bool:
        return trainer.global_step + 1 == self.step

    def put(self, tensor: Tensor | None) -> None:
        assert tensor is not None
        tensor.detach().flatten()[0] = math.nan


class PoisonedGradient(Poison):
    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self.is_now(trainer):
            self.put(module.get_parameter(f"net.{self.name}").grad)


class PoisonedWeight(Poison):
    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self.is_now(trainer):  # its gradient is finite
            self.put(module.get_parameter(f"net.{self.name}"))


class PoisonedOutput(Poison):
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        def hook(part: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return output * math.inf if self.is_now(trainer) and part.training else output

        module.get_submodule(f"net.{self.name}").register_forward_hook(hook)


@pytest.mark.parametrize(
    ("poison", "says", "good"),
    [
        (PoisonedOutput(7, "blocks.0.norm_2"), "at step 7: first in the output of blocks.0.n", 5),
        (PoisonedOutput(13, "head"), "at step 13: first in the output of head", 12),
        # In the update of a step at which nothing is saved: noticed in the next one.
        (PoisonedGradient(6, "blocks.0.norm_1.weight"), "gradient of blocks.0.norm_1.w", 5),
        # In the update of a step at which last.ckpt, or the validation and best.ckpt, are due.
        (PoisonedGradient(8, "head.bias"), "at step 8: first in the gradient of head.bias", 5),
        (PoisonedGradient(10, "head.bias"), "at step 10: first in the gradient of head.bias", 8),
        (PoisonedGradient(4, "head.bias"), "at step 4: first in the gradient of head.bias", 0),
    ],
)
def test_a_run_stops_where_it_began_and_keeps_its_last_checkpoint(
    tmp_path: Path, poison: Poison, says: str, good: int
) -> None:
    with pytest.raises(NotFiniteError) as raised:
        run(tmp_path, poison, **SETTINGS)
    assert says in str(raised.value)
    files = {step_of(path): path for path in tmp_path.glob("*.ckpt")}
    assert max(files, default=0) == good
    if good:
        assert str(raised.value).endswith(f"checkpoint is {files[good]} of step {good}")
    for path in files.values():
        assert not not_finite(read(path)["state_dict"].items())
    assert "nan" not in (tmp_path / "metrics.csv").read_text()


def test_a_weight_that_an_update_spoilt_is_named(tmp_path: Path) -> None:
    poison = PoisonedWeight(6, "blocks.0.norm_1.weight")
    with pytest.raises(NotFiniteError, match=r"update of blocks.0.norm_1.weight .* at step 6;"):
        run(tmp_path, poison, **SETTINGS)


def test_a_resumed_run_names_the_checkpoint_it_was_resumed_from(tmp_path: Path) -> None:
    settings = SETTINGS | {"val_check_interval": 20}
    run(tmp_path, **settings | {"max_steps": 4})
    kept = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(NotFiniteError, match=r"last.ckpt of step 4$"):
        run(tmp_path, PoisonedOutput(6, "head"), resume=tmp_path / "last.ckpt", **settings)
    assert (tmp_path / "last.ckpt").read_bytes() == kept
    assert [row["step"] for row in rows(tmp_path)] == ["3"]


def test_a_validation_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    class Overflow(Callback):
        def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
            module.get_parameter("net.head.weight").detach().sign_().mul_(3e38)

    with pytest.raises(NotFiniteError, match="val_loss is not finite"):
        run(tmp_path, Overflow(), **SETTINGS)
    assert not (tmp_path / "best.ckpt").exists()


def test_a_step_noted_on_a_device_is_found_later() -> None:
    watch = Watch()
    for step, loss in ((1, 2.0), (2, math.inf), (3, 1.0), (4, math.nan)):
        watch.see(torch.tensor(loss), step, pytest.fail, at_once=False)
        if step == 1:
            assert watch.finding(step, pytest.fail) is None
    found = watch.finding(4, pytest.fail)
    assert found is not None
    assert (found.step, found.cause[:17]) == (2, "noticed at step 4")


def test_a_step_noted_on_a_device_and_looked_at_within_it_has_its_cause() -> None:
    watch = Watch()
    watch.see(torch.tensor(math.nan), 3, pytest.fail, at_once=False)
    assert watch.finding(3, lambda: "a cause") == Finding(3, "a cause")


def test_the_first_output_is_that_of_the_innermost_module() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * math.nan

    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Identity(), Root(), nn.Identity()))
    assert first_output(net, lambda: net(torch.ones(1, 2))) == "1.1"
    assert first_output(net[0], lambda: net[0](torch.ones(1, 2))) is None


@pytest.mark.parametrize("spoil", [lambda p: p[0], lambda p: p[-1]])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_value_that_is_not_finite_is_seen(
    spoil: Callable[[Tensor], Tensor], value: float, dtype: torch.dtype
) -> None:
    good, bad = torch.randn(7, dtype=dtype), torch.randn(7, dtype=dtype)
    spoil(bad).fill_(value)
    others = [("none", torch.zeros(0)), ("ids", torch.arange(3))]
    assert not_finite([("good", good), ("bad", bad), *others]) == ["bad"]


POISON = """
import math
from lightning.pytorch import Callback

class OneRank(Callback):
    def on_train_start(self, trainer, module):
        def hook(part, inputs, output):
            now = trainer.global_rank == 1 and trainer.global_step + 1 == 7
            return output * math.nan if now else output
        module.net.blocks[1].norm_2.register_forward_hook(hook)
"""


def test_two_processes_stop_together_when_one_sees_it(tmp_path: Path) -> None:
    (tmp_path / "poison.py").write_text(POISON)
    process = start(
        tmp_path, *DDP, *TINY, "--trainer.callbacks=poison.OneRank", "--run.save_every_n_steps=3"
    )
    assert process.wait(timeout=300) == 1
    told = (tmp_path / "stderr.txt").read_text()
    # Both find it at the same moment. Whichever says so first says so once.
    lines = [line for line in told.splitlines() if "makemoe: error" in line]
    assert len(lines) == 1, told
    line = lines[0]
    assert line.startswith("makemoe: error")
    assert "at step 7: first in the output of blocks.1.norm_2" in line
    assert line.endswith("last.ckpt of step 6")
    assert step_of(tmp_path / "checkpoints" / "ddp" / "last.ckpt") == 6
