"""The scripts of examples/ run, with what their help says."""

import re
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import trainers

import makemoe
from makemoe.colours import ink_on, palette

EXAMPLES = Path(__file__).parents[1] / "examples"
PNG = b"\x89PNG\r\n\x1a\n"
Run = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tiny model was trained, of two layers, the first one dense."""
    folder = tmp_path_factory.mktemp("examples")
    parts = {"n_layer": 2, "dense_layers": [0]}
    with warnings.catch_warnings():  # Lightning advises on loaders, and calls torch in old ways
        warnings.simplefilter("ignore")
        run = folder / "checkpoints" / "tiny"
        trainers.run(run, parts=parts, max_steps=4, val_check_interval=2)
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What a script writes to standard output and standard error."""
    monkeypatch.chdir(folder)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(name: str, *arguments: str, status: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
            ended = 0
        except SystemExit as error:
            ended = int(error.code or 0)
        assert ended == status
        return capsys.readouterr()

    return run


def error_of(told: tuple[str, str]) -> str:
    """The one line that a script which failed has written."""
    out, err = told
    [line] = err.splitlines()
    assert out == ""
    return line


def test_colours_shows_a_sample_in_its_experts_colours(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("best", "--prompt=To be", "--max_new_tokens=20", "--layer=1")
    plain, told = run("colours", *flags)
    model = makemoe.load("best")
    text = model.sample("To be", max_new_tokens=20, temperature=0.8)
    assert plain.partition("\n\n")[2] == f"{text}\n"
    assert told.startswith("colours: not shown: standard output is not a terminal")
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured, told = run("colours", *flags)
    assert told == ""
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    first = [row.experts[0] for row in model.routing(text) if row.text != "\n"]
    painted = re.findall(r"\x1b\[38;5;(\d+);48;5;(\d+)m", coloured.partition("\n\n")[2])
    expected = [palette(3)[expert] for expert in first]
    assert painted == [(str(ink_on(colour)), str(colour)) for colour in expected]


def test_colours_names_the_layers_that_have_a_router(run: Run) -> None:
    told = run("colours", "best", "--layer=0", status=2)
    assert error_of(told) == "colours: error: --layer 0 has no router; layers with one: 1"


def test_heatmap_draws_a_text(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    out, told = run("heatmap", "best", str(picture), "--text=To be")
    assert (out, told) == (f"5 tokens in 1 layers: {picture}\n", "")
    assert picture.read_bytes().startswith(PNG)
    out, _ = run("heatmap", "best", str(picture))
    assert re.match(r"\d+ tokens", out)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["best", "a.gif"], 2, "a.gif is not a PNG file: use a name that ends in .png"),
        (["best", "no/a.png"], 1, "No such file or directory"),
        (["best", "a.png", "--text="], 2, "nothing to draw: no text"),
        (["best", "a.png", "--text=ö"], 1, "character 'ö' (U+00F6)"),
        (["none", "a.png"], 1, "path='none': no such file and no such run"),
    ],
)
def test_heatmap_writes_nothing_if_it_cannot_draw(
    run: Run, folder: Path, arguments: list[str], status: int, words: str
) -> None:
    assert words in error_of(run("heatmap", *arguments, status=status))
    assert [path.name for path in folder.iterdir()] == ["checkpoints"]


@pytest.mark.filterwarnings("ignore")  # Lightning advises on loaders, and calls torch in old ways
def test_own_router_prints_a_loss_per_router(run: Run) -> None:
    out, _ = run("own_router", "--steps=2", "--seeds=2")
    lines = re.findall(r"^(\w+) +(-?[\d.]+) ± [\d.]+ over 2 seeds nats per token$", out, re.M)
    assert [name for name, _ in lines] == ["TopKRouter", "FrozenRouter", "difference"]
    usual, own, difference = (float(loss) for _, loss in lines)
    assert 3 < usual < 5
    assert difference == pytest.approx(own - usual, abs=2e-4)
    words = error_of(run("own_router", "--seeds=0", status=2))
    assert words == "own_router: error: --seeds 0 is too small: use 1 or more"


@pytest.mark.filterwarnings("ignore")
def test_own_router_s_router_does_not_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    names = runpy.run_path(str(EXAMPLES / "own_router.py"))
    router = names["FrozenRouter"](8, 4, 2)
    assert not any(p.requires_grad for p in router.parameters())
