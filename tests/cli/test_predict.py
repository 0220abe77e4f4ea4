import json
import os
import pty
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import pytest
from commandline import TINY, Ended, imports, script
from nursery import MAKEMOE, Forked

from makemoe.checkpoint.inference import load_for_inference
from makemoe.cli.writing import Output
from makemoe.model.generate import Sampler, generate
from makemoe.model.transformer import MoETransformer
from makemoe.sampling import InOrder, Sample, group_size, groups

SEPARATOR = "\n---\n"
Predict = Callable[..., str]


@pytest.fixture
def predict(makemoe: Callable[..., Ended], trained: Path) -> Predict:
    """The text `makemoe predict` writes."""
    path = str(trained / "checkpoints/tiny/last.ckpt")

    def text(*flags: str) -> str:
        ended = makemoe("predict", "--ckpt_path", path, "--max_new_tokens", "40", *flags)
        assert ended.status == 0, ended.err
        assert ended.err == f"makemoe: using {path}\n"
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


def own_texts(trained: Path, prompts: list[str], count: int, seed: int) -> list[str]:
    """What is to come out, from the model alone, all at once."""
    model, tokenizer = load_for_inference(trained / "checkpoints/tiny/last.ckpt")
    texts = [prompt for prompt in prompts for _ in range(count)]
    seeds = [seed + n for _ in prompts for n in range(count)]
    new = generate(model, [tokenizer.encode(t).tolist() for t in texts], 40, Sampler(seeds))
    return [text + tokenizer.decode(ids) for text, ids in zip(texts, new, strict=True)]


@pytest.mark.parametrize("group", [1, 2, 3, 8, 64])
def test_many_samples_are_made_in_groups(
    predict: Predict, trained: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr("makemoe.sampling.GROUP", group)
    flags = ("--prompt", "KING:", "--prompt", "What", "--num_samples=4", "--seed=5")
    expected = SEPARATOR.join(own_texts(trained, ["KING:", "What"], 4, 5))
    assert predict(*flags).removesuffix("\n") == expected.removesuffix("\n")
    stopped = predict(*flags, "--stop", "e").removesuffix("\n").split(SEPARATOR)
    texts = own_texts(trained, ["KING:", "What"], 4, 5)
    heads = [(text[:5], text[5:]) if text[0] == "K" else (text[:4], text[4:]) for text in texts]
    assert stopped == [prompt + new.partition("e")[0] for prompt, new in heads]
    predict(*flags, "--trace", "t.jsonl")
    traced = [json.loads(line) for line in Path("t.jsonl").read_text("utf-8").splitlines()]
    by_sample = ["".join(line["text"] for line in traced if line["sample"] == n) for n in range(8)]
    assert by_sample == texts


def test_groups_are_as_large_as_memory_and_waiting_texts_let_them() -> None:
    wanted = (Sample("", [0], n) for n in count())
    sizes = [len(group) for group in islice(groups(wanted, 10**30, 64), 4)]
    assert sizes == [1, 64, 64, 64]
    assert [len(group) for group in groups(iter([Sample("", [0], 0)] * 64), 64, 64)] == [64]
    model = MoETransformer(vocab_size=60)
    assert group_size(model, 500) == 64
    assert group_size(model, 10**30) == 1
    long = MoETransformer(vocab_size=60, block_size=1 << 17, n_layer=1, n_embd=8, num_experts=2)
    assert 1 <= group_size(long, 500) < 64


@pytest.mark.parametrize("seed", [1, (1 << 62) - 1])
def test_a_wish_for_very_many_samples_costs_no_more_than_those_that_are_read(
    trained: Path, seed: int
) -> None:
    process = Forked(
        [
            *(MAKEMOE, "predict", "--ckpt_path=last", "--prompt=KING:", "--max_new_tokens=40"),
            *(f"--seed={seed}", f"--num_samples={10**20}"),
        ],
        trained,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    expected = SEPARATOR.join(own_texts(trained, ["KING:"], 3, seed))
    assert process.stdout is not None
    assert process.stdout.read(len(expected)) == expected
    process.kill()
    assert process.stderr is not None
    assert process.stderr.read() == "makemoe: using checkpoints/tiny/last.ckpt\n"


def test_unknown_characters_of_a_prompt_are_skipped_when_told_to(
    makemoe: Callable[..., Ended], copied: Path
) -> None:
    flags = ("predict", "--ckpt_path=last", "--max_new_tokens=20", "--trace")
    plain = makemoe(*flags, "a.jsonl", "--prompt", "KING:")
    ended = makemoe(*flags, "b.jsonl", "--prompt", "éKÏINGü:é", "--data.unknown=skip")
    assert (ended.status, ended.out) == (0, plain.out)
    assert ended.err == (
        "makemoe: --prompt: skipped 4 characters that the model does not know: 'Ï', 'é', 'ü'\n"
        "makemoe: using checkpoints/tiny/last.ckpt\n"
    )
    assert Path("a.jsonl").read_bytes() == Path("b.jsonl").read_bytes()
    for told, *more in (
        ("'é' (U+00E9) at offset 0 is not", "--prompt=éK"),
        ("or pass --data.unknown skip", "--prompt=éK"),
        ("--prompt: the model knows none of its characters", "--prompt=éü", "--data.unknown=skip"),
    ):
        ended = makemoe(*flags, "c.jsonl", *more)
        assert (ended.status, ended.out) == (1, "")
        assert told in ended.error
        assert not Path("c.jsonl").exists()


def test_a_text_being_written_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open("w") as nowhere:
        monkeypatch.setattr(sys, "stdout", nowhere)
        writer = InOrder(["x"], ["never"], Output())
        tracemalloc.start()
        for _ in range(20_000):
            writer.add(0, "n")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10_000


@pytest.mark.parametrize("mark", ["", "\ufeff"])  # as some editors begin a file
def test_a_prompt_file_is_one_prompt(predict: Predict, tmp_path: Path, mark: str) -> None:
    (tmp_path / "p.txt").write_text(f"{mark}KING:\nWhat", encoding="utf-8")
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
    command = ("predict", "--ckpt_path", "best", "--max_new_tokens", "5")
    status, packages = imports(*command, cwd=trained)
    assert status == 0
    assert not packages & {"lightning", "jsonargparse", "torchmetrics", "tensorboard"}


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


@pytest.mark.parametrize("connect", [pty.openpty, os.pipe], ids=["terminal", "pipe"])
def test_text_streams(trained: Path, connect: Callable[[], tuple[int, int]]) -> None:
    terminal, its_end = connect()
    process = Forked(
        [MAKEMOE, "predict", "--ckpt_path", "last", "--prompt", "KING:", "--max_new_tokens=400"],
        trained,
        stdout=its_end,
    )
    os.close(its_end)
    arrived = list(pieces(terminal))
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    assert b"".join(piece for _, piece in arrived).startswith(b"KING:")
    assert len(arrived) > 10
    assert arrived[0][0] < arrived[-1][0]


def test_what_was_made_before_an_interrupt_is_out(trained: Path) -> None:
    words = ("predict", "--ckpt_path=last", "--prompt=KING:", "--max_new_tokens=9999999")
    pipe = subprocess.PIPE
    process = Forked([MAKEMOE, *words], trained, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(50).startswith("KING:")
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    told = process.stderr.read()
    assert (process.wait(timeout=60), "Traceback" in told) == (130, False)


def test_a_reader_that_goes_away_hears_no_complaint(trained: Path) -> None:
    words = ("predict", "--ckpt_path", "last", "--max_new_tokens=20")
    pipe = subprocess.PIPE
    process = Forked([MAKEMOE, *words], trained, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "makemoe: using checkpoints/tiny/last.ckpt\n"
    assert process.wait(timeout=60) == 1


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
