"""docs/optimizers.md: what it shows trains, and holds the figures that it names."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import TINY, Ended

from makemoe.checkpoint.format import read
from makemoe.training.muon import Muon

PAGE = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
[OWN_GROUPS] = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split()[-1])
def test_what_the_page_shows_trains(makemoe: Callable[..., Ended], snippet: str) -> None:
    Path("my_groups.py").write_text(OWN_GROUPS)
    Path("my.yaml").write_text(snippet)
    few = ("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--run.sample_tokens=0")
    ended = makemoe("fit", *TINY, "--config=my.yaml", *few)
    assert ended.status == 0, ended.err
    assert read("checkpoints/my/last.ckpt")["global_step"] == 2


def test_the_page_has_snippets_of_everything() -> None:
    assert len(SNIPPETS) == PAGE.count("```yaml") == 6
    for name in ("DecayMatrices", "MuonMatrices", "SlowRouters", "StableDecay", "Average"):
        assert any(name in snippet for snippet in SNIPPETS), name


def test_the_defaults_in_the_table_are_muon_s() -> None:
    rows = re.findall(r"^\| `(\w+)`.*?\| ([\d.e-]+)[ ,]", PAGE, re.M)
    told = {name: float(value) for name, value in rows}
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(Muon).parameters.items()
        if isinstance(parameter.default, int | float)
    }
    assert {name: told[name] for name in defaults.keys() & told.keys()} == {
        name: defaults[name] for name in defaults.keys() & told.keys()
    }
    assert defaults.keys() - told.keys() == {"eps"}
