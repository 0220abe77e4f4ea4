"""The averaged weights of a run are the right ones, and are where a run evaluates and saves."""

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from trainers import rows, run

from makemoe.checkpoint.format import Checkpoint, read
from makemoe.checkpoint.inference import load_for_inference
from makemoe.cli.evaluation import validation_text
from makemoe.cli.inspect import evaluate
from makemoe.data.datamodule import TextDataModule
from makemoe.data.windows import ConsecutiveWindows
from makemoe.errors import CheckpointError, UsageError
from makemoe.group import ALONE
from makemoe.model.generate import Sampler, generate
from makemoe.model.router import BiasedTopKRouter
from makemoe.tracking.samples import TextSample
from makemoe.training.averaged import Averaged
from makemoe.training.averaging import KEY, Averaging, EqualAverage, ExponentialAverage
from makemoe.training.balance import BiasBalance
from makemoe.training.module import LanguageModel

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning advises, and calls torch in old ways

SETTINGS: dict[str, Any] = {
    "max_steps": 12,
    "val_check_interval": 5,
    "accumulate_grad_batches": 2,
}
PARTS: dict[str, Any] = {
    "optimizer": partial(torch.optim.AdamW, lr=0.01),
    "router": BiasedTopKRouter,
    "balancers": [BiasBalance(0.05, calibration_tokens=64)],
}
SHIFT = "net.blocks.0.moe.router.eval_shift_E"
BIAS = "net.blocks.0.moe.router.bias_E"
Arrays = dict[str, np.ndarray[Any, Any]]


class Captured(Callback):
    """The trained weights after each step, as a user's callback sees them; counted from 1."""

    def __init__(self) -> None:
        self.after: dict[int, Arrays] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        state = pl_module.state_dict().items()
        # The last one of a step's batches has its weights.
        self.after[trainer.global_step] = {name: t.double().numpy().copy() for name, t in state}


def exponential(after: dict[int, Arrays], decay: float, start: int, end: int) -> Arrays:
    """The moving average, written out."""
    average = after[start + 1]
    for t, step in enumerate(range(start + 2, end + 1), 1):
        d = min(decay, (1 + t) / (10 + t))
        average = {n: d * average[n] + (1 - d) * after[step][n] for n in average}
    return average


def equal(after: dict[int, Arrays], start: int, end: int) -> Arrays:
    """The mean, written out."""
    steps = range(start + 1, end + 1)
    return {name: np.mean([after[s][name] for s in steps], axis=0) for name in after[end]}


def assert_equal(state: dict[str, torch.Tensor], arrays: Arrays) -> None:
    assert state.keys() == arrays.keys()
    for name in state.keys() - {SHIFT}:
        np.testing.assert_allclose(state[name].numpy(), arrays[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("decay", [0.9, 0.4])
def test_an_exponential_average_is_that_of_the_weights_after_each_step(
    tmp_path: Path, decay: float
) -> None:
    captured = Captured()
    run(tmp_path, captured, parts=PARTS | {"averaging": ExponentialAverage(decay)}, **SETTINGS)
    for file, step in (("last.ckpt", 12), ("best.ckpt", 10)):
        held = read(tmp_path / file)
        assert held["global_step"] == held[KEY]["steps"] == step
        assert_equal(held["state_dict"], exponential(captured.after, decay, 0, step))
        trained = held[KEY]["trained"]
        assert trained.keys() == held["state_dict"].keys() - {SHIFT}
        for name, weight in trained.items():
            assert np.array_equal(weight.numpy(), captured.after[step][name])
        assert not torch.equal(trained[BIAS], held["state_dict"][BIAS])


def test_an_equal_average_is_the_mean_from_its_start_on(tmp_path: Path) -> None:
    captured = Captured()
    averaging = EqualAverage(start_step=7)
    run(tmp_path, captured, parts=PARTS | {"averaging": averaging}, **SETTINGS)
    held = read(tmp_path / "last.ckpt")
    assert held[KEY]["steps"] == 5
    assert_equal(held["state_dict"], equal(captured.after, 7, 12))


def test_averaging_does_not_change_training(tmp_path: Path) -> None:
    for name, averaging in (("without", None), ("with", ExponentialAverage(0.9))):
        (tmp_path / name).mkdir()
        run(tmp_path / name, parts=PARTS | {"averaging": averaging}, **SETTINGS)
    without, averaged = (read(tmp_path / name / "last.ckpt") for name in ("without", "with"))
    assert KEY not in without
    for name, weight in averaged[KEY]["trained"].items():
        assert torch.equal(weight, without["state_dict"][name]), name


def test_before_its_start_there_is_no_average(tmp_path: Path) -> None:
    averaging = ExponentialAverage(start_step=7)
    run(tmp_path, parts=PARTS | {"averaging": averaging}, **SETTINGS | {"max_steps": 8})
    assert read(tmp_path / "last.ckpt")[KEY]["steps"] == 1
    best = read(tmp_path / "best.ckpt")
    assert best["global_step"] == 5
    assert KEY not in best


def exact_loss(path: Path) -> float:
    """The validation loss of the model in a checkpoint, computed without Lightning."""
    model, tokenizer = load_for_inference(path)
    windows = ConsecutiveWindows(validation_text("sample", tokenizer).ids, model.block_size)
    return evaluate(model, windows, "cpu")[0]


def test_val_loss_is_that_of_the_averaged_model(tmp_path: Path) -> None:
    averaging = {"averaging": ExponentialAverage(0.9)}
    run(tmp_path, parts=PARTS | averaging, **SETTINGS | {"max_steps": 10})
    logged = [float(row["val_loss"]) for row in rows(tmp_path) if "val_loss" in row]
    assert logged[-1] == pytest.approx(exact_loss(tmp_path / "last.ckpt"), abs=1e-6)
    held = read(tmp_path / "last.ckpt")
    held["state_dict"] |= held[KEY]["trained"]
    torch.save(held | {"makemoe": held["makemoe"] | {"format": 1}}, tmp_path / "trained.ckpt")
    assert abs(logged[-1] - exact_loss(tmp_path / "trained.ckpt")) > 0.001


def test_biases_are_calibrated_for_the_averaged_gate(tmp_path: Path) -> None:
    averaging = {"averaging": ExponentialAverage(0.9)}
    run(tmp_path, parts=PARTS | averaging, **SETTINGS | {"max_steps": 7})
    last, best = read(tmp_path / "last.ckpt"), read(tmp_path / "best.ckpt")
    # Step 5 was validated; what it calibrated stays until the next validation.
    assert torch.equal(last["state_dict"][SHIFT], best["state_dict"][SHIFT])
    model, _ = load_for_inference(tmp_path / "best.ckpt")
    data = TextDataModule("sample", block_size=8, batch_size=4, eval_batch_size=512)
    (router,) = model.routers().values()
    shift_E = router.get_buffer("eval_shift_E").clone()
    router.get_buffer("eval_shift_E").zero_()

    def routings_of(tokens: int) -> Iterator[Any]:
        with torch.no_grad():
            yield from (model(x_BT)[1] for x_BT in data.sampled_windows(tokens))

    balancer: Any = PARTS["balancers"][0]
    balancer.before_evaluation([router], routings_of, ALONE)
    torch.testing.assert_close(router.get_buffer("eval_shift_E"), shift_E, atol=1e-6, rtol=0)


def test_samples_are_drawn_from_the_averaged_model(tmp_path: Path) -> None:
    sample = TextSample(tmp_path, "\n", 40, seed=3)
    averaging = {"averaging": ExponentialAverage(0.9)}
    run(tmp_path, sample, parts=PARTS | averaging, **SETTINGS | {"max_steps": 10})
    model, tokenizer = load_for_inference(tmp_path / "last.ckpt")
    new = generate(model, [tokenizer.encode("\n").tolist()], 40, Sampler([3]))[0]
    text = tokenizer.decode(new)
    assert (tmp_path / "samples.txt").read_text().endswith(f"==== step 10\n\n{text}\n\n")


def test_after_a_fit_the_model_has_the_average_and_another_fit_trains_on(tmp_path: Path) -> None:
    captured = Captured()
    averaging = {"averaging": ExponentialAverage(0.9)}
    trainer = run(tmp_path, captured, parts=PARTS | averaging, **SETTINGS)
    model: Any = trainer.lightning_module
    held = read(tmp_path / "last.ckpt")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, held["state_dict"][name])
    (tmp_path / "again").mkdir()
    trainer.save_checkpoint(tmp_path / "again" / "after.ckpt")
    after = read(tmp_path / "again" / "after.ckpt")
    for name, weight in after[KEY]["trained"].items():
        assert torch.equal(weight, held[KEY]["trained"][name])
        assert torch.equal(after["state_dict"][name], held["state_dict"][name])
    trainer.fit_loop.epoch_loop.max_steps = 13
    trainer.fit(model, trainer.datamodule)
    # One step of AdamW with a learning rate of 0.01 after the trained weights, not the average.
    before, now = (captured.after[step]["net.head.weight"] for step in (12, 13))
    assert 0 < np.abs(now - before).max() < 0.011


def test_a_checkpoint_of_weights_alone_has_the_average(tmp_path: Path) -> None:
    weights = ModelCheckpoint(
        tmp_path, "weights", save_weights_only=True, every_n_train_steps=5, save_top_k=-1
    )
    averaging = {"averaging": ExponentialAverage(0.9)}
    run(tmp_path, weights, parts=PARTS | averaging, **SETTINGS | {"max_steps": 5})
    state, last = (read(tmp_path / f"{name}.ckpt") for name in ("weights", "last"))
    for name in last["state_dict"].keys() - {SHIFT}:
        assert torch.equal(state["state_dict"][name], last["state_dict"][name])


def test_the_average_takes_one_more_copy_of_the_weights_in_a_checkpoint(tmp_path: Path) -> None:
    sizes = []
    for name, averaging in (("without", None), ("with", ExponentialAverage(0.9))):
        (tmp_path / name).mkdir()
        parts = {"n_embd": 64, "averaging": averaging, "tied_embeddings": True}
        run(tmp_path / name, parts=parts, max_steps=2, val_check_interval=2)
        sizes.append((tmp_path / name / "last.ckpt").stat().st_size)
    held = read(tmp_path / "with" / "last.ckpt")["state_dict"]
    weights = sum({t.data_ptr(): t.nbytes for t in held.values()}.values())
    assert weights > 400_000
    assert weights <= sizes[1] - sizes[0] < weights + 10_000


# -- without a run


def small(**settings: Any) -> LanguageModel:
    sizes = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "num_experts": 2}
    return LanguageModel(vocab_size=5, **sizes, **settings)


def test_steps_that_a_gradient_scaler_skips_do_not_count() -> None:
    averaged = small(averaging=EqualAverage(0)).averaged
    for step, stepped in enumerate((True, False, True, False), 1):
        averaged.net.head.weight.detach().fill_(step)
        averaged.end_step(step, stepped)
    assert averaged.steps == 2
    assert averaged.average is not None
    assert (averaged.average["net.head.weight"] == (1 + 3) / 2).all()


def test_the_average_of_weights_in_bfloat16_is_kept_in_float32() -> None:
    net = small(averaging=EqualAverage(0)).to(torch.bfloat16)
    weight = net.net.head.weight.detach()
    for step, value in enumerate((256, 256, 258, 256), 1):  # 256.5 is not a number in bfloat16
        weight.fill_(value)
        net.averaged.end_step(step, stepped=True)
    net.averaged.put_in()
    assert (weight == 256).all()
    checkpoint: Checkpoint = {"state_dict": net.state_dict()}
    net.averaged.save(checkpoint)
    assert (checkpoint["state_dict"]["net.head.weight"] == 256.5).all()
    net.averaged.take_out()
    assert net.net.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("make", [ExponentialAverage, partial(EqualAverage, 0)])
def test_the_average_of_constant_weights_is_exactly_those(make: Any) -> None:
    averaged = small(averaging=make()).averaged
    before = copy.deepcopy(averaged.net.state_dict())
    for step in range(1, 30):
        averaged.end_step(step, stepped=True)
    averaged.put_in()
    for name, weight in averaged.net.state_dict().items():
        assert torch.equal(weight, before[name])


def test_evaluation_can_be_left_and_entered_again_without_a_change() -> None:
    averaged = small(averaging=ExponentialAverage()).averaged
    averaged.end_step(1, stepped=True)
    averaged.net.head.weight.detach().fill_(7)
    for _ in range(2):
        averaged.put_in()
        averaged.put_in()
        assert (averaged.net.head.weight != 7).all()
        averaged.take_out()
        averaged.take_out()
        assert (averaged.net.head.weight == 7).all()


def test_without_a_rule_nothing_happens() -> None:
    net = small()
    net.averaged.end_step(1, stepped=True)
    net.averaged.put_in()
    checkpoint: Checkpoint = {"state_dict": net.state_dict()}
    net.averaged.save(checkpoint)
    assert net.averaged.average is None
    assert list(checkpoint) == ["state_dict"]
    assert net.configure_callbacks() == []


# -- what a checkpoint holds


def held(averaging: Averaging | None, step: int = 3) -> tuple[LanguageModel, Checkpoint]:
    """A model, and what a checkpoint of it holds, after `step` steps."""
    net = small(averaging=averaging)
    for number in range(1, step + 1):
        net.net.head.weight.detach().fill_(number)
        net.averaged.end_step(number, stepped=True)
    checkpoint: Checkpoint = {
        "state_dict": {name: weight.clone() for name, weight in net.state_dict().items()},
        "hyper_parameters": dict(net.hparams),
        "global_step": step,
    }
    net.averaged.save(checkpoint)
    return net, checkpoint


def head_after(checkpoint: Checkpoint) -> set[float]:
    weights: list[float] = checkpoint["state_dict"]["net.head.weight"].flatten().tolist()
    return set(weights)


@pytest.mark.parametrize(
    ("before", "after", "steps", "words"),
    [
        (EqualAverage(0), EqualAverage(1), 3, ""),
        (ExponentialAverage(), ExponentialAverage(0.5), 3, ""),
        (EqualAverage(0), None, 0, "is not continued\n"),
        (EqualAverage(0), ExponentialAverage(), 0, "not continued, and begins anew after step 3\n"),
        (EqualAverage(0), EqualAverage(5), 0, "not continued, and begins anew after step 5\n"),
        (None, EqualAverage(0), 0, "no average of the weights: it begins after step 3\n"),
        (None, EqualAverage(5), 0, ""),
        (None, None, 0, ""),
    ],
)
def test_a_changed_average_is_continued_or_begins_anew_and_says_so(
    before: Averaging | None,
    after: Averaging | None,
    steps: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = held(before)[1]
    net = small(averaging=after)
    net.averaged.resume(checkpoint, net.hparams)
    assert head_after(checkpoint) == {3.0}  # it trains on with the weights it had, whatever changed
    assert net.averaged.steps == steps
    assert (net.averaged.average is not None) == (steps > 0)
    told = capsys.readouterr().err
    assert told.endswith(words)
    assert len(told.splitlines()) == (words != "")


HOSTILE: dict[str, Any] = {
    "nothing": None,
    "a negative number": -7,
    "zero": 0,
    "an absurd number": 1 << 70,
    "a fraction": 0.5,
    "true": True,
    "text": "os.system",
    "a list": [1],
    "another dictionary": {"os.system": 1},
    "a tensor of another shape": torch.zeros(3, 1, 2),
    "a tensor of integers": torch.zeros(5, 8, dtype=torch.int64),
    "infinity": torch.full((5, 8), torch.inf),
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("where", ["", "steps", "trained", "trained.net.head.weight", "unknown"])
def test_a_forged_average_is_refused_in_one_line(where: str, value: Any) -> None:
    net, checkpoint = held(EqualAverage(0))
    inside = checkpoint
    *path, last = [KEY, *filter(None, where.split(".", 1))]
    for key in path:
        inside[key] = dict(inside[key])
        inside = inside[key]
    inside[last] = value
    if where == "" and not isinstance(value, dict):
        return  # `read` refuses it, as the hostile fields of a checkpoint show
    with pytest.raises(CheckpointError, match=r"^the checkpoint is damaged or forged: .*averag.*$"):
        net.averaged.resume(checkpoint, net.hparams)


@pytest.mark.parametrize("delete", ["steps", "trained"])
def test_an_average_with_a_part_missing_is_refused(delete: str) -> None:
    net, checkpoint = held(EqualAverage(0))
    del checkpoint[KEY][delete]
    with pytest.raises(CheckpointError, match="damaged or forged"):
        net.averaged.resume(checkpoint, net.hparams)


# -- what a user may get wrong


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_decay_that_averages_nothing_is_refused(decay: float) -> None:
    with pytest.raises(UsageError, match=r"decay .* must be above 0 and below 1"):
        ExponentialAverage(decay)


@pytest.mark.parametrize("max_steps", [1, 7])
def test_a_run_that_ends_before_its_average_begins_is_refused(
    tmp_path: Path, max_steps: int
) -> None:
    averaging = {"averaging": EqualAverage(7)}
    with pytest.raises(UsageError, match=f"start_step 7, but the run ends at step {max_steps}"):
        run(tmp_path, parts=averaging, max_steps=max_steps)
    Averaged(EqualAverage(7), small().net).check(8)
    Averaged(EqualAverage(7), small().net).check(-1)
