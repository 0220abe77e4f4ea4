"""docs/huggingface.md: every command and every snippet does what the page says."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Ended

from makemoe.checkpoint.format import read
from makemoe.data.corpus import load_text
from makemoe.exchange.known import KNOWN

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "huggingface.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    makemoe (.*)$", PAGE, re.MULTILINE)
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
YAML = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
FEW = (
    *("--data.corpus=text.txt", "--data.batch_size=2", "--trainer.accelerator=cpu"),
    *("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--run.sample_tokens=0"),
    *("--run.pictures=false", "--data.eval_batch_size=8"),
)
SMALL = ("--model.n_layer=2", "--model.n_embd=24", "--model.block_size=32")
Call = Callable[..., Ended]


def adapted(command: str) -> list[str]:
    """A command of the page, for a small text and two steps."""
    words = shlex.split(command)
    if words[0] == "fit":
        words += FEW if "--ckpt_path" in words else (*FEW, *SMALL)
    return words


def run_python(snippet: str) -> str:
    """What a snippet prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", snippet], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_page_as_a_story(makemoe: Call) -> None:
    """All commands and snippets in their order, in one folder."""
    text = load_text("sample")[:20_000]
    for name in ("text.txt", "my.txt"):
        Path(name).write_text(text, encoding="utf-8")
    told: dict[str, Ended] = {}
    mixed = "fit --config mixtral --config my.yaml"
    for command in COMMANDS:
        if command == mixed:
            continue
        ended = told[command] = makemoe(*adapted(command))
        if command == "export --ckpt_path small --to out":
            [error] = re.findall(r"^    # (makemoe: error: .*), \.\.\.$", PAGE, re.MULTILINE)
            assert ended.status == 1
            assert error in ended.err
            assert not Path("out").exists()
        else:
            assert ended.status in (0, 3 * command.startswith("inspect")), ended.err
    assert mixed in COMMANDS
    assert told['predict --ckpt_path copy.ckpt --prompt "ROMEO:"'].out.startswith("ROMEO:")
    assert read("checkpoints/copy/last.ckpt")["global_step"] == 2
    by_transformers, by_safetensors = map(run_python, PYTHON)
    assert by_transformers.startswith("ROMEO:")
    assert len(by_transformers) == len("ROMEO:") + 100 + 1
    assert by_safetensors.split()[1] == "2"


@pytest.mark.parametrize("snippet", YAML, ids=["Qwen3", "GLM4"])
def test_a_snippet_trains_a_model_that_can_be_exported(makemoe: Call, snippet: str) -> None:
    Path("text.txt").write_text(load_text("sample")[:20_000], encoding="utf-8")
    Path("my.yaml").write_text(snippet)
    ended = makemoe(*adapted("fit --config mixtral --config my.yaml"))
    assert ended.status == 0, ended.err
    ended = makemoe("export", "--ckpt_path=last", "--to=out")
    assert ended.status == 0, ended.err
    held = json.loads(Path("out/config.json").read_text())
    assert held["architectures"] == [f"{name_in(snippet)}ForCausalLM"]


def name_in(snippet: str) -> str:
    """The architecture in the comment of a snippet."""
    return {"Qwen3-MoE": "Qwen3Moe", "GLM-4-MoE": "Glm4Moe"}[snippet.split("# ")[1].split()[0]]


def test_the_table_has_every_architecture() -> None:
    [head] = re.findall(r"^\| part of makemoe (.*)$", PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", head) == [one.name for one in KNOWN]
