"""Any model as plain weights, with its settings beside them: no other program needs to know it."""

from pathlib import Path
from typing import Any

from torch import Tensor

from makemoe import __version__
from makemoe.checkpoint.archive import damaged
from makemoe.checkpoint.format import KEY, Checkpoint
from makemoe.checkpoint.held import signature_of
from makemoe.checkpoint.inference import names_of_tied
from makemoe.data.tokenizer import Tokenizer
from makemoe.errors import CheckpointError
from makemoe.exchange.card import card
from makemoe.exchange.config import read_json
from makemoe.exchange.contents import Contents, as_json
from makemoe.model.transformer import MoETransformer

SETTINGS = "makemoe.json"
FORMAT = 1
"""Version of the settings file; increased when older versions of makemoe cannot read it."""

USE = """\
The weights have the names that they have in makemoe. {settings} holds the settings of the model
and its tokenizer.

    makemoe import --from {name} --to {name}.ckpt
    makemoe predict --ckpt_path {name}.ckpt
"""


def plain(
    checkpoint: Checkpoint, path: str, model: MoETransformer, tokenizer: Tokenizer, name: str
) -> Contents:
    """The contents of such a folder; the arguments are those of `for_transformers`."""
    held: dict[str, Tensor] = dict(model.state_dict())
    for _, *others in names_of_tied(model):
        for other in others:
            del held[other]
    accepted, _ = signature_of(MoETransformer)
    settings = checkpoint.get("hyper_parameters", {})
    contents = Contents("plain weights", held, {})
    values = {
        "format": FORMAT,
        "version": __version__,
        "model": {key: value for key, value in settings.items() if key in accepted},
        "tokenizer": checkpoint[KEY]["tokenizer"],
    }
    use = USE.format(name=name, settings=SETTINGS)
    try:
        contents.files[SETTINGS] = as_json(values)
    except TypeError:  # of a setting that only training needs, which is not checked before
        damaged(path, "a setting of its model is no plain value")
    contents.files["README.md"] = card(contents, checkpoint, model, tokenizer, name, "", use)
    return contents


def settings_in(folder: Path) -> tuple[dict[str, Any], Any]:
    """The settings of the model and the tokenizer in such a folder, unchecked.

    Raises:
        CheckpointError: for a file of another version, or without them.
    """
    path = folder / SETTINGS
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {values.get('format')!r:.30}; this is makemoe {__version__}, which "
            f"reads format {FORMAT}"
        )
    model, tokenizer = values.get("model"), values.get("tokenizer")
    if not isinstance(model, dict) or not isinstance(tokenizer, dict):
        raise CheckpointError(f"{path} lacks the settings of the model or of its tokenizer")
    return model, tokenizer
