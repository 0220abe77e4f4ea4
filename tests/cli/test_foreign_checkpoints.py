"""Checkpoints that are damaged, a stranger's or not ours, and URLs."""

import http.server
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commandline import TINY, Ended, refused

from makemoe.checkpoint.format import read, write
from makemoe.data.corpus import load_text

Call = Callable[..., Ended]

EVALUATIONS = ("validate", "test", "predict")
READERS = ("fit", *EVALUATIONS)


class Folder:
    """Pickles as a call that makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def damaged(kind: str, whole: bytes) -> bytes | None:
    match kind:
        case "cut short":
            return whole[: len(whole) // 2]
        case "empty":
            return b""
        case "random bytes":
            return os.urandom(2000)
        case "text":
            return b"To be, or not to be" * 9
        case "zip":
            return b"PK\3\4" + whole[4:100]
    return None


@pytest.mark.parametrize("kind", ["cut short", "empty", "random bytes", "text", "zip", "missing"])
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_a_file_that_is_no_checkpoint(
    makemoe: Call, trained: Path, command: str, kind: str
) -> None:
    content = damaged(kind, (trained / "checkpoints/tiny/last.ckpt").read_bytes())
    if content is not None:
        Path("my.ckpt").write_bytes(content)
    says = {"cut short": "truncated", "zip": "truncated", "missing": "no checkpoint my.ckpt"}
    words = ["my.ckpt", says.get(kind, "not a checkpoint")]
    refused(makemoe, 1, words, command, "--ckpt_path", "my.ckpt")


@pytest.mark.parametrize("command", READERS)
def test_a_folder_is_no_checkpoint(makemoe: Call, copied: Path, command: str) -> None:
    words = ["checkpoints/tiny is a folder", "checkpoints/tiny/last.ckpt"]
    refused(makemoe, 1, words, command, "--ckpt_path", "checkpoints/tiny")


@pytest.mark.parametrize("command", ["fit", "predict"])
@pytest.mark.parametrize(
    "content",
    [{"weights": torch.zeros(2)}, torch.zeros(2), {"state_dict": {}, "hyper_parameters": {}}],
    ids=["dict", "tensor", "another Lightning module's"],
)
def test_a_checkpoint_of_others(makemoe: Call, command: str, content: object) -> None:
    torch.save(content, "my.ckpt")
    words = ["my.ckpt", "not a makemoe checkpoint"]
    refused(makemoe, 1, words, command, "--ckpt_path", "my.ckpt")


@pytest.mark.parametrize("forced", [False, True], ids=["", "weights_only forced off"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_checkpoint_runs_no_code(
    makemoe: Call,
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    forced: bool,
) -> None:
    content = torch.load(copied / "last.ckpt", weights_only=True) | {"more": Folder()}
    if form == "pickle":
        Path("my.ckpt").write_bytes(pickle.dumps(content))
        pickle.loads(Path("my.ckpt").read_bytes())
    else:
        torch.save(content, "my.ckpt", _use_new_zipfile_serialization=form == "zip")
        torch.load("my.ckpt", weights_only=False)
    Path("ran").rmdir()  # there: the file is as bad as it should be
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    words = ["my.ckpt", "code" if form == "zip" else "not a checkpoint"]
    for command in READERS:
        refused(makemoe, 1, words, command, "--ckpt_path", "my.ckpt")


@pytest.fixture
def address() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback, and the requests it got."""
    got: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            got.append("connection")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/my.ckpt", got
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("command", READERS)
def test_no_checkpoint_is_fetched(
    makemoe: Call, address: tuple[str, list[str]], command: str
) -> None:
    url, got = address
    refused(makemoe, 1, [url, "download it"], command, "--ckpt_path", url)
    assert not got


def doctored(copied: Path, room: str, **changes: Any) -> None:
    """Write my.ckpt: a checkpoint of ours with other settings in it."""
    content = read(copied / "last.ckpt")
    content[room] |= changes
    write(content, "my.ckpt")


LAMBDA = {"class_path": "torch.optim.lr_scheduler.LambdaLR"}
TOPK = {"class_path": "makemoe.model.router.TopKRouter"}
COSINE = {"class_path": "makemoe.training.optim.WarmupCosine"}
RUNS_IN_SYMPY = (
    "{class_path: sympy.core.function.Lambda, init_args: "
    """{signature: "__import__('os').mkdir('ran')", expr: 2001-99-99}}"""
)
STRANGERS: dict[str, tuple[str, str, object, str]] = {
    # room, setting, what the checkpoint says there, what is said of it
    "router": ("hyper_parameters", "router", "stranger.Router", "--trust stranger"),
    "router's init_args": (
        *("hyper_parameters", "router", TOPK | {"init_args": {"a": "stranger.Router"}}),
        "TopKRouter does not take",
    ),
    "router in YAML": (
        *("hyper_parameters", "router", "{class_path: stranger.Router}"),
        "does not name a class",
    ),
    "router in quotes": (
        "hyper_parameters",
        "router",
        '"stranger\\x2eRouter"',
        "does not name a class",
    ),
    "router in a file": ("hyper_parameters", "router", "my.yaml", "--trust my"),
    "router that is a function": ("hyper_parameters", "router", "makemoe.cli.main", "not a Router"),
    "router that runs the command line": (
        *("hyper_parameters", "router"),
        {"class_path": "makemoe.cli.main", "init_args": {"argv": ["fit"]}},
        "not a Router",
    ),
    "router from what we import": (
        *("hyper_parameters", "router", "makemoe.checkpoint.held.os.mkdir"),
        "cannot be imported",
    ),
    "optimizer": (
        *("hyper_parameters", "optimizer", {"class_path": "stranger.Router"}),
        "--trust stranger",
    ),
    "optimizer that is a schedule": (
        *("hyper_parameters", "optimizer", {"class_path": "torch.optim.lr_scheduler.StepLR"}),
        "not a Optimizer",
    ),
    "optimizer with code for an argument": (
        *("hyper_parameters", "optimizer"),
        {"class_path": "torch.optim.SGD", "init_args": {"lr": "stranger.Router"}},
        "not a number",
    ),
    "init": ("hyper_parameters", "init", {"class_path": "stranger.Router"}, "--trust stranger"),
    "size": ("hyper_parameters", "n_embd", "stranger.Router", "not an integer"),
    "lr_lambda": (
        *("hyper_parameters", "lr_scheduler"),
        LAMBDA | {"init_args": {"lr_lambda": "stranger.Router"}},
        "may not name",
    ),
    "lr_lambda in YAML": (
        *("hyper_parameters", "lr_scheduler"),
        LAMBDA | {"init_args": {"lr_lambda": RUNS_IN_SYMPY}},
        "may not name",
    ),
    "schedule's number in YAML": (
        *("hyper_parameters", "lr_scheduler"),
        COSINE | {"init_args": {"warmup_steps": 1, "total_steps": RUNS_IN_SYMPY}},
        "not an integer",
    ),
    "balancers": (
        *("hyper_parameters", "balancers", [{"class_path": "stranger.Router"}]),
        "--trust stranger",
    ),
    "tokenizer": ("makemoe", "tokenizer", {"class_path": "stranger.Router"}, "--trust stranger"),
    "vocabulary": (
        *("makemoe", "tokenizer"),
        {
            "class_path": "makemoe.data.tokenizer.CharTokenizer",
            "init_args": {"vocabulary": ["stranger.Router"]},
        },
        "not a string",
    ),
    "settings": ("makemoe", "settings", {"trainer.precision": "stranger.Router"}, "precision"),
}
STRANGER = "import pathlib\npathlib.Path('ran').mkdir()\nclass Router: ...\n"


@pytest.mark.parametrize("case", STRANGERS)
def test_a_checkpoint_names_no_strangers(makemoe: Call, copied: Path, case: str) -> None:
    room, key, value, said = STRANGERS[case]
    Path("stranger.py").write_text(STRANGER)
    Path("my.yaml").write_text("class_path: stranger.Router\n")
    doctored(copied, room, **{key: value})
    sampling = ["predict", "inspect"] if key in ("router", "tokenizer", "n_embd") else []
    for command in ("fit", "validate", *sampling):
        refused(makemoe, 1, ["my.ckpt", said], command, "--ckpt_path", "my.ckpt")


def test_the_user_overrules_what_a_checkpoint_may_not_name(makemoe: Call, copied: Path) -> None:
    Path("stranger.py").write_text(STRANGER)
    doctored(copied, "hyper_parameters", lr_scheduler=LAMBDA | {"init_args": {"lr_lambda": "a.b"}})
    flags = ("--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "5")
    ended = makemoe("fit", "--ckpt_path", "my.ckpt", "--trainer.max_steps", "22", *flags)
    assert ended.status == 0, ended.err


@pytest.mark.parametrize("name", ["relu", "auto", "position", "sample", "01", "TopKRouter"])
def test_files_named_as_settings_are_do_not_matter(makemoe: Call, copied: Path, name: str) -> None:
    spec = {"class_path": "makemoe.data.tokenizer.CharTokenizer"}
    if name == "01":  # a vocabulary that is also a number in YAML, and a folder
        Path("my.txt").write_text("0110" * 99)
        flags = (*TINY, "--data.corpus", "my.txt", "--run.name", "binary")
        assert makemoe("fit", *flags).status == 0
        path = "checkpoints/binary/last.ckpt"
        assert read(path)["makemoe"]["tokenizer"] == spec | {"init_args": {"vocabulary": "01"}}
        Path(name).mkdir()
    else:
        path = "checkpoints/tiny/last.ckpt"
        Path(name).write_text("class_path: stranger.Router")
    ended = makemoe("fit", "--ckpt_path", path, "--trainer.max_steps", "22")
    assert ended.status == 0, ended.err
    assert makemoe("validate", "--ckpt_path", path).status == 0


@pytest.mark.parametrize(
    "text", ["{a: b}", "null", "- x", "e.g", "&a [*a]", "1e3", "'", "a\u2028b"]
)
def test_a_text_in_a_checkpoint_stands_for_itself(makemoe: Call, copied: Path, text: str) -> None:
    Path(text).write_text(load_text("sample"))
    doctored(copied, "datamodule_hyper_parameters", corpus=text)
    ended = makemoe("validate", "--ckpt_path", "my.ckpt")
    assert ended.status == 0, ended.err
    assert ended.out.endswith(f"of {text}\n")
    printed = makemoe("fit", "--ckpt_path", "my.ckpt", "--print_config").out
    assert yaml.safe_load(printed)["data"]["corpus"] == text


def test_a_checkpoint_sets_no_callbacks_and_no_trust(makemoe: Call, copied: Path) -> None:
    Path("stranger.py").write_text(STRANGER)
    settings = {
        "trainer.callbacks": [{"class_path": "stranger.Router"}],
        "trainer.logger": {"class_path": "stranger.Router"},
        "trust": ["stranger"],
        "model": "stranger.Router",
        "run.root": "elsewhere",
    }
    doctored(copied, "makemoe", settings=settings)
    assert makemoe("validate", "--ckpt_path", "my.ckpt").status == 0
    assert not Path("ran").exists()


def test_a_stranger_is_let_in_by_name(makemoe: Call, copied: Path) -> None:
    Path("stranger.py").write_text(STRANGER)
    doctored(copied, "hyper_parameters", router="stranger.Router")
    ended = makemoe("predict", "--ckpt_path", "my.ckpt", "--trust", "stranger")
    assert Path("ran").exists()
    assert "its model.router is stranger.Router, which is not a Router" in ended.error
    assert ended.status == 1


@pytest.mark.parametrize("command", READERS)
def test_a_checkpoint_of_another_version(makemoe: Call, copied: Path, command: str) -> None:
    doctored(copied, "makemoe", format=99, version="9.9")
    words = ["my.ckpt", "format 99", "makemoe 9.9"]
    refused(makemoe, 1, words, command, "--ckpt_path", "my.ckpt")


def test_weights_that_do_not_fit(makemoe: Call, copied: Path) -> None:
    doctored(copied, "hyper_parameters", n_embd=32)
    for command in EVALUATIONS:
        words = ["size mismatch", "16", "32"] if command == "predict" else ["is damaged", "16"]
        refused(makemoe, 1, words, command, "--ckpt_path", "my.ckpt")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model.n_layer 2", "n_layer 2, checkpoint has 1"),
        ("--model.n_head 4 --model.num_experts 4", "num_experts 4, checkpoint has 3"),
        ("--model.experts.hidden 48", "experts.hidden 48, checkpoint has 0"),
        ("--model.dense_layers [0]", "dense_layers [0], checkpoint has []"),
        ("--model.shared_experts 1", "shared_experts 1, checkpoint has 0"),
        ("--model.router NoisyTopKRouter", "NoisyTopKRouter, checkpoint has makemoe"),
    ],
)
def test_what_differs_at_a_resume_is_named(
    makemoe: Call, copied: Path, flags: str, words: str
) -> None:
    before = (copied / "config.yaml").read_bytes()
    ended = makemoe("fit", "--ckpt_path", "last", *flags.split())
    assert ended.status == 1
    assert words in ended.error
    assert "omit these options to resume, or start a new run" in ended.error
    assert (copied / "config.yaml").read_bytes() == before


def test_a_setting_of_the_wrong_kind(makemoe: Call, copied: Path) -> None:
    doctored(copied, "hyper_parameters", n_embd="sixteen")
    for command in ("fit", "validate", "test"):
        refused(makemoe, 1, ["my.ckpt", "n_embd", "sixteen"], command, "--ckpt_path", "my.ckpt")


def test_a_vocabulary_that_does_not_fit(makemoe: Call, copied: Path) -> None:
    spec = {"class_path": "makemoe.data.tokenizer.CharTokenizer"}
    doctored(copied, "makemoe", tokenizer=spec | {"init_args": {"vocabulary": "ab\n"}})
    refused(makemoe, 1, ["my.ckpt", "3 symbols"], "predict", "--ckpt_path", "my.ckpt")
