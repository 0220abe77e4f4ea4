import signal
from pathlib import Path

import pytest
from commandline import TINY, script
from interrupts import ctrl_c, prepare
from processes import assert_same_run

STARTED_S = 0.2
"""By when makemoe's own first line has run, on a busy machine too."""

PRESSES = """\
import os, signal, time
from lightning.pytorch import Callback
from makemoe.model.router import TopKRouter

def press(times=1):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)

class Swallows(TopKRouter):
    def __init__(self, *args):
        super().__init__(*args)
        try:
            press()
        except BaseException:
            pass
        time.sleep(60)

class Rewords(TopKRouter):
    def __init__(self, *args):
        try:
            press()
        except BaseException as error:
            raise RecursionError("maximum recursion depth exceeded") from error

class BeforeTraining(Callback):
    def on_fit_start(self, trainer, module):
        press()

class InStep(Callback):
    def __init__(self, times: int = 1, step: int = 3):
        self.times, self.step = times, step

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == self.step:
            press(self.times)

class InValidation(Callback):
    def on_validation_batch_start(self, trainer, module, batch, index, loader=0):
        if index == 0:
            press()

class AfterTraining(Callback):
    def teardown(self, trainer, module, stage):
        press()
"""


@pytest.fixture
def presses(tmp_path: Path) -> Path:
    """A folder with classes that interrupt their own process."""
    (tmp_path / "presses.py").write_text(PRESSES)
    return tmp_path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.mark.parametrize("after_s", [0.001, 0.05, STARTED_S, 0.6, 1.2, 3.0])
@pytest.mark.parametrize("command", ["fit", "predict", "inspect"])
def test_ctrl_c_ends_it_at_any_moment(prepared: Path, command: str, after_s: float) -> None:
    outcome = ctrl_c(prepared, command, after_s)
    assert "lost" not in outcome.kind, outcome
    assert outcome.took_s < 5
    if after_s > STARTED_S:
        assert outcome.kind == "130", outcome


@pytest.mark.parametrize("router", ["Swallows", "Rewords"])
def test_ctrl_c_is_not_lost_in_what_swallows_it(presses: Path, router: str) -> None:
    ended = script("fit", *TINY, f"--model.router=presses.{router}", cwd=presses)
    assert ended == (130, "", "")


def test_ctrl_c_before_training_ends_it_without_a_word(presses: Path) -> None:
    ended = script("fit", *TINY, "--trainer.callbacks=presses.BeforeTraining", cwd=presses)
    assert ended.status == 130
    assert "Traceback" not in ended.err
    assert "KeyboardInterrupt" not in ended.err


def test_ctrl_c_in_training_is_acknowledged_and_finishes_the_step(presses: Path) -> None:
    ended = script(
        *("fit", *TINY, "--run.name=run", "--trainer.callbacks=presses.InStep"), cwd=presses
    )
    assert ended.status == 130
    acknowledged = "SIGINT: saving and stopping after this step; Ctrl-C again stops at once"
    assert ended.err.index(acknowledged) < ended.err.index("SIGINT: stopped at step 4; ")
    assert (presses / "checkpoints/run/last.ckpt").exists()


def test_a_second_ctrl_c_in_training_ends_it_at_once(presses: Path) -> None:
    ended = script(
        *("fit", *TINY, "--run.name=run"),
        *("--trainer.callbacks=presses.InStep", "--trainer.callbacks.times=2"),
        cwd=presses,
    )
    assert ended.status == 130
    assert "Traceback" not in ended.err
    assert "stopped at step" not in ended.err
    assert not [*presses.rglob("*.ckpt"), *presses.rglob("*.partial")]


def test_ctrl_c_in_a_validation_ends_the_run_after_it_and_it_resumes_as_one(presses: Path) -> None:
    script("fit", *TINY, "--run.name=whole", cwd=presses)
    ended = script(
        *("fit", *TINY, "--run.name=run", "--trainer.callbacks=presses.InValidation"), cwd=presses
    )
    assert ended.status == 130
    assert "SIGINT: saving and stopping after this validation" in ended.err
    assert "stopped at step 10; " in ended.err
    runs = presses / "checkpoints"
    assert script("fit", "--ckpt_path", str(runs / "run/last.ckpt"), cwd=presses).status == 0
    assert_same_run(runs / "whole/last.ckpt", runs / "run/last.ckpt")
    assert (runs / "run/samples.txt").read_text() == (runs / "whole/samples.txt").read_text()


def test_ctrl_c_after_training_still_counts(presses: Path) -> None:
    ended = script(
        *("fit", *TINY, "--run.name=run", "--trainer.callbacks=presses.AfterTraining"), cwd=presses
    )
    assert ended.status == 128 + signal.SIGINT
    assert "Traceback" not in ended.err
    assert (presses / "checkpoints/run/last.ckpt").exists()
