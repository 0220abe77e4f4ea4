"""The README.md of a folder: what the model is, its figures, and how to use it."""

import math
from pathlib import PurePath
from typing import Any

import yaml

from makemoe import __version__
from makemoe.checkpoint.format import KEY, Checkpoint
from makemoe.checkpoint.held import as_plain
from makemoe.checkpoint.told import best_loss
from makemoe.data.tokenizer import ByteTokenizer, Tokenizer
from makemoe.exchange.contents import Contents
from makemoe.model.transformer import MoETransformer

HEAD = """\
---
tags: [makemoe, mixture-of-experts]
{head}---

# {name}

A language model with sparse mixture-of-experts layers, trained with makemoe and written as {kind}.

| | |
|---|---|
"""

LIMITS = """\
## Limits

- makemoe continues a text that outgrows {block_size} tokens with the later half of its context.
  Other programs go on beyond {block_size} tokens, for which the model was not trained.
- {unknown}
- Dropout, expert capacity, balancing and the optimizer matter in training only. They are not in
  this folder.
"""


def card(
    contents: Contents,
    checkpoint: Checkpoint,
    model: MoETransformer,
    tokenizer: Tokenizer,
    name: str,
    head: str,
    use: str,
) -> bytes:
    """The whole text.

    Args:
        contents: the rest of the folder.
        checkpoint: where the figures come from.
        model: the model.
        tokenizer: its tokenizer.
        name: of the model.
        head: lines for the YAML at the beginning.
        use: how to use it.
    """
    rows = figures(contents, checkpoint, model, tokenizer)
    parts = [
        HEAD.format(name=name, kind=contents.kind, head=head)
        + "".join(f"| {key} | {value} |\n" for key, value in rows.items()),
        f"## Use\n\n{use}",
        LIMITS.format(block_size=model.block_size, unknown=of_unknown(tokenizer)),
        f"## Settings\n\n```yaml\n{settings(checkpoint)}```\n",
    ]
    return "\n".join(parts).encode(errors="backslashreplace")


def figures(
    contents: Contents, checkpoint: Checkpoint, model: MoETransformer, tokenizer: Tokenizer
) -> dict[str, str]:
    """Figures of the model, by what they are."""
    count = model.count_parameters()
    loss = best_loss(checkpoint)
    data = checkpoint.get("datamodule_hyper_parameters", {}).get("corpus")
    return {
        "parameters": f"{count.total:,} in total, {count.active:,} active per token",
        "weights": str(contents.dtype).removeprefix("torch."),
        "context": f"{model.block_size:,} tokens",
        "tokens": f"{tokenizer.vocab_size:,} ({type(tokenizer).__name__})",
        # Only its name: the path is of a machine that is not the reader's.
        "data": "unknown" if not isinstance(data, str) else in_cell(PurePath(data).name),
        "steps": f"{checkpoint.get('global_step', 0):,}",
        "lowest validation loss of the run": "unknown"
        if loss is None
        else in_units(loss, tokenizer),
        "trained by": f"makemoe {in_cell(checkpoint[KEY].get('version'))}",
        "written by": f"makemoe {__version__}",
    }


def in_units(loss: float, tokenizer: Tokenizer) -> str:
    """A loss in nats per token and, where every token is a byte, in bits per byte."""
    is_byte = isinstance(tokenizer, ByteTokenizer) and tokenizer.end_of_text is None
    return f"{loss:.4f} nats per token" + f", {loss / math.log(2):.4f} bits per byte" * is_byte


def in_cell(value: Any) -> str:
    """A value that a stranger may have chosen, in a cell of a table."""
    return str(as_plain(value))[:80].replace("|", "\\|").replace("<", "&lt;")


def of_unknown(tokenizer: Tokenizer) -> str:
    """What happens to texts that the tokenizer does not know."""
    if all(map(tokenizer.knows, ("\0", "\u0394", "\U0001f600"))):
        return "Every text can be encoded."
    return "A character that is not in the vocabulary is an error."


def settings(checkpoint: Checkpoint) -> str:
    """The settings of the model and of its training, as YAML."""
    held = as_plain(checkpoint.get("hyper_parameters", {}))
    shown = {k: v for k, v in held.items() if v is not None and not k.startswith("_")}
    return yaml.safe_dump({"model": shown}, sort_keys=False, allow_unicode=True)
