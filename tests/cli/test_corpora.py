"""Corpora of several documents, from training to every command that reads a checkpoint."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import TINY, Ended, refused, script
from corpora import TEXTS, expected, is_held_out, write_file, write_folder
from processes import DDP

from makemoe.checkpoint.format import read, write

Call = Callable[..., Ended]
MANY = [f"{number}. {text}" for number in range(5) for text in TEXTS]
SHORT = (
    *TINY,
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=4",
    "--trainer.log_every_n_steps=4",
)
LOSS = re.compile(r"_loss (\d+\.\d+) nats")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "makemoe" / "tokens"


def loss(ended: Ended) -> float:
    assert ended.status == 0, ended.err
    found = LOSS.search(ended.out)
    assert found is not None
    return float(found[1])


def held_out(texts: list[str], seed: int) -> str:
    count = sum(is_held_out(text, seed) for text in texts)
    return f"the validation split ({count} of {len(texts)} documents) of "


def test_every_command_finds_the_split_of_the_training_again(makemoe: Call) -> None:
    write_file(Path("c/a.jsonl.zst"), MANY[:150], key="body")
    write_file(Path("c/b.jsonl"), MANY[150:], key="body")
    how = ("--data.corpus=c/*", "--data.text_key=body", "--data.split_seed=5")
    ended = makemoe("fit", *SHORT, *how, "--run.name=one")
    assert ended.status == 0, ended.err
    count = sum(is_held_out(text, 5) for text in MANY)
    assert f"data    c/*: {len(MANY) - count} and {count} documents, " in ended.err
    data = read("checkpoints/one/last.ckpt")["datamodule_hyper_parameters"]
    assert (data["corpus"], data["text_key"], data["split_seed"]) == ("c/*", "body", 5)

    validated = makemoe("validate", "--ckpt_path=one")
    assert held_out(MANY, 5) + "c/*" in validated.out
    inspected = json.loads(makemoe("inspect", "--ckpt_path=one", "--json").out)
    tested = makemoe("test", "--ckpt_path=one")
    # The same documents as one text, which has a loss of its own.
    Path("held_out.txt").write_bytes(expected(MANY, 5)[1].encode())
    alone = makemoe("test", "--ckpt_path=one", "--data.test_corpus=held_out.txt")
    assert loss(validated) == loss(tested) == loss(alone) == round(inspected["val_loss"], 4)
    moved = makemoe("validate", "--ckpt_path=one", "--data.split_seed=6")
    assert held_out(MANY, 6) in moved.out
    assert loss(moved) != loss(validated)


def test_a_resumed_run_keeps_its_split(makemoe: Call) -> None:
    write_folder(Path("c"), MANY)
    makemoe("fit", *SHORT, "--data.corpus=c", "--data.split_seed=5", "--run.name=one")
    ended = makemoe("fit", "--ckpt_path=one", "--trainer.max_steps=6")
    assert ended.status == 0, ended.err
    assert held_out(MANY, 5) in makemoe("validate", "--ckpt_path=one").out


def test_a_test_corpus_may_be_a_folder_or_a_pattern(makemoe: Call) -> None:
    write_folder(Path("c"), MANY)
    write_file(Path("c/z.jsonl.gz"), [*MANY[:9], ""])
    makemoe("fit", *SHORT, "--data.corpus=c", "--run.name=one")
    Path("all.txt").write_bytes(expected([*MANY, *MANY[:9]], None)[0].encode())
    whole = makemoe("test", "--ckpt_path=one", "--data.test_corpus=all.txt")
    for name in ("c", "c/**"):
        ended = makemoe("test", "--ckpt_path=one", f"--data.test_corpus={name}")
        assert loss(ended) == loss(whole)
        assert "left out an empty document: z.jsonl.gz, line 10\n" in ended.err


def test_two_processes_train_on_the_tokens_of_one(tmp_path: Path, cache: Path) -> None:
    write_file(tmp_path / "c.jsonl.gz", MANY)
    figures = []
    for name, options in (("one", ()), ("two", DDP)):
        arguments = [*options, *SHORT, "--data.corpus=c.jsonl.gz", f"--run.name={name}"]
        ended = script("fit", *arguments, cwd=tmp_path)
        assert ended.status == 0, ended.err
        with (tmp_path / "checkpoints" / name / "metrics.csv").open() as file:
            (row,) = csv.DictReader(file)
        figures.append([float(row["train_loss"]), float(row["val_loss"])])
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)
    assert len(list(cache.glob("*.npy"))) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.jsonl", b'{"text": "a"}\n{"text"\n', ["line 2 is not JSON", "with the key 'text'"]),
        (
            "c.jsonl",
            b'{"body": "a"}\n',
            ["line 1 has no key 'text', but 'body'", "--data.text_key"],
        ),
        ("c.jsonl", b'{"text": 1}\n', ["line 1: the value of 'text' is a number, not a string"]),
        ("c.txt.gz", b"\x1f\x8b", ["gzip data ends too early"]),
        ("c/a.png", b"", ["no text in this folder", ".txt or .jsonl", ".gz or .zst"]),
        ("c/a.jsonl", b'{"text": "abc"}\n', ["has only one document"]),
    ],
)
def test_a_corpus_that_is_none_is_refused(
    makemoe: Call, name: str, content: bytes, words: list[str]
) -> None:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    corpus = name.partition("/")[0]
    refused(
        makemoe, 1, [f"--data.corpus {corpus!r}", *words], "fit", *TINY, f"--data.corpus={corpus}"
    )


def test_a_pattern_that_the_shell_has_expanded_is_told(makemoe: Call) -> None:
    refused(
        makemoe,
        2,
        ["unknown option b.txt", "quote a pattern"],
        "fit",
        "--data.corpus",
        "a.txt",
        "b.txt",
    )


@pytest.mark.parametrize("seed", ["-1", str(2**62)])
def test_a_split_seed_out_of_range_is_refused(makemoe: Call, seed: str) -> None:
    refused(makemoe, 2, ["split_seed", "0 to 2**62 - 1"], "fit", *TINY, f"--data.split_seed={seed}")


def test_a_forged_split_seed_is_refused(makemoe: Call, copied: Path) -> None:
    checkpoint = dict(read(copied / "last.ckpt"))
    checkpoint["datamodule_hyper_parameters"]["split_seed"] = -1
    write(checkpoint, copied / "last.ckpt")
    refused(makemoe, 1, ["split_seed is -1"], "inspect", "--ckpt_path=last")
    refused(makemoe, 2, ["split_seed -1"], "validate", "--ckpt_path=last")
