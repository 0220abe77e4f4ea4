"""Settings of the wrong kind: each is refused in one line before anything starts."""

import os
import shlex
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import TINY, Ended, refused

Call = Callable[..., Ended]

WRONG_KINDS = {
    "data: {corpus: null}": ["--data.corpus", "str", "None"],
    "data: {corpus: 5}": ["--data.corpus", "str", "5"],
    'data: {corpus: "a\\0b"}': ["--config my.yaml", "data.corpus", "NUL"],
    "data: []": ["--data", "settings", "[]"],
    "data: {tokenizer: 5}": ["--data.tokenizer", "Tokenizer", "5"],
    "data: {tokenizer: {}}": ["--data.tokenizer", "{}"],
    "data: {tokenizer: {class_path: CharTokenizer, init_args: {vocabulary: aab}}}": ["repeats 'a'"],
    "run: 5": ["--run", "settings", "5"],
    "run: null": ["--run", "settings", "None"],
    "run: {root: null}": ["--run.root", "str", "None"],
    'run: {root: ""}': ["--run.root ''", "folder"],
    'run: {name: "a\\nb"}': ["--run.name", "folder"],
    "run: {pictures: null}": ["--run.pictures", "bool", "None"],
    "run: {sample_tokens: 1000000000}": ["--run.sample_tokens 1000000000", "100000"],
    "model: 3": ["--model", "settings", "3"],
    "model: other.yaml": ["--model", "settings", "other.yaml"],
    "model: {router: null}": ["--model.router", "class", "None"],
    "model: {router: []}": ["--model.router", "class", "[]"],
    "model: {router: {class_path: null}}": ["--model.router.class_path", "class", "None"],
    "model: {router: {class_path: TopKRouter, init_args: 5}}": ["--model.router.init_args", "5"],
    "model: {router: {class_path: TopKRouter, dict_kwargs: {a: 1}}}": ["router", "dict_kwargs"],
    "model: {router: {class_path: torch.optim.AdamW}}": ["--model.router", "Router class", "AdamW"],
    "model: {lr_scheduler: {}}": ["--model.lr_scheduler", "{}"],
    "model: {lr_scheduler: {class_path: WarmupLinear, init_args: "
    "{warmup_steps: 9, total_steps: 3}}}": [
        "--model.lr_scheduler: warmup_steps 9",
        "total_steps 3",
    ],
    "model: {optimizer: {class_path: makemoe.training.muon.Muon}}": [
        *("--model.optimizer", "--model.param_groups MuonMatrices")
    ],
    "model: {optimizer: null}": ["--model.optimizer", "class", "None"],
    "model: {optimizer: {class_path: AdamW, init_args: {lr: null}}}": ["optimizer.lr", "float"],
    "model: {init: {class_path: GPT2Normal, init_args: {std: -1}}}": ["std -1.0", "0 or more"],
    "model: {experts: {class_path: MLPExperts, init_args: {hidden: -3}}}": ["hidden -3", "1 or"],
    "model: {experts: {class_path: MLPExperts, init_args: {hidden: null}}}": ["experts.hidden"],
    "model: {balancers: 3}": ["--model.balancers", "list", "--model.balancers+ NAME"],
    "model: {balancers: null}": ["--model.balancers", "list", "None"],
    "model: {balancers: [null]}": ["--model.balancers", "Balancer class", "None"],
    "model: {n_layer: true}": ["--model.n_layer", "int", "True"],
    "model: {n_layer: null}": ["--model.n_layer", "int", "None"],
    "model: {n_layer: [1]}": ["--model.n_layer", "int", "[1]"],
    "model: {n_layer: {a: 1}}": ["--model.n_layer", "int", "a"],
    "model: {n_layer: 1.0}": ["--model.n_layer", "int", "1.0"],
    f"model: {{n_layer: {'9' * 6000}}}": ["--config my.yaml", "number"],
    "model: {n_layer: 9223372036854775808}": ["model.n_layer", "2**63"],
    "model: {dropout: .nan}": ["model.dropout", "nan"],
    "model: {dispatch: null}": ["--model.dispatch", "'auto'", "None"],
    "model: {dispatch: fastest}": ["--model.dispatch", "'auto'", "'grouped'", "fastest"],
    "seed: 2001-99-99": ["--seed", "int", "2001-99-99"],
    "seed: null": ["--seed", "int", "None"],
    "trust: 5": ["--trust", "list", "5"],
    "trust: [null]": ["--trust", "list", "None"],
    "trainer: abc": ["--trainer", "settings", "abc"],
    "trainer: {callbacks: 5}": ["--trainer.callbacks", "list"],
    "trainer: {callbacks: [5]}": ["--trainer.callbacks", "Callback class", "5"],
    "trainer: {logger: {}}": ["--trainer.logger", "{}"],
    "trainer: {max_steps: null}": ["--trainer.max_steps", "int", "None"],
    "trainer: {max_time: {}}": ["--trainer.max_time", "{}"],
    "config: other.yaml": ["config", "repeat the flag --config"],
    "config: [other.yaml]": ["config", "repeat the flag --config"],
    "model: {n_layer: 1}\nmodel: {n_layer: 2}": ["key model ", "twice", "1 and 2"],
    "model: {__path__: x}": ["__path__"],
    "{a b: 3}": ["a b"],
    "{'': 3}": ['""'],
}

WRONG_FLAGS = [
    ("--trainer.gradient_clip_val -1", ["--trainer.gradient_clip_val -1", "0 or more"]),
    ("--trainer.gradient_clip_val .inf", ["--trainer.gradient_clip_val", "finite"]),
    ("--trainer.max_epochs 0", ["--trainer.max_epochs 0", "1 or more"]),
    ("--trainer.min_steps 30", ["--trainer.min_steps 30", "max_steps 20"]),
    ("--trainer.max_time 00:00:00:00", ["--trainer.max_time", "DD:HH:MM:SS"]),
    ("--trainer.max_time '{hours: -1}'", ["--trainer.max_time", "DD:HH:MM:SS"]),
    ("--trainer.max_time '{foo: 1}'", ["--trainer.max_time", "foo"]),
    ("--trainer.limit_train_batches 0", ["--trainer.limit_train_batches 0", "never end"]),
    ("--trainer.limit_train_batches 1", ["--trainer.limit_train_batches 1:", "max_steps"]),
    ("--trainer.limit_train_batches 0.5", ["--trainer.limit_train_batches 0.5", "never end"]),
    ("--trainer.min_epochs 1", ["--trainer.min_epochs 1", "--trainer.min_steps"]),
    ("--trainer.overfit_batches 0.5", ["--trainer.overfit_batches 0.5", "whole"]),
    ("--trainer.overfit_batches 1.0", ["--trainer.overfit_batches 1.0", "whole"]),
    ("--trainer.check_val_every_n_epoch 0", ["check_val_every_n_epoch 0", "1 or more"]),
    ("--trainer.check_val_every_n_epoch 2", ["2: training counts steps", "val_check_interval"]),
    ("--trainer.val_check_interval 00:00:00:05", ["val_check_interval 00:00:00:05", "steps"]),
    ("--trainer.val_check_interval '{minutes: 5}'", ["--trainer.val_check_interval", "steps"]),
    ("--trainer.val_check_interval 1.0", ["--trainer.val_check_interval 1.0", "steps"]),
    (
        "--trainer.callbacks StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.01",
        ["--trainer.callbacks: StochasticWeightAveraging", "use --model.averaging"],
    ),
    (
        "--trainer.callbacks EMAWeightAveraging --trainer.callbacks.decay 0.9",
        ["--trainer.callbacks: EMAWeightAveraging", "use --model.averaging"],
    ),
    (
        "--model.averaging ExponentialAverage --model.averaging.decay 1",
        ["--model.averaging: ExponentialAverage decay 1.0", "below 1"],
    ),
    (
        "--model.averaging ExponentialAverage --model.averaging.decay .nan",
        ["--model.averaging", "finite"],
    ),
    (
        "--model.averaging ExponentialAverage --model.averaging.start_step -1",
        ["--model.averaging: ExponentialAverage start_step -1", "0 or more"],
    ),
    (
        "--model.averaging EqualAverage --model.averaging.start_step 20",
        ["--model.averaging: start_step 20", "ends at step 20", "--trainer.max_steps"],
    ),
    ("--model.averaging EqualAverage", ["--model.averaging", "start_step"]),
    ("--model.averaging AdamW", ["--model.averaging", "AdamW"]),
    ("--trainer.num_sanity_val_steps -2", ["num_sanity_val_steps -2", "-1"]),
    ("--trainer.num_nodes 2", ["--trainer.num_nodes 2", "MASTER_ADDR"]),
    ("--trainer.strategy ddp_spawn", ["--trainer.strategy ddp_spawn", "ddp"]),
    ("--data.num_workers 10000", ["--data.num_workers 10000", "or fewer"]),
    ("--data.num_workers 0x" + "f" * 6000, ["--data.num_workers", "number"]),
    ("--model.dropout 1e999", ["--model.dropout", "inf"]),
    ("--model.n_layer=" + "[" * 2000, ["--model.n_layer", "nested"]),
    ("--model.router '{class_path: a, class_path: b}'", ["--model.router", "class_path", "twice"]),
    (
        "--model.dispatch grouped --model.experts.hidden 3",
        ["--model.dispatch: dispatch grouped does not support", "multiples of 4"],
    ),
    (
        "--model.dispatch rounded --trainer.precision bf16-mixed --model.experts.hidden 12",
        ["bfloat16", "multiples of 8"],
    ),
    ("--trainer.precision 16-true", ["eps 1e-08 of AdamW is 0 in float16", "eps 1e-4"]),
    ("--model.dispatch grouped --trainer.precision 64", ["does not compute in float64"]),
    ("--model other.yaml", ["--model", "other.yaml"]),
    ("--ckpt_path=", ["--ckpt_path is empty"]),
    ("--run.name a\udc80", ["--run.name", "Unicode"]),
    ("--trainer.max_step 3", ["--trainer.max_step", "did you mean --trainer.max_steps?"]),
    ("--data.corpus - --trainer.devices 2", ["--data.corpus -", "several processes"]),
    ("--data.corpus - --trainer.strategy ddp", ["--data.corpus -", "several processes"]),
    ("--data.test_corpus - --trainer.num_nodes 1 --trainer.devices 2", ["--data.test_corpus -"]),
]

OF_SCHEDULES = [
    ("WarmupCosine", "warmup_steps -1", "warmup_steps -1 is negative"),
    ("WarmupCosine", "total_steps 0", "total_steps 0 must be 1 or more"),
    ("WarmupLinear", "warmup_steps 30", "warmup_steps 30 must be no more than total_steps 20"),
    (
        "WarmupLinear",
        "final_share 0.0",
        "is 0 from step 20 on, its total_steps",
    ),
    ("WarmupLinear", "final_share 1.5", "final_share 1.5 must be between 0 and 1"),
    ("WarmupStableDecay", "decay_share -1", "decay_share -1.0 must be between 0 and 1"),
    ("WarmupStableDecay", "decay_share 0.9", "decay_share 0.9 of total_steps 20 are more than"),
    ("WarmupStableDecay", "decay_share .nan", "nan"),
    ("WarmupStableDecay", "total_steps 1.5", "expected int"),
]
"""Class, a wrong argument besides 5 and 20 steps, and what is said of it."""

HINTS = [
    (
        "--model.feed_forward DenseLayer",
        ["DenseLayer does not take the 5 arguments", ".help lists"],
    ),
    ("--model.experts HeldExperts", ["--model.experts: HeldExperts does not take the 3 arguments"]),
    ("--model.balancers BiasBalance", ["--model.balancers+ BiasBalance"]),
    ("--model.dense_layers 1", ["--model.dense_layers+ 1 adds one, or in a file: [1]"]),
    ("--model.balancers+ BiasBalanc", ["did you mean BiasBalance?"]),
    ("--model.router NoisyTopk", ["NoisyTopk", "did you mean NoisyTopKRouter?"]),
    ("--model.router makemoe.model.router.NoisyTopk", ["did you mean NoisyTopKRouter?"]),
    ("--model.router Wheel", ["--model.router", "unknown class Wheel"]),
    ("--model.router.help NoisyTopk", ["did you mean NoisyTopKRouter?"]),
    ("--model.optimizer Adamw", ["did you mean AdamW?"]),
    ("--model.optimizer Muon", ["--model.optimizer: Muon is for", "--model.param_groups MuonMat"]),
    (
        "--model.param_groups MuonMatrices",
        ["AdamW has no method: use --model.optimizer Muon, or --model.param_groups DecayMatrices"],
    ),
    (
        "--model.optimizer Muon --model.optimizer.ns_steps 9 --model.param_groups MuonMatrices",
        ["--model.optimizer: ns_steps 9 must be between 1 and 6"],
    ),
    ("--model.param_groups MuonMatrice", ["did you mean MuonMatrices?"]),
    (
        "--model.optimizer AdamW --model.optimizer.lr abc",
        ["--model.optimizer.lr", "expected float"],
    ),
    ("--data.tokenizer.vocabulary abc", ["--data.tokenizer", "name a class"]),
    ("--trainer.logger MLflo", ["--trainer.logger", "did you mean MLflow?"]),
]


@pytest.mark.parametrize(("name", "wrong", "words"), OF_SCHEDULES)
def test_numbers_that_a_schedule_cannot_have(
    makemoe: Call, name: str, wrong: str, words: str
) -> None:
    option = "--model.lr_scheduler"
    given = {"warmup_steps": "5", "total_steps": "20"} | dict([wrong.split()])
    flags = [f"{option}.{key}={value}" for key, value in given.items()]
    refused(makemoe, 2, [option, words], "fit", f"{option}={name}", *flags)


@pytest.mark.parametrize("text", WRONG_KINDS, ids=lambda text: text[:70])
def test_kinds_that_cannot_be(makemoe: Call, text: str) -> None:
    Path("my.yaml").write_text(text)
    Path("other.yaml").write_text("n_layer: 1\n")
    refused(makemoe, 2, WRONG_KINDS[text], "fit", "--config", "my.yaml")


@pytest.mark.parametrize(("flags", "words"), WRONG_FLAGS, ids=lambda given: str(given)[:70])
def test_values_that_cannot_be(makemoe: Call, flags: str, words: list[str]) -> None:
    Path("other.yaml").write_text("n_layer: 1\n")
    refused(makemoe, 2, words, "fit", *TINY, *shlex.split(flags))


@pytest.mark.parametrize(("flags", "words"), HINTS)
def test_an_error_says_what_to_give_instead(makemoe: Call, flags: str, words: list[str]) -> None:
    refused(makemoe, 2, words, "fit", *TINY, *flags.split())


@pytest.mark.parametrize("name", ["BiasedTopKRouter", "makemoe.model.router.BiasedTopKRouter"])
def test_the_help_of_a_class_is_printed(makemoe: Call, name: str) -> None:
    ended = makemoe("fit", "--model.router.help", name, "--model.n_layer", "1")
    assert ended.status == 0
    assert not ended.err
    for word in ("makemoe.model.router.BiasedTopKRouter", "bias per expert", "sigmoid"):
        assert word in ended.out
    assert "n_embd" not in ended.out  # which the model gives


@pytest.mark.parametrize(
    ("option", "name", "words"),
    [
        ("router", None, ["BiasedTopKRouter", "NoisyTopKRouter", "TopKRouter"]),
        ("router", "NoisyTopKRouter", ["Top-k", "no arguments"]),
        ("optimizer", "AdamW", ["Implements AdamW", "--model.optimizer.lr 0.001", "betas"]),
        ("experts", "MLPExperts", ["--model.experts.hidden 0", "--model.experts.activation relu"]),
        ("init", "GPT2Normal", ["--model.init.std 0.02"]),
        ("lr_scheduler", "WarmupCosine", ["--model.lr_scheduler.warmup_steps", "final_share 0.1"]),
        ("balancers", "BiasBalance", ["--model.balancers.update_rate 0.001"]),
    ],
)
def test_each_part_has_help(makemoe: Call, option: str, name: str | None, words: list[str]) -> None:
    ended = makemoe("fit", f"--model.{option}.help", *([name] if name else []))
    assert ended.status == 0
    assert not [word for word in words if word not in ended.out]


def no_files() -> dict[str, Callable[[], None]]:
    """Ways to put something that is not a regular file at `it`."""

    def bind() -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("it")

    return {
        "zeros": lambda: os.symlink("/dev/zero", "it"),
        "standard input": lambda: os.symlink("/dev/stdin", "it"),
        "pipe": lambda: os.mkfifo("it"),
        "socket": bind,
        "folder": lambda: os.mkdir("it"),
        "loop": lambda: os.symlink("it", "it"),
        "memory": lambda: os.symlink("/proc/self/mem", "it"),
    }


@pytest.mark.parametrize("kind", no_files())
def test_only_regular_files_are_read(makemoe: Call, kind: str, trained: Path) -> None:
    no_files()[kind]()
    model = ("--ckpt_path", str(trained / "checkpoints/tiny/last.ckpt"))
    for status, arguments in (
        (2, ("fit", *TINY, "--config", "it")),
        (1, ("fit", *TINY, "--data.corpus", "it")),
        (1, ("test", *model, "--data.test_corpus", "it")),
        (1, ("predict", *model, "--prompt_file", "it")),
    ):
        ended = makemoe(*arguments)
        assert ended.status == status, ended
        assert len(ended.err.splitlines()) == 1, ended.err
        assert "it" in ended.error


def test_a_string_names_no_file_of_settings(makemoe: Call) -> None:
    Path("auto").write_text("- not a backend\n")
    Path("TopKRouter").mkdir()
    ended = makemoe(
        *("fit", *TINY, "--model.dispatch", "auto", "--model.router", "TopKRouter"),
        *("--print_config", "--run.name", "a"),
    )
    assert ended.status == 0
    assert "dispatch: auto" in ended.out


def test_settings_do_not_come_from_standard_input(makemoe: Call) -> None:
    refused(makemoe, 2, ["--config -", "give a file"], "fit", "--config", "-")


@pytest.mark.parametrize(
    ("code", "words"),
    [("def (:", ["SyntaxError", "my_router.py"]), ("raise OSError('lost\\nit')", ["lost it"])],
)
def test_a_class_that_cannot_be_imported_is_told(
    makemoe: Call, code: str, words: list[str]
) -> None:
    Path("my_router.py").write_text(code)
    refused(makemoe, 2, words, "fit", *TINY, "--model.router", "my_router.MyRouter")
