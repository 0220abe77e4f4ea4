"""docs/library.md: its snippets run, one after another, and its tables are complete."""

import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import trainers

import makemoe
from makemoe.routing_table import TokenRouting

PAGE = (Path(__file__).parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


def test_the_snippets_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():  # Lightning advises on loaders, and calls torch in old ways
        warnings.simplefilter("ignore")
        trainers.run(tmp_path / "checkpoints" / "tiny", max_steps=4, val_check_interval=2)
    names: dict[str, Any] = {}
    printed = []
    for number, snippet in enumerate(SNIPPETS):
        capsys.readouterr()
        exec(compile(snippet, f"docs/library.md, snippet {number}", "exec"), names)
        printed.append(capsys.readouterr().out)
    assert printed[0].startswith("To be")
    assert printed[2].startswith("To be")
    assert printed[-1].startswith("temperature -1 is invalid")
    assert Path("reading.png").stat().st_size
    assert len(names["choices"]) == 2 * len(names["table"])


def rows(heading: str) -> list[str]:
    """The first cells of the first table after a line that begins like this."""
    table = PAGE.partition(f"\n{heading}")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)`", table, re.M)


def test_the_tables_have_every_argument_and_every_column() -> None:
    assert rows("| argument of `load`") == list(inspect.signature(makemoe.load).parameters)
    assert rows("| column |") == list(TokenRouting._fields)
