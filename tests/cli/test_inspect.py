import copy
import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import Ended, imports
from devices import MPS, SimulatedMps

from makemoe.checkpoint.format import read, write
from makemoe.checkpoint.inference import load_for_inference
from makemoe.cli.inspect import Health, evaluate, examine, settings, table
from makemoe.data.corpus import load_text
from makemoe.data.windows import ConsecutiveWindows
from makemoe.model.transformer import MoETransformer
from makemoe.training.metrics import RouterStats

Call = Callable[..., Ended]
USING = "makemoe: using checkpoints/tiny/last.ckpt (step 20)\n"


def figures(load_LE: list[list[float]]) -> dict[str, torch.Tensor]:
    """Figures of routers with these loads, in assignments."""
    stats = RouterStats(len(load_LE), len(load_LE[0]), 1)
    stats.counts_LE = torch.tensor(load_LE)
    return stats.figures()


def change_gate(path: Path, weight: float, bias_E: torch.Tensor) -> None:
    """Scale the weights of a checkpoint's router, and add to its biases."""
    checkpoint = dict(read(path))
    for name, parameter in checkpoint["state_dict"].items():
        if name.endswith("router.gate.weight"):
            parameter *= weight
        if name.endswith("router.gate.bias"):
            parameter += bias_E
    write(checkpoint, path)


def even_out(path: Path) -> None:
    """Make a checkpoint's router even, by what it thinks of the bundled play."""
    model, tokenizer = load_for_inference(path)
    ids = torch.tensor(tokenizer.encode(load_text("sample")[:8000]).tolist())
    _, routings = model(ids.view(-1, model.block_size))
    change_gate(path, 1.0, -routings[0].logits_NE.detach().mean(0))


def test_a_healthy_checkpoint_is_told_in_full(makemoe: Call, copied: Path) -> None:
    even_out(copied / "last.ckpt")
    ended = makemoe("inspect", "--ckpt_path", "last")
    assert (ended.status, ended.err) == (0, USING)
    weights = read(copied / "last.ckpt")["state_dict"]
    parameters = sum(weight.numel() for name, weight in weights.items() if name.startswith("net."))
    # Attention, gate, 2 of 3 experts of 16 x 64; scores of 17 / 2 positions on average; head.
    products = 4 * 256 + 48 + 2 * 2048 + 16 * 17 + weights["net.head.weight"].numel()
    flops = 3 * 2 * products
    for told in (
        "checkpoints/tiny/last.ckpt",
        "at step 20",
        f"{parameters:,} in total",
        f"{flops / 1000:.1f} kFLOPs per token of training",
        "num_experts 3",
        "router TopKRouter",
        "corpus sample",
        "experts MLPExperts (hidden 64, activation relu, bias True)",
        "nats per token, ",
        "bits per character, ",
        "bits per byte on the validation split (last 10 %) of sample",
        "healthy: 0 of 3 experts dead (dead: load below 1 % of the mean load)",
        "0 of 1 routers collapsed (collapsed: at most 2 of 3 experts have a load of 10 % of the",
    ):
        assert told in " ".join(ended.out.split()), ended.out
    (best,) = [line for line in ended.out.splitlines() if "so far" in line]
    assert re.fullmatch(r"  best so far +val_loss \d\.\d{4} nats per token in this run", best)
    assert max(map(len, ended.out.splitlines())) <= 100


def test_classes_are_told_by_their_names_and_arguments() -> None:
    balancers = [
        {"class_path": "makemoe.training.balance.SwitchLoss", "init_args": {"weight": 1.0}},
        {"class_path": "makemoe.training.balance.ZLoss"},
    ]
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"betas": [0.9, 0.99]}}
    assert settings({"optimizer": optimizer, "balancers": balancers, "top_k": 2}) == (
        "optimizer AdamW (betas [0.9, 0.99]), balancers SwitchLoss (weight 1.0) + ZLoss, top_k 2"
    )


@pytest.mark.parametrize("hostile", [torch.zeros(2), "\x1b[2J\udc80", [2], {"a": torch.ones(1)}])
def test_settings_that_nothing_checks_are_only_shown(
    makemoe: Call, copied: Path, hostile: object
) -> None:
    even_out(copied / "last.ckpt")
    checkpoint = dict(read(copied / "last.ckpt"))
    optimizer = {"class_path": hostile, "init_args": hostile}
    checkpoint["hyper_parameters"] |= {"optimizer": optimizer, "self": hostile}
    checkpoint["datamodule_hyper_parameters"]["batch_size"] = hostile
    checkpoint["callbacks"] = {"a": {"best_model_score": hostile}}
    write(checkpoint, copied / "last.ckpt")
    for flags in ([], ["--json"]):
        ended = makemoe("inspect", "--ckpt_path", "last", *flags)
        assert (ended.status, ended.err) == (0, USING)
        assert "\x1b" not in ended.out


def test_figures_are_those_of_validate(makemoe: Call, copied: Path) -> None:
    told = json.loads(makemoe("inspect", "--ckpt_path", "last", "--json").out)
    validated = makemoe("validate", "--ckpt_path", "last").out
    bits = told["val_loss"] / math.log(2)
    assert told["val_bits_per_character"] == pytest.approx(bits)
    assert told["val_bits_per_byte"] == pytest.approx(bits)  # the bundled play is ASCII
    assert told["flops_per_token"] % 6 == 0
    assert validated.startswith(
        f"val_loss {told['val_loss']:.4f} nats per token, {bits:.4f} bits per character, "
        f"{bits:.4f} bits per byte on "
    )
    with (copied / "metrics.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert float(last["val_loss"]) == pytest.approx(told["val_loss"], abs=1e-6)
    logged = {
        name.removeprefix("val_router/"): float(value)
        for name, value in last.items()
        if name.startswith("val_router/") and not name.endswith("drift")
    }
    assert told["val_router"] == pytest.approx(logged, abs=1e-6)


def test_a_collapsed_router_and_dead_experts_end_with_status_3(makemoe: Call, copied: Path) -> None:
    change_gate(copied / "last.ckpt", 0.0, torch.tensor([9.0, 9.0, -9.0]))
    ended = makemoe("inspect", "--ckpt_path", "last")
    assert ended.status == 3
    assert ended.err == USING
    row = next(line for line in ended.out.splitlines() if line.endswith(" !"))
    assert row.split()[:9] == ["0", "50.0", "50.0", "dead", "2", "1", "0.500", "0.707", "0.631"]
    assert "not healthy: 1 of 3 experts dead" in ended.out
    assert "1 of 1 routers collapsed (!): layer 0 (collapsed: at most 2" in " ".join(
        ended.out.split()
    )
    told = json.loads(makemoe("inspect", "--ckpt_path", "last", "--json").out)
    assert (told["healthy"], told["dead"], told["collapsed"]) == (False, [[0, 2]], [0])


def test_weights_that_overflow_are_not_healthy(makemoe: Call, copied: Path) -> None:
    even_out(copied / "last.ckpt")
    checkpoint = dict(read(copied / "last.ckpt"))
    checkpoint["state_dict"]["net.head.weight"].sign_().mul_(3e38)
    write(checkpoint, copied / "last.ckpt")
    ended = makemoe("inspect", "--ckpt_path", "last")
    assert (ended.status, ended.err) == (3, USING)
    assert "not healthy: the loss is not finite, 0 of 3 experts dead" in ended.out
    ended = makemoe("inspect", "--ckpt_path", "last", "--json")
    told = json.loads(ended.out, parse_constant=pytest.fail)
    assert (ended.status, told["val_loss"], told["healthy"], told["finite"]) == (
        3,
        None,
        False,
        False,
    )


def test_dead_experts_and_collapse_are_told_apart() -> None:
    one_dead = [[1000] * 7 + [1]]
    assert examine(figures(one_dead), 8, 2, 1.0) == Health([(0, 7)], [7], [], True)
    barely_alive = [[990] * 7 + [10]]
    assert examine(figures(barely_alive), 8, 2, 1.0) == Health([], [7], [], True)
    # Two layers: half of the assignments go to one expert; all but a hundredth to three.
    crowded = [[700] + [100] * 7, [330] * 3 + [2] * 5]
    assert examine(figures(crowded), 8, 2, 1.0) == Health([], [8, 3], [1], True)
    assert examine(figures([[250] * 4 + [2] * 4]), 8, 2, 1.0).is_good


def test_a_router_all_of_whose_experts_work_has_not_collapsed() -> None:
    # The quickstart's: of two experts each, nine tokens of ten choose the last.
    assert examine(figures([[22, 19, 14, 45]]), 4, 2, 1.0).is_good
    # As uneven as can be with every expert at a tenth of the even load.
    for E, K in ((4, 1), (4, 2), (8, 2), (64, 8)):
        least = 10 * K
        most = (100 * E * K - least * (E - K)) // K
        assert examine(figures([[most] * K + [least] * (E - K)]), E, K, 1.0).is_good
        assert not examine(figures([[most] * K + [1] * (E - K)]), E, K, 1.0).is_good


@pytest.mark.parametrize("E", [1, 4])
def test_where_every_expert_is_always_chosen_all_is_well(E: int) -> None:
    assert examine(figures([[7] * E] * 2), E, E, 1.0).is_good


@pytest.mark.parametrize("width", [60, 80, 200])
def test_many_experts_and_layers_fit_a_terminal(width: int) -> None:
    load = torch.randint(50, 150, (24, 64)).tolist()
    load[3] = [10_000] + [0] * 63
    many = figures(load)
    lines = table(many, examine(many, 64, 8, 1.0), width)
    assert max(map(len, lines)) <= width
    assert len([line for line in lines if line.split()[0] in map(str, range(24))]) == 24
    assert [line.split()[0] for line in lines if line.endswith(" !")] == ["3"]


def test_loads_of_a_few_experts_are_shown_one_by_one() -> None:
    few = figures([[1, 2, 5], [4, 4, 0]])
    lines = [line.split() for line in table(few, examine(few, 3, 1, 1.0), 80)]
    assert ["layer", "0", "1", "2", "work", "dead", "MaxVio", "CV", "entropy", "first"] in lines
    assert [line[1:4] for line in lines if line[0] in ("0", "1")] == [
        ["12.5", "25.0", "62.5"],
        ["50.0", "50.0", "dead"],
    ]


def test_another_text_may_be_looked_at(makemoe: Call, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("All the world is a stage.\n" * 40)
    ended = makemoe("inspect", "--ckpt_path", "last", "--data.corpus", "other.txt")
    assert ended.status in (0, 3)
    assert "of other.txt" in " ".join(ended.out.split())


def test_characters_the_model_does_not_know_may_be_skipped(
    makemoe: Call, copied: Path, tmp_path: Path
) -> None:
    text = "All the world is a stage.\n" * 40
    (tmp_path / "other.txt").write_text(text.replace("stage", "stüage"))
    path = ("inspect", "--ckpt_path", "last", "--data.corpus")
    ended = makemoe(*path, "other.txt")
    assert ended.status == 1
    assert "'ü' (U+00FC)" in ended.error
    assert ended.error.endswith("or pass --data.unknown skip")
    ended = makemoe(*path, "other.txt", "--data.unknown", "skip")
    assert ended.err == (
        "makemoe: --data.corpus 'other.txt': skipped 40 characters that the model does not know: "
        "'ü'\nmakemoe: using checkpoints/tiny/last.ckpt (step 20)\n"
    )
    assert "of other.txt without its 40 unknown characters" in " ".join(ended.out.split())


def test_a_text_that_is_gone_is_told_with_its_mend(makemoe: Call, copied: Path) -> None:
    path = copied / "last.ckpt"
    checkpoint = dict(read(path))
    checkpoint["datamodule_hyper_parameters"] |= {"corpus": "gone.txt"}
    write(checkpoint, path)
    ended = makemoe("inspect", "--ckpt_path", "last")
    assert ended.status == 1
    assert ended.error == (
        f"--data.corpus 'gone.txt', named by the checkpoint checkpoints/tiny/last.ckpt and "
        f"searched in {Path.cwd()}: no such file; pass another text with --data.corpus FILE"
    )
    named = makemoe("inspect", "--ckpt_path", "last", "--data.corpus", "none.txt")
    assert named.error.startswith("--data.corpus 'none.txt': no such file")
    del checkpoint["datamodule_hyper_parameters"]
    write(checkpoint, path)
    assert "pass --data.corpus" in makemoe("inspect", "--ckpt_path", "last").error


def test_a_text_too_short_to_validate_on_is_refused(
    makemoe: Call, copied: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("to be\n")
    ended = makemoe("inspect", "--ckpt_path", "last", "--data.corpus", "short.txt")
    assert ended.status == 1
    assert "'short.txt' has 6 tokens" in ended.error


def test_a_checkpoint_without_its_routers_is_refused(makemoe: Call, copied: Path) -> None:
    path = copied / "last.ckpt"
    checkpoint = dict(read(path))
    checkpoint["state_dict"] = {"net.layer.weight": torch.zeros(2)}
    write(checkpoint, path)
    ended = makemoe("inspect", "--ckpt_path", "last")
    assert ended.status == 1
    assert "weights are missing" in ended.error


def test_what_is_no_checkpoint_is_refused(makemoe: Call, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no checkpoint")
    ended = makemoe("inspect", "--ckpt_path", "a.txt")
    assert ended.status == 1
    assert "a.txt" in ended.error
    assert makemoe("inspect").status == 2
    assert "did you mean --ckpt_path?" in makemoe("inspect", "--ckpt_path=a", "--ckpt_pth=a").error


def test_inspect_does_not_import_lightning(trained: Path) -> None:
    _, packages = imports("inspect", "--ckpt_path", "best", cwd=trained)
    assert not packages & {"lightning", "jsonargparse", "tensorboard"}


def test_a_device_without_float64_gives_the_same_loss_and_figures(
    build: Callable[..., MoETransformer],
) -> None:
    model = build().eval()
    windows = ConsecutiveWindows(np.arange(60, dtype=np.uint8) * 7 % 11, model.block_size)
    with SimulatedMps():
        loss, stats = evaluate(copy.deepcopy(model).to(MPS), windows, "mps:0")
        there = {name: figure.cpu() for name, figure in stats.figures().items()}
    expected, stats = evaluate(model, windows, "cpu")
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(there, stats.figures())
