"""FSDP2 and expert parallelism train as one process does, and their checkpoints move."""

import contextlib
import csv
import os
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch
from processes import assert_same_run
from ranks import CALL, together

from makemoe.cli import main
from makemoe.data.corpus import load_text
from makemoe.run import FOLDER_VARIABLE

SAMPLED = "--run.sample_tokens=20"
SMALL = (
    "fit",
    "--model.n_embd=16",
    "--model.n_head=2",
    "--model.block_size=16",
    "--model.num_experts=4",
    "--data.batch_size=7",  # not the same number in each process
    "--data.eval_batch_size=64",
    "--trainer.accelerator=cpu",
    "--trainer.gradient_clip_val=0.3",
    "--data.corpus=text.txt",
    "--run.pictures=false",
    "--run.sample_tokens=0",
)
PLAIN = (
    *SMALL,
    "--model.n_layer=2",
    "--model.optimizer.fused=true",
    SAMPLED,
    "--trainer.val_check_interval=6",
    "--trainer.log_every_n_steps=3",
)
# In float64: a weight that rounding changes in float32 can change a routing, and then everything.
RICH = (
    *SMALL,
    "--trainer.precision=64-true",
    "--trainer.val_check_interval=4",
    "--trainer.log_every_n_steps=2",
    "--trainer.accumulate_grad_batches=2",
    "--model.n_layer=3",
    "--model.dense_layers=[0]",
    "--model.shared_experts=1",
    "--model.tied_embeddings=true",
    "--model.norm=makemoe.model.norm.RMSNorm",
    "--model.capacity_factor=0.8",
    "--model.router=makemoe.model.router.BiasedTopKRouter",
    "--model.balancers+=makemoe.training.balance.BiasBalance",
    "--model.balancers.calibration_tokens=512",
    "--model.balancers+=makemoe.training.balance.SwitchLoss",
    "--model.param_groups=makemoe.training.muon.MuonMatrices",
    "--model.optimizer=makemoe.training.muon.Muon",
    "--model.averaging=makemoe.training.averaging.ExponentialAverage",
    "--model.averaging.decay=0.9",
)
# Random numbers are drawn by each process for its own tokens.
NOISY = (
    *SMALL,
    "--trainer.precision=64-true",
    "--trainer.max_steps=4",
    "--trainer.limit_val_batches=0",
    "--model.n_layer=2",
    "--model.dropout=0.2",
    "--model.router=makemoe.model.router.NoisyTopKRouter",
)
HALF = (*PLAIN, "--trainer.precision=bf16-mixed", "--model.optimizer.fused=false")
STRATEGY = "--trainer.strategy"


def on(processes: int, *options: str) -> list[str]:
    """The strategy with these options, on so many processes."""
    return [
        f"{STRATEGY}.class_path=makemoe.parallel.Sharded",
        *(f"{STRATEGY}.init_args.{option}" for option in options),
        f"--trainer.devices={processes}",
    ]


def to(steps: int, name: str, resumed: str | None = None) -> list[str]:
    """A run with so many steps, or one that goes on from another's last checkpoint."""
    start = [f"--ckpt_path=checkpoints/{resumed}/last.ckpt"] if resumed else []
    return [*start, f"--trainer.max_steps={steps}", f"--run.name={name}"]


def alone(commands: Sequence[Sequence[str]]) -> None:
    """Run commands one after another in this process."""
    for command in commands:
        os.environ.pop(FOLDER_VARIABLE, None)
        assert main(list(command)) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of runs of one, two and four processes, which resume each other."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "text.txt").write_text(load_text("sample")[:20_000])
    variables = pytest.MonkeyPatch()
    variables.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    with contextlib.chdir(folder):
        alone(
            [
                [*PLAIN, *to(12, "plain")],
                [*RICH, SAMPLED, *to(8, "rich")],
                [*RICH, *to(4, "rich_half")],
            ]
        )
        alone([[*HALF, *to(12, "half")]])
        copies = ("experts=2", "shard=false")
        told = together(
            folder,
            2,
            [
                [CALL, "parallel.exchanged", "check"],
                [CALL, "parallel.saved", "check"],
                [*PLAIN, *to(12, "plain_experts"), *on(2, *copies)],
                [*RICH, SAMPLED, *to(8, "fsdp"), *on(2)],
                [*RICH, *to(8, "experts"), *on(2, *copies)],
                [*RICH, *to(4, "experts_half"), *on(2, *copies)],
                ["fit", *to(8, "experts_again", "experts_half"), *on(2, *copies)],
                [*RICH, *to(4, "fsdp_half"), *on(2)],
                ["fit", *to(8, "fsdp_again", "fsdp_half"), *on(2)],
                ["fit", *to(8, "from_one", "rich_half"), *on(2, "gather=false")],
                [*RICH, *to(4, "pieces_half"), *on(2, *copies, "gather=false")],
                ["fit", *to(8, "pieces_again", "pieces_half"), *on(2, *copies, "gather=false")],
                ["fit", *to(8, "ddp", "pieces_half"), f"{STRATEGY}=ddp", "--trainer.devices=2"],
                [*NOISY, f"{STRATEGY}=ddp", "--trainer.devices=2", "--run.name=noisy_ddp"],
                [*NOISY, *on(2, *copies), "--run.name=noisy_experts"],
                [*NOISY, *on(2), "--run.name=noisy_fsdp"],
                [*HALF, *to(12, "half_experts"), *on(2, *copies)],
                ["fit", *to(5, "faster", "rich_half"), "--model.optimizer.lr=0.05", *on(2)],
                ["validate", "--ckpt_path=checkpoints/plain/last.ckpt", *on(2)],
                ["validate", "--ckpt_path=checkpoints/pieces_again/last.ckpt", *on(2)],
            ],
        )
        (folder / "checkpoints" / "validated.txt").write_text(told[0])
        together(
            folder,
            4,
            [
                [CALL, "parallel.exchanged", "check"],
                [CALL, "parallel.saved", "check"],
                [*RICH, SAMPLED, *to(8, "both"), *on(4, "experts=2")],
                ["fit", *to(8, "from_two", "pieces_half"), *on(4, "experts=2", "replicate=2")],
                [*RICH, *to(4, "uneven_half"), *on(4, "gather=false")],
            ],
        )
        alone([["fit", *to(8, "from_four", "uneven_half")]])
    variables.undo()
    return folder / "checkpoints"


def held(run: Path) -> dict:
    """A checkpoint; of one in pieces, the tensors put together."""
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    table = checkpoint["makemoe"].pop("pieces", None) or {"files": {}, "tensors": []}
    wholes = [
        torch.empty(one["shape"], dtype=getattr(torch, one["dtype"])) for one in table["tensors"]
    ]
    for name in table["files"]:
        content = torch.load(run / "last.ckpt.pieces" / name, weights_only=True)
        for number, begins, part in content["parts"]:
            ranges = zip(begins, part.shape, strict=True)
            wholes[number][tuple(slice(begin, begin + n) for begin, n in ranges)] = part
    for one, whole in zip(table["tensors"], wholes, strict=True):
        for *way, last in one["places"]:
            reduce(getitem, way, checkpoint)[last] = whole
    return checkpoint


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_close(one: object, other: object, tolerance: float, name: str = "") -> None:
    """All tensors in two nested values are close."""
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance, msg=lambda m: f"{name} {m}")
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_close(one[key], other[key], tolerance, f"{name}.{key}")


def test_experts_on_two_processes_train_as_one_process(runs: Path) -> None:
    one, two = held(runs / "plain"), held(runs / "plain_experts")
    assert_close(one["state_dict"], two["state_dict"], 1e-5)
    pairs = list(zip(rows(runs / "plain"), rows(runs / "plain_experts"), strict=True))
    checked = 0
    for ours, theirs in pairs:
        for name in ours.keys() & theirs.keys():
            if ours[name] and "tokens_per_second" not in name:
                assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=1e-5), name
                checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    ("alone", "run"), [("plain", "plain_experts"), ("rich", "fsdp"), ("rich", "both")]
)
def test_texts_sampled_at_validations_are_those_of_one_process(
    runs: Path, alone: str, run: str
) -> None:
    one, several = ((runs / name / "samples.txt").read_text() for name in (alone, run))
    assert one.count("==== step") == 2
    assert one == several


@pytest.mark.parametrize("run", ["fsdp", "experts", "both", "from_one", "from_two", "ddp"])
def test_every_layout_logs_what_one_process_does(runs: Path, run: str) -> None:
    alone = {row["step"]: row for row in rows(runs / "rich")}
    logged = {row["step"]: row for row in rows(runs / run)}
    assert {"6", "8"} <= logged.keys() <= alone.keys()
    for step, row in logged.items():
        assert row.keys() == alone[step].keys()
        for name in row.keys() - {"tokens_per_second"}:
            one, several = (float(found[name] or "nan") for found in (alone[step], row))
            # The figures of routers are in float32.
            assert one == pytest.approx(several, abs=1e-6, nan_ok=True), (step, name)
    assert any(row["val_loss"] and row["val_router/drift"] for row in logged.values())


@pytest.mark.parametrize(
    "run",
    [
        *("fsdp", "experts", "both", "from_one", "from_two", "from_four", "experts_again"),
        *("pieces_again", "ddp"),
    ],
)
def test_every_layout_ends_where_one_process_does(runs: Path, run: str) -> None:
    one, other = held(runs / "rich"), held(runs / run)
    for part in ("state_dict", "averaging", "optimizer_states", "optimizer_groups", "work_done"):
        assert_close(one[part], other[part], 1e-11, part)
    states = one["optimizer_states"][0]["state"], other["optimizer_states"][0]["state"]
    assert states[0].keys() == states[1].keys()
    assert_close(*states, 1e-11)


@pytest.mark.parametrize("run", ["noisy_experts", "noisy_fsdp"])
def test_noise_and_dropout_are_those_of_ddp_on_as_many_processes(runs: Path, run: str) -> None:
    ddp, other = (held(runs / name)["state_dict"] for name in ("noisy_ddp", run))
    assert_close(ddp, other, 1e-11)


def test_bfloat16_keeps_weights_and_gradients_in_float32(runs: Path) -> None:
    two = held(runs / "half_experts")
    tensors = [two["state_dict"], *two["optimizer_states"][0]["state"].values()]
    assert {t.dtype for each in tensors for t in each.values()} == {torch.float32}
    losses = [
        [float(row["train_loss"]) for row in rows(runs / run) if row["train_loss"]]
        for run in ("half", "half_experts")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


@pytest.mark.parametrize("run", ["experts", "fsdp"])
def test_a_resumed_run_on_as_many_processes_is_the_same_bit_for_bit(runs: Path, run: str) -> None:
    assert_same_run(runs / run / "last.ckpt", runs / f"{run}_again" / "last.ckpt")


def test_a_checkpoint_does_not_hold_the_strategy(
    runs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for run in ("ddp", "experts", "from_one"):
        path = str(runs / run / "last.ckpt")
        assert main(["fit", "--ckpt_path", path, "--print_config"]) == 0
        told = capfd.readouterr().out
        assert "strategy: auto" in told
        assert "n_embd: 16" in told  # what it holds


def test_a_run_resumed_from_pieces_is_the_same_bit_for_bit(runs: Path) -> None:
    one, other = held(runs / "experts"), held(runs / "pieces_again")
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, other)]
    for part in ("state_dict", "averaging"):
        assert_close(one[part], other[part], 0, part)
    assert_close(*states, 0)
    assert states[0].keys() == states[1].keys()
    logged = [{row["step"]: row for row in rows(runs / run)} for run in ("experts", "pieces_again")]
    for step, row in logged[1].items():
        for name in row.keys() - {"tokens_per_second"}:
            assert row[name] == logged[0][step][name], (step, name)
    assert {"6", "8"} <= logged[1].keys()


def test_each_process_writes_its_share_and_nothing_else(runs: Path) -> None:
    # In pieces_half, both processes have what is outside the experts, and take turns.
    for run, processes in (("from_one", 2), ("uneven_half", 4), ("pieces_half", 2)):
        folder = runs / run / "last.ckpt.pieces"
        sizes = [piece.stat().st_size for piece in folder.iterdir()]
        assert len(sizes) == processes  # the former ones are removed
        assert sum(sizes) > 0.9 * (runs / "rich" / "last.ckpt").stat().st_size
        # Tensors of few rows cannot be cut evenly.
        assert max(sizes) < (1 / processes + 0.2) * sum(sizes)
        assert (runs / run / "last.ckpt").stat().st_size < 0.5 * sum(sizes)


def test_one_file_made_of_pieces_is_that_of_one_process(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.parent)
    to = tmp_path / "last.ckpt"
    path = runs / "from_one" / "last.ckpt"
    assert main(["consolidate", "--ckpt_path", str(path), "--to", str(to)]) == 0
    one, other = held(runs / "rich"), held(tmp_path)
    assert one.keys() == other.keys()
    for part in ("state_dict", "averaging", "work_done"):
        assert_close(one[part], other[part], 1e-11, part)
    assert main(["inspect", "--ckpt_path", str(to), "--json"]) in (0, 3)
    told = capfd.readouterr().out
    assert main(["inspect", "--ckpt_path", str(path), "--json"]) in (0, 3)
    assert (
        told.partition("{")[2].replace(str(to), str(path))
        == (capfd.readouterr().out.partition("{")[2])
    )


def test_a_learning_rate_given_at_a_resume_is_used(runs: Path) -> None:
    groups = held(runs / "faster")["optimizer_states"][0]["param_groups"]
    assert {group["lr"] for group in groups if group["method"] == "muon"} == {0.05}


def test_validate_on_two_processes_prints_the_loss_of_one(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.chdir(runs.parent)
    for run in ("plain", "pieces_again"):
        assert main(["validate", "--ckpt_path", str(runs / run / "last.ckpt")]) == 0
        assert capfd.readouterr().out in (runs / "validated.txt").read_text()


def test_a_checkpoint_is_as_large_as_one_process_s(runs: Path) -> None:
    one, other = ((runs / run / "last.ckpt").stat().st_size for run in ("rich", "both"))
    assert other == pytest.approx(one, rel=0.01)


def test_predict_and_inspect_read_what_several_processes_wrote(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.parent)
    texts = []
    for run in ("plain", "plain_experts"):
        path = str(runs / run / "last.ckpt")
        assert main(["predict", "--ckpt_path", path, "--max_new_tokens", "30"]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1]
    assert main(["inspect", "--ckpt_path", str(runs / "both" / "last.ckpt")]) == 0
