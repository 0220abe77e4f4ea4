"""A resumed run is the same run, or it is refused: with what changed, from what to what."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import TINY, Ended, listing, refused

Call = Callable[..., Ended]

ONE_STEP_MORE = "--trainer.max_steps=21"


@pytest.fixture
def run(makemoe: Call, copied: Path) -> Path:
    """A run of 20 steps in the working folder."""
    return copied


@pytest.mark.parametrize(
    ("option", "was"),
    [
        ("--seed=7", "--seed was 1337 and is 7"),
        ("--data.batch_size=16", "--data.batch_size was 8 and is 16"),
        ("--trainer.accumulate_grad_batches=2", "--trainer.accumulate_grad_batches was 1 and is 2"),
        ("--model.block_size=8", "--model.block_size was 16 and is 8"),
        ("--trainer.overfit_batches=1", "--trainer.overfit_batches was 0.0 and is 1"),
    ],
)
def test_what_decides_the_batches_is_refused(
    makemoe: Call, run: Path, option: str, was: str
) -> None:
    words = [was, "--allow_changed"]
    refused(makemoe, 2, words, "fit", "--ckpt_path=tiny", ONE_STEP_MORE, option)


def test_all_that_changed_is_in_one_line(makemoe: Call, run: Path) -> None:
    changed = ("--seed=7", "--data.batch_size=9")
    words = ["--seed was 1337 and is 7; --data.batch_size was 8 and is 9"]
    refused(makemoe, 2, words, "fit", "--ckpt_path=tiny", ONE_STEP_MORE, *changed)


def test_allow_changed_resumes_all_the_same(makemoe: Call, run: Path) -> None:
    more = (ONE_STEP_MORE, "--seed=7", "--allow_changed")
    assert makemoe("fit", "--ckpt_path=tiny", *more).status == 0
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 21
    assert "allow_changed" not in (run / "config.yaml").read_text()
    # From now on, that is the run's seed.
    assert makemoe("fit", "--ckpt_path=tiny", "--trainer.max_steps=22").status == 0


def trained_on(makemoe: Call, text: str) -> None:
    Path("my.txt").write_text(text)
    few = ("--trainer.max_steps=2", "--trainer.limit_val_batches=0")
    assert makemoe("fit", *TINY, *few, "--data.corpus=my.txt", "--run.name=own").status == 0


RESUME = "fit", "--ckpt_path=own", "--trainer.max_steps=3"


@pytest.mark.parametrize("change", ["longer", "other"])
def test_a_text_that_changed_is_refused(makemoe: Call, change: str) -> None:
    text = "To be, or not to be: that is the question. " * 20
    trained_on(makemoe, text)
    Path("my.txt").write_text(text + text if change == "longer" else text[::-1])
    now = "1,720 tokens, 1,548 of them for training" if change == "longer" else "as many others"
    words = ["the text (--data.corpus) was 860 tokens, 774 of them for training", f"is {now}"]
    refused(makemoe, 2, words, *RESUME)
    assert makemoe(*RESUME, "--allow_changed").status == 0


def test_a_text_that_only_moved_is_the_same(makemoe: Call) -> None:
    trained_on(makemoe, "To be, or not to be: that is the question. " * 20)
    Path("my.txt").rename("elsewhere.txt")
    assert makemoe(*RESUME, "--data.corpus=elsewhere.txt").status == 0


def test_another_split_of_documents_is_refused_by_name(makemoe: Call) -> None:
    Path("texts").mkdir()
    for n in range(40):
        Path("texts", f"{n}.txt").write_text(f"This is document {n}, and it says {n * n}. " * 9)
    few = ("--trainer.max_steps=2", "--trainer.limit_val_batches=0")
    assert makemoe("fit", *TINY, *few, "--data.corpus=texts", "--run.name=own").status == 0
    refused(makemoe, 2, ["the text (--data.split_seed) was"], *RESUME, "--data.split_seed=5")


@pytest.mark.parametrize(
    "option",
    [
        "--model.optimizer.lr=0.5",
        "--trainer.val_check_interval=7",
        "--trainer.log_every_n_steps=2",
        "--data.eval_batch_size=3",
        "--data.num_workers=1",
        "--data.split_seed=3",  # of one text, which is cut at one place
    ],
)
def test_what_does_not_decide_the_batches_may_change(makemoe: Call, run: Path, option: str) -> None:
    ended = makemoe("fit", "--ckpt_path=tiny", ONE_STEP_MORE, option)
    assert ended.status == 0, ended.err


def test_a_checkpoint_without_a_fingerprint_resumes(makemoe: Call, run: Path) -> None:
    from makemoe.checkpoint.format import read, write

    checkpoint = read(run / "last.ckpt")
    del checkpoint["makemoe"]["text"]
    checkpoint["makemoe"]["format"] = 1
    write(checkpoint, run / "last.ckpt")
    assert makemoe("fit", "--ckpt_path=tiny", ONE_STEP_MORE).status == 0


@pytest.mark.parametrize("text", [3, {}, {"tokens": 1, "training": 1, "digest": 3}, [1]])
def test_a_forged_fingerprint_is_refused(makemoe: Call, run: Path, text: object) -> None:
    from makemoe.checkpoint.format import read, write

    checkpoint = read(run / "last.ckpt")
    checkpoint["makemoe"] |= {"text": text, "format": 1}
    write(checkpoint, run / "last.ckpt")
    before = listing(Path())
    ended = makemoe("fit", "--ckpt_path=tiny", ONE_STEP_MORE)
    assert (ended.status, "damaged or forged" in ended.error) == (1, True)
    assert listing(Path()) == before


def test_a_config_that_only_says_where_to_train_names_no_run(makemoe: Call, run: Path) -> None:
    where = ("--config=ddp", "--trainer.devices=1", "--trainer.strategy=auto")
    ended = makemoe("fit", "--ckpt_path=last", *where, "--print_config")
    assert ended.status == 0, ended.err
