"""Sub-words on the command line: what is refused, and what a checkpoint of a stranger may say."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import TINY, Ended, listing, refused, script

from makemoe.checkpoint.format import read, write
from makemoe.cli.options import UNHEALTHY
from makemoe.data.bpe import BPETokenizer
from makemoe.data.corpus import load_text

Call = Callable[..., Ended]
SUB_WORDS = "--data.tokenizer=BPETokenizer"
COMMANDS = {
    "fit": ("--trainer.max_steps=22", "--run.name=more"),
    "validate": (),
    "test": (),
    "inspect": (),
    "predict": ("--max_new_tokens=5",),
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; batches are loaded by other processes, of which nothing is said."""
    folder = tmp_path_factory.mktemp("sub_words")
    size = "--data.tokenizer.vocab_size=300"
    ended = script("fit", *TINY, SUB_WORDS, size, "--data.num_workers=2", cwd=folder)
    assert ended.status == 0, ended.err
    assert "fork" not in ended.err, ended.err
    return folder / "checkpoints/run/last.ckpt"


def test_a_checkpoint_holds_the_whole_tokenizer_as_data(learned: Path) -> None:
    spec = read(learned)["makemoe"]["tokenizer"]
    expected = BPETokenizer(300).fit(load_text("sample"))
    assert spec == expected.spec()
    assert all(isinstance(value, str | int) for value in spec["init_args"].values())
    config = (learned.parent / "config.yaml").read_text()
    assert "vocab_size: 300" in config
    assert "merges" not in config


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reads_it_in_another_folder(
    makemoe: Call, learned: Path, command: str
) -> None:
    ended = makemoe(command, *COMMANDS[command], f"--ckpt_path={learned}")
    assert ended.status in (0, UNHEALTHY), ended.err


def test_the_figures_of_inspect_are_those_of_the_run(makemoe: Call, learned: Path) -> None:
    told = json.loads(makemoe("inspect", f"--ckpt_path={learned}", "--json").out)
    lines = (learned.parent / "metrics.csv").read_text().splitlines()
    *_, last = (dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:])
    assert told["val_bits_per_byte"] == pytest.approx(float(last["val_bits_per_byte"]), rel=1e-5)


@pytest.mark.parametrize(
    ("size", "status", "words"),
    [
        ("51200", 1, ["--data.corpus 'sample': vocab_size 51200 is more than the 2179 tokens"]),
        ("256", 2, ["vocab_size 256 is out of range: use 257 (256 bytes and the end of a text)"]),
        ("many", 2, ["--data.tokenizer", "vocab_size"]),
    ],
)
def test_a_vocabulary_of_a_wrong_size_is_refused(
    makemoe: Call, size: str, status: int, words: list[str]
) -> None:
    refused(makemoe, status, words, "fit", *TINY, SUB_WORDS, f"--data.tokenizer.vocab_size={size}")


def test_without_the_library_one_line_says_what_to_install(
    makemoe: Call, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    words = ["BPETokenizer needs the package tokenizers: pip install 'makemoe[bpe]'"]
    refused(makemoe, 2, words, "fit", *TINY, SUB_WORDS)
    for command, more in COMMANDS.items():
        refused(makemoe, 2, words, command, *more, f"--ckpt_path={learned}")


HOSTILE = {
    "a list": (["a"], "has an argument vocabulary of BPETokenizer that is a list, not a string"),
    "a class": (
        {"class_path": "os.system"},
        "has an argument vocabulary of BPETokenizer that is a dict, not a string",
    ),
    "a file": ("/etc/passwd", "vocabulary is not the JSON text of a tokenizer.json"),
    "YAML": ("!!python/name:os.system", "vocabulary is not the JSON text of a tokenizer.json"),
    "another model": ('{"model": {"type": "WordPiece"}}', "vocabulary is not a BPE"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_forged_vocabulary_is_refused_in_one_line(
    makemoe: Call, learned: Path, kind: str, command: str
) -> None:
    value, words = HOSTILE[kind]
    held = read(learned)
    held["makemoe"]["tokenizer"]["init_args"]["vocabulary"] = value
    write(held, "forged.ckpt")
    before = listing(Path())
    ended = makemoe(command, *COMMANDS[command], "--ckpt_path=forged.ckpt")
    assert ended.status == 1, ended
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.out == ""
    assert "forged.ckpt is damaged or forged: its " in ended.error
    assert words in ended.error
    assert listing(Path()) == before


def test_an_end_that_the_vocabulary_lacks_is_refused(makemoe: Call, learned: Path) -> None:
    held = read(learned)
    held["makemoe"]["tokenizer"]["init_args"]["end_of_text"] = "</s>"
    write(held, "forged.ckpt")
    ended = makemoe("predict", "--ckpt_path=forged.ckpt")
    assert ended.status == 1
    assert "end_of_text '</s>' is no special token of the vocabulary" in ended.error


def test_a_vocabulary_of_another_size_than_the_model_s_is_refused(
    makemoe: Call, learned: Path
) -> None:
    held = read(learned)
    larger = BPETokenizer(301).fit(load_text("sample"))
    held["makemoe"]["tokenizer"] = larger.spec()
    write(held, "forged.ckpt")
    ended = makemoe("predict", "--ckpt_path=forged.ckpt")
    assert ended.status == 1
    assert "it has 301 symbols for 300 embeddings" in ended.error
