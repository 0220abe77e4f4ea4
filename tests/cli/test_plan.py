"""`makemoe plan`: what it prints follows from the config, and its command is one of fit."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Ended, refused

from makemoe.cli.weightless import settings_of
from makemoe.data.corpus import load_text
from makemoe.model.transformer import MoETransformer
from makemoe.parallel.layout import Layout

Call = Callable[..., Ended]

SMALL = (
    *("--config", "ddp"),
    *("--model.n_layer=2", "--model.n_head=2", "--model.n_embd=32", "--model.num_experts=4"),
    *("--model.block_size=64", "--data.corpus=sample", "--data.batch_size=16"),
)
LARGE = (
    *("--config", "mixtral", "--data.corpus", "sample", "--vocab_size", "32000"),
    *("--model.n_layer", "32", "--model.n_head", "32", "--model.n_embd", "4096"),
    *("--model.experts.hidden", "14336", "--model.block_size", "4096"),
    *("--trainer.precision", "bf16-mixed", "--data.batch_size", "64"),
)
"""Mixtral 8x7B."""


def planned(makemoe: Call, *arguments: str) -> dict[str, Any]:
    ended = makemoe("plan", *arguments, "--json")
    assert ended.status == 0, ended.err
    plan: dict[str, Any] = json.loads(ended.out)
    return plan


def test_the_page_has_every_strategy_and_what_is_assumed(makemoe: Call) -> None:
    ended = makemoe("plan", *SMALL, "--devices", "16")
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert "16 windows of 64 tokens; 64 tokens per device; 32-true" in lines[1]
    assert "2 x 8 NVIDIA H100" in lines[2]
    names = [line.split("  ")[0].removesuffix(" *") for line in lines[7:13]]
    assert names == [
        *("ddp", "fsdp", "fsdp per machine"),
        *("experts 4", "experts 4 + fsdp", "experts 4 + fsdp per machine"),
    ]
    assert sum(" * " in line for line in lines) == 1
    assert "\nuse       makemoe fit --config ddp " in ended.out
    for words in ("40% of the peak", "not counted: metrics", "14 us between machines"):
        assert words in ended.out
    assert list(Path().iterdir()) == []


def test_parameters_bytes_and_memory_are_those_of_the_model_that_fit_builds(makemoe: Call) -> None:
    plan = planned(makemoe, *SMALL, "--devices", "4", "--trainer.accumulate_grad_batches=2")
    symbols = len(set(load_text("sample")))
    net = MoETransformer(symbols, 64, 2, 2, 32, 4, 2)
    weights = sum(p.numel() for p in net.parameters())
    assert (plan["parameters"], plan["active"]) == net.count_parameters()
    assert plan["tokens_per_device"] == 4 * 64
    ddp = plan["strategies"][0]
    assert ddp["sent"] == {"gradients": 2 * 4 * weights * 3 / 4}
    assert ddp["memory"]["weights"] == 4 * weights
    assert ddp["memory"]["optimizer state"] == 2 * 4 * weights  # of AdamW
    fsdp = plan["strategies"][1]
    assert sum(fsdp["sent"].values()) == pytest.approx(5 * 4 * weights * 3 / 4)
    assert fsdp["memory"]["weights"] == pytest.approx(weights, rel=0.001)


def test_every_command_is_one_that_fit_takes(makemoe: Call) -> None:
    plan = planned(makemoe, *SMALL, "--devices", "8", "--per_machine", "8", "--device", "l40s")
    for strategy in plan["strategies"]:
        program, command, *words = shlex.split(strategy["command"])
        assert (program, command) == ("makemoe", "fit")
        trainer = settings_of(words).trainer
        assert int(trainer.devices) == 8
        if strategy["name"] == "ddp":
            assert trainer.strategy == "ddp"
            continue
        own = trainer.strategy.init_args
        layout = Layout.of(8, own.replicate, own.shard, own.experts)
        assert ("fsdp" in strategy["name"]) == (layout.shard > 1)
        assert (f"experts {layout.experts}" in strategy["name"]) == (layout.experts > 1)


@pytest.mark.parametrize("config", ["expert_parallel", "fsdp"])
def test_a_command_trains_its_row_whatever_strategy_the_config_has(
    makemoe: Call, config: str
) -> None:
    words = (*SMALL, "--config", config)
    for strategy in planned(makemoe, *words, "--devices", "8", "--device", "l40s")["strategies"]:
        if strategy["name"] != "ddp":
            own = settings_of(shlex.split(strategy["command"])[2:]).trainer.strategy.init_args
            layout = Layout.of(8, own.replicate, own.shard, own.experts)
            assert ("fsdp" in strategy["name"]) == (layout.shard > 1)
            assert (f"experts {layout.experts}" in strategy["name"]) == (layout.experts > 1)
    [alone] = planned(makemoe, *words, "--devices", "1")["strategies"]
    assert alone["command"].endswith("--trainer.strategy=auto")


def test_a_precision_that_weights_in_parts_do_not_have_is_planned_without_them(
    makemoe: Call,
) -> None:
    half = (*SMALL, "--trainer.precision=16-mixed")
    plan = planned(makemoe, *half, "--devices", "8")
    assert [strategy["name"] for strategy in plan["strategies"]] == ["ddp"]
    words = ["--experts 2: experts are not divided with --trainer.precision 16-mixed"]
    refused(makemoe, 2, words, "plan", *half, "--devices=8", "--experts=2")


@pytest.mark.parametrize("per_machine", [3, 6, 8])
def test_machines_are_whole_in_every_number_that_is_tried(
    makemoe: Call, tmp_path: Path, per_machine: int
) -> None:
    machine = f"--per_machine={per_machine}"
    picture = tmp_path / "p.png"
    devices = f"--devices={2 * per_machine}"
    ended = makemoe("plan", *SMALL, devices, machine, f"--picture={picture}")
    assert ended.status == 0, ended.err
    assert picture.exists()
    words = ["no strategy fits", "would do"]
    refused(makemoe, 2, words, "plan", *LARGE, f"--devices={per_machine - 1}", machine)
    number = makemoe("plan", *LARGE, f"--devices={per_machine - 1}", machine).error.split(": ")[-1]
    assert int(number.split()[0]) % per_machine == 0


def test_a_model_larger_than_this_machine_is_planned_without_its_weights(makemoe: Call) -> None:
    plan = planned(makemoe, *LARGE, "--devices", "64")
    assert 46e9 < plan["parameters"] < 48e9  # 46.7 billion, and RMSNorm's and the output layer's
    by_name = {strategy["name"]: strategy for strategy in plan["strategies"]}
    assert not by_name["ddp"]["fits"]
    assert by_name[plan["best"]]["fits"]
    assert torch.get_default_device().type == "cpu"


def test_what_fits_no_device_is_refused_with_a_number_that_would(makemoe: Call) -> None:
    refused(
        makemoe,
        2,
        ["--devices 1: no strategy fits the 72 GB", "would do"],
        "plan",
        *LARGE,
        "--devices=1",
    )
    number = makemoe("plan", *LARGE, "--devices=1").error.split(": ")[-1].split()[0]
    assert planned(makemoe, *LARGE, f"--devices={number}")["best"]
    half = str(int(number) // 2)
    assert makemoe("plan", *LARGE, f"--devices={half}").status == 2


def test_a_batch_smaller_than_the_devices_is_raised_and_told(makemoe: Call) -> None:
    ended = makemoe("plan", *SMALL, "--devices", "32")
    assert "32 windows of 64 tokens (the config has 16, fewer than devices)" in ended.out
    assert "--data.batch_size=32" in ended.out


def test_one_device_and_the_cpu_make_sense(makemoe: Call) -> None:
    [alone] = planned(makemoe, *SMALL, "--devices", "1")["strategies"]
    assert (alone["name"], alone["sent"]) == ("one process", {})
    assert "strategy" not in alone["command"]
    ended = makemoe("plan", *SMALL, "--devices", "2", "--device", "cpu")
    assert "1 x 2 process of this CPU" in ended.out
    assert "--trainer.accelerator=cpu --trainer.devices=2" in ended.out
    assert "measured now" in ended.out


def test_own_figures_replace_those_of_the_data_sheet(makemoe: Call) -> None:
    Path("mine.yaml").write_text("tflops: 100\ncompute_share: 0.5\nlink_gb_per_s: 1\noverlap: 0\n")
    plan = planned(makemoe, *SMALL, "--devices", "4", "--figures", "mine.yaml")
    figures = plan["figures"]
    assert (figures["flops"], figures["share"], figures["link"]["rate"]) == (1e14, 0.5, 1e9)
    assert figures["memory"] == 80e9
    ddp = plan["strategies"][0]
    expected = plan["flops_per_token"] * plan["tokens_per_device"] / (0.5 * 1e14)
    assert ddp["products_s"] == pytest.approx(expected)
    assert ddp["weights_s"] > ddp["sent"]["gradients"] / 1e9


def test_a_picture_is_drawn(makemoe: Call) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    networks = ("--network", "ndr", "--network", "ethernet100")
    assert makemoe("plan", *SMALL, *networks, "--picture", "it.png").status == 0
    assert Path("it.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["--config is missing"], []),
        (["ddp.yaml: there is no model in it"], ["--config", "ddp"]),
        (["--devices 0: use 1 to"], [*SMALL, "--devices", "0"]),
        (["--devices -8: use 1 to"], [*SMALL, "--devices", "-8"]),
        (["--per_machine 0: use 1 to"], [*SMALL, "--per_machine", "0"]),
        (["--devices 20 is not a multiple of --per_machine 8"], [*SMALL, "--devices", "20"]),
        (["--experts 3 does not divide --model.num_experts 4"], [*SMALL, "--experts", "3"]),
        (
            ["--experts 4 does not divide --devices 6"],
            [*SMALL, "--experts", "4", "--devices", "6"],
        ),
        (["--experts 0: use 1 or more"], [*SMALL, "--experts", "0"]),
        (
            ["--experts 2: the model has no layer that routes"],
            [*SMALL, "--experts", "2", "--model.dense_layers", "[0,1]"],
        ),
        (["--device h10: unknown: did you mean h100?"], [*SMALL, "--device", "h10"]),
        (["--device abacus: unknown: known are h100"], [*SMALL, "--device", "abacus"]),
        (["--network token-ring: unknown"], [*SMALL, "--network", "token-ring"]),
        (["--link nvlink: unknown: did you mean nvlink"], [*SMALL, "--link", "nvlink"]),
        (["--link pcie4: processes on a CPU"], [*SMALL, "--link", "pcie4", "--device", "cpu"]),
        (["--figures no.yaml: No such file"], [*SMALL, "--figures", "no.yaml"]),
        (["--trainer.devices is not for plan"], [*SMALL, "--trainer.devices", "4"]),
        (["--ckpt_path is not for plan"], [*SMALL, "--ckpt_path", "last"]),
        (["unknown option --device_count"], [*SMALL, "--device_count", "4"]),
        (["--trainer.precision 64-true: no rate"], [*SMALL, "--trainer.precision", "64-true"]),
        (["--model.n_layers", "n_layer"], [*SMALL, "--model.n_layers", "4"]),
        (["--vocab_size 0"], [*SMALL, "--vocab_size", "0"]),
        (["--picture it.jpg is not a PNG"], [*SMALL, "--picture", "it.jpg"]),
    ],
)
def test_a_wrong_request_ends_in_one_line(
    makemoe: Call, words: list[str], arguments: list[str]
) -> None:
    refused(makemoe, 2, words, "plan", *arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tflop: 1", "unknown figure tflop: did you mean tflops?"),
        ("tflops: 0", "tflops 0 is not a number of more than 0"),
        ("tflops: fast", "tflops 'fast' is not a number"),
        ("overlap: -1", "overlap -1 is not a number of 0 or more"),
        ("compute_share: 40", "compute_share 40 is a share: use 1 or less"),
        ("tflops: .inf", "inf"),
        (f"tflops: 1{'0' * 400}", "tflops"),
        ("- 1", "contains no figures"),
        ("tflops: [", "invalid YAML"),
        ("tflops: 1\ntflops: 2", "tflops"),
    ],
)
def test_a_file_of_figures_that_are_none_ends_in_one_line(
    makemoe: Call, text: str, words: str
) -> None:
    Path("mine.yaml").write_text(text)
    refused(makemoe, 2, ["--figures mine.yaml: ", words], "plan", *SMALL, "--figures", "mine.yaml")
