"""`makemoe inspect`: the contents of a checkpoint, and how evenly its experts are used."""

import argparse
import json
import math
import shutil
from collections.abc import Sequence
from textwrap import wrap
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from makemoe.checkpoint.format import KEY, Checkpoint, read
from makemoe.checkpoint.held import as_plain
from makemoe.checkpoint.inference import rebuilt
from makemoe.checkpoint.told import best_loss
from makemoe.cli.evaluation import (
    blaming_checkpoint,
    corpus_of,
    loss_line,
    reading_of,
    validation_text,
)
from makemoe.cli.options import UNHEALTHY
from makemoe.data.windows import IGNORE, ConsecutiveWindows, EvaluationBatches
from makemoe.devices import find_device
from makemoe.model.attention import Attention
from makemoe.model.experts import Experts
from makemoe.model.norm import Norm
from makemoe.model.positions import Positions
from makemoe.model.router import Router
from makemoe.model.transformer import MoETransformer
from makemoe.run import RunSettings, find_checkpoint, tell_checkpoint
from makemoe.sizes import with_prefix
from makemoe.training.affinity import SymbolCounts
from makemoe.training.averaging import KEY as AVERAGE
from makemoe.training.losses import bits_per_byte, bits_per_character
from makemoe.training.memory import keep_freed_memory
from makemoe.training.metrics import RouterStats, TokenLoss, by_name
from makemoe.training.thresholds import DEAD_BELOW, SPARE, WORKS_FROM
from makemoe.training.work import work_of

EVAL_BATCH_SIZE = 64
BAR_DELAY_S = 2.0
LABEL = 12
KINDS = {
    "router": Router,
    "experts": Experts,
    "norm": Norm,
    "positions": Positions,
    "attention": Attention,
}
"""Parts of a model, by their setting, that may derive values from their arguments."""

COLUMNS = {
    "MaxVio": "max_vio",
    "CV": "load_cv",
    "entropy": "load_entropy",
    "first": "first_weight",
}
"""Columns of the table: heading and metric."""


class Health(NamedTuple):
    """Problems of the model.

    Attributes:
        dead: (layer, expert) of experts with less than DEAD_BELOW of the mean load.
        working: per router, how many experts get WORKS_FROM of the mean load or more.
        collapsed: layers with at most `most_working_if_collapsed` working experts.
        finite: whether the loss is finite; if not, the router metrics are meaningless.
    """

    dead: list[tuple[int, int]]
    working: list[int]
    collapsed: list[int]
    finite: bool

    @property
    def is_good(self) -> bool:
        return self.finite and not self.dead and not self.collapsed


def inspect(options: argparse.Namespace) -> int:
    """Describe a checkpoint and its expert load; return the exit status.

    Args:
        options: those of `inspect_options`.
    """
    device = find_device(options.device)
    keep_freed_memory()
    path = find_checkpoint(options.ckpt_path, RunSettings(root=options.root))
    checkpoint = read(path)
    model, tokenizer = rebuilt(checkpoint, path, options.trust)
    corpus = corpus_of(path, checkpoint, options.corpus)
    named = {"data.corpus": corpus}
    text_key, split_seed = reading_of(path, checkpoint, options.text_key)
    with blaming_checkpoint(lambda: path, named.get):
        text = validation_text(corpus, tokenizer, options.unknown, text_key, split_seed)
    windows = ConsecutiveWindows(text.ids, model.block_size)
    tell_checkpoint(path, checkpoint.get("global_step"))
    val_loss, stats = evaluate(model.to(device), windows, device)
    figures = {name: figure.cpu() for name, figure in stats.figures().items()}
    layers = list(model.routers())
    health = examine(figures, model.num_experts, model.top_k, val_loss, layers)
    if options.json:
        told = as_json(path, checkpoint, model, corpus, val_loss, figures, health)
        told["val_bits_per_character"] = bits_per_character(val_loss, text.ids, tokenizer)
        told["val_bits_per_byte"] = bits_per_byte(val_loss, text.ids, tokenizer)
        print(json.dumps(without_nan(told), allow_nan=False))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        lines = [
            *description(path, checkpoint, model, width),
            "",
            *wrap(loss_line("val_loss", val_loss, text, tokenizer), width),
            *(table(figures, health, width, layers) if layers else ()),
            "",
            *verdict(health, model, width),
        ]
        print("\n".join(lines))
    return 0 if health.is_good else UNHEALTHY


# -- the validation pass


@torch.inference_mode()
def evaluate(
    model: MoETransformer,
    windows: ConsecutiveWindows,
    device: str,
    *counts: SymbolCounts,
) -> tuple[float, RouterStats]:
    """Return the exact loss in nats per token and the router metrics, as `LanguageModel.evaluate`.

    Updates `counts` too.
    """
    loss = TokenLoss().to(device)
    stats = RouterStats(len(model.routers()), model.num_experts, model.top_k).to(device)
    batches = EvaluationBatches(len(windows), EVAL_BATCH_SIZE)
    # Show a bar if it takes long and standard error is a terminal.
    for batch in tqdm(
        batches, "validate", unit="batch", delay=BAR_DELAY_S, leave=False, disable=None
    ):
        x_BT, y_BT = (part.to(device) for part in windows.__getitems__(batch))
        logits_BTV, routings = model(x_BT)
        loss.update(logits_BTV, y_BT)
        counted_N = (y_BT != IGNORE).flatten()
        stats.update(routings, counted_N)
        for count in counts:
            count.update(routings, x_BT.flatten(), counted_N)
    return loss.compute().item(), stats


def examine(
    figures: dict[str, Tensor],
    num_experts: int,
    top_k: int,
    val_loss: float,
    layers: Sequence[int] | None = None,
) -> Health:
    """Find dead experts, collapsed routers and a loss that is not finite.

    Args:
        figures: those of `RouterStats`; empty without a router.
        num_experts: experts per layer.
        top_k: experts per token.
        val_loss: nats per token.
        layers: the numbers of the routers' layers; None: all from 0.
    """
    if not figures:
        return Health([], [], [], math.isfinite(val_loss))
    even_LE = figures["load"] * num_experts
    dead = (even_LE < DEAD_BELOW).nonzero().tolist()
    working = (even_LE >= WORKS_FROM).sum(-1).tolist()
    most = most_working_if_collapsed(num_experts, top_k)
    numbers = range(len(working)) if layers is None else layers
    return Health(
        [(numbers[row], e) for row, e in dead],
        working,
        [layer for layer, count in zip(numbers, working, strict=True) if count <= most],
        math.isfinite(val_loss),
    )


def most_working_if_collapsed(num_experts: int, top_k: int) -> int:
    """Maximum number of working experts of a collapsed router; 0 if all are always chosen."""
    return math.floor(top_k + SPARE * (num_experts - top_k)) if num_experts > top_k else 0


# -- what is shown


def description(path: str, checkpoint: Checkpoint, model: MoETransformer, width: int) -> list[str]:
    """The contents of the checkpoint, as lines."""
    work = work_of(model)
    rows = {
        "written": f"by makemoe {as_plain(checkpoint[KEY].get('version'))} at step "
        f"{checkpoint.get('global_step')}",
        "parameters": f"{work.parameters:,} in total, {work.active:,} active per token",
        "work": f"{with_prefix(work.flops)}FLOPs per token of training",
        "model": settings(as_built(checkpoint, model)),
        "data": settings(as_plain(checkpoint.get("datamodule_hyper_parameters", {}))),
    }
    averaged = checkpoint.get(AVERAGE)
    if isinstance(averaged, dict) and type(steps := averaged.get("steps")) is int:
        rows["weights"] = f"the average of those after {steps:,} steps"
    best = best_loss(checkpoint)
    if best is not None:
        rows["best so far"] = f"val_loss {best:.4f} nats per token in this run"
    lines = [path]
    for name, text in rows.items():
        first, *rest = wrap(text, max(20, width - LABEL - 2)) or [""]
        lines += [f"  {name:<{LABEL}}{first}", *(" " * (LABEL + 2) + line for line in rest)]
    return lines


def as_built(checkpoint: Checkpoint, model: MoETransformer) -> dict[str, Any]:
    """The model's settings, with the values its parts derived from them (such as 0: by width)."""
    held: dict[str, Any] = as_plain(checkpoint.get("hyper_parameters", {}))
    for name, kind in KINDS.items():
        part = next((module for module in model.modules() if isinstance(module, kind)), None)
        spec = held.get(name)
        if isinstance(spec, dict) and isinstance(spec.get("init_args"), dict):
            built = {key: getattr(part, key, value) for key, value in spec["init_args"].items()}
            plain = {k: v for k, v in built.items() if isinstance(v, int | float | str)}
            held[name] = spec | {"init_args": spec["init_args"] | plain}
    return held


def settings(held: dict[str, Any]) -> str:
    """Settings as text: names and values, with classes shown without their modules."""
    left_out = ("_instantiator", "tokenizer")  # a tokenizer contains its whole vocabulary
    shown = {k: v for k, v in held.items() if k not in left_out and v is not None}
    return ", ".join(f"{name} {in_words(value)}" for name, value in shown.items())


def in_words(value: Any) -> str:
    """A setting's value as text; for a class, its name and arguments."""
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return " + ".join(map(in_words, value))
    if isinstance(value, dict) and "class_path" in value:
        given = value.get("init_args")
        arguments = settings(given) if isinstance(given, dict) else ""
        return in_words(value["class_path"]) + (f" ({arguments})" if arguments else "")
    if isinstance(value, str) and value.startswith(("makemoe.", "torch.")):
        return value.rpartition(".")[2]
    return str(value)


def table(
    figures: dict[str, Tensor], health: Health, width: int, layers: Sequence[int] | None = None
) -> list[str]:
    """One line per router and one for all; if the loads do not fit, the minimum and maximum."""
    load_LE = figures["load"]
    L, E = load_LE.shape
    numbers = list(range(L) if layers is None else layers)
    loads = [[percent(load) for load in load_E.tolist()] for load_E in load_LE]
    for layer, expert in health.dead:
        loads[numbers.index(layer)][expert] = "dead"
    dead = [sum(layer == i for i, _ in health.dead) for layer in numbers]
    of_layers = torch.stack([figures[name] for name in COLUMNS.values()], -1)
    rows = [
        [str(n), str(m), *(f"{x:.3f}" for x in row)]
        for n, m, row in zip(health.working, dead, of_layers, strict=True)
    ]
    whole = [str(sum(health.working)), str(sum(dead)), *(f"{x:.3f}" for x in of_layers.mean(0))]

    def lines(heads: list[str], loads: list[list[str]]) -> list[str]:
        return grid(
            ["layer", *heads, "work", "dead", *COLUMNS],
            *([str(numbers[i]), *loads[i], *rows[i]] for i in range(L)),
            ["all", *[""] * len(heads), *whole],
        )

    legend = "load of each expert"
    grown = lines([str(expert) for expert in range(E)], loads)
    if len(grown[0]) > width:
        legend = "min and max load"
        least, most = load_LE.amin(-1).tolist(), load_LE.amax(-1).tolist()
        grown = lines(
            ["min", "max"],
            [[percent(a), percent(b)] for a, b in zip(least, most, strict=True)],
        )
    for layer in health.collapsed:
        grown[numbers.index(layer) + 1] += " !"
    rule = "-" * len(grown[0])
    legend += (
        f" in % (mean: {percent(1 / E)}); work: experts with at least "
        f"{100 * WORKS_FROM:g} % of it; all: sums of work and dead, means of the rest"
    )
    return [*wrap(legend, width), grown[0], rule, *grown[1:-1], rule, grown[-1]]


def verdict(health: Health, model: MoETransformer, width: int) -> list[str]:
    """The verdict, with the thresholds it is based on."""
    routers = len(model.routers())
    loss = "" if health.finite else "the loss is not finite, "
    word = "healthy" if health.is_good else "not healthy"
    if not routers:
        return wrap(f"{word}: {loss}no layer has a router", width)
    dead = f"{len(health.dead)} of {routers * model.num_experts} experts dead"
    collapsed = f"{len(health.collapsed)} of {routers} routers collapsed"
    if health.collapsed:
        collapsed += f" (!): layer {', '.join(map(str, health.collapsed))}"
    most = most_working_if_collapsed(model.num_experts, model.top_k)
    rule = (
        f" (collapsed: at most {most} of {model.num_experts} experts have a load of "
        f"{100 * WORKS_FROM:g} % of the mean load or more)"
    )
    return wrap(
        f"{word}: {loss}{dead} (dead: load below "
        f"{100 * DEAD_BELOW:g} % of the mean load), {collapsed}{rule if most else ''}",
        width,
    )


def as_json(
    path: str,
    checkpoint: Checkpoint,
    model: MoETransformer,
    corpus: str,
    val_loss: float,
    figures: dict[str, Tensor],
    health: Health,
) -> dict[str, Any]:
    """The whole report; metrics have the names they are logged under."""
    layers = list(model.routers())
    return {
        "path": path,
        "step": checkpoint.get("global_step"),
        "parameters": model.count_parameters()._asdict(),
        "flops_per_token": work_of(model).flops,
        "model": as_built(checkpoint, model),
        "best_val_loss": best_loss(checkpoint),
        "corpus": corpus,
        "val_loss": val_loss,
        "val_router": {name: figure.item() for name, figure in by_name(figures, layers).items()},
        "routers": layers,
        "healthy": health.is_good,
        **health._asdict(),
    }


def without_nan(value: Any) -> Any:
    """The same value, with None for floats that JSON cannot express."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(share: float) -> str:
    """A share in percent, at most four characters."""
    return f"{100 * share:.0f}" if share >= 0.9995 else f"{100 * share:.1f}"


def grid(*rows: list[str]) -> list[str]:
    """Rows of cells as lines, right-aligned per column."""
    widths = [max(4, *map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    ]
