"""What a fit says at its end, and that the commands it names work."""

import csv
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import TINY, Ended

from makemoe.callbacks.conclusion import in_words
from makemoe.checkpoint.format import read

Call = Callable[..., Ended]
ROUTER = """
from makemoe.model.router import TopKRouter
class Router(TopKRouter): ...
"""


def said(ended: Ended) -> list[str]:
    """The lines after the progress bar."""
    assert ended.status == 0, ended.err
    lines = ended.err.splitlines()
    shown = [n for n, line in enumerate(lines) if re.search("step/s|^folder  |^makemoe: ", line)]
    return lines[max(shown, default=-1) + 1 :]


def command(line: str) -> list[str]:
    """The arguments of the command that a line ends with."""
    return shlex.split(line.rpartition("makemoe ")[2])


def test_a_fit_ends_with_its_best_loss_and_how_to_sample(makemoe: Call) -> None:
    ended = makemoe("fit", *TINY, "--trainer.val_check_interval=5", "--run.name=my run")
    (line,) = said(ended)
    with Path("checkpoints/my run/metrics.csv").open(newline="") as file:
        losses = {float(row["val_loss"]): row["step"] for row in csv.DictReader(file)}
    found = re.match(
        r"best val_loss ([\d.]+) nats per token, ([\d.]+) bits per byte, at step (\d+): (.*); "
        r"sample: ",
        line,
    )
    assert found, line
    assert float(found.group(1)) == round(min(losses), 4)
    # The bundled play is ASCII.
    assert float(found.group(2)) == round(min(losses) / math.log(2), 4)
    assert found.group(3) == losses[min(losses)]
    assert found.group(4) == "checkpoints/my run/best.ckpt"
    assert makemoe(*command(line), "--max_new_tokens=5").status == 0


@pytest.mark.parametrize("resumed", ["last", "best"])
def test_the_best_step_is_kept_over_a_resume(makemoe: Call, copied: Path, resumed: str) -> None:
    # A rate of 1 spoils the model: the best is what it was.
    flags = ("--model.optimizer.lr=1", "--trainer.max_steps=30")
    (line,) = said(makemoe("fit", f"--ckpt_path={resumed}", *flags))
    assert " at step 20: checkpoints/tiny/best.ckpt; " in line


def test_a_model_with_a_class_of_the_user_s_is_sampled_with_trust(
    makemoe: Call, tmp_path: Path
) -> None:
    (tmp_path / "my_router.py").write_text(ROUTER)
    (line,) = said(makemoe("fit", *TINY, "--model.router=my_router.Router"))
    assert line.endswith("--trust my_router")
    assert makemoe(*command(line), "--max_new_tokens=5").status == 0


def test_a_run_at_its_last_step_says_so_and_how_to_go_on(makemoe: Call, copied: Path) -> None:
    (line,) = said(makemoe("fit", "--ckpt_path=last"))
    assert line.startswith("nothing to train: already at step 20 of 20; to resume: makemoe fit ")
    assert makemoe(*command(line)).status == 0
    assert read(copied / "last.ckpt")["global_step"] == 40


def test_a_run_that_its_time_ended_says_so_and_how_to_go_on(makemoe: Call) -> None:
    ended = makemoe("fit", *TINY, "--trainer.max_steps=100000", "--trainer.max_time=00:00:00:01")
    why, best = said(ended)
    step = read("checkpoints/run/last.ckpt")["global_step"]
    told = f"--trainer.max_time 00:00:00:01 ended the run at step {step} of 100000; to resume: "
    assert why.startswith(told)
    assert best.startswith("best val_loss ")
    again = makemoe("fit", "--ckpt_path=last", "--trainer.max_time=00:00:00:01")
    assert said(again)[0].startswith(told)  # the time is that of the whole run
    assert said(makemoe(*command(why)))[0].startswith("--trainer.max_time 00:00:00:0")
    assert read("checkpoints/run/last.ckpt")["global_step"] > step


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--trainer.limit_val_batches=0",),
            "ended at step 20: checkpoints/run/last.ckpt; sample: "
            "makemoe predict --ckpt_path checkpoints/run/last.ckpt",
        ),
        (("--trainer.enable_checkpointing=false",), "ended at step 20; no checkpoint was saved"),
        (("--trainer.fast_dev_run=true",), "fast_dev_run: ended at step 1; nothing is saved"),
    ],
)
def test_a_run_without_a_best_says_only_what_is_true(
    makemoe: Call, flags: tuple[str, ...], says: str
) -> None:
    assert said(makemoe("fit", *TINY, *flags)) == [says]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "00:00:00:01"), (60, "00:00:01:00"), (90061, "01:01:01:01"), (math.inf, "99:00:00:00")],
)
def test_a_time_is_said_as_the_option_takes_it(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
