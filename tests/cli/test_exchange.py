"""`makemoe export` and `makemoe import` on the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import Ended, imports, listing, refused
from counterparts import GLM4, MIXTRAL, VOCABULARY, checkpoint_of, model_of

from makemoe.checkpoint.format import read, write
from makemoe.data.tokenizer import CharTokenizer

Call = Callable[..., Ended]
FIT = (
    *("--data.corpus=my.txt", "--trainer.accelerator=cpu", "--trainer.max_steps=4"),
    *("--trainer.val_check_interval=4", "--run.sample_tokens=0", "--run.pictures=false"),
    *("--data.batch_size=4", "--run.name=tuned"),
)


@pytest.fixture
def folder(makemoe: Call) -> Path:
    """A folder `out` that was exported from `x.ckpt`, and a text `my.txt`."""
    write(checkpoint_of(model_of(GLM4), GLM4), "x.ckpt")
    ended = makemoe("export", "--ckpt_path=x.ckpt", "--to=out")
    assert ended.status == 0, ended.err
    assert ended.out == ""
    using, wrote = ended.err.splitlines()
    assert using == "makemoe: using x.ckpt (step 7)"
    assert wrote.startswith("makemoe: wrote out: Glm4MoeForCausalLM, ")
    random = torch.randint(len(VOCABULARY), (900,), generator=torch.Generator().manual_seed(2))
    Path("my.txt").write_text(CharTokenizer(VOCABULARY).decode(random.numpy()), encoding="utf-8")
    return Path("out")


def test_a_model_comes_back_for_every_command(makemoe: Call, folder: Path) -> None:
    ended = makemoe("import", "--from=out", "--to=y.ckpt")
    assert ended == (
        0,
        "",
        "makemoe: wrote y.ckpt: Glm4MoeForCausalLM; sample: makemoe predict --ckpt_path y.ckpt\n",
    )
    greedy = ("--prompt=a b", "--temperature=0", "--max_new_tokens=30")
    one, other = (makemoe("predict", f"--ckpt_path={name}.ckpt", *greedy) for name in "xy")
    assert one.out == other.out
    assert other.out.startswith("a b")
    for command in ("validate", "inspect"):
        one, other = (
            makemoe(command, f"--ckpt_path={name}.ckpt", "--data.corpus=my.txt") for name in "xy"
        )
        assert one.status in (0, 3), one.err
        assert loss_in(one.out) == loss_in(other.out)


def loss_in(text: str) -> str:
    return text.partition("val_loss ")[2].partition(" nats")[0]


def test_without_a_name_the_checkpoint_has_that_of_the_folder(makemoe: Call, folder: Path) -> None:
    assert "makemoe: wrote out.ckpt: Glm4MoeForCausalLM" in makemoe("import", "--from", "out").err
    assert makemoe("import", "--from", ".").status == 1


# -- fine-tuning


def test_a_checkpoint_of_weights_begins_a_new_run_with_them(makemoe: Call, folder: Path) -> None:
    makemoe("import", "--from=out", "--to=y.ckpt")
    still = ("--model.optimizer=SGD", "--model.optimizer.lr=0")
    ended = makemoe("fit", "--ckpt_path=y.ckpt", *FIT, *still)
    assert ended.status == 0, ended.err
    assert "makemoe: using y.ckpt\n" in ended.err
    begun, held = read("y.ckpt"), read("checkpoints/tuned/last.ckpt")
    assert held["global_step"] == 4
    for name, weight in begun["state_dict"].items():
        assert torch.equal(held["state_dict"][name], weight), name
    assert held["makemoe"]["tokenizer"] == begun["makemoe"]["tokenizer"]
    first, *_ = Path("checkpoints/tuned/config.yaml").read_text().splitlines()
    assert first == "# makemoe fit --config checkpoints/tuned/config.yaml --ckpt_path y.ckpt"


def test_such_a_run_learns_and_resumes_like_any_other(makemoe: Call, folder: Path) -> None:
    makemoe("import", "--from=out", "--to=y.ckpt")
    ended = makemoe("fit", "--ckpt_path=y.ckpt", *FIT)
    assert ended.status == 0, ended.err
    begun, held = (read(path)["state_dict"] for path in ("y.ckpt", "checkpoints/tuned/last.ckpt"))
    assert not torch.equal(held["net.head.weight"], begun["net.head.weight"])
    ended = makemoe("fit", "--ckpt_path=last", "--trainer.max_steps=6", "--data.corpus=my.txt")
    assert ended.status == 0, ended.err
    assert read("checkpoints/tuned/last.ckpt")["global_step"] == 6


def test_such_a_run_has_the_name_of_its_weights(makemoe: Call, folder: Path) -> None:
    makemoe("import", "--from=out", "--to=y.ckpt")
    ended = makemoe("fit", "--ckpt_path=y.ckpt", *(f for f in FIT if f != "--run.name=tuned"))
    assert ended.status == 0, ended.err
    assert Path("checkpoints/y/last.ckpt").is_file()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "inspect"])
def test_without_a_text_the_bundled_play_takes_its_place_only_if_it_is_named(
    makemoe: Call, folder: Path, command: str
) -> None:
    makemoe("import", "--from=out", "--to=y.ckpt")
    words = ["y.ckpt does not name its training text: pass --data.corpus FILE"]
    refused(makemoe, 1, words, command, "--ckpt_path=y.ckpt")
    refused(
        makemoe, 1, ["character", "sample"], command, "--ckpt_path=y.ckpt", "--data.corpus=sample"
    )


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--model.n_layer=2", ["n_layer 2, checkpoint has 3"]),
        ("--model.head_bias=true", ["head_bias True, checkpoint has False"]),
        ("--model.experts.hidden=16", ["experts.hidden 16, checkpoint has 24"]),
    ],
)
def test_weights_of_another_model_are_refused_before_a_folder_is_made(
    makemoe: Call, folder: Path, flag: str, words: list[str]
) -> None:
    makemoe("import", "--from=out", "--to=y.ckpt")
    refused(makemoe, 1, words, "fit", "--ckpt_path=y.ckpt", *FIT, flag)


# -- what is wrong


def test_usage_is_told_in_one_line(makemoe: Call, folder: Path) -> None:
    makemoe("import", "--from=out", "--to=y.ckpt")
    wrong = {
        ("export",): (2, ["--ckpt_path is missing: which model to export?"]),
        ("export", "--ckpt_path=x.ckpt"): (2, ["--to is missing: which folder to write?"]),
        ("export", "--ckpt_path=x.ckpt", "--to=out"): (2, ["--to out already exists"]),
        ("export", "--ckpt_path=x.ckpt", "--to=my.txt"): (2, ["--to my.txt already exists"]),
        ("export", "--ckpt_path=x.ckpt", "--to=a/b"): (2, ["--to a/b: there is no folder a"]),
        ("export", "--ckpt_path=x.ckpt", "--to=a\0b"): (2, ["--to", "NUL"]),
        ("export", "--ckpt_path=none.ckpt", "--to=new"): (1, ["no checkpoint none.ckpt"]),
        ("export", "--ckpt_path=x.ckpt", "--to=new", "--format=gguf"): (2, ["--format", "gguf"]),
        ("export", "--ckpt_path=x.ckpt", "--too=new"): (2, ["--too", "did you mean --to?"]),
        ("import",): (2, ["--from is missing: which folder to read?"]),
        ("import", "--from=none"): (1, ["--from none does not exist"]),
        ("import", "--from=a\0b"): (2, ["--from", "NUL"]),
        ("import", "--from=x.ckpt", "--to=z.ckpt"): (1, ["--from x.ckpt is a file"]),
        ("import", "--from=out", "--to=y.ckpt"): (2, ["--to y.ckpt already exists"]),
        ("import", "--from=out", "--to=a/y.ckpt"): (2, ["--to a/y.ckpt: there is no folder a"]),
        ("import", "--from=out", "--block_size=13"): (2, ["--block_size 13", "up to 12 tokens"]),
        ("import", "--from=out", "--block_size=x"): (2, ["--block_size: expected int"]),
    }
    for arguments, (status, words) in wrong.items():
        refused(makemoe, status, words, *arguments)


@pytest.mark.parametrize("command", ["export", "import"])
def test_without_safetensors_a_line_says_what_to_install(
    makemoe: Call, folder: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    arguments = ("--ckpt_path=x.ckpt", "--to=new") if command == "export" else ("--from=out",)
    words = ["safetensors is not installed: pip install 'makemoe[hf]'"]
    refused(makemoe, 2, words, command, *arguments)


def test_neither_command_imports_transformers_or_lightning(tmp_path: Path) -> None:
    write(checkpoint_of(model_of(MIXTRAL), MIXTRAL), tmp_path / "x.ckpt")
    for arguments in (("export", "--ckpt_path=x.ckpt", "--to=out"), ("import", "--from=out")):
        status, packages = imports(*arguments, cwd=tmp_path)
        assert status == 0
        assert "torch" in packages
        assert not {"lightning", "transformers", "tokenizers", "jsonargparse"} & packages
    assert set(listing(tmp_path)) > {"out.ckpt", "out/config.json"}
