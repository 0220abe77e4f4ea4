"""What counts tokens and what counts characters, where a token is not a character."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import byte_pairs
import pytest
import torch
from commandline import TINY, Ended, script

from makemoe.checkpoint.format import read, write
from makemoe.checkpoint.inference import load_for_inference
from makemoe.colours import ink_on, palette
from makemoe.data.tokenizer import Tokenizer
from makemoe.model.generate import Sampler, generate
from makemoe.model.transformer import MoETransformer

Call = Callable[..., Ended]
TEXT = "Grüße, 漢字 und \U0001f600:\n«Öl» ist süß.\n" * 60
PROMPT, NEW = "Süß «漢", 50
SEEDS = range(7, 11)
SAMPLES = (
    *("--prompt", PROMPT, "--max_new_tokens", str(NEW)),
    *("--seed", str(SEEDS[0]), "--num_samples", str(len(SEEDS))),
)
CODES = re.compile(r"\x1b\[(38;5;\d+;48;5;\d+|0)m")
SEPARATOR = "\n---\n"


class Trained(NamedTuple):
    path: Path
    trust: tuple[str, ...]
    model: MoETransformer
    tokenizer: Tokenizer

    def texts(self) -> list[tuple[list[int], str]]:
        """Ids and text of each sample, from the model alone."""
        ids = self.tokenizer.encode(PROMPT).tolist()
        new = generate(self.model, [ids] * len(SEEDS), NEW, Sampler(SEEDS))
        whole = [ids + self.until_the_end(tokens) for tokens in new]
        return [(tokens, self.tokenizer.decode(tokens)) for tokens in whole]

    def until_the_end(self, ids: list[int]) -> list[int]:
        """The ids before the end of a text."""
        end = self.tokenizer.end_of_text
        return ids[: ids.index(end)] if end in ids else ids


TOKENIZERS = (
    "ByteTokenizer",
    "byte_pairs.BytePairs",
    "ByteTokenizer --data.tokenizer.end_of_text=true",
    "BPETokenizer --data.tokenizer.vocab_size=280",
)


@pytest.fixture(scope="module", params=TOKENIZERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """So little that it samples many bytes that are no text, and now and then the end of one."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    shutil.copy(byte_pairs.__file__, folder)
    ended = script(
        *("fit", *TINY, "--data.corpus=text.txt", "--data.tokenizer", *request.param.split()),
        *("--run.pictures=true", "--run.name=tokens", "--run.sample_prompt=漢"),
        *("--trainer.max_steps=10", "--trainer.val_check_interval=5"),
        cwd=folder,
    )
    assert ended.status == 0, ended.err
    path = folder / "checkpoints/tokens/last.ckpt"
    trust = ("byte_pairs",) if request.param.startswith("byte_pairs") else ()
    model, tokenizer = load_for_inference(path, trust)
    if (end := tokenizer.end_of_text) is not None:
        held = read(path)
        held["state_dict"]["net.head.bias"][end] += math.log(9)
        write(held, path)
        model = load_for_inference(path, trust)[0]
    return Trained(path, trust, model, tokenizer)


@pytest.fixture
def call(makemoe: Call, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(trained.path.parents[2])
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    flags = [f"--trust={module}" for module in trained.trust]
    return lambda command, *more: makemoe(command, f"--ckpt_path={trained.path}", *flags, *more)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_draws_and_samples(trained: Trained) -> None:
    run = trained.path.parent
    assert (run / "pictures/characters.png").exists()
    samples = (run / "samples.txt").read_text(encoding="utf-8")
    assert re.findall(r"^==== step (\d+)\n漢", samples, re.MULTILINE) == ["5", "10"]


@pytest.mark.parametrize("group", [1, 64])
def test_a_text_is_what_all_its_tokens_are(
    call: Call, trained: Trained, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr("makemoe.sampling.GROUP", group)
    texts = [text for _, text in trained.texts()]
    assert all(text.startswith(PROMPT) for text in texts)
    assert any("\ufffd" in text for text in texts), "the test would show nothing"
    assert call("predict", *SAMPLES).out.removesuffix("\n") == SEPARATOR.join(texts).removesuffix(
        "\n"
    )


def test_the_trace_has_a_line_per_token_with_the_text_that_it_completes(
    call: Call, trained: Trained, tmp_path: Path
) -> None:
    trace = tmp_path / "t.jsonl"
    plain = call("predict", *SAMPLES)
    ended = call("predict", *SAMPLES, "--trace", str(trace))
    assert (ended.status, ended.out) == (0, plain.out)
    in_prompt = len(trained.tokenizer.encode(PROMPT))
    for sample, (ids, text) in enumerate(trained.texts()):
        own = [line for line in lines(trace) if line["sample"] == sample]
        assert [line["position"] for line in own] == list(range(len(ids)))
        assert [line["token"] for line in own] == ids
        assert [line["prompt"] for line in own] == [n < in_prompt for n in range(len(ids))]
        assert "".join(line["text"] for line in own) == text
        so_far = ""
        for n, line in enumerate(own):
            so_far += line["text"]
            whole = trained.tokenizer.decode(ids[: n + 1])
            assert so_far == whole or so_far + "\ufffd" == whole
        with torch.no_grad():
            (routing,) = trained.model(torch.tensor([ids[:16]]))[1]
        experts = [line["layers"][0]["experts"] for line in own[:16]]
        assert experts == routing.experts_NK.tolist()


def test_a_token_s_text_has_the_colour_of_its_first_expert(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, plain = tmp_path / "t.jsonl", call("predict", *SAMPLES).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = call("predict", *SAMPLES, "--show_experts=0", "--trace", str(trace)).out
    assert CODES.sub("", text) == plain
    painted: list[str] = []
    for line in lines(trace):
        colour = palette(3)[line["layers"][0]["experts"][0]]
        begin = f"\x1b[38;5;{ink_on(colour)};48;5;{colour}m"
        of_token = [
            part if part in "\r\n" else f"{begin}{part}\x1b[0m"
            for part in re.split(r"([\r\n])", line["text"])
        ]
        painted += [SEPARATOR] if line["sample"] and not line["position"] else []
        painted += of_token
    assert text.removesuffix("\n") == "".join(painted).removesuffix("\n")


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_text_ends_before_a_stop_that_begins_or_ends_inside_a_token(
    call: Call, trained: Trained, tmp_path: Path, cut: int
) -> None:
    trace = tmp_path / "t.jsonl"
    texts = [text for _, text in trained.texts()]
    stop = texts[0][len(PROMPT) + 9 + cut :][:2]
    ends = [PROMPT + text.removeprefix(PROMPT).partition(stop)[0] for text in texts]
    assert ends != texts
    expected = SEPARATOR.join(ends).removesuffix("\n")
    assert call("predict", *SAMPLES, "--stop", stop).out.removesuffix("\n") == expected
    out = call("predict", *SAMPLES, "--stop", stop, "--trace", str(trace)).out
    assert out.removesuffix("\n") == expected
    traced = ["".join(x["text"] for x in lines(trace) if x["sample"] == n) for n in range(4)]
    assert traced == ends


def test_a_missing_prompt_is_neither_shown_nor_traced(
    call: Call, trained: Trained, tmp_path: Path
) -> None:
    flags = ("--max_new_tokens=20", "--trace", str(tmp_path / "t.jsonl"))
    text = call("predict", *flags).out
    start = trained.tokenizer.prompt()
    assert trained.tokenizer.decode(start).strip("\n") == ""
    new = trained.until_the_end(generate(trained.model, [start], 20, Sampler([1337]))[0])
    assert [line["token"] for line in lines(tmp_path / "t.jsonl")] == new
    assert "".join(line["text"] for line in lines(tmp_path / "t.jsonl")) == text.removesuffix("\n")


def test_losses_are_told_per_token_and_per_character(call: Call, trained: Trained) -> None:
    (trained.path.parents[2] / "other.txt").write_text(TEXT[:500], encoding="utf-8")
    ids = trained.tokenizer.encode(TEXT[:500])
    out = call("test", "--data.test_corpus=other.txt").out
    units = "nats per token|bits per character|bits per byte"
    nats, bits, of_bytes = map(float, re.findall(rf"(\S+) (?:{units})", out))
    first = trained.tokenizer.decode(ids[:1])
    assert first == TEXT[: len(first)], "the first token is a whole character"
    for measured, count in (
        (bits, len(TEXT[len(first) : 500])),
        (of_bytes, len(TEXT[len(first) : 500].encode())),
    ):
        assert measured == pytest.approx(nats * (len(ids) - 1) / count / math.log(2), rel=1e-4)
    for command in ("validate", "inspect"):
        ended = call(command)
        assert ended.status in (0, 3), ended.err
        assert "bits per character" in ended.out
        assert "bits per byte" in ended.out


def test_a_run_keeps_its_losses_per_byte(trained: Trained) -> None:
    with (trained.path.parent / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val_loss"]]
    assert len(rows) == 2
    ids = trained.tokenizer.encode(TEXT)
    validated = ids[len(ids) * 9 // 10 :]
    text = trained.tokenizer.decode(validated[1:]).lstrip("\ufffd")
    assert TEXT.endswith(text)
    for row in rows:
        bits = float(row["val_loss"]) * (len(validated) - 1) / math.log(2)
        # The first tokens may be up to three bytes of a character that begins before them.
        counts = [len(text.encode()) + more for more in range(4)]
        assert float(row["val_bits_per_byte"]) in [
            pytest.approx(bits / n, rel=1e-6) for n in counts
        ]


def test_a_run_resumes_with_its_tokenizer(call: Call, trained: Trained, tmp_path: Path) -> None:
    ended = call("fit", "--trainer.max_steps=12", "--run.name=more", f"--run.root={tmp_path}")
    assert ended.status == 0, ended.err
    more = read(tmp_path / "more/last.ckpt")
    assert more["makemoe"]["tokenizer"] == trained.tokenizer.spec()


def test_weights_in_bf16_are_sampled_in_float32(
    call: Call, trained: Trained, tmp_path: Path, makemoe: Call
) -> None:
    held = read(trained.path)
    weights = {name: weight.bfloat16() for name, weight in held["state_dict"].items()}
    write(held | {"state_dict": weights}, tmp_path / "b.ckpt")
    flags = ("predict", f"--ckpt_path={tmp_path / 'b.ckpt'}", "--max_new_tokens=200")
    flags += tuple(f"--trust={module}" for module in trained.trust)
    out = makemoe(*flags, "--num_samples=8").out
    model = load_for_inference(tmp_path / "b.ckpt", trained.trust)[0].float()
    start = trained.tokenizer.prompt()
    texts = [generate(model, [start], 200, Sampler([1337 + n]))[0] for n in range(8)]
    texts = list(map(trained.until_the_end, texts))
    expected = SEPARATOR.join(trained.tokenizer.decode(ids) for ids in texts)
    assert out.removesuffix("\n") == expected.removesuffix("\n")
