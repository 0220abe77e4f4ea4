import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import Ended, refused
from terminals import Terminal, shell

from makemoe import __version__
from makemoe.cli import COMMANDS
from makemoe.cli.completion import SHELLS, script
from makemoe.cli.parsers import commands
from makemoe.cli.shells import Command, Option, Values

Call = Callable[..., Ended]

FOLDER = ("my.yaml", "my.txt", "my.ckpt", "a name.txt", "sub/deep.yaml")
"""Files where the line is typed, beside the run my-run."""

COMPLETED = {
    "mak val": None,
    "makemoe val": "makemoe validate ",
    "makemoe --v": "makemoe --version ",
    "makemoe fit --config quick": "makemoe fit --config quickstart ",
    "makemoe fit -c quick": "makemoe fit -c quickstart ",
    "makemoe fit --config=quick": "makemoe fit --config=quickstart ",
    "makemoe compare --config quick": "makemoe compare --config quickstart ",
    "makemoe fit --config my": "makemoe fit --config my.yaml ",
    "makemoe fit --config sub/": "makemoe fit --config sub/deep.yaml ",
    "makemoe fit --trainer.max_s": "makemoe fit --trainer.max_steps ",
    "makemoe fit --config laptop --trainer.max_s": (
        "makemoe fit --config laptop --trainer.max_steps "
    ),
    "makemoe fit --model.router Noi": "makemoe fit --model.router NoisyTopKRouter ",
    "makemoe fit --model.router=Noi": "makemoe fit --model.router=NoisyTopKRouter ",
    "makemoe fit --model.balancers+ Z": "makemoe fit --model.balancers+ ZLoss ",
    "makemoe fit --model.drop_order w": "makemoe fit --model.drop_order weight ",
    "makemoe fit --model.tied_embeddings t": "makemoe fit --model.tied_embeddings true ",
    "makemoe fit --trainer.precision bf16-m": "makemoe fit --trainer.precision bf16-mixed ",
    "makemoe fit --data.corpus tiny": "makemoe fit --data.corpus tinyshakespeare ",
    "makemoe fit --data.corpus my.t": "makemoe fit --data.corpus my.txt ",
    "makemoe test --data.test_corpus my.t": "makemoe test --data.test_corpus my.txt ",
    "makemoe predict --ckpt_path las": "makemoe predict --ckpt_path last ",
    "makemoe predict --ckpt_path my-": "makemoe predict --ckpt_path my-run ",
    "makemoe predict --ckpt_path my.": "makemoe predict --ckpt_path my.ckpt ",
    "makemoe predict --data.unknown sk": "makemoe predict --data.unknown skip ",
    "makemoe predict --device c": None,
    "makemoe serve --log req": "makemoe serve --log requests ",
    "makemoe inspect --js": "makemoe inspect --json ",
    "makemoe export --format saf": "makemoe export --format safetensors ",
    "makemoe import --from su": "makemoe import --from sub/",
    "makemoe compare --equal f": "makemoe compare --equal flops ",
    "makemoe compare --vary model.num_e": "makemoe compare --vary model.num_experts=",
    "makemoe plan --config quick": "makemoe plan --config quickstart ",
    "makemoe plan --device h2": "makemoe plan --device h200 ",
    "makemoe plan --network nd": "makemoe plan --network ndr ",
    "makemoe plan --trainer.prec": "makemoe plan --trainer.precision ",
    "makemoe sweep --config lap": "makemoe sweep --config laptop ",
    "makemoe sweep --sto": "makemoe sweep --storage ",
    "makemoe completion z": "makemoe completion zsh ",
    "makemoe fit --seed m": None,
    "makemoe fit --nonsense": None,
    "makemoe nonsense --see": None,
}
"""A line, and what the Tab key makes of it; None: nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the lines are typed."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "checkpoints" / "my-run").mkdir(parents=True)
    (folder / "sub").mkdir()
    for file in FOLDER:
        (folder / file).touch()
    return folder


def written(name: str, home: Path) -> Path:
    """The file with a shell's script; the test is skipped where that shell is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    file = home / f"completion.{name}"
    file.write_text(script(name))
    return file


@pytest.fixture(scope="module", params=["bash", "zsh"])
def terminal(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Terminal]:
    """A person at a shell that has the script."""
    file = written(request.param, tmp_path_factory.mktemp("home"))
    if request.param == "bash":  # before 4.0, it does not tell its line
        asked = ["bash", "-c", "echo ${BASH_VERSINFO[0]}"]
        if int(subprocess.run(asked, capture_output=True, check=True).stdout) < 4:
            pytest.skip("bash is older than 4.0")
    with shell(request.param, folder, file) as terminal:
        yield terminal


@pytest.mark.parametrize("line", COMPLETED)
def test_the_tab_key_completes_a_line(terminal: Terminal, line: str) -> None:
    assert terminal.press(f"{line}\t") == (COMPLETED[line] or line)


def test_a_name_with_a_space_is_quoted(terminal: Terminal) -> None:
    completed = terminal.press("makemoe fit --data.corpus a\\ n\t")
    assert completed == "makemoe fit --data.corpus a\\ name.txt "


def test_fish_completes_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written("fish", tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    asked = "\n".join(f"echo '#'; complete -C '{line}'" for line in COMPLETED)
    done = subprocess.run(
        ["fish", "--private", "-c", f"source {file}\n{asked}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    for (line, completed), found in zip(
        COMPLETED.items(), done.stdout.split("#\n")[1:], strict=True
    ):
        words = [one.partition("\t")[0] for one in found.splitlines()]
        if completed is None:
            assert len(words) != 1, line
        else:
            assert words == [completed.rstrip().rpartition(" ")[2]], line


def test_every_command_and_option_is_known() -> None:
    known = {command.name: command for command in commands()}
    assert [*known, "completion"] == list(COMMANDS)
    fit = {option.name: option for option in known["fit"].options}
    assert {"--config", "-c", "--seed", "--model.n_layer", "--trainer.max_steps"} <= fit.keys()
    # These follow from other options, and cannot be given.
    assert not {"--model.seed", "--data.block_size", "--model.vocab_size"} & fit.keys()
    assert "--ckpt_path" not in {option.name for option in known["compare"].options}
    assert fit["--run.root"].takes == Values(files="/")
    assert fit["--help"].takes is None


@pytest.mark.parametrize("name", SHELLS)
def test_a_script_quotes_whatever_help_says(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    odd = 'it\'s $(touch bad) `touch bad` "x" \\ [a]: {b} % # !'
    text = SHELLS[name]([Command("fit", odd, [Option("--x", odd, Values(("a",)))])])
    (tmp_path / "it").write_text(text)
    # As zsh's functions for completion are only there in an interactive shell:
    before = "compdef() { : }\n" if name == "zsh" else ""
    done = subprocess.run(
        [name, "-c", f"{before}. ./it"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.parametrize("name", SHELLS)
def test_the_command_prints_the_script(makemoe: Call, name: str) -> None:
    ended = makemoe("completion", name)
    assert (ended.status, ended.out, ended.err) == (0, script(name), "")
    assert f"makemoe {__version__}" in ended.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["which shell: bash, zsh, fish?"]),
        (["bsh"], ["unknown shell 'bsh'", "did you mean bash?"]),
        (["tcsh"], ["unknown shell 'tcsh'", "bash, zsh, fish"]),
        (["bash", "--out"], ["unknown option --out"]),
    ],
)
def test_a_wrong_shell_ends_in_one_line(
    makemoe: Call, arguments: list[str], words: list[str]
) -> None:
    refused(makemoe, 2, words, "completion", *arguments)


def test_its_help_says_how_to_install_it(makemoe: Call) -> None:
    told = makemoe("completion", "--help").out
    for name in SHELLS:
        assert f"makemoe completion {name} > " in told
    assert max(map(len, told.splitlines())) <= 100
