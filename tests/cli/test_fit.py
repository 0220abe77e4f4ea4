import csv
import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commandline import TINY, Ended, listing, script

from makemoe.checkpoint.format import read, write
from makemoe.checkpoint.inference import load_for_inference
from makemoe.data.corpus import load_text

Call = Callable[..., Ended]
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
TEXT = "A KING:\nWhat is the matter, and what is the hour?\n\n" * 7


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def own_loss(checkpoint: Path, text: str, block_size: int) -> float:
    """Nats per token over every next token, in consecutive windows; in NumPy."""
    model, tokenizer = load_for_inference(checkpoint)
    ids = np.array([tokenizer.vocabulary.index(c) for c in text])  # type: ignore[attr-defined]
    losses = []
    whole = (len(ids) - 1) // block_size * block_size
    for x, y in (
        (ids[:whole].reshape(-1, block_size), ids[1 : whole + 1].reshape(-1, block_size)),
        (ids[whole:-1][None], ids[whole + 1 :][None]),
    ):
        if not x.size:
            continue
        with torch.inference_mode():
            scores = model(torch.from_numpy(x))[0].double().numpy()
        top = scores.max(-1, keepdims=True)
        log_sum = top + np.log(np.exp(scores - top).sum(-1, keepdims=True))
        losses += list((log_sum - np.take_along_axis(scores, y[..., None], -1)).ravel())
    assert len(losses) == len(ids) - 1
    return float(np.mean(losses))


def said_loss(ended: Ended, name: str) -> tuple[float, str]:
    assert ended.status == 0, ended.err
    (line,) = ended.out.splitlines()
    words = line.split()
    assert words[0] == name
    units = [words[2:5], words[6:9], words[10:14]]
    assert [" ".join(unit) for unit in units] == [
        "nats per token,",
        "bits per character,",
        "bits per byte on",
    ]
    assert len(words[1].partition(".")[2]) == 4
    assert float(words[5]) == pytest.approx(float(words[1]) / math.log(2), abs=2e-4)
    assert words[9] == words[5]  # the texts are ASCII
    return float(words[1]), " ".join(words[14:])


def test_a_run_leaves_what_it_says(trained: Path) -> None:
    files = {name.split(".tfevents")[0] for name in listing(trained / "checkpoints/tiny")}
    assert files >= {
        *("last.ckpt", "best.ckpt", "config.yaml", "metrics.csv", "samples.txt", "events.out")
    }
    assert not {name for name in files if name.endswith(".partial")}
    samples = (trained / "checkpoints/tiny/samples.txt").read_text()
    assert samples.count("==== step") == 2


def test_metrics_hold_a_row_a_log_step(trained: Path) -> None:
    logged = rows(trained / "checkpoints/tiny")
    assert [row["step"] for row in logged] == ["5", "10", "15", "20"]
    assert all(row["train_loss"] and row["tokens_per_second"] for row in logged)
    assert [bool(row["val_loss"]) for row in logged] == [False, True, False, True]
    assert float(logged[-1]["train_loss"]) < float(logged[0]["train_loss"])


def test_validate_gives_the_loss_training_logged(makemoe: Call, copied: Path) -> None:
    by_step = {row["step"]: float(row["val_loss"]) for row in rows(copied) if row["val_loss"]}
    best = min(by_step.values())
    loss, text = said_loss(makemoe("validate", "--ckpt_path", "best"), "val_loss")
    assert loss == round(best, 4)
    assert loss == round(float(rows(copied)[-1]["val_loss"]), 4)
    assert "validation split" in text
    assert "sample" in text
    half = load_text("sample")
    half = half[len(half) * 9 // 10 :]
    assert loss == pytest.approx(own_loss(copied / "best.ckpt", half, 16), abs=6e-5)


def test_test_says_which_text(makemoe: Call, copied: Path) -> None:
    loss, text = said_loss(makemoe("test", "--ckpt_path", "last"), "test_loss")
    assert "validation split" in text
    assert loss == round(float(rows(copied)[-1]["val_loss"]), 4)


@pytest.mark.parametrize("length", [len(TEXT), 2, 17])
def test_test_measures_a_text_exactly(makemoe: Call, copied: Path, length: int) -> None:
    Path("my.txt").write_text(TEXT[:length])
    before = listing(Path())
    flags = ("--data.test_corpus", "my.txt", "--data.eval_batch_size", "3")
    loss, text = said_loss(makemoe("test", "--ckpt_path", "last", *flags), "test_loss")
    assert text == "my.txt"
    expected = own_loss(copied / "last.ckpt", TEXT[:length], 16)
    assert loss == pytest.approx(expected, abs=6e-5)
    assert listing(Path()) == before


def test_of_a_text_with_unknown_characters_the_rest_is_measured(
    makemoe: Call, copied: Path
) -> None:
    Path("my.txt").write_text(TEXT.replace("K", "üK").replace("\n", "\nß", 3))
    flags = ("test", "--ckpt_path", "last", "--data.test_corpus", "my.txt")
    ended = makemoe(*flags)
    assert ended.status == 1
    assert "'ü' (U+00FC) at offset 2" in ended.error
    assert ended.error.endswith("or pass --data.unknown skip")
    ended = makemoe(*flags, "--data.unknown", "skip")
    loss, text = said_loss(ended, "test_loss")
    assert text == "my.txt without its 10 unknown characters"
    assert loss == pytest.approx(own_loss(copied / "last.ckpt", TEXT, 16), abs=6e-5)
    assert [line for line in ended.err.splitlines() if "skipped" in line] == [
        "makemoe: --data.test_corpus 'my.txt': skipped 10 characters that the model does not know: "
        "'ß', 'ü'"
    ]


def test_a_resume_skips_only_when_told_to(makemoe: Call, copied: Path) -> None:
    Path("my.txt").write_text(TEXT.replace("K", "üK"))
    flags = ("fit", "--ckpt_path", "last", "--data.corpus=my.txt", "--trainer.max_steps")
    ended = makemoe(*flags, "22")
    assert ended.status == 1
    assert "--data.corpus 'my.txt': character 'ü'" in ended.error
    ended = makemoe(*flags, "22", "--data.unknown=skip", "--allow_changed")
    assert ended.status == 0, ended.err
    held = read(copied / "last.ckpt")
    assert held["global_step"] == 22
    assert "unknown" not in held["datamodule_hyper_parameters"]
    assert "character 'ü'" in makemoe("fit", "--ckpt_path=last", "--trainer.max_steps=24").error


def test_a_written_config_starts_the_same_run_again(makemoe: Call, copied: Path) -> None:
    first = (copied / "config.yaml").read_text().splitlines()[0]
    assert first == "# makemoe fit --config checkpoints/tiny/config.yaml"
    assert makemoe(*shlex.split(first)[2:]).status == 0
    again = rows(Path("checkpoints/tiny-2"))
    for row, same in zip(rows(copied), again, strict=True):
        for timed in (row, same):
            del timed["tokens_per_second"]
        assert row == same


def test_a_resumed_run_continues_its_metrics(makemoe: Call, copied: Path) -> None:
    before = rows(copied)
    with (copied / "metrics.csv").open("a") as file:  # by a part of the run that was lost
        file.write("25," + "9," * (len(before[0]) - 2) + "9\n")
    ended = makemoe("fit", "--ckpt_path", "last", "--trainer.max_steps", "30")
    assert ended.status == 0, ended.err
    after = rows(copied)
    assert after[: len(before)] == before
    assert [row["step"] for row in after] == ["5", "10", "15", "20", "25", "30"]
    losses = [float(row["val_loss"]) for row in after if row["val_loss"]]
    best = said_loss(makemoe("validate", "--ckpt_path", "best"), "val_loss")[0]
    assert best == round(min(losses), 4)
    assert after[4]["train_loss"] != "9"
    assert read(copied / "last.ckpt")["global_step"] == 30


def test_flags_overrule_config_overrules_checkpoint_overrules_defaults(
    makemoe: Call, copied: Path
) -> None:
    Path("my.yaml").write_text(
        "data: {eval_batch_size: 5, num_workers: 0}\n"
        "trainer: {max_steps: 25, log_every_n_steps: 4}\n"
        "run: {save_every_n_steps: 9}\n"
    )
    flags = ("--trainer.max_steps", "22", "--data.eval_batch_size=7", "--run.name", "next")
    ended = makemoe("fit", "--ckpt_path", "checkpoints/tiny/last.ckpt", "--config=my.yaml", *flags)
    assert ended.status == 0, ended.err
    written = yaml.safe_load(Path("checkpoints/next/config.yaml").read_text())
    assert written["trainer"]["max_steps"] == 22  # flag, not config's 25, checkpoint's 20
    assert written["data"]["eval_batch_size"] == 7  # flag
    assert written["trainer"]["log_every_n_steps"] == 4  # config, not checkpoint's 5
    assert written["run"]["save_every_n_steps"] == 9  # config
    assert written["model"]["n_embd"] == 16  # checkpoint
    assert written["data"]["batch_size"] == 8
    assert written["trainer"]["val_check_interval"] == 10
    assert written["model"]["dropout"] == 0.0  # default
    assert read("checkpoints/next/last.ckpt")["global_step"] == 22


def assert_within(settings: dict, printed: dict) -> None:
    """All settings are printed; those of a class with its defaults."""
    for name, value in settings.items():
        if isinstance(value, dict):
            assert_within(value, printed[name])
        else:
            assert printed[name] == value


@pytest.mark.parametrize(
    "config", [path for path in CONFIGS if path.stem != "sweep"], ids=lambda path: path.stem
)
def test_every_config_says_how_to_run_it_and_runs(
    makemoe: Call, tmp_path: Path, config: Path
) -> None:
    shutil.copytree(config.parent, tmp_path / "configs")
    first = config.read_text().splitlines()[0]
    assert first.startswith("# makemoe fit --config configs/")
    assert f"configs/{config.name}" in first
    command = shlex.split(first)[2:]
    ended = makemoe(*command, "--print_config")
    assert ended.status == 0, ended.err
    printed = yaml.safe_load(ended.out)
    for group, settings in yaml.safe_load(config.read_text()).items():
        if group == "trainer":
            assert_within(settings, printed[group])
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]

    small = "--trainer.max_steps=1 --data.corpus=sample --model.n_layer=1 --trainer.accelerator=cpu"
    small += " --trainer.limit_val_batches=1 --run.sample_tokens=2 --run.pictures=false"
    # Which leave something behind in their process; two processes divide the experts.
    devices = {"ddp": 1, "mlflow": 1, "fsdp": 1, "expert_parallel": 2}
    if (count := devices.get(config.stem)) is not None:
        ended = script(*command, *small.split(), f"--trainer.devices={count}", cwd=tmp_path)
    else:
        ended = makemoe(*command, *small.split())
    assert ended.status == 0, ended.err
    (checkpoint,) = tmp_path.glob("checkpoints/*/last.ckpt")
    assert read(checkpoint)["global_step"] == 1


def test_a_run_says_what_it_trains(makemoe: Call) -> None:
    ended = makemoe("fit", *TINY, "--trainer.max_steps=1", "--run.name=mine")
    assert ended.status == 0
    assert ended.out == ""
    for words in ("active per token (2 of 3 experts)", "to validate", "folder  checkpoints/mine"):
        assert words in ended.err


def test_a_run_that_was_moved_keeps_its_best(makemoe: Call, copied: Path) -> None:
    best = (copied / "best.ckpt").read_bytes()
    content = read(copied / "last.ckpt")
    (state,) = (state for key, state in content["callbacks"].items() if "best_model" in str(state))
    state["best_model_score"] = torch.tensor(1.0)  # which ten steps do not reach
    write(content, copied / "last.ckpt")
    ended = makemoe("fit", "--ckpt_path", "last", "--trainer.max_steps=30")
    assert ended.status == 0, ended.err
    assert rows(copied)[-1]["val_loss"]
    assert (copied / "best.ckpt").read_bytes() == best


def test_without_mlflow_the_extra_that_brings_it_is_told(
    makemoe: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("makemoe.tracking.mlflow.find_spec", lambda name: None)
    ended = makemoe("fit", *TINY, "--trainer.logger=makemoe.tracking.mlflow.MLflow")
    assert ended.status == 2
    assert "pip install 'makemoe[mlflow]'" in ended.error
    assert not list(tmp_path.iterdir())
