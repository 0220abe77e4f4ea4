"""What the scripts of tests/, benchmarks/ and examples/ say of their arguments."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_ARGUMENTS = "tests/notebooks", "tests/checkpoint/test_hostile_fields", "benchmarks/figures"
SCRIPTS = (
    *NO_ARGUMENTS,
    *("tests/pairs", "tests/interrupts", "tests/fuzz/__main__", "tests/soak/__main__"),
    *("benchmarks/__main__", "benchmarks/coloured_text", "benchmarks/recipes"),
    "benchmarks/page_picture",
    *("benchmarks/learned", "benchmarks/ngram", "benchmarks/routing", "benchmarks/searched"),
    "benchmarks/tokenise",
    *("examples/colours", "examples/heatmap", "examples/own_router"),
)

Ran = tuple[int, str, str]
Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A script's exit status, and what it says on standard output and standard error."""

    def run(script: str, *arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_every_script_is_here() -> None:
    mark = '__name__ == "__main__"'
    folders = "tests", "benchmarks", "examples"
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    # Run by tests, which alone know what they take.
    internal = {"tests/fuzz/misbehave.py", "tests/nursery.py", "tests/machines.py"}
    internal |= {"tests/cli/member.py", "tests/parallel/fake_srun.py"}
    internal.add("tests/data/test_workers.py")
    found = {str(f.relative_to(ROOT)) for f in files if f"\nif {mark}" in f.read_text("utf-8")}
    assert found == {f"{script}.py" for script in SCRIPTS} | internal


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_shown_and_nothing_else_happens(run: Run, script: str) -> None:
    status, out, err = run(script, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("usage: ")


def assert_one_line(ran: Ran, status: int, words: str) -> None:
    assert (ran[0], ran[1]) == (status, ""), ran
    (line,) = ran[2].splitlines()
    assert ": error: " in line
    assert words in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_option_ends_in_one_line(run: Run, script: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    needed = {"benchmarks/coloured_text": ["a", "b"], "benchmarks/page_picture": ["a", "b.png"]}
    needed |= {"benchmarks/tokenise": ["a"], "benchmarks/ngram": ["a"]}
    needed |= {"examples/colours": ["a"], "examples/heatmap": ["a", "b.png"]}
    if script in ("benchmarks/recipes", "benchmarks/routing"):
        needed[script] = [str(folder(tmp_path))]
    assert_one_line(run(script, *needed.get(script, []), "--nonsense"), 2, "--nonsense")


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("tests/pairs", ["0"], "'0' is not a number of at least 1"),
        ("tests/pairs", ["two"], "'two' is not a number of at least 1"),
        ("tests/interrupts", ["--signals", "-1"], "--signals: '-1' is not a number"),
        ("tests/interrupts", ["--commands", "train"], "invalid choice: 'train'"),
        ("tests/fuzz/__main__", ["--workers", "0"], "--workers: '0' is not a number"),
        ("tests/fuzz/__main__", ["--kind", "sizes"], "invalid choice: 'sizes'"),
        ("benchmarks/__main__", ["--row", "walk"], "invalid choice: 'walk'"),
        ("benchmarks/__main__", ["--seconds", "nan"], "nan is out of range"),
        ("benchmarks/page_picture", [], "required: checkpoint, picture"),
        ("benchmarks/page_picture", ["last", "a.txt"], "a.txt is not a PNG file"),
        ("examples/colours", [], "required: checkpoint"),
        ("examples/colours", ["best", "--layer", "one"], "--layer: expected int (got 'one')"),
        ("examples/heatmap", ["best"], "required: picture"),
        ("examples/own_router", ["--steps", "0"], "--steps 0 is too small: use 1 or more"),
        ("benchmarks/learned", ["--keep"], "--keep: expected one argument"),
        ("benchmarks/learned", ["--note", "a"], "name its folder with --keep"),
        ("benchmarks/recipes", [], "required: RUN"),
        ("benchmarks/recipes", ["missing"], "missing is not the folder of a run: it has no last"),
        ("benchmarks/routing", [], "required: RUN"),
        ("benchmarks/routing", ["missing"], "missing is not the folder of a run: it has no last"),
    ],
)
def test_a_wrong_argument_ends_in_one_line(
    run: Run, script: str, arguments: list[str], words: str
) -> None:
    assert_one_line(run(script, *arguments), 2, words)


def folder(tmp_path: Path) -> Path:
    """A folder with the files of a run, which hold nothing."""
    for name, text in (("last.ckpt", ""), ("config.yaml", ""), ("metrics.csv", "step,val_loss\n")):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_run_that_has_not_validated_has_no_row(run: Run, tmp_path: Path) -> None:
    ran = run("benchmarks/recipes", str(folder(tmp_path)))
    assert_one_line(ran, 1, "has no validation loss yet")


def test_a_folder_without_a_comparison_is_not_kept(run: Run, tmp_path: Path) -> None:
    ran = run("benchmarks/learned", "--keep", str(tmp_path))
    assert_one_line(ran, 1, "is not the folder of a comparison: it has no compare.json")


def test_a_text_too_short_to_measure_is_not_measured(run: Run, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short")
    ran = run("benchmarks/ngram", str(tmp_path / "short.txt"))
    assert_one_line(ran, 1, "short.txt has 5 characters: give at least 1,000")


def test_a_damaged_checkpoint_has_no_row(run: Run, tmp_path: Path) -> None:
    assert_one_line(run("benchmarks/routing", str(folder(tmp_path))), 1, "last.ckpt")


LINE = '{"sample": 0, "text": "a", "prompt": true, "layers": [{"experts": [EXPERT]}]}\n'


@pytest.mark.parametrize(
    ("trace", "arguments", "status", "words"),
    [
        (None, [], 1, "No such file"),
        ("", [], 1, "no character that an expert read"),
        ("not JSON", [], 1, "is not a trace"),
        ('{"a": 1}', [], 1, "is not a trace"),
        (LINE.replace("EXPERT", "0"), ["--layers", "1"], 2, "the trace has layers 0 to 0"),
        (LINE.replace("EXPERT", "0"), ["--columns", "0"], 2, "--columns 0 is too small"),
        (LINE.replace("EXPERT", "99"), [], 2, "9 experts have colours"),
    ],
)
def test_what_cannot_be_drawn_ends_in_one_line(
    run: Run, tmp_path: Path, trace: str | None, arguments: list[str], status: int, words: str
) -> None:
    path, picture = tmp_path / "routing.jsonl", tmp_path / "text.png"
    if trace is not None:
        path.write_text(trace)
    ran = run("benchmarks/coloured_text", str(path), str(picture), *arguments)
    assert_one_line(ran, status, words)
    assert not picture.exists()


def test_a_picture_is_a_png_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "routing.jsonl").write_text(LINE.replace("EXPERT", "0"))
    ran = run("benchmarks/coloured_text", str(tmp_path / "routing.jsonl"), str(tmp_path / "a.txt"))
    assert_one_line(ran, 2, "a.txt is not a PNG file")
