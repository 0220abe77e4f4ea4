"""`makemoe sweep`: real trials, killed and continued; the table; what is refused."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from commandline import MAKEMOE, Ended, refused
from nursery import run_of
from processes import ENVIRONMENT

from makemoe.cli import examine as examining
from makemoe.cli import sweep as command
from makemoe.cli.explore import Exploration
from makemoe.cli.measure import Measured
from makemoe.run import logged_losses
from makemoe.search import runs as runs_module
from makemoe.search.plan import Plan

Call = Callable[..., Ended]
COMMAND = runs_module.COMMAND
FORKING = SimpleNamespace(Popen=run_of, DEVNULL=subprocess.DEVNULL)
SETTINGS = """
seed: 7
data: {batch_size: 8}
model:
  n_layer: 1
  n_embd: 16
  n_head: 2
  block_size: 16
  num_experts: 3
  experts: {class_path: MLPExperts, init_args: {hidden: 32}}
trainer: {accelerator: cpu, max_steps: 20, val_check_interval: 10}
"""
SPACE = """
sweep:
  trials: 3
  space:
    model.num_experts: {log_int: [2, 6]}
    model.top_k: {int: [1, 2]}
    model.optimizer.lr: {log: [0.001, 0.01]}
"""
TWO = """
sweep:
  space:
    model.top_k: {int: [1, 2]}
    model.optimizer.lr: {log: [0.001, 0.01]}
"""
"""Each end of each range is built once."""
WORDS = ("--config=tiny.yaml", "--config=space.yaml")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


@pytest.fixture
def sweep(makemoe: Call, monkeypatch: pytest.MonkeyPatch, files: Path) -> Call:
    """The command within this process, with runs of a second whose loss is the seed and 1 / 10."""
    stub = Path(__file__).parents[1] / "search" / "stub_fit.py"

    def examine(wanted: dict[str, Any], scratch: Path, jobs: int, module: str) -> int:
        assert module == "makemoe.cli.explore"
        (scratch / "plan.json").write_text(json.dumps(explored(wanted, jobs).as_plain()))
        return 0

    def explored(request: dict[str, Any], jobs: int) -> Plan:
        exploration = Exploration(request | {"began": time.time()}, files / "scratch")
        return Plan.of_plain(json.loads(json.dumps(exploration.plan().as_plain())))

    examining.quieten()
    monkeypatch.setattr(command, "examine", examine)
    monkeypatch.setattr(command, "explored", explored)
    monkeypatch.setattr(examining, "measure", lambda cli: Measured(0.5, 1.0))
    monkeypatch.setattr(runs_module, "COMMAND", (*runs_module.COMMAND[:1], str(stub)))
    return lambda *arguments: makemoe("sweep", *arguments)


def test_a_killed_sweep_goes_on_as_if_it_had_not_been(
    sweep: Call, makemoe: Call, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "COMMAND", COMMAND)
    monkeypatch.setattr(runs_module, "subprocess", FORKING)
    (files / "tiny.yaml").write_text(SETTINGS.replace("{accel", "{limit_val_batches: 2, accel"))
    (files / "space.yaml").write_text(TWO)
    words = (*WORDS, "--trials=2")
    whole, parts = (files / "checkpoints" / name for name in ("whole", "parts"))
    process = subprocess.Popen(
        [MAKEMOE, "sweep", *words, "--run.name=parts"],
        cwd=files,
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    while not list(logged_losses(parts / "trial-0001" / "seed-7")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    ended = sweep(*words, "--run.name=parts")
    assert ended.status == 0, ended.err
    assert "2 trials x 1 seed, 1 of them done" in ended.err
    ended = sweep(*words, "--run.name=whole")
    assert ended.status == 0, ended.err

    def outcome(folder: Path) -> list[Any]:
        trials = json.loads((folder / "sweep.json").read_text())["trials"]
        return [(one["state"], one["values"], one["loss"], one["width"]) for one in trials]

    assert outcome(parts) == outcome(whole)
    assert (parts / "sweep.png").read_bytes().startswith(b"\x89PNG")

    # The best trial as a config: fit ends with its loss.
    losses = [one[2] for one in outcome(whole)]
    best, loss = losses.index(min(losses)), min(losses)
    fitted = makemoe("fit", "--config=checkpoints/whole/best.yaml")
    assert fitted.status == 0, fitted.err
    last = [pair for pair in logged_losses(files / "checkpoints" / "best") if pair[1] > 0][-1]
    assert last[1] == pytest.approx(loss, abs=2e-6)
    config = (whole / "best.yaml").read_text()
    assert f"Trial {best} of a sweep: val_loss {loss:.4f} nats per token" in config
    shown = sweep(*words, "--run.name=whole", "--show")
    assert shown.out == ended.out
    assert shown.out.splitlines()[1].split()[0] == str(best)


def test_all_trials_cost_what_the_config_costs(sweep: Call) -> None:
    ended = sweep(*WORDS, "--trials=4", "--jobs=4", "--seeds=2")
    assert ended.status == 0, ended.err
    data = json.loads(Path("checkpoints/sweep-tiny/sweep.json").read_text())
    plan = json.loads(Path("checkpoints/sweep-tiny/timed.json").read_text())
    (base,) = plan["variants"]
    assert len(data["trials"]) == 4
    for one in data["trials"]:
        # At most half of what a unit of width costs the experts that a token meets.
        unit = 6 * (2 * 16) * one["values"]["model.top_k"]
        assert abs(one["flops"] - base["flops"]) <= unit / 2
        assert one["tokens"] == base["steps"] * base["step_tokens"]
        assert one["losses"] == {"7": 7.1, "8": 8.1}
        assert one["loss"] == pytest.approx(7.6)
    widths = {one["values"]["model.top_k"]: one["width"] for one in data["trials"]}
    assert widths[1] > 1.8 * widths[2]
    settings = yaml.safe_load(Path("checkpoints/sweep-tiny/best.yaml").read_text())
    assert settings["seed"] == 7
    assert settings["model"]["experts"]["init_args"]["hidden"] in widths.values()
    assert "7.6000 ± 0.7071" in ended.out


def test_the_bundled_space_is_searched_with_the_config_it_names(sweep: Call) -> None:
    first = (Path(__file__).parents[2] / "configs" / "sweep.yaml").read_text().splitlines()[0]
    assert first == "# makemoe sweep --config configs/laptop.yaml --config configs/sweep.yaml"
    small = ("--model.n_layer=1", "--data.corpus=sample", "--trainer.accelerator=cpu")
    ended = sweep("--config=laptop", "--config=sweep", *small, "--trials=1", "--model.n_embd=32")
    assert ended.status == 0, ended.err
    (trial,) = json.loads(Path("checkpoints/sweep-laptop/sweep.json").read_text())["trials"]
    assert list(trial["values"]) == [
        *("model.num_experts", "model.top_k", "model.capacity_factor", "model.optimizer.lr"),
    ]


def test_it_says_what_it_searches_and_how_long_that_takes(sweep: Call) -> None:
    ended = sweep(*WORDS, "--trials=1")
    lines = ended.err.splitlines()
    assert lines[0] == "search  model.num_experts: 2 to 6, by ratios"
    assert lines[3].startswith("trials  1 trial x 1 seed; 2,560 tokens each, ")
    assert lines[3].endswith("FLOPs per token by the width of the experts")
    # 20 steps of 0.5 s and two validations of 1 s, and the start of a run.
    assert lines[4].startswith("time    about 1")
    assert lines[5] == (
        "folder  checkpoints/sweep-tiny, storage sqlite:///checkpoints/sweep-tiny/study.db"
    )
    assert lines[-1] == "best    makemoe fit --config checkpoints/sweep-tiny/best.yaml"


def test_a_table_of_a_sweep_that_has_not_ended_says_how_long_the_rest_takes(
    sweep: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(signal_: int, trials: int) -> None:
        monkeypatch.setattr(
            command.Worker,
            "keep",
            lambda self, held: (
                sum(one.has_ended for one in held.attempted()) == trials
                and os.kill(os.getpid(), signal_)
            ),
        )

    stop(signal.SIGINT, 1)
    ended = sweep(*WORDS)
    assert ended.status == 128 + signal.SIGINT
    assert "SIGINT: stopped; to go on, give the same command again" in ended.err
    shown = sweep(*WORDS, "--show")
    assert shown.status == 0
    assert shown.err.startswith("1 of 3 trials done, 0 running, about ")
    assert "7.1000" in shown.out


def test_a_table_shows_as_many_trials_as_were_asked_for(sweep: Call) -> None:
    Path("space.yaml").write_text(SPACE.replace("trials: 3", "trials: 1"))
    assert sweep(*WORDS, "--trials=2").status == 0
    assert sweep(*WORDS, "--show").out.count("7.1000") == 2
    assert sweep(*WORDS, "--show", "--trials=1").out.count("7.1000") == 1


# -- what is wrong


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, ["a config with the section sweep is missing", "--config sweep"]),
        (("--config=space.yaml",), 2, ["--config is missing"]),
        ((*WORDS, "--config=space.yaml"), 2, ["a config with the section sweep is given twice"]),
        ((*WORDS, "--trials=0"), 2, ["--trials 0: use 1 to"]),
        ((*WORDS, "--seeds=x"), 2, ["--seeds"]),
        ((*WORDS, "--jobs=0"), 2, ["--jobs 0: use 1 or more"]),
        ((*WORDS, "--trails=3"), 2, ["unknown option --trails", "did you mean --trials?"]),
        ((*WORDS, "--ckpt_path=last"), 2, ["--ckpt_path is not for sweep"]),
        ((*WORDS, "--show"), 1, ["sweep-tiny holds no sweep"]),
        ((*WORDS, "--storage=nonsense"), 2, ["--storage nonsense is not the URL of a database"]),
        ((*WORDS, "--data.corpus=none.txt"), 1, ["none.txt"]),
        (("--config=tiny.yaml", "--config=mixed.yaml"), 2, ["holds nothing else", "put model"]),
        (("--config=tiny.yaml", "--config=none.yaml"), 2, ["none.yaml: No such file"]),
        (
            ("--config=tiny.yaml", "--config=unknown.yaml"),
            2,
            ["sweep.space.model.num_expert 2", "did you mean"],
        ),
        (
            ("--config=tiny.yaml", "--config=contradicts.yaml"),
            2,
            ["sweep.space.model.top_k 9", "top_k 9", "num_experts 3"],
        ),
        (("--config=tiny.yaml", "--config=empty.yaml"), 2, ["empty.yaml: sweep.space is empty"]),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    sweep: Call, arguments: tuple[str, ...], status: int, words: list[str]
) -> None:
    Path("mixed.yaml").write_text(SPACE + "model: {n_embd: 8}\n")
    Path("unknown.yaml").write_text("sweep: {space: {model.num_expert: {int: [2, 3]}}}")
    Path("contradicts.yaml").write_text("sweep: {space: {model.top_k: {int: [1, 9]}}}")
    Path("empty.yaml").write_text("sweep: {space: {}}")
    refused(sweep, status, words, *arguments)


def test_a_database_without_the_sweep_has_nothing_to_show(sweep: Call) -> None:
    ended = sweep(*WORDS, "--show", "--storage=sqlite:///x.db")
    assert ended.status == 1
    assert ended.error == "--storage sqlite:///x.db holds no sweep sweep-tiny"


def test_a_study_of_another_space_under_the_same_name_is_refused(sweep: Call) -> None:
    assert sweep(*WORDS, "--trials=1").status == 0
    Path("space.yaml").write_text(SPACE.replace("[2, 6]", "[2, 5]"))
    refused(lambda *given: sweep(*given), 2, ["sweep.space.model.num_experts.high was 6.0"], *WORDS)


def test_a_sweep_is_not_continued_with_other_seeds(sweep: Call) -> None:
    assert sweep(*WORDS, "--trials=1").status == 0
    best = Path("checkpoints/sweep-tiny/best.yaml").read_bytes()
    refused(lambda *given: sweep(*given), 2, ["seed was 7, and is now 8"], *WORDS, "--seed=8")
    assert Path("checkpoints/sweep-tiny/best.yaml").read_bytes() == best


def test_a_sweep_leaves_the_folder_of_something_else_alone(sweep: Call) -> None:
    other = Path("checkpoints/sweep-tiny")
    other.mkdir(parents=True)
    (other / "plan.json").write_text("{}")
    refused(lambda *given: sweep(*given), 2, ["already exists, and is no sweep"], *WORDS)


def test_the_runs_of_another_study_are_not_taken_for_its_own(sweep: Call) -> None:
    assert sweep(*WORDS, "--trials=1").status == 0
    best = Path("checkpoints/sweep-tiny/best.yaml").read_bytes()
    ended = sweep(*WORDS, "--trials=1", "--storage=sqlite:///new.db")
    assert ended.status == 2
    assert ended.error.startswith("checkpoints/sweep-tiny holds the runs of a study that is not in")
    assert Path("checkpoints/sweep-tiny/best.yaml").read_bytes() == best
    assert sweep(*WORDS, "--trials=1").status == 0


def test_a_config_that_is_edited_meanwhile_ends_a_sweep(
    sweep: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = command.Worker.keep

    def and_edit(worker: command.Worker, trials: Any) -> Any:
        Path("tiny.yaml").write_text(SETTINGS.replace("n_embd: 16", "n_embd: 32"))
        return keep(worker, trials)

    monkeypatch.setattr(command.Worker, "keep", and_edit)
    ended = sweep(*WORDS, "--trials=2")
    assert ended.status == 2
    assert ended.error.startswith("tiny.yaml has changed while the runs were trained")
    Path("tiny.yaml").write_text(SETTINGS)
    monkeypatch.undo()


@pytest.mark.filterwarnings("ignore:Query string")  # SQLite has no passwords
def test_the_stored_command_and_the_best_config_have_no_password(sweep: Call) -> None:
    storage = f"--storage=sqlite:///{Path('s.db').absolute()}?password=secret"
    assert sweep(*WORDS, "--trials=1", storage, "--run.name=a sweep").status == 0
    folder = Path("checkpoints/a sweep")
    stored, best = (folder / "sweep.json").read_text(), (folder / "best.yaml").read_text()
    assert "secret" not in stored + best
    assert "password=***" in json.loads(stored)["command"]
    assert best.startswith("# makemoe fit --config 'checkpoints/a sweep/best.yaml'\n")
    assert yaml.safe_load(best)["seed"] == 7


def test_the_command_itself_does_not_import_torch(files: Path) -> None:
    from commandline import imports

    status, packages = imports("sweep", *WORDS, "--show", cwd=files)
    assert status == 1
    assert not packages & {"torch", "lightning", "matplotlib"}
