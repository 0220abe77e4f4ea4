from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import TINY, Ended, little_space, refused, script

from makemoe.checkpoint.format import read

Call = Callable[..., Ended]

EVALUATIONS = ("validate", "test", "predict")

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
        ended = script(command, "--ckpt_path", "last", cwd=trained, stdout=full)
    *_, told = ended.err.splitlines()
    assert told == "makemoe: error: cannot write standard output: No space left on device"
    assert ended.status == 1


def test_a_folder_that_cannot_be_made(makemoe: Call) -> None:
    Path("file").write_text("in the way")
    words = ["file/runs", "Not a directory", "--run.root"]
    refused(makemoe, 1, words, "fit", *TINY, "--run.root", "file/runs")
