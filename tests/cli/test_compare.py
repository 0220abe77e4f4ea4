"""`makemoe compare`: real runs, stopped and continued; the table; what is refused."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from commandline import MAKEMOE, Ended, refused, script
from nursery import run_of
from processes import ENVIRONMENT
from stops import stopped_after

from makemoe.cli import compare as command
from makemoe.cli import examine as examining
from makemoe.cli.measure import Measured
from makemoe.locks import Lock
from makemoe.run import logged_losses
from makemoe.search import runs as runs_module

Call = Callable[..., Ended]
COMMAND = runs_module.COMMAND
FORKING = SimpleNamespace(Popen=run_of, DEVNULL=subprocess.DEVNULL)
STUB = Path(__file__).parents[1] / "search" / "stub_fit.py"
CONFIG = "--config=tiny.yaml"
SETTINGS = """
seed: 7
data: {batch_size: 8}
model: {n_layer: 1, n_embd: 16, n_head: 2, block_size: 16, num_experts: 3}
trainer: {accelerator: cpu, max_steps: 20, val_check_interval: 10}
"""


@pytest.fixture
def compare(makemoe: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ended]:
    """The command within this process, whose runs take a second and have known losses.

    A step is measured to take 0.5 s and a validation 1 s.
    """
    (tmp_path / "tiny.yaml").write_text(SETTINGS)

    def examine(wanted: dict[str, object], scratch: Path, jobs: int) -> int:
        plan = examining.Examination(wanted | {"began": 0.0}, scratch)
        plan.import_s = 0.0
        (scratch / "plan.json").write_text(json.dumps(plan.plan().as_plain()))
        return 0

    examining.quieten()
    monkeypatch.setattr(command, "examine", examine)
    monkeypatch.setattr(examining, "measure", lambda cli: Measured(0.5, 1.0))
    monkeypatch.setattr(runs_module, "COMMAND", (sys.executable, str(STUB)))
    return lambda *arguments: makemoe("compare", *arguments)


def test_a_stopped_comparison_goes_on_and_its_runs_are_those_of_fit(
    compare: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runs_module, "COMMAND", COMMAND)
    monkeypatch.setattr(runs_module, "subprocess", FORKING)
    (tmp_path / "tiny.yaml").write_text(
        SETTINGS.replace("20, val_check_interval: 10", "100, val_check_interval: 25")
    )
    words = (CONFIG, "--twin=active", "--run.name=mine")
    folder = tmp_path / "checkpoints" / "mine"
    process = subprocess.Popen(
        [MAKEMOE, "compare", *words], cwd=tmp_path, env=ENVIRONMENT, stderr=-1, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("folder"):
            break
    runs = [folder / name / "seed-7" for name in ("tiny", "dense-active")]
    while process.poll() is None and not list(logged_losses(runs[0])):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, told
    assert "SIGTERM: stopped; to go on, give the same command again" in told

    again = compare(*words)
    assert again.status == 0, again.err
    alone = script("fit", CONFIG, *runs_module.QUIET, cwd=tmp_path)
    assert alone.status == 0, alone.err
    expected = [pair for pair in logged_losses(tmp_path / "checkpoints" / "tiny") if pair[1] > 0]
    assert [pair for pair in logged_losses(runs[0]) if pair[1] > 0] == expected
    last = json.loads((folder / "compare.json").read_text())
    assert last["variants"][0]["final_val_loss"]["mean"] == expected[-1][1]

    # The twin: its weights counted, no router, the same texts in the same order.
    held = [torch.load(run / "last.ckpt", weights_only=False) for run in runs]
    weights = [one["state_dict"] for one in held]
    counts = [sum(w.numel() for w in one.values()) for one in weights]
    assert [one["parameters"] for one in last["variants"]] == counts
    assert not any("router" in name for name in weights[1])
    active = last["variants"][0]["active_parameters"]
    assert abs(counts[1] - active) <= (16 + 1 + 16) / 2  # half of what a unit of width has
    settings = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
    assert [one["seed"] for one in settings] == [7, 7]
    for one in settings:
        del one["data"]["tokenizer"]  # a resumed run's names the class
    assert settings[0]["data"] == settings[1]["data"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_mean_and_spread_and_says_what_failed(
    compare: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_FAILS", "--model.num_experts=4")
    ended = compare(CONFIG, "--vary=model.num_experts=3,4", "--seeds=3", "--jobs=6")
    assert ended.status == 1
    head, three, four, why = ended.out.splitlines()
    assert head.split()[0] == "variant"
    # The stub's last loss is its seed and 1 / 10.
    losses = np.array([7.1, 8.1, 9.1])
    assert f"{losses.mean():.4f} ± {losses.std(ddof=1):.4f}" in three
    assert "0 of 3" in four
    assert why == "failed: num_experts=4, seed 7, 8, 9: the loss is not finite at step 2"
    data = json.loads(Path("checkpoints/compare-tiny/compare.json").read_text())
    assert data["command"] == (
        "makemoe compare --config=tiny.yaml --vary=model.num_experts=3,4 --seeds=3 --jobs=6"
    )
    assert data["variants"][0]["final_val_loss"]["n"] == 3
    assert [run["status"] for run in data["variants"][1]["runs"]] == ["failed"] * 3

    # Called again, what failed is tried again, and what is finished is not.
    monkeypatch.delenv("STUB_FAILS")
    ended = compare(CONFIG, "--vary=model.num_experts=3,4", "--seeds=3", "--jobs=6")
    assert ended.status == 0
    assert "2 variants x 3 seeds = 6 runs, 3 of them done" in ended.err
    assert "failed" not in ended.out


def test_the_plan_is_said_beforehand_and_a_dry_run_leaves_nothing(compare: Call) -> None:
    ended = compare(CONFIG, "--vary=data.batch_size=8,16", "--twin=total", "--dry_run")
    assert ended.status == 0
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]
    _, one, other, *_ = ended.err.splitlines()
    # Equal tokens in batches twice as large are half the steps.
    assert one.split()[-4:-1] == ["20", "every", "10"]
    assert other.split()[-4:-1] == ["10", "every", "5"]
    # Each variant and its twin: 20 steps of 0.5 s with 2 validations of 1 s, and 10 steps with 2.
    seconds = int(ended.err.partition("time    about ")[2].split()[0])
    assert 38 <= seconds <= 55  # with the time to build four models
    assert "4 variants x 1 seed = 4 runs; 10,240 tokens to train on, at equal tokens" in ended.err


def test_configs_can_be_what_is_varied(compare: Call) -> None:
    Path("wider.yaml").write_text(SETTINGS.replace("n_embd: 16", "n_embd: 32"))
    ended = compare("--vary=config=tiny.yaml,wider.yaml", "--dry_run")
    assert ended.status == 0, ended.err
    _, tiny, wider, *_ = ended.err.splitlines()
    assert tiny.startswith("config=tiny.yaml ")
    assert wider.startswith("config=wider.yaml ")
    assert "folder  checkpoints/compare-tiny\n" in ended.err


def test_all_are_as_long_as_a_first_variant_whose_steps_no_interval_divides(compare: Call) -> None:
    words = ("--trainer.max_steps=997", "--trainer.val_check_interval=100", "--dry_run")
    ended = compare(CONFIG, *words, "--vary=data.batch_size=8,1")
    assert ended.status == 0, ended.err
    _, one, other, *_ = ended.err.splitlines()
    assert one.split()[-4:-1] == ["996", "every", "83"]
    # 8 times 996 is 7,968; 8 times 997 would become 7,980.
    assert other.split()[-4:-1] == ["7,970", "every", "797"]


def test_different_texts_are_told_at_the_plan_and_under_the_table(compare: Call) -> None:
    for name in "ab":
        Path(f"{name}.txt").write_text(f"{name} to be or not to be " * 40)
    said = "the variants are validated on different texts, so their losses do not compare"
    ended = compare(CONFIG, "--vary=data.corpus=a.txt,b.txt", "--jobs=2")
    assert ended.status == 0, ended.err
    assert f"note    {said}" in ended.err.splitlines()
    assert ended.out.splitlines()[-1] == f"note: {said}"
    ended = compare(CONFIG, "--vary=data.tokenizer=CharTokenizer,ByteTokenizer", "--dry_run")
    assert ended.status == 0, ended.err
    assert said not in ended.err


def test_a_stopped_comparison_shows_the_runs_that_have_finished(compare: Call) -> None:
    folder = Path("checkpoints/compare-tiny")
    with stopped_after(folder / "tiny" / "seed-8", 3):
        ended = compare(CONFIG, "--seeds=3")
    assert ended.status == 128 + signal.SIGTERM
    _, line = ended.out.splitlines()
    assert "7.1000" in line
    assert "1 of 3" in line
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_equal_flops_are_spent(compare: Call) -> None:
    words = ("--model.num_experts=64", "--twin=total", "--equal=flops", "--jobs=2")
    assert compare(CONFIG, "--trainer.max_steps=2000", *words).status == 0
    data = json.loads(Path("checkpoints/compare-tiny/compare.json").read_text())
    sparse, dense = data["variants"]
    assert sparse["steps"] == 2000
    assert dense["steps"] < 200
    assert abs(dense["flops"] - sparse["flops"]) <= dense["flops"] / dense["steps"]


def test_variants_that_differ_in_their_routers_share_a_twin(compare: Call) -> None:
    ended = compare(
        CONFIG,
        "--vary=model.router=TopKRouter,BiasedTopKRouter",
        "--twin=active",
        "--dry_run",
    )
    assert ended.err.count("dense-active") == 2
    assert "dense-active: the twin of router=TopKRouter; router=BiasedTopKRouter" in ended.err


def test_variants_whose_runs_differ_in_length_only_share_a_twin(compare: Call) -> None:
    # The routers of three and of four experts differ in FLOPs, and so the runs in steps.
    ended = compare(
        CONFIG,
        "--vary=model.num_experts=3,4",
        *("--twin=active", "--equal=flops", "--trainer.max_steps=2000", "--dry_run"),
    )
    assert ended.status == 0, ended.err
    lines = [line.split() for line in ended.err.splitlines()]
    steps = {line[0]: line[6] for line in lines if line and line[0].startswith("num_experts")}
    assert len(set(steps.values())) == 2
    assert "dense-active: the twin of num_experts=3; num_experts=4" in ended.err


def test_a_comparison_that_grows_keeps_its_twin(compare: Call) -> None:
    words = (CONFIG, "--twin=active", "--run.name=mine")
    assert compare(*words, "--vary=model.top_k=1").status == 0
    ended = compare(*words, "--vary=model.top_k=1,2", "--dry_run")
    assert "4 variants x 1 seed = 4 runs, 2 of them done" in ended.err
    assert [line.split()[0] for line in ended.err.splitlines()[1:5]] == [
        *("top_k=1", "top_k=2", "dense-active"),
        "dense-active",  # of top_k=2
    ]
    assert "dense-active of top_k=2 " in ended.err


def test_a_twin_of_other_variants_does_not_lend_its_name(compare: Call) -> None:
    assert compare(CONFIG, "--vary=model.num_experts=3,64", "--twin=total").status == 0
    ended = compare(CONFIG, "--model.num_experts=64", "--twin=total", "--dry_run")
    assert "folder  checkpoints/compare-tiny-2\n" in ended.err
    assert "dense-total of" not in ended.err


DENSE = "--model.dense_layers=[0]"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), ["--config is missing"]),
        ((CONFIG, "--seeds=0"), ["--seeds 0", "use 1 to"]),
        ((CONFIG, "--seeds=-2"), ["--seeds -2"]),
        ((CONFIG, "--jobs=0"), ["--jobs 0"]),
        ((CONFIG, "--twin=total", "--twin=total"), ["--twin total is given twice"]),
        ((CONFIG, "--varyy=model.top_k=1"), ["unknown option --varyy", "--vary"]),
        ((CONFIG, "--vary=model.top_k=1", "--vary=model.top_k=2"), ["model.top_k is given twice"]),
        ((CONFIG, "--ckpt_path=last"), ["--ckpt_path", "from scratch"]),
        ((CONFIG, "--data.corpus=-"), ["--data.corpus=-", "standard input"]),
        ((CONFIG, "--vary=model.num_expert=3,4"), ["num_expert", "mean --model.num_experts?"]),
        ((CONFIG, "--vary=model.num_experts=3,x"), ["num_experts=x", "expected int"]),
        ((CONFIG, "--vary=model.num_experts=3,03"), ["num_experts=03", "the same as"]),
        ((CONFIG, DENSE, "--twin=active"), ["--twin active", "tiny has no router"]),
        ((CONFIG, "--trainer.max_time=00:00:01:00"), ["--trainer.max_time"]),
        (("--config=none.yaml",), ["none.yaml: No such file"]),
    ],
)
def test_wrong_words_are_refused_in_one_line(
    compare: Call, words: tuple[str, ...], told: list[str]
) -> None:
    refused(compare, 2, told, *words)


def test_a_missing_text_is_refused_in_one_line(compare: Call) -> None:
    refused(compare, 1, ["none.txt", "no such file"], CONFIG, "--data.corpus=none.txt")


def test_a_folder_of_another_comparison_or_of_another_process_is_refused(compare: Call) -> None:
    folder = Path("checkpoints/mine")
    assert compare(CONFIG, "--run.name=mine").status == 0
    other = (CONFIG, "--run.name=mine", "--model.n_embd=32")
    refused(compare, 2, ["holds tiny with other settings", "n_embd was 16"], *other)
    lock = Lock(folder / ".lock")
    assert lock.take()
    refused(compare, 1, ["is being trained by another process"], CONFIG, "--run.name=mine")
    lock.release(remove=True)


def test_a_signal_that_ends_the_check_leaves_nothing(
    compare: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def examine(wanted: dict[str, object], scratch: Path, jobs: int) -> int:
        seen.append(scratch)
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(command, "examine", examine)
    assert compare(CONFIG).status == 128 + signal.SIGTERM
    assert not seen[0].exists()
    assert not (tmp_path / "checkpoints").exists()
