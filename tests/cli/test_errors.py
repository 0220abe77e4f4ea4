import http.server
import os
import pickle
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commandline import MAKEMOE, TINY, Ended, little_space, refused, script

from makemoe.checkpoint.format import read, write
from makemoe.data.corpus import load_text

Call = Callable[..., Ended]

EVALUATIONS = ("validate", "test", "predict")
READERS = ("fit", *EVALUATIONS)

WRONG_DATA = {
    "missing": (None, ["text.txt", "no such file"]),
    "empty": (b"", ["text.txt", "is empty"]),
    "short": (b"ab" * 8, ["text.txt", "16 tokens", "block_size 16", "--model.block_size"]),
    "not UTF-8": (b"Gr\xfc\xdfe, and more" * 50, ["text.txt", "UTF-8", "0xfc", "offset 2"]),
    "one character": (b"aaaa" * 50, ["text.txt", "'a'", "two distinct characters"]),
}

WRONG_FLAGS = [
    ("--model.top_k 4", ["top_k 4", "num_experts 3", "lower top_k"]),
    ("--model.n_head 3", ["n_embd 16", "n_head 3", "divisible"]),
    ("--model.n_layer 0", ["n_layer 0", "1 or more"]),
    ("--model.n_embd -4", ["n_embd -4", "1 or more"]),
    ("--model.num_experts 0", ["num_experts 0", "1 or more"]),
    ("--model.block_size 0", ["block_size 0", "1 or more"]),
    ("--model.top_k -1", ["top_k -1", "1 or more"]),
    ("--model.dropout 1.0", ["dropout 1.0", "less than 1"]),
    ("--model.capacity_factor 0", ["capacity_factor 0.0", "above 0"]),
    ("--data.batch_size 0", ["batch_size 0", "1 or more"]),
    ("--data.eval_batch_size -1", ["eval_batch_size -1", "1 or more"]),
    ("--data.num_workers -1", ["num_workers -1", "0 "]),
    ("--trainer.max_steps -5", ["--trainer.max_steps -5", "1 or more"]),
    ("--trainer.val_check_interval 0", ["--trainer.val_check_interval 0", "1 or more"]),
    ("--trainer.accumulate_grad_batches 0", ["accumulate_grad_batches 0", "1 or more"]),
    ("--trainer.log_every_n_steps -1", ["--trainer.log_every_n_steps -1", "1 or more"]),
    ("--trainer.devices 0", ["--trainer", "devices='0'"]),
    ("--trainer.devices=", ["--trainer", "devices"]),
    ("--trainer.limit_val_batches 1e-131", ["--trainer", "limit_val_batches"]),
    ("--trainer.accelerator gpuu", ["--trainer", "gpuu", "cpu"]),
    ("--trainer.precision half", ["--trainer.precision", "half", "bf16-mixed"]),
    ("--run.save_every_n_steps 0", ["save_every_n_steps 0", "1 or more"]),
    ("--run.sample_tokens -1", ["sample_tokens -1", "0 for no samples"]),
    ("--run.sample_prompt=", ["sample_prompt is empty"]),
    ("--run.name a/b", ["'a/b'", "--run.root"]),
    ("--seed -1", ["--seed -1", "use 0 to 2**"]),
    ("--n_embed 3", ["--n_embed", "did you mean --model.n_embd?"]),
    ("--model.n_embed 3", ["--model.n_embed", "did you mean --model.n_embd?"]),
    ("--model.experts.hiden 3", ["--model.experts", "hiden", "did you mean hidden?"]),
    ("--model.n_embd abc", ["--model.n_embd", "int", "abc"]),
    ("--model.experts.hidden abc", ["--model.experts.hidden", "int", "abc"]),
    ("--model.drop_order random", ["--model.drop_order", "'position', 'weight'", "random"]),
    ("--model.router NoisyTopK", ["--model.router", "NoisyTopK", "did you mean NoisyTopKRouter?"]),
    ("--model.router os.system", ["--model.router", "os.system", "Router"]),
    ("--model.optimizer torch.optim.AdamW --model.optimizer.lr -3", ["optimizer", "-3"]),
    (
        "--model.lr_scheduler StepLR --model.lr_scheduler.step_size 0",
        ["--model.lr_scheduler", "zero"],
    ),
    ("--model.vocab_size 9", ["--model.vocab_size", "omit it"]),
]

WRONG_YAML = [
    ("model:\n  n_layer: 2\n n_head: [\n", ["invalid YAML", "line 3"]),
    ("- 1\n", ["no settings"]),
    ("", ["no settings"]),
    ("model:\n  n_embed: 2\n", ["model.n_embed", "did you mean model.n_embd?"]),
    ("modle:\n  n_embd: 2\n", ["modle.n_embd", "did you mean model.n_embd?"]),
    ("model:\n  n_embd: wide\n", ["--model.n_embd", "int", "wide"]),
    (
        "model:\n  experts:\n    class_path: makemoe.model.experts.MLPExperts\n"
        "    init_args: {hiden: 3}\n",
        ["--model.experts", "hiden", "did you mean hidden?"],
    ),
    (
        "model:\n  lr_scheduler:\n    class_path: makemoe.training.optim.WarmupCosine\n"
        "    init_args: {warmup_step: 3, total_steps: 5}\n",
        ["--model.lr_scheduler", "warmup_step", "did you mean warmup_steps?"],
    ),
    (
        "model:\n  router: makemoe.model.router.NoisyRouter\n",
        ["--model.router", "unknown class NoisyRouter"],
    ),
]

WRONG_PREDICT = [
    ("--temperature -0.5", 2, ["temperature -0.5", "0 (greedy)"]),
    ("--temperature nan", 2, ["temperature nan"]),
    ("--sample_top_k 0", 2, ["sample_top_k 0", "1 or more"]),
    ("--sample_top_p 2", 2, ["sample_top_p 2.0", "at most 1"]),
    ("--max_new_tokens 0", 2, ["--max_new_tokens 0", "1 or more"]),
    ("--num_samples -1", 2, ["--num_samples -1", "1 or more"]),
    ("--seed -1", 2, ["--seed -1", "use 0 to 2**"]),
    ("--stop=", 2, ["--stop", "empty"]),
    ("--prompt=", 2, ["prompt is empty"]),
    ("--prompt Grüße", 1, ["--prompt", "'ü'", "U+00FC", "offset 2"]),
    ("--prompt_file nowhere.txt", 1, ["--prompt_file nowhere.txt", "No such file"]),
    ("--prompt_file .", 1, ["--prompt_file .", "directory"]),
    ("--device abacus", 2, ["--device abacus", "--device cpu"]),
    ("--device meta", 2, ["--device meta", "--device cpu"]),
    ("--max_new_token 5", 2, ["--max_new_token", "did you mean --max_new_tokens?"]),
    ("--temperature warm", 2, ["--temperature: expected float (got 'warm')"]),
    ("--show_experts x", 2, ["--show_experts: expected int (got 'x')"]),
    ("--seed", 2, ["--seed: expected one argument"]),
    ("--help=x", 2, ["--help: takes no value (got 'x')"]),
    ("loose", 2, ["unknown option loose"]),
]


@pytest.mark.parametrize("case", WRONG_DATA)
def test_a_text_that_cannot_be_trained_on(makemoe: Call, case: str) -> None:
    content, words = WRONG_DATA[case]
    if content is not None:
        Path("text.txt").write_bytes(content)
    refused(makemoe, 1, ["--data.corpus", *words], "fit", *TINY, "--data.corpus", "text.txt")


def test_a_folder_is_no_text(makemoe: Call) -> None:
    refused(makemoe, 1, ["--data.corpus '.'", "folder"], "fit", *TINY, "--data.corpus", ".")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, ["no such file"]), (b"ab\xff", ["offset 2"]), ("Grüße".encode(), ["'ü'", "offset 2"])],
)
def test_a_text_that_cannot_be_tested_on(
    makemoe: Call, copied: Path, content: bytes | None, words: list[str]
) -> None:
    if content is not None:
        Path("t.txt").write_bytes(content)
    words = ["--data.test_corpus 't.txt'", *words]
    refused(makemoe, 1, words, "test", "--ckpt_path", "last", "--data.test_corpus", "t.txt")


@pytest.mark.parametrize(("flags", "words"), WRONG_FLAGS)
def test_flags_that_cannot_be(makemoe: Call, flags: str, words: list[str]) -> None:
    refused(makemoe, 2, words, "fit", *TINY, *flags.split())


@pytest.mark.parametrize(("text", "words"), WRONG_YAML)
def test_config_files_that_cannot_be(makemoe: Call, text: str, words: list[str]) -> None:
    Path("my.yaml").write_text(text)
    refused(makemoe, 2, words, "fit", "--config", "my.yaml")


def test_a_config_file_that_is_not_there(makemoe: Call) -> None:
    refused(makemoe, 2, ["--config my.yaml", "No such file"], "fit", "--config=my.yaml")
    refused(makemoe, 2, ["--config .", "directory"], "fit", "--config", ".")


@pytest.mark.parametrize(("flags", "status", "words"), WRONG_PREDICT)
def test_predictions_that_cannot_be(
    makemoe: Call, trained: Path, flags: str, status: int, words: list[str]
) -> None:
    path = str(trained / "checkpoints/tiny/last.ckpt")
    refused(makemoe, status, words, "predict", "--ckpt_path", path, *flags.split())


def test_a_prompt_file_that_is_not_utf_8(makemoe: Call, copied: Path) -> None:
    Path("p.txt").write_bytes(b"ab\xff")
    words = ["--prompt_file p.txt", "byte 2"]
    refused(makemoe, 1, words, "predict", "--ckpt_path", "last", "--prompt_file", "p.txt")


@pytest.mark.parametrize("command", [*EVALUATIONS, "inspect"])
def test_evaluation_asks_for_a_checkpoint(makemoe: Call, command: str) -> None:
    refused(makemoe, 2, ["--ckpt_path is missing: which model to", "(try `last`)"], command)
    refused(makemoe, 2, ["did you mean --ckpt_path?"], command, "--ckpt_pth", "last")


@pytest.mark.parametrize("word", ["last", "best"])
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_nothing_to_go_on_from(makemoe: Call, command: str, word: str) -> None:
    words = [f"--ckpt_path {word}", "checkpoints/", "makemoe fit"]
    refused(makemoe, 1, words, command, "--ckpt_path", word)


def test_an_unknown_command(makemoe: Call) -> None:
    refused(makemoe, 2, ["'fitt'", "did you mean fit?"], "fitt")
    refused(makemoe, 2, ["'--config'"], "--config", "my.yaml")


def test_a_run_is_not_overwritten(makemoe: Call, copied: Path) -> None:
    words = ["checkpoints/tiny", "--ckpt_path checkpoints/tiny/last.ckpt", "--run.name"]
    refused(makemoe, 2, words, "fit", *TINY, "--run.name", "tiny")


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


def test_a_full_disk_leaves_the_old_checkpoint(copied: Path, tmp_path: Path) -> None:
    before = (copied / "last.ckpt").read_bytes()
    assert len(before) > 50_000
    ended = script(
        *("fit", "--ckpt_path", "last", "--trainer.max_steps", "22"),
        cwd=tmp_path,
        preexec_fn=little_space,
    )
    assert ended.status == 1
    assert "checkpoints/tiny/last.ckpt" in ended.error
    assert "--run.root" in ended.error
    assert (copied / "last.ckpt").read_bytes() == before
    assert read(copied / "last.ckpt")["global_step"] == 20
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("command", ["predict", "inspect", "validate"])
def test_an_output_that_is_full(trained: Path, command: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [MAKEMOE, command, "--ckpt_path", "last"],
            cwd=trained,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    *_, told = done.stderr.splitlines()
    assert told == "makemoe: error: cannot write standard output: No space left on device"
    assert done.returncode == 1


def test_a_folder_that_cannot_be_made(makemoe: Call) -> None:
    Path("file").write_text("in the way")
    words = ["file/runs", "Not a directory", "--run.root"]
    refused(makemoe, 1, words, "fit", *TINY, "--run.root", "file/runs")
