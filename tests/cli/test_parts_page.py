"""docs/parts.md: every snippet trains a step, and its figures are those of the models it names."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commandline import Ended
from settings import net_of

from makemoe.checkpoint.format import read
from makemoe.checkpoint.held import signature_of
from makemoe.checkpoint.inference import load_for_inference
from makemoe.model.footprint import footprint
from makemoe.model.init import Initializer
from makemoe.model.transformer import MoETransformer
from makemoe.training.work import work_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
COSTS = re.findall(
    r"^\| (?:`(--.*?)`|none) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \| (\d+) \|$", PAGE, re.M
)
FEW = (
    *("--model.n_layer=2", "--model.n_embd=16", "--model.block_size=16", "--data.batch_size=4"),
    *("--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu"),
    *("--run.sample_tokens=0", "--run.pictures=false", "--trainer.val_check_interval=1"),
)
Call = Callable[..., Ended]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: "-".join(text.split()[1:3]))
def test_a_snippet_trains_the_model_that_it_says(makemoe: Call, snippet: str) -> None:
    Path("my.yaml").write_text(snippet)
    ended = makemoe("fit", "--config=my.yaml", *FEW)
    assert ended.status == 0, ended.err
    held = read("checkpoints/my/last.ckpt")["hyper_parameters"]
    for name, value in yaml.safe_load(snippet)["model"].items():
        assert same(held[name], value), name
    net, _ = load_for_inference("checkpoints/my/last.ckpt")
    assert torch.isfinite(net(torch.zeros(1, 16, dtype=torch.int64))[0]).all()


def same(held: Any, given: Any) -> bool:
    """Whether a setting in a checkpoint is the one that was given, of a class by its name."""
    if not isinstance(held, dict):
        return bool(held == given)
    given = {"class_path": given} if isinstance(given, str) else given
    return held["class_path"].rpartition(".")[2] == given["class_path"] and all(
        same(held["init_args"][name], value) for name, value in given.get("init_args", {}).items()
    )


def test_the_page_shows_every_part_and_every_argument() -> None:
    assert len(SNIPPETS) == PAGE.count("```yaml")
    shown = "".join(SNIPPETS)
    arguments = set(signature_of(MoETransformer)[0])
    of_sizes = {"vocab_size", "block_size", "n_layer", "n_embd"}
    of_routing = {"router", "dispatch", "capacity_factor", "drop_order", "feed_forward"}
    for name in arguments - of_sizes - of_routing:
        assert f"  {name}:" in shown, name
    for scheme in (
        cls for cls in Initializer.__subclasses__() if cls.__module__.startswith("makem")
    ):
        assert f"`{scheme.__name__}" in PAGE


@pytest.mark.parametrize("row", COSTS, ids=lambda row: row[0] or "none")
def test_the_costs_are_those_of_the_models(makemoe: Call, row: tuple[str, ...]) -> None:
    flags, *told = row
    recipe = ("--config", str(ROOT / "configs" / "makemoe.yaml"), "--data.corpus=sample")
    ended = makemoe("fit", *recipe, *shlex.split(flags), "--print_config")
    assert ended.status == 0, ended.err
    net = net_of(yaml.safe_load(ended.out)["model"], 65)
    work = work_of(net)
    kept = footprint(net.architecture).kept * 4 / 1024
    counts = f"{work.parameters:,}", f"{work.active:,}", f"{work.flops / 1e6:.3g}", f"{kept:.0f}"
    assert list(counts) == told


def test_the_page_has_the_costs_of_all_its_rows() -> None:
    table = PAGE.partition("| change | ")[2].partition("\n\n")[0]
    assert len(COSTS) == len(table.splitlines()) - 2 == 12
