"""What `predict` tells of the experts: colours on a terminal, and a trace."""

import itertools
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import TINY, Ended, script
from nursery import MAKEMOE, Forked

from makemoe.checkpoint.format import read, write
from makemoe.checkpoint.inference import load_for_inference
from makemoe.colours import ink_on, palette

Call = Callable[..., Ended]
BLOCK_SIZE = 16
ESCAPE = re.compile(r"\x1b\[[\d;]*m")
SEVERAL = ("--prompt", "KING:", "--prompt", "What is it", "--num_samples=2", "--max_new_tokens=30")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two layers, hardly trained, so that every expert is some character's first."""
    folder = tmp_path_factory.mktemp("two-layers")
    flags = ("--model.n_layer=2", "--trainer.max_steps=2", "--run.name=two")
    ended = script("fit", *TINY, *flags, cwd=folder)
    assert ended.status == 0, ended.err
    return folder / "checkpoints" / "two" / "last.ckpt"


@pytest.fixture
def predict(makemoe: Call, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return lambda *flags: makemoe("predict", "--ckpt_path", str(checkpoint), *flags)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_trace_is_what_an_uncached_forward_decides(
    predict: Call, checkpoint: Path, tmp_path: Path
) -> None:
    flags = ("--prompt", "KING:", "--prompt", "To", f"--max_new_tokens={BLOCK_SIZE - 5}")
    ended = predict(*flags, "--trace", "t.jsonl")
    assert (ended.status, ended.err) == (0, f"makemoe: using {checkpoint}\n")
    traced = lines(tmp_path / "t.jsonl")
    model, tokenizer = load_for_inference(checkpoint)
    for sample in (0, 1):
        own = [line for line in traced if line["sample"] == sample]
        assert [line["position"] for line in own] == list(range(len(own)))
        ids = [line["token"] for line in own]
        with torch.no_grad():
            routings = model(torch.tensor([ids]))[1]
        for n, line in enumerate(own):
            assert line["text"] == tokenizer.decode([line["token"]])
            assert [layer["experts"] for layer in line["layers"]] == [
                routing.experts_NK[n].tolist() for routing in routings
            ]
            weights = [layer["weights"] for layer in line["layers"]]
            torch.testing.assert_close(
                torch.tensor(weights), torch.stack([routing.weights_NK[n] for routing in routings])
            )


def test_the_trace_holds_the_texts_in_order(predict: Call, tmp_path: Path) -> None:
    # Far past block_size, with a text that ends early.
    stop = ("--stop", "e")
    plain = predict(*SEVERAL, *stop).out
    assert predict(*SEVERAL, *stop, "--trace", "t.jsonl").out == plain
    traced = lines(tmp_path / "t.jsonl")
    texts = [
        "".join(line["text"] for line in of_sample)
        for _, of_sample in itertools.groupby(traced, lambda line: line["sample"])
    ]
    assert "\n---\n".join(texts).rstrip("\n") == plain.rstrip("\n")
    prompts = ["KING:", "KING:", "What is it", "What is it"]
    for sample, prompt in enumerate(prompts):
        begins = [line["text"] for line in traced if line["sample"] == sample and line["prompt"]]
        assert "".join(begins) == prompt
    assert all(len(line["layers"]) == 2 for line in traced)


def test_what_stands_in_for_a_missing_prompt_is_not_traced(predict: Call, tmp_path: Path) -> None:
    text = predict("--max_new_tokens=20", "--trace", "t.jsonl").out
    traced = lines(tmp_path / "t.jsonl")
    assert "".join(line["text"] for line in traced).rstrip("\n") == text.rstrip("\n")
    assert [line["position"] for line in traced] == list(range(20))
    assert not any(line["prompt"] for line in traced)


def test_of_a_long_prompt_what_is_never_read_has_no_layers(predict: Call, tmp_path: Path) -> None:
    prompt = "What is the city but the people?"
    predict("--prompt", prompt, "--max_new_tokens=3", "--trace", "t.jsonl")
    traced = lines(tmp_path / "t.jsonl")
    assert "".join(line["text"] for line in traced[:-3]) == prompt
    unread = len(prompt) - BLOCK_SIZE
    assert [len(line["layers"]) for line in traced] == [0] * unread + [2] * (BLOCK_SIZE + 3)


def on_a_terminal(checkpoint: Path, *flags: str, **environment: str) -> tuple[str, str]:
    """What a terminal gets from `predict`, and what standard error, which is none, gets."""
    terminal, its_end = pty.openpty()
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = Forked(
        [MAKEMOE, "predict", "--ckpt_path", str(checkpoint), *flags],
        env={**inherited, "TERM": "xterm-256color", **environment},
        stdout=its_end,
        stderr=subprocess.PIPE,
    )
    os.close(its_end)
    written = b""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # Linux's way to say that nobody is left to write
            piece = b""
        if not piece:
            break
        written += piece
    os.close(terminal)
    assert process.stderr is not None
    told = process.stderr.read()
    assert process.wait(timeout=60) == 0, told
    assert told.startswith(f"makemoe: using {checkpoint}\n")
    return written.decode().replace("\r\n", "\n"), told


def test_a_terminal_shows_each_character_in_its_first_experts_colour(
    predict: Call, checkpoint: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "t.jsonl"
    text, told = on_a_terminal(checkpoint, *SEVERAL, "--show_experts=1", "--trace", str(trace))
    assert ESCAPE.sub("", text) == predict(*SEVERAL).out
    colours = [line["layers"][1]["experts"][0] for line in lines(trace) if line["text"] != "\n"]
    colours = [palette(3)[expert] for expert in colours]
    shown = re.findall(r"\x1b\[38;5;(\d+);48;5;(\d+)m(.)\x1b\[0m", text)
    assert [int(ground) for _, ground, _ in shown] == colours
    assert all(int(ink) == ink_on(int(ground)) for ink, ground, _ in shown)
    assert len(set(colours)) > 1, "the test would show nothing"
    assert (
        told.splitlines(keepends=True)[1]
        == "first expert in layer 1: "
        + ", ".join(f"{expert}: colour {colour}" for expert, colour in enumerate(palette(3)))
        + "\n"
    )


@pytest.mark.parametrize(
    ("environment", "why"), [({"NO_COLOR": "1"}, "NO_COLOR"), ({"TERM": "dumb"}, "dumb")]
)
def test_a_terminal_that_wants_no_colours_gets_none(
    predict: Call, checkpoint: Path, environment: dict[str, str], why: str
) -> None:
    text, told = on_a_terminal(checkpoint, *SEVERAL, "--show_experts=0", **environment)
    assert text == predict(*SEVERAL).out
    assert why in told
    assert len(told.splitlines()) == 2


def test_what_is_no_terminal_gets_colours_only_when_told_to(
    predict: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, ended = predict(*SEVERAL).out, predict(*SEVERAL, "--show_experts=0")
    assert ended.out == plain
    assert "not a terminal" in ended.err
    assert len(ended.err.splitlines()) == 2
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = predict(*SEVERAL, "--show_experts=0").out
    assert coloured != plain
    assert ESCAPE.sub("", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert predict(*SEVERAL, "--show_experts=0").out == plain


@pytest.mark.parametrize("layer", [2, -1])
def test_a_layer_that_is_not_there_is_told_with_those_that_are(predict: Call, layer: int) -> None:
    ended = predict("--show_experts", str(layer))
    assert ended.status == 2
    assert ended.out == ""
    assert ended.error == f"--show_experts {layer}: no such layer; give 0 to 1"


def test_a_checkpoint_without_a_router_is_told_as_such(
    makemoe: Call, checkpoint: Path, tmp_path: Path
) -> None:
    held = read(checkpoint)
    held["state_dict"] = {k: v for k, v in held["state_dict"].items() if ".router." not in k}
    write(held, tmp_path / "none.ckpt")
    ended = makemoe("predict", "--ckpt_path", "none.ckpt", "--show_experts", "0")
    assert ended.status == 1
    for word in ("none.ckpt", "4 weights are missing", "blocks.0.moe.router.gate.bias"):
        assert word in ended.error


def test_a_file_that_is_there_is_never_written_to(predict: Call, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("mine")
    ended = predict("--trace", "t.jsonl")
    assert (ended.status, ended.out) == (2, "")
    assert "--trace t.jsonl already exists; choose another file" in ended.error
    assert (tmp_path / "t.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("no/t.jsonl", "No such file or directory; choose a new file in an existing folder"),
        (".", "Is a directory; choose a new file in an existing folder"),
        ("pipe", "nothing reads this pipe; start its reader first"),
        ("/dev/full", "No space left"),
    ],
)
def test_a_trace_that_cannot_be_written_is_told_in_one_line(
    predict: Call, tmp_path: Path, path: str, why: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    ended = predict("--trace", path)
    assert ended.status == 1
    assert f"--trace {path}: " in ended.error
    assert why in ended.error


def test_a_disk_that_fills_leaves_whole_lines(checkpoint: Path, tmp_path: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
    code = limit + "import sys; from makemoe.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = ("predict", "--ckpt_path", str(checkpoint), "--trace", "t.jsonl")
    done = subprocess.run(
        [sys.executable, "-c", code, *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert Ended(done.returncode, done.stdout, done.stderr).error.startswith("--trace t.jsonl: ")
    assert done.returncode == 1
    assert 0 < (tmp_path / "t.jsonl").stat().st_size < 1000
    assert [line["position"] for line in lines(tmp_path / "t.jsonl")][:2] == [0, 1]
