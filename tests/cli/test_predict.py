import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import MAKEMOE, TINY, Ended, script

SEPARATOR = "\n---\n"
Predict = Callable[..., str]


@pytest.fixture
def predict(makemoe: Callable[..., Ended], trained: Path) -> Predict:
    """The text `makemoe predict` writes."""
    path = str(trained / "checkpoints/tiny/last.ckpt")

    def text(*flags: str) -> str:
        ended = makemoe("predict", "--ckpt_path", path, "--max_new_tokens", "40", *flags)
        assert ended.status == 0, ended.err
        assert ended.err == ""
        return ended.out

    return text


def test_the_text_begins_with_the_prompt_and_ends_a_line(predict: Predict) -> None:
    text = predict("--prompt", "KING:")
    assert text.startswith("KING:")
    assert len(text.removesuffix("\n")) in (len("KING:") + 40, len("KING:") + 39)
    assert text.endswith("\n")


def test_without_a_prompt_the_newline_is_not_shown(predict: Predict) -> None:
    assert predict("--prompt", "\n") == "\n" + predict()


def test_temperature_zero_is_deterministic(predict: Predict) -> None:
    greedy = ("--prompt", "KING:", "--temperature", "0")
    assert predict(*greedy, "--seed", "1") == predict(*greedy, "--seed", "2")
    top = predict("--prompt", "KING:", "--sample_top_k", "1", "--seed", "3")
    assert top == predict(*greedy)


def test_a_seed_decides_the_text(predict: Predict) -> None:
    assert predict("--seed", "1") == predict("--seed", "1")
    assert predict("--seed", "1") != predict("--seed", "2")


def test_a_text_does_not_depend_on_those_beside_it(predict: Predict) -> None:
    prompts = ("KING:", "What", "A much longer prompt that fills the context")
    alone = [predict("--prompt", prompt).rstrip("\n") for prompt in prompts]
    beside = predict(*(word for prompt in prompts for word in ("--prompt", prompt)))
    assert [text.rstrip("\n") for text in beside.split(SEPARATOR)] == alone


def test_samples_of_a_prompt_differ_and_follow_the_seed(predict: Predict) -> None:
    texts = predict("--prompt", "KING:", "--num_samples", "3", "--seed", "5").split(SEPARATOR)
    assert len(set(texts)) == 3
    assert all(text.startswith("KING:") for text in texts)
    alone = predict("--prompt", "KING:", "--seed", "6")
    assert texts[1].rstrip("\n") == alone.rstrip("\n")


def test_a_prompt_file_is_one_prompt(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("KING:\nWhat", encoding="utf-8")
    assert predict("--prompt_file", "p.txt") == predict("--prompt", "KING:\nWhat")


@pytest.mark.parametrize("length", [1, 3])
def test_a_text_ends_before_a_stop(predict: Predict, length: int) -> None:
    whole = predict("--prompt", "KING:").removeprefix("KING:")
    stop = whole[17 : 17 + length]
    expected = "KING:" + whole[: whole.index(stop)]
    assert predict("--prompt", "KING:", "--stop", "never comes", "--stop", stop).rstrip(
        "\n"
    ) == expected.rstrip("\n")


def test_a_stop_that_does_not_come_holds_nothing_back(predict: Predict) -> None:
    whole = predict("--prompt", "KING:")
    almost = whole.rstrip("\n")[-3:] + "\x00"
    assert predict("--prompt", "KING:", "--stop", almost) == whole


def test_predict_does_not_import_lightning(trained: Path) -> None:
    code = (
        "import sys; from makemoe.cli import main; "
        "status = main(['predict', '--ckpt_path', 'best', '--max_new_tokens', '5']); "
        "heavy = {'lightning', 'jsonargparse', 'torchmetrics', 'tensorboard'}; "
        "print(status, heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=trained, capture_output=True, text=True, check=True
    )
    assert done.stderr == "0 set()\n"


def pieces(terminal: int) -> Iterator[tuple[float, bytes]]:
    """What arrives at a terminal, and when."""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # Linux's way to say that nobody is left to write
            return
        if not piece:
            return
        yield time.monotonic(), piece


def test_text_streams_to_a_terminal(trained: Path) -> None:
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [MAKEMOE, "predict", "--ckpt_path", "last", "--prompt", "KING:", "--max_new_tokens=400"],
        cwd=trained,
        stdout=its_end,
        stderr=subprocess.DEVNULL,
    )
    os.close(its_end)
    arrived = list(pieces(terminal))
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    assert b"".join(piece for _, piece in arrived).startswith(b"KING:")
    assert len(arrived) > 1
    assert arrived[0][0] < arrived[-1][0]


def test_a_reader_that_goes_away_hears_no_complaint(trained: Path) -> None:
    process = subprocess.Popen(
        [MAKEMOE, "predict", "--ckpt_path", "last", "--max_new_tokens=20"],
        cwd=trained,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, complaint = process.communicate(timeout=60)
    assert complaint == b""
    assert process.returncode == 1


def test_a_text_without_newlines_trains_and_samples(
    tmp_path: Path, makemoe: Callable[..., Ended]
) -> None:
    (tmp_path / "line.txt").write_text("to be or not to be that is the question " * 30)
    ended = script("fit", *TINY, "--data.corpus=line.txt", "--trainer.max_steps=2", cwd=tmp_path)
    assert ended.status == 0, ended.err
    ended = makemoe("predict", "--ckpt_path", "last", "--max_new_tokens", "7")
    assert ended.status == 0, ended.err
    assert len(ended.out) == 8
    assert set(ended.out) <= set("to be or not to be that is the question \n")


def test_a_prompt_comes_from_standard_input(trained: Path) -> None:
    def sampled(*prompt: str) -> str:
        done = subprocess.run(
            [MAKEMOE, "predict", "--ckpt_path", "last", "--max_new_tokens", "5", *prompt],
            cwd=trained,
            input="To be",
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert sampled("--prompt_file", "-") == sampled("--prompt", "To be")
