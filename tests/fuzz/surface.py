"""What there is to set, asked of the program itself, so that new options are tried unasked."""

import inspect as introspection
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from fuzz import child

OPTION = re.compile(r"^\s+(?:-\w, )?(--[\w.]+)", re.MULTILINE)
GIVEN = {
    "ckpt_path": ("last", "best", "checkpoints/tiny/last.ckpt", "checkpoints/bias/best.ckpt"),
    "prompt": ("A", "Who bears", "\n"),
    "prompt_file": ("prompt.txt",),
    "max_new_tokens": ("1", "5"),
    "num_samples": ("1", "2", "9"),
    "temperature": ("0", "1", "0.7", "100"),
    "sample_top_k": ("1", "3"),
    "sample_top_p": ("0.5", "1"),
    "stop": ("\n", "the"),
    "show_experts": ("0",),
    "trace": ("trace.jsonl",),
    "device": ("cpu", "auto"),
    "to": ("new", "new.ckpt"),
    "from": ("plain", "."),
    "format": ("safetensors", "transformers"),
    "block_size": ("8", "4"),
    "trust": ("stranger",),
    "config": ("checkpoints/tiny/config.yaml",),
    "data.corpus": ("text.txt", "sample"),
    "data.test_corpus": ("other.txt", "text.txt"),
    "run.name": ("mine", "tiny"),
    "trainer.logger": ("false", "true"),
    "trainer.devices": ("1", "auto"),
    "trainer.max_time": ("00:00:00:02",),
    "trainer.profiler": ("simple",),
    "model.router": ("TopKRouter", "NoisyTopKRouter", "BiasedTopKRouter"),
    "model.init": ("GPT2Normal", "KaimingNormal", "XavierUniform"),
    "model.balancers": ("[SwitchLoss]", "[]"),
    "model.averaging": ("ExponentialAverage", "null"),
    "model.optimizer": ("SGD", "AdamW", "Adam"),
    "model.lr_scheduler": ("torch.optim.lr_scheduler.StepLR", "WarmupCosine"),
    "seed": ("1", "7"),
}
"""Values that are right, where the default alone says too little."""


@dataclass
class Surface:
    """The commands, the options of each, and a configuration of the defaults.

    Attributes:
        options: per command, the options without dashes; those of parts too.
        defaults: a default per option, as in YAML.
    """

    options: dict[str, list[str]] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)

    def right(self, option: str) -> tuple[str, ...]:
        """Values that this option should take."""
        known = GIVEN.get(option, ())
        default = self.defaults.get(option)
        return known if default is None else (*known, default)


def survey(scratch: Path) -> Surface:
    """Ask every command what it takes."""
    from makemoe.cli import COMMANDS, main

    os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"
    surface = Surface()

    def told(*argv: str) -> str:
        call: Callable[[], object] = partial(main, list(argv))
        return child.output_of(call, scratch / "told").decode()

    for command in COMMANDS:
        if command == "serve":  # it would listen, and not end
            continue
        found = set(OPTION.findall(told(command, "--help")))
        if "--help_all" in found:
            found |= set(OPTION.findall(told(command, "--help_all")))
            found |= {f"--{name}" for name in arguments_of_parts()}
        surface.options[command] = sorted(option[2:] for option in found)
        assert found, f"{command} --help lists no options"
    config = yaml.safe_load(told("fit", "--print_config"))
    surface.defaults = dict(flat(config))
    return surface


def flat(config: object, at: str = "") -> list[tuple[str, str]]:
    """Options and their values, as one would type them."""
    if isinstance(config, dict) and "class_path" not in config:
        return [pair for k, v in config.items() for pair in flat(v, f"{at}.{k}" if at else str(k))]
    if isinstance(config, dict | list):
        return [(at, yaml.safe_dump(config, default_flow_style=True, width=10**9).strip())]
    return [(at, "null" if config is None else str(config).lower())]


def arguments_of_parts() -> list[str]:
    """Options of the classes that take the places of parts, such as model.router.score."""
    import torch.optim

    from makemoe.data import bpe, tokenizer
    from makemoe.model import experts, init, router
    from makemoe.training import averaging, balance, optim

    places = (
        ("model.router", router, router.Router),
        ("model.experts", experts, experts.Experts),
        ("model.init", init, init.Initializer),
        ("model.balancers", balance, balance.Balancer),
        ("model.averaging", averaging, averaging.Averaging),
        ("model.lr_scheduler", optim, torch.optim.lr_scheduler.LRScheduler),
        ("model.optimizer", torch.optim, torch.optim.Optimizer),
        ("data.tokenizer", tokenizer, tokenizer.Tokenizer),
        ("data.tokenizer", bpe, tokenizer.Tokenizer),
    )
    return sorted(
        {
            f"{place}.{name}"
            for place, module, base in places
            for part in vars(module).values()
            if isinstance(part, type) and issubclass(part, base)
            for name in introspection.signature(part).parameters
        }
    )
